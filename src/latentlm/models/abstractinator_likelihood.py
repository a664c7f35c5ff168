"""The cost and the information of the Abstractinator's codes: two-part code lengths, and reconstruction from a
document's own codes and from others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .abstractinator_base import Pyramid, make_rows
from .abstractinator_level import Compressed


@dataclass
class CodeNats:
    """The nats of codes, and of symbols given the codes; float32, with gradients.

    Attributes:
        levels: `(R, T - 1)`, nats of each level's symbols, from the second on, given their codes; None where a pyramid
            was computed without known states.
        top: `(R, S)`, nats of the top codes, or the squared errors of their vectors; None without a top model.
    """

    levels: list[torch.Tensor] | None
    top: torch.Tensor | None

    @property
    def parts(self) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the nats of the top codes and of each level: all that is sent of a document."""
        assert self.top is not None and self.levels is not None
        return self.top, self.levels


class AbstractinatorLikelihood:
    """Mixin of the model, which has `model` and `config`."""

    config: Any
    model: Any

    @torch.no_grad()
    def code_lengths(
        self,
        input_ids: torch.LongTensor,  # (B, T)
        attention_mask: torch.Tensor | None = None,  # (B, T)
        position_ids: torch.Tensor | None = None,  # (B, T), restarting at 0 for each packed document
    ) -> dict[str, torch.Tensor]:
        """Return the nats `(R,)`, float64, of sending each document in two parts.

        The parts are `codes`, its top codes, then `level_1`, `level_2`, ..., the symbols of each level given the codes
        above. The receiver knows the first id. Segments cost nothing, since they are a function of what was decoded. R
        is B where nothing is packed.

        Raises:
            ValueError: if there is no top model with a categorical head.
        """
        if not self.predicts_codes:
            raise ValueError("Two-part code lengths need a top model with `top_head` 'categorical'.")
        mask = self.model.mask_of_rows(input_ids, attention_mask)
        rows, pyramid = self.model.read(input_ids, mask, position_ids, known=True)
        top, levels = self.code_nats(pyramid).parts
        parts = {"codes": top} | {f"level_{i}": level for i, level in enumerate(levels, 1)}
        return {name: values.double().sum(1)[: rows.num_documents] for name, values in parts.items()}

    @torch.no_grad()
    def reconstruction_nats(
        self,
        input_ids: torch.LongTensor,  # (B, T)
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the nats `(R,)` of each document's symbols, from the second on, given codes of the first level: its
        `own`, `zeroed` (rows of zeros) or `shuffled` (each segment gets the code of the segment half the document
        away). The differences measure how much information the codes carry."""
        mask = self.model.mask_of_rows(input_ids, attention_mask)
        rows = make_rows(input_ids, mask, position_ids, self.config.max_position_embeddings)
        compressed = self.model.compress_rows(rows.ids, rows.lengths)[0]
        own = self.model.levels[0].code_rows(compressed.quantized.vectors)
        nats = self.nats_given(compressed, {"own": own} | other_rows(compressed, own))
        return {name: values.double().sum(1)[: rows.num_documents] for name, values in nats.items()}

    @torch.no_grad()
    def code_statistics(self, pyramid: Pyramid, nats: CodeNats, scored: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return statistics of the codes of a batch, as sums that add up over batches and processes.

        What counts is the scored symbols, and the segments that hold one. The first symbol of a document counts where
        the second does.

        Args:
            pyramid: of R documents.
            nats: of the pyramid, with known states.
            scored: `(R, T)`, bool, whether the symbol after each is scored.

        Returns:
            For each level L `symbols_L`, `segments_L` and, where there are codes, `codes_L` `(K,)`, how often each code
            of the first stage is used; the nats `reconstruction_own`, `_zeroed`, `_shuffled` and, with a categorical
            top model, `two_part`, as [`reconstruction_nats`] and [`code_lengths`] give them for whole documents.
        """
        assert nats.levels is not None
        sums: dict[str, torch.Tensor] = {}
        sent: list[torch.Tensor] = []  # nats of what counts
        counts = torch.cat((scored[:, :1], scored[:, :-1]), 1)  # (R, T), whether a symbol counts
        for i, (level, compressed) in enumerate(zip(self.model.levels, pyramid.levels, strict=True), 1):
            if i > 1:
                counts = torch.cat((counts[:, :1], counts), 1)  # segments are symbols after a begin
            counts = counts & compressed.segments.real
            sums[f"symbols_{i}"] = counts.sum()
            sent.append(nats.levels[i - 1] * counts[:, 1:])
            counts = compressed.segments.totals(counts.long(), compressed.vectors.shape[1]) > 0  # (R, S)
            sums[f"segments_{i}"] = counts.sum()
            if level.level_config.quantizer != "none":
                uses = sums[f"segments_{i}"].new_zeros(level.quantizer.num_codes)
                codes = compressed.quantized.codes[..., 0].clamp(min=0)
                sums[f"codes_{i}"] = uses.index_add(0, codes.flatten(), counts.long().flatten())
        own = self.model.levels[0].code_rows(pyramid.levels[0].quantized.vectors)
        others = self.nats_given(pyramid.levels[0], other_rows(pyramid.levels[0], own))
        nats_of = {f"reconstruction_{name}": values * scored[:, :-1] for name, values in others.items()}
        nats_of["reconstruction_own"] = sent[0]
        if self.predicts_codes and nats.top is not None:
            nats_of["two_part"] = torch.cat((nats.top * counts, *sent), 1)
        return sums | {name: values.double().sum() for name, values in nats_of.items()}

    @property
    def predicts_codes(self) -> bool:
        return self.model.top is not None and self.config.top_head == "categorical"

    def code_nats(self, pyramid: Pyramid) -> CodeNats:
        model = self.model
        levels = top = None
        if pyramid.known_states is not None:
            parts = zip(model.levels, pyramid.known_states, pyramid.levels, strict=True)
            levels = [symbol_nats(level.head.losses, states, compressed) for level, states, compressed in parts]
        if model.top is not None:
            last = pyramid.levels[-1]
            assert pyramid.top_states is not None
            values = model.top.losses(pyramid.top_states[:, :-1], last.quantized.codes.clamp(min=0), last.vectors)
            top = values.where(last.exists, 0)
        return CodeNats(levels, top)

    def nats_given(self, compressed: Compressed, rows: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
        """Return the nats `(R, T - 1)` of the first level's symbols given the code rows `(R, S, D)` of each name; None
        stands for rows of zeros."""
        level = self.model.levels[0]
        inputs = level.expander_inputs(compressed)
        has_read_self = level.expander.mask_attention is None  # one that decides all masks has to see the symbols
        if has_read_self:
            inputs = level.expander.read_self(inputs)
        nats: dict[str, torch.Tensor] = {}
        for name, past in rows.items():
            memory = None if past is None else (past, nn.functional.pad(past, (0, 0, 0, 1)))
            states = level.expand(inputs, memory, compressed.segments.index, has_read_self).states
            nats[name] = symbol_nats(level.head.losses, states, compressed)
        return nats


def other_rows(compressed: Compressed, own: torch.Tensor) -> dict[str, torch.Tensor | None]:
    """Return the code rows that replace a level's own `(R, S, D)`."""
    count = compressed.segments.count.unsqueeze(1)
    moved = (torch.arange(own.shape[1], device=own.device) + count // 2) % count.clamp(min=1)
    return {"zeroed": None, "shuffled": own.gather(1, moved.unsqueeze(-1).expand_as(own))}


def symbol_nats(losses: Callable[..., torch.Tensor], states: torch.Tensor, compressed: Compressed) -> torch.Tensor:
    """Return the nats `(R, T - 1)` of each row's symbols but the first, after the states `(R, T, D)` before them; 0
    where there is no symbol."""
    values = losses(states[:, :-1], compressed.symbols[:, 1:])
    return values.where(compressed.segments.real[:, 1:], 0)
