"""The training section of a recipe: transformers' `TrainingArguments` and fields of our own."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from .noise import check_mixture
from .pid import PIDCallback

logger = logging.get_logger(__name__)

NOISES = ("mask", "realistic")
# Options of Trainer that would have no effect here, or a wrong one: what they must be, and why.
FIXED_OPTIONS: dict[str, tuple[Any, str]] = {
    "label_smoothing_factor": (0, "the models compute their own named losses and know no label smoothing"),
    "average_tokens_across_devices": (True, "then processes with fewer tokens would weigh more"),
    "label_names": (None, "labels are read from the field `labels` alone"),
    "use_liger_kernel": (False, "there are no Liger kernels for these models"),
    "auto_find_batch_size": (False, "a batch that did not fit would leave its traces in logs and codebooks"),
    "enable_jit_checkpoint": (False, "a run that stops in the midst of a step would not resume exactly"),
    "eval_use_gather_object": (False, "predictions are gathered as tensors, padded to one length"),
}


@dataclass(repr=False)  # the one of transformers hides tokens
class LatentTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults that exact resuming and honest logs need, and sample outputs.

    Raises:
        ValueError: for options that would silently change the named losses.
    """

    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Callback states are part of the run; without them resuming is not exact."}
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "The filter would hide a diverging run."},
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints to keep; two, so that one is left if the newest is damaged."}
    )
    hub_strategy: HubStrategy | str = field(
        default=HubStrategy.END, metadata={"help": "A run is published once, when it is finished."}
    )
    sample_prompts: int = field(
        default=2, metadata={"help": "Validation prompts that each evaluation continues; 0 for none."}
    )
    sample_prompt_tokens: int = field(default=32, metadata={"help": "Longest sample prompt, in tokens."})
    sample_new_tokens: int = field(default=64, metadata={"help": "Tokens that a sample output adds to its prompt."})

    def __getstate__(self) -> dict[str, Any]:
        """What pickles hold, such as the `training_args.bin` of a plain `Trainer`: all but the token."""
        return {**self.__dict__, "hub_token": None}

    def __post_init__(self):
        if not self.use_cpu and not torch.accelerator.is_available():
            self.use_cpu = True
        super().__post_init__()
        if self.n_gpu > 1:
            # Without a launcher transformers falls back to DataParallel, which loses the named losses.
            logger.warning(f"Training on one of {self.n_gpu} GPUs; `accelerate launch -m latentlm.train` uses all.")
            self._n_gpu = 1
        for name, (value, reason) in FIXED_OPTIONS.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but {reason}; it must be {value!r}.")
        if "loss" in self.include_for_metrics:
            raise ValueError(
                "include_for_metrics holds 'loss', but rows have no loss of their own; leave it out, the evaluation "
                "reports the exact means."
            )
        if self.batch_eval_metrics and "inputs" in self.include_for_metrics:
            raise ValueError(
                "include_for_metrics holds 'inputs', but with batch_eval_metrics these would be the inputs of one "
                "process beside the predictions of all; leave one of the two out."
            )
        if self.push_to_hub and self.hub_strategy != HubStrategy.END:
            raise ValueError(f"hub_strategy is {self.hub_strategy.value!r}, but a run is published once: use 'end'.")
        for name in ("sample_prompts", "sample_prompt_tokens", "sample_new_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but it must be 0 or more.")


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


@dataclass(repr=False)  # the one of transformers hides tokens
class EncodzallTrainingArguments(LatentTrainingArguments):
    """`LatentTrainingArguments` with the noise that the model learns to repair."""

    noise: str = field(default="mask", metadata={"help": "'mask' (phase 1) or 'realistic' (phase 2)."})
    noise_strength: float = field(default=0.3, metadata={"help": "Strength in [0, 1], at the start where it moves."})
    noise_set_point: float | None = field(
        default=None, metadata={"help": "Loss on corrupted bytes (nats) that a PID loop holds by moving the strength."}
    )
    noise_strength_min: float = field(
        default=0.1, metadata={"help": "The loop does not go below; with too little noise nothing is learned."}
    )
    noise_strength_max: float = field(default=1.0, metadata={"help": "The loop does not go above."})
    noise_kp: float = field(default=0.1, metadata={"help": "Gain of the change of the error."})
    noise_ki: float = field(default=0.01, metadata={"help": "Gain of the error."})
    noise_kd: float = field(default=0.0, metadata={"help": "Gain of the change of that change."})
    noise_eval_strength: float = field(
        default=0.3, metadata={"help": "Strength in evaluations, which all have the same noise."}
    )
    noise_mixture: dict | None = field(default=None, metadata={"help": "Weight of each kind; all alike by default."})
    noise_tables: str | None = field(default=None, metadata={"help": "File from `python -m latentlm.noise`."})

    def __post_init__(self):
        super().__post_init__()
        if self.neftune_noise_alpha is not None:
            raise ValueError(
                f"neftune_noise_alpha is {self.neftune_noise_alpha}, but NEFTune knows embeddings (B, T, H) alone, and "
                "those of packed words are (N, H); it must be None."
            )
        if self.noise not in NOISES:
            raise ValueError(f"noise is {self.noise!r}, but must be one of {', '.join(NOISES)}.")
        if not 0 <= self.noise_eval_strength <= 1:
            raise ValueError(f"noise_eval_strength is {self.noise_eval_strength}, but a strength lies in [0, 1].")
        if self.noise_mixture is not None:
            check_mixture(self.noise_mixture)
        self.make_pid()

    def make_pid(self) -> PIDCallback:
        return PIDCallback(
            self.noise_strength,
            self.noise_set_point,
            self.noise_strength_min,
            self.noise_strength_max,
            self.noise_kp,
            self.noise_ki,
            self.noise_kd,
        )
