"""Ragged rows: the real positions of a batch laid out anew, with several short sequences in a row or one in each."""

from dataclasses import dataclass

import torch


@dataclass
class RaggedRows:
    """The layout of the positions of a batch `(B, T)` in R rows of L slots. Both directions are gathers of known size.

    Attributes:
        slot: `(B, T)`, int64: the place of each position in the flattened rows; R * L where it has none.
        source: `(R, L)`, int64: the position, in the flattened batch, that fills each slot; B * T where none does.
    """

    slot: torch.Tensor
    source: torch.Tensor

    @classmethod
    def from_slots(cls, slot: torch.Tensor, num_rows: int, row_length: int) -> "RaggedRows":
        """Make the rows for known slots `(B, T)`; a slot of R * L stands for none."""
        size = num_rows * row_length
        places = torch.arange(slot.numel(), device=slot.device)
        source = torch.full((size + 1,), slot.numel(), device=slot.device).scatter(0, slot.flatten(), places)
        return cls(slot, source[:size].view(num_rows, row_length))

    @classmethod
    def left_aligned(cls, real: torch.Tensor) -> "RaggedRows":
        """Make a row of each row of a batch, with its real positions `(B, T)`, bool, moved to the left."""
        batch, length = real.shape
        row = torch.arange(batch, device=real.device).unsqueeze(1)
        slot = row * length + real.long().cumsum(1) - 1
        return cls.from_slots(slot.where(real, batch * length), batch, length)

    @property
    def lengths(self) -> torch.Tensor:
        """The number of filled slots of each row, `(R,)`."""
        return (self.source < self.slot.numel()).sum(1)

    def to_rows(self, values: torch.Tensor, fill: float = 0) -> torch.Tensor:
        """Lay values `(B, T, ...)` out as `(R, L, ...)`, with `fill` where a slot is empty."""
        return take(values, self.source, fill)

    def from_rows(self, values: torch.Tensor, fill: float = 0) -> torch.Tensor:
        """Lay values `(R, L, ...)` out as `(B, T, ...)`, with `fill` where a position has no slot."""
        return take(values, self.slot, fill)


@dataclass
class Documents:
    """The documents of a batch `(B, T)` whose rows hold several documents each, one after the other.

    Attributes:
        total: `()`, int64, how many there are, at least one in each row.
        real: `(B, T)`, bool, which positions are those of documents.
        number: `(B, T)`, int64, the document of each real position, counted over the batch.
        offset: `(B, T)`, int64, where in its document a real position is.
    """

    total: torch.Tensor
    real: torch.Tensor
    number: torch.Tensor
    offset: torch.Tensor

    @classmethod
    def of(cls, real: torch.Tensor, position_ids: torch.Tensor) -> "Documents":
        """Find the documents by the real positions `(B, T)`, bool, and `position_ids` `(B or 1, T)`, which are 0 where
        a document begins."""
        before = real.long().cumsum(1) - real.long()
        begins = real & ((position_ids == 0) | (before == 0))
        count = begins.sum(1).clamp(min=1)
        number = (count.cumsum(0) - count).unsqueeze(1) + begins.long().cumsum(1) - 1
        offset = before - before.where(begins, 0).cummax(1).values
        return cls(count.sum(), real, number, offset)

    @property
    def longest(self) -> torch.Tensor:
        """The length of the longest document, `()`."""
        return self.offset.where(self.real, -1).amax() + 1

    def rows(self, num_rows: int, row_length: int) -> RaggedRows:
        """Lay each document out as a row; rows in excess of the documents stay empty."""
        slot = self.number * row_length + self.offset
        return RaggedRows.from_slots(slot.where(self.real, num_rows * row_length), num_rows, row_length)


def take(values: torch.Tensor, places: torch.Tensor, fill: float = 0) -> torch.Tensor:
    """Take from values `(M, K, ...)`, flattened over the first two dimensions, those at `places` `(…)`; `fill` at place
    M * K."""
    flat = values.flatten(0, 1)
    flat = torch.cat((flat, flat.new_full((1, *flat.shape[1:]), fill)))
    return flat.index_select(0, places.flatten()).unflatten(0, places.shape)


def bucket(size: int, limit: int, least: int = 8) -> int:
    """Round `size` up to one of few sizes, so that shapes, and what is compiled for them, recur: to a multiple of
    `least` and of an eighth of the power of two below it, but to `limit` at most."""
    step = max(least, 1 << max(size.bit_length() - 4, 0))
    return min(-(-size // step) * step, limit)
