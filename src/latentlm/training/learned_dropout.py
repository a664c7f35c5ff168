"""Training with LearnedDropout: scheduled weights of the penalties, statistics of the masks."""

import re
from typing import Any

import torch
from transformers import TrainerCallback

from latentlm.models.block_learned_dropout import mask_entropy, mask_loss_weight, record_masks
from latentlm.runs.recipe import RecipeError

from .trainer import LatentTrainer

PROBE_ROWS = 4
"""Validation rows, spread over the set, whose masks are measured at each log."""
PROBE_INPUTS = ("input_ids", "attention_mask", "position_ids")


class LearnedDropoutTrainer(LatentTrainer):
    """[`LatentTrainer`] for models that can switch on LearnedDropout.

    Adds the training step to every batch, from which the model computes scheduled loss weights (a resumed run goes on
    where it stopped, since the step is the trainer's own), and logs these weights and, from a few fixed validation rows
    in evaluation mode, of all masks together and (`mask_density_<module>`) of each:

        mask_density: fraction of ones of the rounded mask;  mask_near_0, mask_near_1: M below 0.1, above 0.9;
        mask_entropy: mean of -M log2 M;  mask_change: fraction of the rounded mask that changed since the last log.

    Raises:
        RecipeError: if a schedule does not reach its maximum within the run, before the first step.

    Attributes:
        measures_masks: whether masks are measured: where they lie at the tokens of a row.
    """

    measures_masks = True

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._ones_before: torch.Tensor | None = None
        self._probe: dict[str, torch.Tensor] | None = None
        if self.has_learned_dropout:
            self.add_callback(MaskCallback(self))

    @property
    def has_learned_dropout(self) -> bool:
        return self.model_config.learned_dropout != "none"

    @property
    def has_schedule(self) -> bool:
        return any(getattr(self.model_config, f"{name}_rate") is not None for name in self.model_config.mask_losses)

    def prepare_batch(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super().prepare_batch(inputs)
        if self.model.training and self.has_schedule:
            step = torch.full((), self.state.global_step, dtype=torch.float32, device=self.args.device)
            inputs = {**inputs, "training_step": step}
        return inputs

    def training_logs(self) -> dict[str, float]:
        logs = super().training_logs()
        if self.has_learned_dropout:
            step = torch.tensor(self.state.global_step - 1.0)  # of the last loss; the count is one ahead by now
            for name in self.model_config.mask_losses:
                logs[f"{name}_weight"] = float(mask_loss_weight(self.model_config, name, step))
            logs.update(self.mask_statistics())
        return logs

    def probe_masks(self) -> dict[str, torch.Tensor]:
        """M `(N, M)` of every LearnedDropout at the N real tokens of the fixed rows, in evaluation mode; nothing
        without validation rows, or where the trainer measures none."""
        if not self.measures_masks:
            return {}
        if self._probe is None:
            rows = self.spread_validation_rows(PROBE_ROWS)
            batch = self.data_collator(rows) if rows else {}
            self._probe = {name: value for name, value in batch.items() if name in PROBE_INPUTS}
        if not self._probe:
            return {}
        model = self.unwrapped_model
        model.eval()  # each training step turns it back
        probe = self._prepare_inputs(self._probe)
        with torch.no_grad(), self.compute_loss_context_manager(), record_masks(model) as masks:
            model(**probe, use_cache=False, logits_to_keep=1)
        real = probe.get("attention_mask", torch.ones_like(probe["input_ids"])).bool()
        return {name: mask[real] for name, mask in masks.items()}

    def mask_statistics(self) -> dict[str, float]:
        """What the class logs of the masks."""
        masks = self.probe_masks()
        if not masks:
            return {}
        rounded = {name: mask >= 0.5 for name, mask in masks.items()}
        every, ones = (torch.cat([mask.flatten() for mask in values.values()]) for values in (masks, rounded))
        statistics = {
            "mask_density": ones.float().mean().item(),
            "mask_near_0": (every < 0.1).float().mean().item(),
            "mask_near_1": (every > 0.9).float().mean().item(),
            "mask_entropy": mask_entropy(every).mean().item(),
        }
        if self._ones_before is not None:
            statistics["mask_change"] = (ones != self._ones_before).float().mean().item()
        self._ones_before = ones
        for name, mask in rounded.items():
            statistics[f"mask_density_{short_name(name)}"] = mask.float().mean().item()
        return statistics


def short_name(module: str) -> str:
    """`encoder_layers.0` of the name of a LearnedDropout, whatever wraps the model."""
    match = re.search(r"(?:encoder_|decoder_)?layers\.\d+", module)
    assert match is not None  # LearnedDropout stands in numbered layers
    return match.group()


class MaskCallback(TrainerCallback):
    """Before the first step: checks the schedules (a weight that never reaches its maximum is another experiment than
    the one asked for), and takes the masks with which `mask_change` starts. A checkpoint is always written at a log, so
    for a resumed run these are the masks of the last log before it."""

    def __init__(self, trainer: LearnedDropoutTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        config = self.trainer.model_config
        for name in config.mask_losses:
            steps = config.mask_loss_steps(name)
            if steps >= state.max_steps:  # the last step has number max_steps - 1
                raise RecipeError(
                    f"model.{name}_rate {getattr(config, f'{name}_rate')} brings `{name}_weight` to its maximum "
                    f"{getattr(config, f'{name}_weight')} after {steps} steps, but the run has {state.max_steps}; "
                    "give a higher rate, a lower weight or more steps."
                )
        self.trainer.mask_statistics()
