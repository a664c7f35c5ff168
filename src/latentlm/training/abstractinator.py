"""Training of the Abstractinator: frozen code parameters at the start, the warm-up of the language-model loss, stages,
and evaluation of the codes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback
from transformers.utils import SAFE_WEIGHTS_NAME

from latentlm.evaluation.segments import draw, inspect
from latentlm.models.encodzall_words import NUM_BYTES
from latentlm.runs.arguments import LatentTrainingArguments
from latentlm.runs.recipe import RecipeError
from latentlm.runs.run_folder import SEGMENTS_FILE

from .learned_dropout import LearnedDropoutTrainer
from .metrics import Count, Histogram, Mean
from .refusals import check_arguments

FIRST_SHARE = 0.02
"""The share of `lm_loss_weight` at the first step. It rises linearly to 1 in the first tenth of the run."""
DRAWN_BYTES = 288
"""The largest number of bytes of the held-out text in the picture of segments, which are three lines."""
PER_BYTE = {f"reconstruction_{name}": f"reconstruction_{name}" for name in ("own", "zeroed", "shuffled")}
PER_BYTE["two_part"] = "two_part_bits_per_byte"
"""Code statistics in nats that an evaluation reports in bits per byte, and the names of these metrics."""


@dataclass(repr=False)  # inherits `__repr__` of transformers, which hides tokens
class AbstractinatorTrainingArguments(LatentTrainingArguments):
    """`LatentTrainingArguments` with the options of training in stages."""

    fixed_code_steps: int = field(
        default=100,
        metadata={
            "help": "First steps in which compressors stay random: trained at once, all their codes become alike."
        },
    )
    load_base_from: str | None = field(
        default=None,
        metadata={
            "help": "Saved model whose levels, all but the top model, are taken; with num_frozen_levels these alone."
        },
    )
    load_entropy_from: str | None = field(
        default=None, metadata={"help": "Saved model whose entropy models are taken."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.fixed_code_steps < 0:
            raise ValueError(f"fixed_code_steps is {self.fixed_code_steps}, but it must be 0 or more.")


class AbstractinatorTrainer(LearnedDropoutTrainer):
    """[`LearnedDropoutTrainer`] for [`AbstractinatorForCausalLM`].

    In the first `fixed_code_steps` steps the parameters that produce codes are not trained. `load_base_from` and
    `load_entropy_from` load levels, or their entropy models, from another run. With `num_frozen_levels`, the new levels
    of a model are trained above those of a finished run. An evaluation adds to the named losses:

        eval_level_L_length: symbols per segment of level L (from 1 on);
        eval_bytes_per_top_segment: bytes per segment of the last level;
        eval_level_L_perplexity, eval_level_L_codes_used: perplexity of the codes of the first stage of level L, and the
            share of the codebook that is used;
        eval_reconstruction_own, eval_reconstruction_zeroed, eval_reconstruction_shuffled: cross-entropy of the bytes,
            in bits per byte, given their own codes, zeros, or codes of other segments;
        eval_two_part_bits_per_byte: with a categorical top model, bits per byte of codes and bytes together.

    Raises:
        RecipeError: before the first step, if a model to load from does not exist or does not fit, or if a new model
            freezes what no model is loaded for.
    """

    arguments_class = AbstractinatorTrainingArguments
    prepares_on_cpu = True
    measures_masks = False  # masks belong to the symbols and codes of every level, not to tokens

    def __init__(self, **kwargs: Any):
        check_arguments(type(self), kwargs)
        arguments, model = kwargs["args"], kwargs["model"]
        check_frozen(model, arguments)
        if arguments.load_base_from:
            parts = [f"model.levels.{i}." for i in range(model.config.num_left_alone)]
            load_parts(model, Path(arguments.load_base_from), "load_base_from", parts or ["model.levels."])
        if arguments.load_entropy_from:
            load_parts(model, Path(arguments.load_entropy_from), "load_entropy_from", [".entropy_model."])
        if without_adapter(model) is model:
            model.model.freeze()  # a checkpoint does not store which parameters are frozen
        if arguments.ddp_broadcast_buffers is None:
            arguments.ddp_broadcast_buffers = False  # codebooks are the same on all processes
        super().__init__(**kwargs)
        self.add_callback(FixedCodes(self))

    def prepare_batch(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super().prepare_batch(inputs)
        inputs = {**inputs, **self.unwrapped_model.pack(**inputs)}
        if not self.model.training:
            return {**inputs, "code_statistics": True}
        risen = min(1.0, self.state.global_step / max(1, self.state.max_steps // 10))
        scale = FIRST_SHARE + (1 - FIRST_SHARE) * risen
        trained = self.state.global_step >= self.args.fixed_code_steps
        return {**inputs, "lm_loss_scale": torch.full((), scale, device=self.args.device), "train_codes": trained}

    def evaluation_counts(self, inputs: dict[str, Any], outputs: Any) -> dict[str, Count]:
        counts = super().evaluation_counts(inputs, outputs)
        statistics = outputs["code_statistics"]
        num_levels = len(self.model_config.levels)
        for i in range(1, num_levels + 1):
            counts[f"level_{i}_length"] = Mean(statistics[f"symbols_{i}"], statistics[f"segments_{i}"])
            if f"codes_{i}" in statistics:
                counts[f"level_{i}"] = Histogram.of_counts(statistics[f"codes_{i}"])
        if self.token_bytes is not None:
            num_bytes = self.count_bytes(inputs["labels"])
            counts["bytes_per_top_segment"] = Mean(num_bytes, statistics[f"segments_{num_levels}"])
            for name, metric in PER_BYTE.items():
                if name in statistics:
                    counts[metric] = Mean(statistics[name].double() / math.log(2), num_bytes)
        return counts

    def write_samples(self) -> None:
        """Write samples, and draw the segments of a held-out text."""
        super().write_samples()
        if self.is_sharded or not self.is_world_process_zero():
            return
        for row in self.spread_validation_rows(1):
            config = self.model_config
            size = min(DRAWN_BYTES, config.max_position_embeddings - 1)  # and the begin
            data = bytes(i for i in torch.as_tensor(row["input_ids"]).tolist() if i < NUM_BYTES)[:size]
            if data and config.bos_token_id is not None:
                draw(inspect(without_adapter(self.unwrapped_model), data), self.run_folder / SEGMENTS_FILE)


class FixedCodes(TrainerCallback):
    """A callback that removes the gradients of the parameters that produce codes in the first `fixed_code_steps` steps.
    These gradients are zero, but with them an optimizer would apply weight decay and start its moving averages."""

    def __init__(self, trainer: AbstractinatorTrainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step < self.trainer.args.fixed_code_steps:
            for parameter in without_adapter(self.trainer.unwrapped_model).model.code_parameters():
                parameter.grad = None


def without_adapter(model: Any) -> Any:
    """Return the model that an adapter (PEFT) is around, or the model itself. The layers of the adapter are inside of
    it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def check_frozen(model: Any, arguments: AbstractinatorTrainingArguments) -> None:
    """Check that what is frozen of a new model comes from another one: else it would keep its random weights.

    Raises:
        RecipeError: if it does not.
    """
    if model.name_or_path:  # it was loaded as a whole
        return
    config, base = model.config, bool(arguments.load_base_from)
    has_every_level = base and config.num_left_alone in (0, len(config.levels))
    sources = {
        "freeze_base": ("load_base_from", base),
        "num_frozen_levels": ("load_base_from", base),
        "freeze_entropy": ("load_entropy_from", arguments.load_entropy_from or has_every_level),
    }
    for name, (source, is_loaded) in sources.items():
        if getattr(config, name) and not is_loaded:
            raise RecipeError(
                f"model.{name} is {getattr(config, name)}, but the model is new: what is frozen would keep its random "
                f"weights. Name a trained model in training.{source}, or begin with model.from_pretrained."
            )


def load_parts(model: nn.Module, folder: Path, field: str, parts: Sequence[str]) -> None:
    """Load the parameters and buffers whose names contain one of `parts` from a saved model.

    Raises:
        RecipeError: if there is no saved model, or its names or shapes differ. The model does not change then.
    """
    path = folder / SAFE_WEIGHTS_NAME
    if not path.is_file():
        raise RecipeError(f"training.{field} {folder} has no {SAFE_WEIGHTS_NAME}; name the folder of a saved model.")
    saved = {name: value for name, value in load_file(path).items() if any(part in name for part in parts)}
    wanted = {name: value for name, value in model.state_dict().items() if any(part in name for part in parts)}
    missing, unexpected = sorted(wanted.keys() - saved.keys()), sorted(saved.keys() - wanted.keys())
    shapes = [
        f"{n} {tuple(saved[n].shape)} for {tuple(v.shape)}"
        for n, v in wanted.items()
        if n in saved and saved[n].shape != v.shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(problems.values()):
        text = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names)
        raise RecipeError(f"training.{field} {folder} does not fit the model. {text}.")
    model.load_state_dict(saved, strict=False)
