"""What the Abstractinator's codes cost and say: two-part code lengths, reconstruction from own and other codes."""

import torch
from torch import nn

from .abstractinator_base import Pyramid, make_rows
from .abstractinator_level import Compressed


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
        if not self.predicts_codes:
            raise ValueError("Two-part code lengths need a top model with `top_head` 'categorical'.")
        _, pyramid = self.model.read(input_ids, attention_mask, position_ids, known=True)
        return {"codes": self.top_nats(pyramid)} | {
            f"level_{i}": self.level_nats(pyramid, i) for i in range(1, len(pyramid.levels) + 1)
        }

    @torch.no_grad()
    def reconstruction_nats(
        self,
        input_ids: torch.LongTensor,  # (B, T)
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Nats `(R,)` of each document's symbols, from the second on, given the codes of the first level: its `own`,
        `zeroed` (rows of zeros) or `shuffled` (each segment gets the code of the one that is half the document's
        segments away). How much do codes say?"""
        rows = make_rows(input_ids, attention_mask, position_ids)
        compressed = self.model.compress_rows(rows.ids, rows.lengths)[0]
        own = self.model.levels[0].code_rows(compressed.quantized.vectors)
        return {"own": self.nats_given(compressed, own)} | self.nats_given_others(compressed, own)

    @torch.no_grad()
    def code_statistics(self, pyramid: Pyramid, scored: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the codes of a batch are worth, as sums over its documents that add up over batches and processes.

        Args:
            pyramid: of R documents, with known states.
            scored: `(R,)`, bool, which of them count.

        Returns:
            `symbols_L`, `segments_L` and, where there are codes, `codes_L` `(K,)`, how often each one of the first
            stage is used, of each level L; nats `reconstruction_own`, `_zeroed`, `_shuffled` and, with a categorical
            top model, `two_part`, as [`reconstruction_nats`] and [`code_lengths`] give them.
        """
        found, nats = {}, {}
        for i, (level, compressed) in enumerate(zip(self.model.levels, pyramid.levels, strict=True), 1):
            found[f"symbols_{i}"] = compressed.segments.lengths[scored].sum()
            found[f"segments_{i}"] = compressed.segments.count[scored].sum()
            if level.level.quantizer != "none":
                codes = compressed.quantized.codes[scored][..., 0].flatten()
                found[f"codes_{i}"] = torch.bincount(codes[codes >= 0], minlength=level.quantizer.num_codes)
        by_level = [self.level_nats(pyramid, i) for i in range(1, len(pyramid.levels) + 1)]
        own = self.model.levels[0].code_rows(pyramid.levels[0].quantized.vectors)
        others = self.nats_given_others(pyramid.levels[0], own)
        nats = {f"reconstruction_{name}": value for name, value in ({"own": by_level[0]} | others).items()}
        if self.predicts_codes:
            nats["two_part"] = self.top_nats(pyramid) + sum(by_level)
        return found | {name: value[scored].sum() for name, value in nats.items()}

    @property
    def predicts_codes(self) -> bool:
        return self.model.top is not None and self.config.top_head == "categorical"

    def top_nats(self, pyramid: Pyramid) -> torch.Tensor:
        """Nats `(R,)` of the top codes."""
        top = pyramid.levels[-1]
        exists = top.quantized.codes[..., 0] >= 0
        nats = torch.zeros(exists.shape, dtype=torch.float64, device=exists.device)
        codes = self.model.top.losses(
            pyramid.top_states[:, :-1][exists], top.quantized.codes[exists], top.vectors[exists]
        )
        return nats.masked_scatter(exists, codes.double()).sum(1)

    def level_nats(self, pyramid: Pyramid, i: int) -> torch.Tensor:
        """Nats `(R,)` of the symbols of the i-th level given its codes; the pyramid was read with known states."""
        return row_sums(self.model.levels[i - 1].head.losses, pyramid.known_states[i - 1], pyramid.levels[i - 1])

    def nats_given_others(self, compressed: Compressed, own: torch.Tensor) -> dict[str, torch.Tensor]:
        """Nats `(R,)` of the first level's symbols given other code rows than their own `(R, S, D)`."""
        count = compressed.segments.count.unsqueeze(1)
        moved = (torch.arange(own.shape[1], device=own.device) + count // 2) % count.clamp(min=1)
        shuffled = own.gather(1, moved.unsqueeze(-1).expand_as(own))
        others = {"zeroed": torch.zeros_like(own), "shuffled": shuffled}
        return {name: self.nats_given(compressed, rows) for name, rows in others.items()}

    def nats_given(self, compressed: Compressed, rows: torch.Tensor) -> torch.Tensor:
        """Nats `(R,)` of the first level's symbols given code rows `(R, S, D)`."""
        level = self.model.levels[0]
        current = nn.functional.pad(rows, (0, 0, 0, 1))
        states, _, _ = level.expand(compressed.symbols, rows, current, compressed.segments.index)
        return row_sums(level.head.losses, states, compressed)


def row_sums(losses, states: torch.Tensor, compressed: Compressed) -> torch.Tensor:
    """The nats of each row's symbols but the first, `(R,)`, float64."""
    counted = compressed.segments.real[:, 1:]
    nats = torch.zeros(counted.shape, dtype=torch.float64, device=counted.device)
    values = losses(states[:, :-1][counted], compressed.symbols[:, 1:][counted])
    return nats.masked_scatter(counted, values.double()).sum(1)
