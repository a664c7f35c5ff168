"""The cache of a causal stack whose rows advance at their own pace.

Every step works on all rows. A mask `active` says which rows take part in it, so that no shape depends on data.
"""

from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import nn

from .block_attention import Pair


class RowState:
    """Base of dataclasses of tensors whose first dimension is the row of a batch, or of lists of such tensors."""

    def select(self, index: torch.Tensor) -> Self:
        """Return copies of the rows of `index` `(n,)`: reordered, repeated or left out."""

        def chosen(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return value.index_select(0, index)
            if isinstance(value, list):
                return [chosen(part) for part in value]
            return value.select(index) if hasattr(value, "select") else value

        return type(self)(**{name: chosen(value) for name, value in self.parts().items()})

    def parts(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # pyright: ignore[reportArgumentType]


def where_active(active: torch.Tensor, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Return `new` in the active rows `(R,)`, bool, and `old` in the others; both are `(R, ...)`."""
    return torch.where(active.view(-1, *[1] * (new.ndim - 1)), new, old)


def to_items(pair: Pair) -> torch.Tensor:
    """Put the parts of a pair side by side for each symbol, `(n, T, item)`."""
    return torch.cat([states.transpose(1, 2).flatten(-2) for states in pair], -1)


def from_items(items: torch.Tensor, shapes: tuple[tuple[int, int], tuple[int, int]]) -> Pair:
    """Return the pairs of items `(n, T, item)`, whose parts have heads of these numbers and sizes."""
    (heads, size), (others, other_size) = shapes
    first, second = items.split((heads * size, others * other_size), -1)
    return first.unflatten(-1, (heads, size)).transpose(1, 2), second.unflatten(-1, (others, other_size)).transpose(
        1, 2
    )


@dataclass
class StackCache(RowState):
    """What a stack remembers of each of R rows: a ring of the last `C` symbols, or all of them in a growing one.

    Attributes:
        items: of every attention whose keys are kept, `(R, C, item)`.
        lengths: `(R,)` symbols seen.
        longest: a number that no length is above: the host knows it, where reading lengths would be waiting, and reads
            them when it reaches C.
        window: C; None where C grows.
        segment_starts: `(R,)` first symbol that may be seen; 0 but for segment-local attention.
        memory: of every layer that looks at rows, `(R, lookback + 1, item)`: a ring of the past, then the current row.
        segments: `(R,)` the number of the current row, -1 before the first.
        single: what does steps of a single row, made at the first one that is plain; False where layers are not simple.
        compile_options: arguments of `torch.compile` for steps of a single row; None where they are not compiled.
    """

    items: list[torch.Tensor]
    lengths: torch.Tensor
    longest: int
    window: int | None
    segment_starts: torch.Tensor
    memory: list[torch.Tensor]
    segments: torch.Tensor
    single: Any = None
    compile_options: dict[str, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle holds: not `single`, which has the layers' weights."""
        return self.__dict__ | {"single": None}

    def make_room(self) -> None:
        """Grow, where there is no window, if the next symbol of a row may soon have no place. Called once before a
        step."""
        if self.window is None and self.items and self.longest >= self.capacity:
            # Each step advances some rows alone, so that their lengths are read before there is twice the memory.
            self.longest = int(self.lengths.max())
            if self.longest >= self.capacity * 3 // 4:
                self.items = [nn.functional.pad(ring, (0, 0, 0, ring.shape[1])) for ring in self.items]

    @property
    def capacity(self) -> int:
        """C, the number of places of the ring."""
        return self.items[0].shape[1] if self.items else 1

    def places(self) -> torch.Tensor:
        """Return where the next symbol of each row goes, `(R, 1, 1)`. A row that is not active does not advance, so
        that its next symbol overwrites this one."""
        return (self.lengths % self.capacity).view(-1, 1, 1)

    def push(self, layer: int, places: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Write the items `(R, 1, item)` of every row's next symbol to their places, and return all items,
        `(R, C, item)`, in the order of the ring."""
        ring = self.items[layer]
        return ring.scatter_(1, places.expand_as(items), items.to(ring.dtype))

    def visible(self) -> torch.Tensor:
        """Return which places of the ring the next symbol of each row sees, itself included: `(R, 1, 1, C)`, bool."""
        last = self.lengths.view(-1, 1, 1, 1)
        age = (last - torch.arange(self.capacity, device=last.device)) % self.capacity
        return age <= last - self.segment_starts.view(-1, 1, 1, 1)

    def advance(self, active: torch.Tensor) -> None:
        """Count the symbol that was pushed as seen in the active rows `(R,)`, bool."""
        self.lengths = self.lengths + active
        self.longest += 1
