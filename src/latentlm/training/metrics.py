"""Numbers of many batches on many processes: each declares how it adds up, and all are reduced once.

A batch adds [`Sum`], [`Mean`] and [`Histogram`] by name to [`Counts`]; at the end [`Counts.reduce`] adds up all
processes in one operation, and the [`Totals`] say the results. Nothing else crosses from one process to another, so
what is counted must have the same size everywhere: a set of codes is a histogram, never a list of them. Sums are
float64, and stay on the device until then.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator

from latentlm.models.block_quantization import code_usage

Number = torch.Tensor | float
"""A tensor with one element, or a Python number."""


class Count(Protocol):
    """What a batch adds: `size` numbers, and what their sums over all batches say."""

    @property
    def size(self) -> int: ...

    def add_to(self, numbers: torch.Tensor) -> None:
        """Add to the sums `(size,)`, float64, in place."""
        ...

    @staticmethod
    def results(name: str, numbers: torch.Tensor) -> dict[str, float]:
        """The results, by name, of the sums `(size,)` over all batches and processes."""
        ...


@dataclass(frozen=True)
class Sum:
    """A number that adds up."""

    value: Number

    size = 1

    def add_to(self, numbers: torch.Tensor) -> None:
        numbers += on(numbers.device, self.value)

    @staticmethod
    def results(name: str, numbers: torch.Tensor) -> dict[str, float]:
        return {name: numbers.item()}


@dataclass(frozen=True)
class Mean:
    """`total` divided by `weight`, after both have been added up; without any weight there is no result."""

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
    """How often each of `size` codes is used; results are `<name>_perplexity` and `<name>_codes_used`, a share.

    Attributes:
        codes: `(n,)`, int64, in [0, size).
        times: `(n,)`, how often each is used here.
        size: number of codes that there are.
    """

    codes: torch.Tensor
    times: torch.Tensor
    size: int

    @classmethod
    def of_counts(cls, counts: torch.Tensor) -> "Histogram":
        """The histogram of `counts` `(size,)`."""
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
        kinds: what each name was counted as.
        numbers: the sums `(size,)` of each, float64, on the CPU.
    """

    kinds: dict[str, type[Count]]
    numbers: dict[str, torch.Tensor]

    def pop(self, name: str) -> torch.Tensor:
        """Take out the sums `(size,)` of one name, which has no results of its own then."""
        del self.kinds[name]
        return self.numbers.pop(name)

    def results(self) -> dict[str, float]:
        """The results of all counts, by name."""
        parts = (kind.results(name, self.numbers[name]) for name, kind in self.kinds.items())
        return {name: value for part in parts for name, value in part.items()}


class Counts:
    """Sums of what batches count; see the module. All processes count the same names in the same order."""

    def __init__(self, device: torch.device):
        self.device = device
        self.kinds: dict[str, type[Count]] = {}
        self.numbers: dict[str, torch.Tensor] = {}

    def add(self, counts: dict[str, Count]) -> None:
        """Count one batch of this process."""
        for name, count in counts.items():
            if name not in self.kinds:
                self.kinds[name] = type(count)
                self.numbers[name] = torch.zeros(count.size, dtype=torch.float64, device=self.device)
            count.add_to(self.numbers[name])

    def reduce(self, accelerator: Accelerator) -> Totals:
        """Add up all processes, each of which must call this."""
        if not self.numbers:
            return Totals({}, {})
        sizes = [len(numbers) for numbers in self.numbers.values()]
        flat = accelerator.reduce(torch.cat(list(self.numbers.values())))
        assert isinstance(flat, torch.Tensor)
        return Totals(dict(self.kinds), dict(zip(self.numbers, flat.cpu().split(sizes), strict=True)))


def on(device: torch.device, value: Number) -> Number:
    """A number where it can be added to sums on `device`; models may spread over several."""
    return value.detach().to(device) if isinstance(value, torch.Tensor) else value
