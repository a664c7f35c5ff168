"""The figures of docs/figures are what their script draws, and can be read."""

import importlib
from pathlib import Path
from xml.etree import ElementTree

import pytest

FIGURES = Path(__file__).parents[1] / "docs" / "figures"


@pytest.fixture
def draw(monkeypatch):
    monkeypatch.syspath_prepend(str(FIGURES))
    return importlib.import_module("draw")


def test_committed_figures_are_what_the_script_draws(draw):
    drawn = {name: figure().to_svg() for name, figure in draw.FIGURES.items()}
    assert {path.stem: path.read_text(encoding="utf-8") for path in FIGURES.glob("*.svg")} == drawn
    for svg in drawn.values():
        assert ElementTree.fromstring(svg).tag.endswith("svg")


def test_no_text_overlaps_another_or_leaves_its_figure(draw):
    assert [problem for figure in draw.FIGURES.values() for problem in figure().collisions()] == []
    crowded = draw.Drawing(100, 50, "two texts at one place")
    crowded.text(50, 20, "one")
    crowded.text(50, 24, "two")
    crowded.text(95, 45, "far out")
    assert len(crowded.collisions()) == 2
