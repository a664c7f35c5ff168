"""Losses, logits, gradients and generated tokens of every architecture and option are those on record (golden.py)."""

import json
from typing import Any

import pytest
from golden import FILE, cases

RECORD = json.loads(FILE.read_text(encoding="utf-8"))
CASES = {name: case for name, case in cases() if name in RECORD}  # options that came later have tests of their own


def assert_near(found: Any, expected: Any, where: str) -> None:
    """Numbers within what the processors of different machines make of the same sums; ids and codes equal."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name, value in expected.items():
            assert_near(found[name], value, f"{where}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for part, value in zip(found, expected, strict=True):
            assert_near(part, value, where)
    elif isinstance(expected, int):
        assert found == expected, where
    else:
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5), where


def test_every_record_has_a_case():
    assert CASES.keys() == RECORD.keys()


@pytest.mark.parametrize("name", CASES)
def test_what_is_computed_is_on_record(name: str):
    assert_near(CASES[name](), RECORD[name], name)
