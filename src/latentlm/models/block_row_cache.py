"""The cache of a causal stack whose rows advance at their own pace."""

from dataclasses import dataclass, fields

import torch
from torch import nn


class RowState:
    """Base of dataclasses of tensors whose first dimension are the rows of a batch (or lists of these)."""

    def select(self, index: torch.Tensor):
        """The rows of `index` `(n,)`, copied: reordered, repeated or left out."""

        def chosen(value):
            if isinstance(value, torch.Tensor):
                return value.index_select(0, index)
            if isinstance(value, list):
                return [chosen(part) for part in value]
            return value.select(index) if hasattr(value, "select") else value

        return type(self)(**{field.name: chosen(getattr(self, field.name)) for field in fields(self)})


@dataclass
class StackCache(RowState):
    """What a stack remembers of each of R rows: a ring of the last `C` symbols, or all of them in a growing one.

    Attributes:
        items: of every layer, `(R, C, item)`.
        lengths: `(R,)` symbols seen.
        window: C; None where C grows.
        segment_starts: `(R,)` first symbol that may be seen; 0 but for segment-local attention.
        memory: of every layer that looks at rows, `(R, lookback + 1, item)`: a ring of the past, then the current row.
        segments: `(R,)` the number of the current row, -1 before the first.
    """

    items: list[torch.Tensor]
    lengths: torch.Tensor
    window: int | None
    segment_starts: torch.Tensor
    memory: list[torch.Tensor]
    segments: torch.Tensor

    def make_room(self) -> None:
        """Grow, where it has no window, if a row's next symbol has no place; once before a step."""
        if self.window is None and self.items and int(self.lengths.max()) >= self.items[0].shape[1]:
            self.items = [nn.functional.pad(ring, (0, 0, 0, ring.shape[1])) for ring in self.items]

    def push(self, layer: int, rows: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Write the items `(n, item)` of the next symbol of some rows; returns all items of these rows, `(n, C, item)`,
        which are in the order of the ring."""
        ring = self.items[layer]
        ring[rows, self.lengths[rows] % ring.shape[1]] = items.to(ring.dtype)
        return ring if len(rows) == len(ring) else ring[rows]

    def visible(self, rows: torch.Tensor, capacity: int) -> torch.Tensor:
        """Which places of the ring the next symbol of some rows sees, itself included: `(n, 1, 1, C)`."""
        last = self.lengths[rows].unsqueeze(1)
        places = torch.arange(capacity, device=last.device)
        positions = last - (last - places) % capacity
        return (positions >= self.segment_starts[rows].unsqueeze(1).clamp(min=0))[:, None, None]
