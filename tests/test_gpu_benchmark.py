"""`benchmarks/gpu.py` at toy size: every stage runs on a CPU, and what must be equal is."""

import re
import subprocess
import sys
from pathlib import Path

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
