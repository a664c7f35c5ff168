"""Sums, means and histograms: what batches count adds up to what one big batch would count, with one reduction."""

import math

import pytest
import torch
from accelerate import Accelerator

from latentlm.training.metrics import Count, Counts, Histogram, Mean, Sum

CPU = torch.device("cpu")


class TwoProcesses:
    """An accelerator of two processes, the other of which has counted `numbers`; notes each reduction."""

    def __init__(self, numbers: torch.Tensor):
        self.numbers, self.reductions = numbers, 0

    def reduce(self, numbers: torch.Tensor) -> torch.Tensor:
        self.reductions += 1
        return numbers + self.numbers


def counts_of(values: list[float], codes: list[int]) -> dict[str, Count]:
    """What a batch of values and codes counts."""
    index = torch.tensor(codes)
    return {
        "rows": Sum(torch.tensor(len(values))),
        "loss": Mean(torch.tensor(sum(values)), len(values)),
        "level": Histogram(index.clamp(min=0), index >= 0, 5),
    }


def test_batches_and_processes_add_up():
    """Two batches here and one there; code -1 is none, and the same code in one batch counts twice."""
    here, there = Counts(CPU), Counts(CPU)
    here.add(counts_of([1.0, 2.0, 4.0], [0, 3, 3]))
    here.add(counts_of([8.0], [-1]))
    there.add(counts_of([0.5, 0.25], [3, 1]))
    processes = TwoProcesses(torch.cat(list(there.numbers.values())))
    totals = here.reduce(processes)
    assert processes.reductions == 1
    assert totals.numbers["level"].tolist() == [1, 1, 0, 3, 0]
    shares = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    assert totals.results() == {
        "rows": 6,
        "loss": pytest.approx(15.75 / 6, rel=1e-15),
        "level_perplexity": pytest.approx(torch.special.entr(shares).sum().exp().item(), rel=1e-12),
        "level_codes_used": 3 / 5,
    }
    assert totals.pop("rows").item() == 6 and "rows" not in totals.results()


def test_sums_are_exact_beyond_float32():
    counts = Counts(CPU)
    counts.add({"tokens": Sum(torch.tensor(2.0**24))})
    counts.add({"tokens": Sum(torch.tensor(1.0))})
    assert counts.reduce(Accelerator(cpu=True)).results() == {"tokens": 2**24 + 1}


def test_a_mean_of_nothing_has_no_result():
    counts = Counts(CPU)
    counts.add({"accuracy": Mean(torch.tensor(0), torch.tensor(0)), "loss": Mean(math.pi, 1)})
    assert counts.reduce(Accelerator(cpu=True)).results() == {"loss": math.pi}
    assert Counts(CPU).reduce(Accelerator(cpu=True)).results() == {}


def test_a_histogram_of_counts_is_that_of_its_codes():
    by_code, by_count = Counts(CPU), Counts(CPU)
    codes = torch.tensor([4, 0, 4, 1])
    by_code.add({"level": Histogram(codes, torch.ones(4), 6)})
    by_count.add({"level": Histogram.of_counts(torch.bincount(codes, minlength=6))})
    assert torch.equal(by_code.numbers["level"], by_count.numbers["level"])
