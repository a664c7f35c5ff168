"""Every architecture trains on two processes as on one: losses, metrics, weights, codebooks, the PID loop."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from safetensors.torch import load_file
from train_each_architecture import train, trainings
from training_setup import metrics_of

TESTS = Path(__file__).parent
TWO_PROCESSES = TESTS.parent / "examples" / "accelerate" / "two_cpu_processes.yaml"


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """Folder of what two processes trained, each with half of the batch; once for all workers of pytest."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "two"
    with FileLock(f"{folder}.lock"):
        if not (folder / "finished").exists():
            train_on_two(folder)
            (folder / "finished").touch()
    return folder


def train_on_two(folder: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", TWO_PROCESSES]
    command += ["--main_process_port", "0", TESTS / "train_each_architecture.py", folder]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-10_000:]


def metrics_without_times(folder: Path) -> list[dict[str, float]]:
    """`metrics_of` knows the times of one evaluation set by their names; here are two."""
    return [
        {name: value for name, value in entry.items() if not name.endswith(("runtime", "per_second"))}
        for entry in metrics_of(folder)
    ]


@pytest.mark.two_process
@pytest.mark.parametrize("name, checkpointing", list(trainings()))
def test_two_processes_equal_one(two: Path, tmp_path: Path, name: str, checkpointing: bool):
    train(name, tmp_path, 8, checkpointing)
    folder = two / f"{name}-{checkpointing}"
    found, expected = metrics_without_times(folder), metrics_without_times(tmp_path)
    assert {"eval_few_loss", "eval_many_loss"} <= {metric for entry in expected for metric in entry}
    for entry, other in zip(found, expected, strict=True):
        assert entry == pytest.approx(other, rel=1e-4, abs=1e-6)
    weights = load_file(folder / "model.safetensors")
    for key, value in load_file(tmp_path / "model.safetensors").items():
        difference = (weights[key].double() - value.double()).abs()
        assert (difference <= 1e-5 + 1e-4 * value.abs()).all(), (key, difference.max())
    if (tmp_path / "pid.json").exists():
        state, expected_state = (json.loads((path / "pid.json").read_text()) for path in (folder, tmp_path))
        assert state == {
            key: pytest.approx(value, rel=1e-4, abs=1e-6) if value is not None else None
            for key, value in expected_state.items()
        }
