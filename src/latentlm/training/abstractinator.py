"""Training of the Abstractinator: codebooks, a rising loss, stages, and what its codes are worth."""

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
"""Of `lm_loss_weight`, at the first step; all of it after a tenth of the run."""
DRAWN_BYTES = 288
"""Of the held-out text in the picture: three lines."""
PER_BYTE = {f"reconstruction_{name}": f"reconstruction_{name}" for name in ("own", "zeroed", "shuffled")}
PER_BYTE["two_part"] = "two_part_bits_per_byte"
"""Nats that an evaluation reports in bits per byte, and as what."""


@dataclass(repr=False)  # the one of transformers hides tokens
class AbstractinatorTrainingArguments(LatentTrainingArguments):
    """`LatentTrainingArguments` with what is taken from an earlier stage."""

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

    In the first `fixed_code_steps` what makes codes is not trained by what reads them.
    `load_base_from` and `load_entropy_from` take levels, or their entropy models, from another run: with
    `num_frozen_levels` a model of more levels begins above those of a finished one. Beside the named losses an
    evaluation adds, for each level L:

        eval_level_L_length: symbols per segment; eval_bytes_per_top_segment: bytes per segment of the last level;
        eval_level_L_perplexity, eval_level_L_codes_used: of the codes of the first stage; the share of the codebook;

    and in bits per byte `eval_reconstruction_own`, `_zeroed` and `_shuffled`, what the bytes cost given these codes,
    and with a categorical top model `eval_two_part_bits_per_byte`, codes included.

    Raises:
        RecipeError: if what is to be loaded is not there, before the first step.
    """

    arguments_class = AbstractinatorTrainingArguments
    prepares_on_cpu = True
    measures_masks = False  # they lie at symbols and codes of every level

    def __init__(self, **kwargs: Any):
        check_arguments(type(self), kwargs)
        arguments, model = kwargs["args"], kwargs["model"]
        if arguments.load_base_from:
            parts = [f"model.levels.{i}." for i in range(model.config.num_frozen_levels)]
            load_parts(model, Path(arguments.load_base_from), "load_base_from", parts or ["model.levels."])
        if arguments.load_entropy_from:
            load_parts(model, Path(arguments.load_entropy_from), "load_entropy_from", [".entropy_model."])
        model.model.freeze()  # loading forgets what is frozen
        if arguments.ddp_broadcast_buffers is None:
            arguments.ddp_broadcast_buffers = False  # codebooks are the same everywhere
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
        """Besides, draw where a held-out text is cut."""
        super().write_samples()
        if self.is_sharded or not self.is_world_process_zero():
            return
        for row in self.spread_validation_rows(1):
            data = bytes(i for i in torch.as_tensor(row["input_ids"]).tolist() if i < NUM_BYTES)[:DRAWN_BYTES]
            if data:
                draw(inspect(self.unwrapped_model, data), self.run_folder / SEGMENTS_FILE)


class FixedCodes(TrainerCallback):
    """In the first `fixed_code_steps` leave alone what makes codes. Its gradients are zero then, but an optimizer would
    still let it decay, and begin its averages with zeros."""

    def __init__(self, trainer: AbstractinatorTrainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step < self.trainer.args.fixed_code_steps:
            for parameter in self.trainer.unwrapped_model.model.code_parameters():
                parameter.grad = None


def load_parts(model: nn.Module, folder: Path, field: str, parts: Sequence[str]) -> None:
    """Take the parameters and buffers whose name has one of `parts` from a saved model; all of them, or none."""
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
