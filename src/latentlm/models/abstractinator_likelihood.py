"""What the Abstractinator's codes cost and say: two-part code lengths, reconstruction from own and other codes."""

import torch
from torch import nn

from .abstractinator_base import make_rows
from .abstractinator_level import Compressed

KNOWN_CODES = ("own", "zeroed", "shuffled")


class AbstractinatorLikelihood:
    """Goes among the bases of the model, which has `model` and `config`."""

    @torch.no_grad()
    def code_lengths(
        self,
        input_ids: torch.LongTensor,  # (B, T)
        attention_mask: torch.Tensor | None = None,  # (B, T)
        position_ids: torch.Tensor | None = None,  # (B, T), restarting at 0 for each packed document
    ) -> dict[str, torch.Tensor]:
        """Nats `(R,)`, float64, of sending each document in two parts: `codes`, its top codes, then `level_1`,
        `level_2`, ..., the symbols of each level given the codes above. The first id is known to the receiver;
        segments cost nothing, being a function of what was decoded. R is B where nothing is packed.

        Raises:
            ValueError: if there is no top model with a categorical head.
        """
        if self.model.top is None or self.config.top_head != "categorical":
            raise ValueError("Two-part code lengths need a top model with `top_head` 'categorical'.")
        _, pyramid = self.model.read(input_ids, attention_mask, position_ids, known=True)
        top = pyramid.levels[-1]
        exists = top.quantized.codes[..., 0] >= 0
        nats = torch.zeros(exists.shape, dtype=torch.float64, device=exists.device)
        codes = self.model.top.losses(
            pyramid.top_states[:, :-1][exists], top.quantized.codes[exists], top.vectors[exists]
        )
        parts = {"codes": nats.masked_scatter(exists, codes.double()).sum(1)}
        for i, (level, compressed) in enumerate(zip(self.model.levels, pyramid.levels, strict=True)):
            parts[f"level_{i + 1}"] = row_sums(level.head.losses, pyramid.known_states[i], compressed)
        return parts

    @torch.no_grad()
    def reconstruction_nats(
        self,
        input_ids: torch.LongTensor,  # (B, T)
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Nats `(R,)` of each document's symbols, from the second on, given the codes of the first level: its `own`,
        `zeroed` (rows of zeros) or `shuffled` (each segment gets the code of another one). How much do codes say?"""
        rows = make_rows(input_ids, attention_mask, position_ids)
        compressed, level = self.model.compress_rows(rows.ids, rows.lengths)[0], self.model.levels[0]
        own = level.code_rows(compressed.quantized.vectors)
        size = own.shape[1]
        real = torch.arange(size, device=own.device) < compressed.segments.count.unsqueeze(1)
        moved = own[real].roll(max(int(real.sum()) // 2, 1), 0)
        given = (own, torch.zeros_like(own), own.masked_scatter(real.unsqueeze(-1), moved))
        found = {}
        for name, known in zip(KNOWN_CODES, given, strict=True):
            current = nn.functional.pad(known, (0, 0, 0, 1))
            states, _, _ = level.expand(compressed.symbols, known, current, compressed.segments.index)
            found[name] = row_sums(level.head.losses, states, compressed)
        return found


def row_sums(losses, states: torch.Tensor, compressed: Compressed) -> torch.Tensor:
    """The nats of each row's symbols but the first, `(R,)`, float64."""
    counted = compressed.segments.real[:, 1:]
    nats = torch.zeros(counted.shape, dtype=torch.float64, device=counted.device)
    values = losses(states[:, :-1][counted], compressed.symbols[:, 1:][counted])
    return nats.masked_scatter(counted, values.double()).sum(1)
