"""Metrics over many batches and processes, with one reduction at the end.

A batch adds [`Sum`], [`Mean`] and [`Histogram`] by name to [`Counts`]. At the end [`Counts.reduce`] sums over all
processes in one operation, and [`Totals`] computes the results. No other communication takes place, so each count must
have the same size on all processes. For example, a set of codes is counted as a histogram. Sums are float64, and stay
on the device until the reduction.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator

from latentlm.models.block_quantization import code_usage

Number = torch.Tensor | float
"""A tensor with one element, or a Python number."""


class Count(Protocol):
    """The contribution of a batch, which consists of `size` numbers, and the results of their sums over all batches."""

    @property
    def size(self) -> int: ...

    def add_to(self, numbers: torch.Tensor) -> None:
        """Add the contribution to the sums `(size,)`, float64, in place."""
        ...

    @staticmethod
    def results(name: str, numbers: torch.Tensor) -> dict[str, float]:
        """Return the results, by name, of the sums `(size,)` over all batches and processes."""
        ...


@dataclass(frozen=True)
class Sum:
    """A number whose result is its sum."""

    value: Number

    size = 1

    def add_to(self, numbers: torch.Tensor) -> None:
        numbers += on(numbers.device, self.value)

    @staticmethod
    def results(name: str, numbers: torch.Tensor) -> dict[str, float]:
        return {name: numbers.item()}


@dataclass(frozen=True)
class Mean:
    """A mean, which is the sum of `total` divided by that of `weight`. It has no result if the latter is 0."""

    total: Number
    weight: Number

    size = 2

    def add_to(self, numbers: torch.Tensor) -> None:
        numbers[0] += on(numbers.device, self.total)
        numbers[1] += on(numbers.device, self.weight)

    @staticmethod
    def results(name: str, numbers: torch.Tensor) -> dict[str, float]:
        total, weight = numbers.tolist()
        return {name: total / weight} if weight else {}


@dataclass(frozen=True)
class Histogram:
    """The number of uses of each of `size` codes. The results are `<name>_perplexity`, and `<name>_codes_used`, the
    share of the codes that are used.

    Attributes:
        codes: `(n,)`, int64, in [0, size).
        times: `(n,)`, number of uses of each of them in this batch.
        size: number of all codes.
    """

    codes: torch.Tensor
    times: torch.Tensor
    size: int

    @classmethod
    def of_counts(cls, counts: torch.Tensor) -> "Histogram":
        """Return the histogram with the numbers of uses `counts` `(size,)`."""
        return cls(torch.arange(len(counts), device=counts.device), counts, len(counts))

    def add_to(self, numbers: torch.Tensor) -> None:
        numbers.index_add_(0, self.codes.to(numbers.device), self.times.to(numbers))

    @staticmethod
    def results(name: str, numbers: torch.Tensor) -> dict[str, float]:
        perplexity, share = code_usage(numbers)
        return {f"{name}_perplexity": perplexity, f"{name}_codes_used": share}


@dataclass
class Totals:
    """Sums over all batches and processes.

    Attributes:
        kinds: the class of each count, by name.
        numbers: the sums `(size,)` of each count, by name, float64, on the CPU.
    """

    kinds: dict[str, type[Count]]
    numbers: dict[str, torch.Tensor]

    def pop(self, name: str) -> torch.Tensor:
        """Remove a count and return its sums `(size,)`."""
        del self.kinds[name]
        return self.numbers.pop(name)

    def results(self) -> dict[str, float]:
        """Return the results of all counts, by name."""
        parts = (kind.results(name, self.numbers[name]) for name, kind in self.kinds.items())
        return {name: value for part in parts for name, value in part.items()}


class Counts:
    """Running sums of the counts of batches on one process. All processes must count the same names in the same
    order."""

    def __init__(self, device: torch.device):
        self.device = device
        self.kinds: dict[str, type[Count]] = {}
        self.numbers: dict[str, torch.Tensor] = {}

    def add(self, counts: dict[str, Count]) -> None:
        """Add the counts of one batch of this process."""
        for name, count in counts.items():
            if name not in self.kinds:
                self.kinds[name] = type(count)
                self.numbers[name] = torch.zeros(count.size, dtype=torch.float64, device=self.device)
            count.add_to(self.numbers[name])

    def reduce(self, accelerator: Accelerator) -> Totals:
        """Return the sums over all processes, each of which must call this method."""
        if not self.numbers:
            return Totals({}, {})
        sizes = [len(numbers) for numbers in self.numbers.values()]
        flat = accelerator.reduce(torch.cat(list(self.numbers.values())))
        assert isinstance(flat, torch.Tensor)
        return Totals(dict(self.kinds), dict(zip(self.numbers, flat.cpu().split(sizes), strict=True)))


def on(device: torch.device, value: Number) -> Number:
    """Return a number on `device`, where the sums are. A model may be spread over several devices."""
    return value.detach().to(device) if isinstance(value, torch.Tensor) else value
