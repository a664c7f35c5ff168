"""Ragged rows: the real positions of a batch laid out anew, several short sequences in a row or one in each."""

from dataclasses import dataclass

import torch


@dataclass
class RaggedRows:
    """Where the positions of a batch `(B, T)` lie in R rows of L slots. Both directions are gathers of known size.

    Attributes:
        slot: `(B, T)`, int64: the place of each position in the flattened rows; R * L where it has none.
        source: `(R, L)`, int64: the position, in the flattened batch, that fills each slot; B * T where none does.
    """

    slot: torch.Tensor
    source: torch.Tensor

    @classmethod
    def from_slots(cls, slot: torch.Tensor, num_rows: int, row_length: int) -> "RaggedRows":
        """The rows of known slots `(B, T)`; R * L stands for none."""
        size = num_rows * row_length
        places = torch.arange(slot.numel(), device=slot.device)
        source = torch.full((size + 1,), slot.numel(), device=slot.device).scatter(0, slot.flatten(), places)
        return cls(slot, source[:size].view(num_rows, row_length))

    def to_rows(self, values: torch.Tensor, fill: float = 0) -> torch.Tensor:
        """Values `(B, T, ...)` as `(R, L, ...)`, `fill` where a slot is empty."""
        return take(values, self.source, fill)

    def from_rows(self, values: torch.Tensor, fill: float = 0) -> torch.Tensor:
        """Values `(R, L, ...)` as `(B, T, ...)`, `fill` where a position has no slot."""
        return take(values, self.slot, fill)


def take(values: torch.Tensor, places: torch.Tensor, fill: float = 0) -> torch.Tensor:
    """Of values `(M, K, ...)`, flattened, those at `places` `(…)` of the first two dimensions; `fill` at M * K."""
    flat = values.flatten(0, 1)
    flat = torch.cat((flat, flat.new_full((1, *flat.shape[1:]), fill)))
    return flat.index_select(0, places.flatten()).unflatten(0, places.shape)
