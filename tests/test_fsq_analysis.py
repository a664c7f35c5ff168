"""What an analysis of a tokenizer counts, against loops; and the page that is made of its records."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from latentlm.evaluation.tokenizers import (
    Analysis,
    digit_shares,
    edits,
    family,
    mean_edits,
    nearest,
    show,
    zipf_exponent,
)

SCRIPT = Path(__file__).parents[1] / "eval" / "experiments" / "fsq-tokenizer" / "analysis.py"


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("fsq_analysis", SCRIPT)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def slow_edits(one: bytes, other: bytes) -> int:
    if not one or not other:
        return len(one) + len(other)
    same = slow_edits(one[1:], other[1:]) + (one[0] != other[0])
    return min(same, slow_edits(one[1:], other) + 1, slow_edits(one, other[1:]) + 1)


def test_edits_are_the_fewest():
    words = [b"", b"the", b"then", b"hat", b"nest", b"ten"]
    for one in words:
        for other in words:
            assert edits(one, other) == slow_edits(one, other)
    # "the" to "then" is one edit of four bytes, to "hat" three of three.
    assert mean_edits([b"the", b"then", b"hat"], {0: [1, 2]}) == pytest.approx((1 / 4 + 3 / 3) / 2)


def test_neighbours_shares_and_ranks():
    values = torch.tensor([[0.0], [5.0], [1.0], [-1.0], [2.0]])
    assert nearest(values, 0) == [2, 3, 4, 1]  # ties by index, itself left out
    digits = np.array([[0, 1], [0, 0], [2, 1]])
    assert digit_shares(digits, (3, 2), None) == [pytest.approx([2 / 3, 0, 1 / 3], abs=1e-6), [0.333333, 0.666667]]
    assert digit_shares(digits, (3, 2), np.array([0, 1, 3])) == [[0.25, 0, 0.75], [0.25, 0.75]]
    coarse, counts = np.array([1, 2, 1, 1, 2, 1]), np.array([9, 9, 3, 5, 9, 3])
    assert family(coarse, counts, 3) == [0, 2, 5]
    assert zipf_exponent(1e6 / np.arange(1, 2000) ** 0.8) == pytest.approx(0.8)
    assert zipf_exponent(np.array([3, 1, 0])) == 0
    assert [show(piece) for piece in (b" a|b", b"`")] == ["`␣a¦b`", "`` ` ``"]


def test_a_record_holds_the_whole_analysis(script):
    analysis = Analysis(
        {"bytes": 9, "tokens": 4, "kept_256": 0.5},
        [[1, 3], [2, 1]],
        {"vocabulary": [[0.5, 0.5], [1.0, 0.0]], "text": [[0.25, 0.75], [1.0, 0.0]]},
        {"`a`": ["`b`", "`c`"]},
        {"`a`": []},
    )
    assert script.from_record(script.to_record("analysis", analysis)) == analysis


def test_the_page_is_that_of_the_records(script):
    text = (script.RESULTS / "fsq-analysis.md").read_text(encoding="utf-8")
    assert script.BLOCK.search(text) and script.page(text) == text
    for entry in (match[2] for match in script.BLOCK.finditer(text)):
        assert (script.RESULTS / "figures" / f"fsq-{entry}-digits.png").exists()
