"""The Abstractinator's losses: for each term and level a sum, weighted by the predicted bytes that a symbol stands
for."""

from typing import Any

import torch
from torch import nn

from .abstractinator_base import Pyramid, Rows
from .abstractinator_level import AbstractinatorLevel, Compressed
from .abstractinator_likelihood import CodeNats
from .block_learned_dropout import Part, mask_loss_weight, mean_mask_losses, mean_penalties

IGNORED = -100


class AbstractinatorLosses:
    """Mixin of the model, which has `model`, `config` and `loss_function`."""

    config: Any
    model: Any
    training: bool
    loss_function: Any

    def lm_loss(
        self,
        logits: torch.Tensor,  # (B, T, V)
        shift_labels: torch.Tensor,  # (B, T)
        num_items_in_batch: torch.Tensor | int | None,
    ) -> torch.Tensor:
        """Return the mean loss of the next symbol, or its sum divided by `num_items_in_batch`."""
        return self.loss_function(logits, None, self.config.vocab_size, num_items_in_batch, shift_labels=shift_labels)

    def losses(
        self,
        rows: Rows,
        pyramid: Pyramid,
        nats: CodeNats,
        logits: torch.Tensor,  # (B, T, V)
        shift_labels: torch.Tensor,  # (B, T)
        num_items_in_batch: torch.Tensor | int | None,
        lm_loss_scale: torch.Tensor | float,
        training_step: torch.Tensor | None,
    ) -> dict[str, Any]:
        """Return every term and `loss`, as [`AbstractinatorCausalLMOutput`] describes them."""
        config = self.config
        count = shift_labels.ne(IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        terms: dict[str, torch.Tensor] = {}  # by level
        masks: list[Part] = []
        weights = rows.to_rows(shift_labels, IGNORED).ne(IGNORED).float()  # (R, L), of the symbol after each
        for i, (level, compressed) in enumerate(zip(self.model.levels, pyramid.levels, strict=True)):
            name = f"level_{i + 1}_"
            terms[f"{name}entropy_loss"] = entropy_nats(level, compressed, weights) / count
            if nats.levels is not None:
                terms[f"{name}reconstruction_loss"] = (nats.levels[i] * weights[:, :-1]).sum() / count
            penalties = compressed.penalties + pyramid.penalties[i]
            masks.append((len(penalties), mean_penalties(penalties), weights))
            weights = compressed.weights(weights)  # (R, S), of segments
            if compressed.quantized.loss is not None:
                terms[f"{name}vq_loss"] = (compressed.quantized.loss * weights).sum() / count
            weights = nn.functional.pad(weights, (0, 1))  # as symbols of the level above, which begin with a begin
        losses: dict[str, torch.Tensor] = {}
        for name in ("reconstruction_loss", "vq_loss", "entropy_loss"):
            values = [value for key, value in terms.items() if key.endswith(name)]
            if values:
                losses[name] = torch.stack(values).sum() / (len(values) if name == "reconstruction_loss" else 1)
        if nats.top is not None:
            losses["code_lm_loss"] = (nats.top * weights[:, :-1]).sum() / count
            masks.append((len(pyramid.penalties[-1]), mean_penalties(pyramid.penalties[-1]), weights))
        losses |= mean_mask_losses(config, masks, count)
        losses["lm_loss"] = loss = self.lm_loss(logits, shift_labels, num_items_in_batch)
        if self.training:
            scales = {name: getattr(config, f"{name.replace('code_lm', 'top_lm')}_weight") for name in losses}
            scales["lm_loss"] = scales["lm_loss"] * lm_loss_scale
            scales |= {name: mask_loss_weight(config, name, training_step, True) for name in config.mask_losses}
            loss = torch.stack([scales[name] * value for name, value in losses.items()]).sum()
        return losses | {"loss": loss} | ({"level_losses": terms} if len(self.model.levels) > 1 else {})


def entropy_nats(level: AbstractinatorLevel, compressed: Compressed, weights: torch.Tensor) -> torch.Tensor:
    """Return the entropy model's nats of each symbol, weighted by the weight of the symbol before it `(R, T)`, summed.
    All places are computed, since the host would wait to learn which ones count."""
    weights = weights[:, :-1] * compressed.segments.real[:, 1:]
    nats = level.entropy_model.losses(compressed.entropy_states[:, :-1], compressed.symbols[:, 1:])
    return (nats.where(weights > 0, 0) * weights).sum()
