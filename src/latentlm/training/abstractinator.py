"""Training of the Abstractinator: codebooks, a rising loss, stages, and what its codes are worth."""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import SAFE_WEIGHTS_NAME

from latentlm.inspect import draw, inspect
from latentlm.models.quantizer import code_usage
from latentlm.models.words import NUM_BYTES

from .arguments import AbstractinatorTrainingArguments
from .recipe import RecipeError
from .run_folder import SEGMENTS_FILE
from .trainer import LatentTrainer

FIRST_SHARE = 0.02
"""Of `lm_loss_weight`, at the first step; all of it after a tenth of the run."""
DRAWN_BYTES = 288
"""Of the held-out text in the picture: three lines."""


class AbstractinatorTrainer(LatentTrainer):
    """[`LatentTrainer`] for [`AbstractinatorForCausalLM`].

    Once per optimizer step codebooks and adapted deltas are moved by what all micro-batches and processes gathered.
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
        self.add_callback(UpdateCallback(self))

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any):
        if model.training:
            risen = min(1.0, self.state.global_step / max(1, self.state.max_steps // 10))
            scale = FIRST_SHARE + (1 - FIRST_SHARE) * risen
            trained = self.state.global_step >= self.args.fixed_code_steps
            inputs = {**inputs, "lm_loss_scale": torch.tensor(scale, device=self.args.device), "train_codes": trained}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def update(self) -> None:
        reduce = None
        if self.args.world_size > 1:
            reduce = lambda tensor: self.accelerator.reduce(tensor.to(self.args.device))  # noqa: E731
        self.accelerator.unwrap_model(self.model, keep_torch_compile=False).model.update(reduce)

    # ---- Evaluation ----

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        self._sums: dict[str, float] = defaultdict(float)
        self._codes: dict[str, list[torch.Tensor]] = defaultdict(list)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        sums = dict(zip(self._sums, self._sum_over_processes(list(self._sums.values())), strict=True))
        num_bytes = sums.pop("bytes", 0)
        metrics = {}
        for i, level in enumerate(self.accelerator.unwrap_model(self.model).model.levels, 1):
            segments = max(sums.pop(f"segments_{i}"), 1)
            metrics[f"level_{i}_length"] = sums.pop(f"symbols_{i}") / segments
            if self._codes[f"level_{i}"]:
                codes = self.accelerator.gather_for_metrics(torch.cat(self._codes[f"level_{i}"]))
                usage = code_usage(codes, level.quantizer.num_codes)
                metrics[f"level_{i}_perplexity"], metrics[f"level_{i}_codes_used"] = usage
        if num_bytes:
            metrics["bytes_per_top_segment"] = num_bytes / segments
            metrics |= {name: value / math.log(2) / num_bytes for name, value in sums.items()}
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    @torch.no_grad()
    def add_to_evaluation(self, inputs: dict[str, Any], outputs: Any) -> None:
        super().add_to_evaluation(inputs, outputs)
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        ids, labels = inputs["input_ids"], inputs["labels"]
        kept = (labels != -100).any(1)  # rows that only fill up a batch have no labels
        if not kept.any():
            return
        positions = inputs.get("position_ids")
        positions = None if positions is None else positions[kept]
        ids = ids[kept]
        mask = torch.ones_like(ids) if model.config.pad_token_id is None else ids != model.config.pad_token_id
        if self.token_bytes is not None:
            self._sums["bytes"] += self._count_bytes(labels).item()
        _, pyramid = model.model.read(ids, mask, positions)
        for i, compressed in enumerate(pyramid.levels, 1):
            self._sums[f"symbols_{i}"] += compressed.segments.lengths.sum().item()
            self._sums[f"segments_{i}"] += compressed.segments.count.sum().item()
            codes = compressed.quantized.codes[..., 0]
            if model.model.levels[i - 1].level.quantizer != "none":
                self._codes[f"level_{i}"].append(codes[codes >= 0])
        for name, nats in model.reconstruction_nats(ids, mask, positions).items():
            self._sums[f"reconstruction_{name}"] += nats.sum().item()
        if model.model.top is not None and model.config.top_head == "categorical":
            nats = sum(model.code_lengths(ids, mask, positions).values())
            self._sums["two_part_bits_per_byte"] += nats.sum().item()

    def write_samples(self) -> None:
        """Besides, draw where a held-out text is cut."""
        super().write_samples()
        if not self.is_world_process_zero() or self.is_fsdp_enabled:
            return
        for row in self.spread_validation_rows(1):
            data = bytes(i for i in torch.as_tensor(row["input_ids"]).tolist() if i < NUM_BYTES)[:DRAWN_BYTES]
            if data:
                model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
                draw(inspect(model, data), Path(self.args.output_dir) / SEGMENTS_FILE)


class UpdateCallback(TrainerCallback):
    def __init__(self, trainer: AbstractinatorTrainer):
        self.trainer = trainer

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.update()


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
