"""Training of the Abstractinator: codebooks, a rising loss, stages, and what its codes are worth."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import SAFE_WEIGHTS_NAME

from latentlm.evaluation.segments import draw, inspect
from latentlm.models.block_quantization import code_usage
from latentlm.models.encodzall_words import NUM_BYTES
from latentlm.runs.arguments import LatentTrainingArguments
from latentlm.runs.recipe import RecipeError
from latentlm.runs.run_folder import SEGMENTS_FILE

from .trainer import LatentTrainer

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
        default=None, metadata={"help": "Saved model whose levels, all but the top model, are taken."}
    )
    load_entropy_from: str | None = field(
        default=None, metadata={"help": "Saved model whose entropy models are taken."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.fixed_code_steps < 0:
            raise ValueError(f"fixed_code_steps is {self.fixed_code_steps}, but it must be 0 or more.")


class AbstractinatorTrainer(LatentTrainer):
    """[`LatentTrainer`] for [`AbstractinatorForCausalLM`].

    In the first `fixed_code_steps` what makes codes is not trained by what reads them.
    `load_base_from` and `load_entropy_from` take levels, or their entropy models, from another run. Beside the named
    losses an evaluation adds, for each level L:

        eval_level_L_length: symbols per segment; eval_bytes_per_top_segment: bytes per segment of the last level;
        eval_level_L_perplexity, eval_level_L_codes_used: of the codes of the first stage; the share of the codebook;

    and in bits per byte `eval_reconstruction_own`, `_zeroed` and `_shuffled`, what the bytes cost given these codes,
    and with a categorical top model `eval_two_part_bits_per_byte`, codes included.

    Raises:
        RecipeError: if what is to be loaded is not there, before the first step.
    """

    arguments_class = AbstractinatorTrainingArguments

    arguments_class = AbstractinatorTrainingArguments

    def __init__(self, **kwargs: Any):
        self._check_arguments(kwargs)
        arguments, model = kwargs["args"], kwargs["model"]
        if arguments.load_base_from:
            load_part(model, Path(arguments.load_base_from), "load_base_from", "model.levels.")
        if arguments.load_entropy_from:
            load_part(model, Path(arguments.load_entropy_from), "load_entropy_from", ".entropy_model.")
        model.model.freeze()  # loading forgets what is frozen
        if arguments.ddp_broadcast_buffers is None:
            arguments.ddp_broadcast_buffers = False  # codebooks are the same everywhere
        super().__init__(**kwargs)
        self.add_callback(FixedCodes(self))

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any):
        if model.training:
            risen = min(1.0, self.state.global_step / max(1, self.state.max_steps // 10))
            scale = FIRST_SHARE + (1 - FIRST_SHARE) * risen
            trained = self.state.global_step >= self.args.fixed_code_steps
            inputs = {**inputs, "lm_loss_scale": torch.tensor(scale, device=self.args.device), "train_codes": trained}
        return super().compute_loss(model, inputs, *args, **kwargs)

    # ---- Evaluation ----

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any):
        return super().prediction_step(model, {**inputs, "code_statistics": True}, *args, **kwargs)

    def add_to_evaluation(self, inputs: dict[str, Any], outputs: Any) -> None:
        super().add_to_evaluation(inputs, outputs)
        found = {**outputs["code_statistics"]}
        if self.token_bytes is not None:
            found["bytes"] = self._count_bytes(inputs["labels"])
        for name, value in found.items():
            self._code_sums[name] = self._code_sums.get(name, 0) + value.double()

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        self._code_sums: dict[str, torch.Tensor] = {}
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self._code_sums:
            flat = torch.cat([value.flatten() for value in self._code_sums.values()])
            parts = self.accelerator.reduce(flat).split([value.numel() for value in self._code_sums.values()])
            metrics = self.code_metrics(dict(zip(self._code_sums, parts, strict=True)))
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def code_metrics(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        """What the statistics `(n,)` of a whole evaluation say."""
        metrics = {}
        for i in range(1, len(self.model.config.levels) + 1):
            segments = max(sums[f"segments_{i}"].item(), 1)
            metrics[f"level_{i}_length"] = sums[f"symbols_{i}"].item() / segments
            if f"codes_{i}" in sums:
                usage = code_usage(sums[f"codes_{i}"])
                metrics[f"level_{i}_perplexity"], metrics[f"level_{i}_codes_used"] = usage
        if num_bytes := sums["bytes"].item() if "bytes" in sums else 0:
            metrics["bytes_per_top_segment"] = num_bytes / segments
            for name in PER_BYTE:
                if name in sums:
                    metrics[PER_BYTE[name]] = sums[name].item() / math.log(2) / num_bytes
        return metrics

    def write_samples(self) -> None:
        """Besides, draw where a held-out text is cut."""
        super().write_samples()
        sharded = self.is_fsdp_enabled or self.is_distributed_loading_by_transformers
        if sharded or not self.is_world_process_zero():
            return
        for row in self.spread_validation_rows(1):
            data = bytes(i for i in torch.as_tensor(row["input_ids"]).tolist() if i < NUM_BYTES)[:DRAWN_BYTES]
            if data:
                model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
                draw(inspect(model, data), Path(self.args.output_dir) / SEGMENTS_FILE)


class FixedCodes(TrainerCallback):
    """In the first `fixed_code_steps` leave alone what makes codes. Its gradients are zero then, but an optimizer would
    still let it decay, and begin its averages with zeros."""

    def __init__(self, trainer: AbstractinatorTrainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step < args.fixed_code_steps:
            model = self.trainer.accelerator.unwrap_model(self.trainer.model, keep_torch_compile=False)
            for parameter in model.model.code_parameters():
                parameter.grad = None


def load_part(model: nn.Module, folder: Path, field: str, part: str) -> None:
    """Take the parameters and buffers whose name has `part` from a saved model; all of them, or none."""
    path = folder / SAFE_WEIGHTS_NAME
    if not path.is_file():
        raise RecipeError(f"training.{field} {folder} has no {SAFE_WEIGHTS_NAME}; name the folder of a saved model.")
    found = {name: value for name, value in load_file(path).items() if part in name}
    wanted = {name: value for name, value in model.state_dict().items() if part in name}
    missing, unexpected = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    shapes = [
        f"{n} {tuple(found[n].shape)} for {tuple(v.shape)}"
        for n, v in wanted.items()
        if n in found and found[n].shape != v.shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(problems.values()):
        text = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names)
        raise RecipeError(f"training.{field} {folder} does not fit the model. {text}.")
    model.load_state_dict(found, strict=False)
