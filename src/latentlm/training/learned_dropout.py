"""Training with LearnedDropout: scheduled weights of the penalties, and statistics of the masks."""

import re
from typing import Any

import torch
from transformers import TrainerCallback

from latentlm.models.block_learned_dropout import mask_entropy, mask_loss_weight, record_masks
from latentlm.runs.recipe import RecipeError

from .trainer import LatentTrainer

PROBE_ROWS = 4
"""The number of validation rows, spread over the set, whose masks are measured at each log."""
PROBE_INPUTS = ("input_ids", "attention_mask", "position_ids")


class LearnedDropoutTrainer(LatentTrainer):
    """[`LatentTrainer`] for models with the option LearnedDropout.

    Every batch gets the training step, from which the model computes scheduled loss weights. They continue after a
    resume, because the checkpoint stores the step. The trainer logs these weights. From the masks M of a few fixed
    validation rows in evaluation mode it also logs, over all masks:

        mask_density: fraction of ones after rounding (also `mask_density_<module>` of each LearnedDropout);
        mask_near_0, mask_near_1: fractions with M < 0.1 and M > 0.9;
        mask_entropy: mean of -M log2 M, in bits;
        mask_change: fraction of the rounded masks that changed since the last log.

    Raises:
        RecipeError: before the first step, if a schedule does not reach its maximum within the run.

    Attributes:
        measures_masks: whether masks are measured, which needs masks at the tokens of a row.
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
        """Whether the model uses LearnedDropout."""
        return self.model_config.learned_dropout != "none"

    @property
    def has_schedule(self) -> bool:
        """Whether the weight of a penalty of the masks is scheduled."""
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
            step = torch.tensor(self.state.global_step - 1.0)  # step of the last loss, before the count was increased
            for name in self.model_config.mask_losses:
                logs[f"{name}_weight"] = float(mask_loss_weight(self.model_config, name, step))
            logs.update(self.mask_statistics())
        return logs

    def probe_masks(self) -> dict[str, torch.Tensor]:
        """Return the masks `(N, M)` of every LearnedDropout, by module, at the N real tokens of the fixed rows, in
        evaluation mode. The result is empty without validation rows, or if the trainer measures no masks."""
        if not self.measures_masks:
            return {}
        if self._probe is None:
            rows = self.spread_validation_rows(PROBE_ROWS)
            batch = self.data_collator(rows) if rows else {}
            self._probe = {name: value for name, value in batch.items() if name in PROBE_INPUTS}
        if not self._probe:
            return {}
        model = self.unwrapped_model
        model.eval()  # each training step switches to training mode again
        probe = self._prepare_inputs(self._probe)
        with torch.no_grad(), self.compute_loss_context_manager(), record_masks(model) as masks:
            model(**probe, use_cache=False, logits_to_keep=1)
        real = probe.get("attention_mask", torch.ones_like(probe["input_ids"])).bool()
        return {name: mask[real] for name, mask in masks.items()}

    def mask_statistics(self) -> dict[str, float]:
        """Return the statistics of the masks that the class logs, and store the masks for the next `mask_change`."""
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
    """Return the layer in the name of a LearnedDropout, such as `encoder_layers.0`, without the names of wrappers."""
    match = re.search(r"(?:encoder_|decoder_)?layers\.\d+", module)
    assert match is not None  # every LearnedDropout is part of a numbered layer
    return match.group()


class MaskCallback(TrainerCallback):
    """A callback that checks the schedules and measures the first masks for `mask_change` before the first step.

    A checkpoint is always written at a log. Therefore the first masks of a resumed run are those of the last log."""

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
