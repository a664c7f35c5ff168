"""`benchmarks/depth.py` at toy size."""

import importlib
import sys

import pytest
import torch
from conftest import REPOSITORY

BESIDE = ("depth", "peers", "subjects", "timing")


@pytest.fixture
def depth(monkeypatch):
    """With its neighbours, of which one has the name of a folder of the experiments."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    others = {name: sys.modules.pop(name) for name in BESIDE if name in sys.modules}
    yield importlib.import_module("depth")
    for name in BESIDE:
        sys.modules.pop(name, None)
    sys.modules.update(others)


def test_models_of_a_depth_have_bodies_of_one_size_and_a_line_each(depth, capsys):
    for kind in depth.KINDS:
        width = depth.width_of(kind, 4, 3_000_000)
        with torch.device("meta"):
            assert depth.body_parameters(depth.make(kind, 4, width)) == pytest.approx(3_000_000, rel=0.05)
    depth.main(["--parameters", "20000", "--depths", "2", "--repeats", "1"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 2 |")]
    assert [line.split(" | ")[1] for line in lines] == list(depth.KINDS)
    with pytest.raises(SystemExit):
        depth.main(["--depths", "3"])
    assert "--depths 3: must be even" in capsys.readouterr().err


def test_two_streams_at_once_give_the_same_states(depth, capsys):
    depth.main(["--parameters", "20000", "--depths", "4", "--repeats", "1", "--streams"])  # compares the states
    assert sum(line.startswith("| 4 |") for line in capsys.readouterr().out.splitlines()) == 2
