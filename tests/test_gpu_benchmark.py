"""`benchmarks/gpu.py` at toy size: every stage runs on a CPU, and what must be equal is."""

import importlib
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SUBJECTS = ("decoder_only", "ar_encoder_decoder", "parallel_encoder_decoder", "encodzall", "abstractinator")


def run_stage(name: str) -> dict[str, tuple[float, str]]:
    """The rows that a stage prints: value and note by name."""
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--toy", "--stage", name]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert printed.returncode == 0, printed.stderr[-2000:]
    rows = re.findall(r"^\| (.+?) \| (\S+) \| (.*) \|$", printed.stdout, re.MULTILINE)
    return {what: (float(value), note) for what, value, note in rows}


@pytest.mark.slow
def test_every_variant_equals_eager_attention():
    rows = run_stage("correctness")
    assert not [row for row in rows.items() if "WRONG" in row[1][1]]
    for subject in SUBJECTS:
        for variant in ("sdpa", "sdpa, bf16", "FSDP2 on one device", "compiled"):
            assert {f"{subject}, {variant}, relative error of {what}" for what in ("logits", "gradients")} <= set(rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "last"),
    [("training", "compiled, MFU"), ("decoding", "eager, batch 2, bytes/s")],
)
def test_every_architecture_is_timed(stage, last):
    rows = run_stage(stage)
    for subject in SUBJECTS:
        values = [value for what, (value, _) in rows.items() if what.startswith(subject) and what.endswith(last)]
        assert len(values) == 1 and values[0] > 0


@pytest.mark.slow
def test_streams_are_timed_at_three_depths():
    rows = run_stage("streams")
    for subject in SUBJECTS[:3]:
        assert len([what for what in rows if what.startswith(f"{subject}, depth") and what.endswith("forward, ms")]) > 2


@pytest.mark.slow
def test_a_run_is_scored():
    [(what, (value, _))] = run_stage("runs").items()
    assert what == "smoke ngram 0" and 0 < value < 9


# ---- What happens to rows and processes ----


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """The script, whose records lie in a folder of the test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    beside = ("gpu", "subjects", "timing")
    others = {name: sys.modules.pop(name) for name in beside if name in sys.modules}
    module = importlib.import_module("gpu")
    monkeypatch.setattr(module, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(module, "PARTIAL", tmp_path / "runs")
    monkeypatch.setattr(module, "machine", lambda: "a machine")
    yield module
    for name in beside:
        sys.modules.pop(name, None)
    sys.modules.update(others)


@pytest.mark.parametrize(
    ("status", "names", "kept"),
    [
        (0, ["one", "two"], True),
        (0, ["one"], True),  # what is no longer measured goes
        (1, ["one"], False),
        (None, ["one"], False),
        (None, ["one", "two"], True),
    ],
)
def test_a_stage_that_is_run_again_replaces_its_record_unless_rows_are_lost(
    gpu, monkeypatch, tmp_path, capsys, status, names, kept
):
    rows, record = (tmp_path / folder / "gpu" / "decoding-0.json" for folder in ("runs", "records"))
    earlier = gpu.Record("gpu", "decoding", "decoding", source=gpu.MEASURED, metrics={"one": 1.0, "two": 1.0})
    gpu.write_record(earlier, gpu.RECORDS)
    gpu.write_record(earlier, gpu.PARTIAL)

    def measure(toy):
        for i, name in enumerate(names, 1):
            yield name, 2.0, "failed" if status else "bytes/s"
            assert len(gpu.read_record(rows).metrics) == i  # written at once, and nothing of another time

    def run_process(command, seconds, environment):
        with suppress(SystemExit):
            gpu.run_stage("decoding", toy=False)
        return status

    monkeypatch.setitem(gpu.STAGES, "decoding", measure)
    monkeypatch.setattr(gpu, "run_process", run_process)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--only", "decoding"])
    with suppress(SystemExit):
        gpu.main()
    metrics = dict.fromkeys(names, 2.0)
    assert gpu.read_record(record).metrics == (metrics if kept else earlier.metrics)
    assert gpu.read_record(rows).metrics == metrics
    assert ("it has no two" in capsys.readouterr().out) == (not kept)


def test_a_stage_that_is_cut_short_leaves_no_process(gpu, monkeypatch, tmp_path):
    """Neither what it has started nor the daemon that lets processes share a GPU."""
    log, survived = tmp_path / "log", tmp_path / "survived"
    control = tmp_path / "nvidia-cuda-mps-control"
    control.write_text(f'#!/bin/sh\necho "$CUDA_MPS_PIPE_DIRECTORY $* $([ -n "$1" ] || cat)" >> {log}\n')
    control.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    seen = SimpleNamespace()

    def run_process(command, seconds, environment):
        seen.environment = environment
        assert run_it(["sh", "-c", f"(sleep 2; touch {survived}) & wait"], 0.5, environment) is None

    run_it = gpu.run_process
    monkeypatch.setattr(gpu, "run_process", run_process)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--only", "runs"])
    gpu.main()
    time.sleep(2.5)
    assert not survived.exists()
    folder = seen.environment["CUDA_MPS_PIPE_DIRECTORY"]
    assert log.read_text().split("\n")[:2] == [f"{folder} -d ", f"{folder}  quit"] and not Path(folder).exists()
