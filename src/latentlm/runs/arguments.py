"""The `training` section of a recipe, which is transformers' `TrainingArguments` with additional fields."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import get_available_reporting_integrations
from transformers.trainer_utils import HubStrategy, SchedulerType
from transformers.training_args import OptimizerNames
from transformers.utils import logging
from transformers.utils.generic import ExplicitEnum

logger = logging.get_logger(__name__)

# Options of Trainer that would have no effect or a wrong one, with the only valid value and the reason.
FIXED_OPTIONS: dict[str, tuple[Any, str]] = {
    "label_smoothing_factor": (0, "the models compute their own named losses and know no label smoothing"),
    "average_tokens_across_devices": (True, "then processes with fewer tokens would weigh more"),
    "label_names": (None, "labels are read from the field `labels` alone"),
    "use_liger_kernel": (False, "there are no Liger kernels for these models"),
    "auto_find_batch_size": (False, "a batch that did not fit would leave its traces in logs and codebooks"),
    "enable_jit_checkpoint": (False, "a run that stops in the midst of a step would not resume exactly"),
    "eval_use_gather_object": (False, "predictions are gathered as tensors, padded to one length"),
}


# transformers has these, but does not list them among the installed ones: not at all, or not beside mlflow.
UNLISTED_TRACKERS = ("flyte", "azure_ml")


class OwnOptimizerNames(ExplicitEnum):
    """The values of `optim` in addition to those of transformers."""

    MUON = "muon"


@dataclass(repr=False)  # inherits `__repr__` of transformers, which hides tokens
class LatentTrainingArguments(TrainingArguments):
    """`TrainingArguments` with defaults for exact resuming and unfiltered logs, and options for sample outputs and
    Muon.

    Raises:
        ValueError: for an option that would have no effect or change the named losses, or a value out of its range.
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
    optim: OptimizerNames | OwnOptimizerNames | str = field(
        default=OptimizerNames.ADAMW_TORCH_FUSED,
        metadata={
            "help": "The optimizer: a name of transformers, or `muon`, which is Muon for the matrices of linear layers "
            "(at `muon_learning_rate`) and AdamW for embeddings, output layers, gains and biases (at `learning_rate`)."
        },
    )
    muon_learning_rate: float = field(
        default=1e-2,
        metadata={"help": "Peak rate of Muon's updates, which are as large as AdamW's; the schedule is the same."},
    )
    muon_momentum: float = field(default=0.95, metadata={"help": "Momentum of Muon (Nesterov's)."})

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the token, for pickles such as `training_args.bin` of a plain `Trainer`."""
        return {**self.__dict__, "hub_token": None}

    def __post_init__(self):
        if not self.use_cpu and torch.backends.mps.is_available():
            logger.warning("Training on the CPU: MPS has no float64, in which losses and bytes are summed.")
            self.use_cpu = True
        if not self.use_cpu and not torch.accelerator.is_available():
            self.use_cpu = True
        uses_muon = self.optim == OwnOptimizerNames.MUON
        if uses_muon:
            self.optim = OptimizerNames.ADAMW_TORCH_FUSED  # transformers accepts only its own names
        super().__post_init__()
        if uses_muon:
            self.optim = OwnOptimizerNames.MUON
            self._check_muon()
        stable = self.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY
        if stable and "num_decay_steps" not in (self.lr_scheduler_kwargs or {}):
            raise ValueError(
                f"lr_scheduler_kwargs is {self.lr_scheduler_kwargs!r}, but 'warmup_stable_decay' needs "
                "`num_decay_steps` in it, the steps at the end in which the rate falls to zero."
            )
        if self.n_gpu > 1:
            # Without a launcher, transformers would use DataParallel, which drops the named losses.
            logger.warning(f"Training on one of {self.n_gpu} GPUs; `accelerate launch -m latentlm.train` uses all.")
            self._n_gpu = 1
        if self.load_best_model_at_end and self.save_total_limit == 1:
            # Trainer would delete the last checkpoint at the end, and the same command would train on from the best.
            self.save_total_limit = 2
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
        strategy = HubStrategy(self.hub_strategy)
        if self.push_to_hub and strategy != HubStrategy.END:
            raise ValueError(f"hub_strategy is {strategy.value!r}, but a run is published once: use 'end'.")
        for name in ("sample_prompts", "sample_prompt_tokens", "sample_new_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but it must be 0 or more.")
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but it must be at least 1.")

    def check_files(self) -> None:
        """Hook that raises ValueError if a file that the training reads is missing or damaged. A stored recipe may be
        read where its files are gone, so this is asked before training alone."""

    def check_trackers(self) -> None:
        """Raise ValueError if a tracker of `report_to` is not installed. This too is asked before training alone."""
        installed = get_available_reporting_integrations()
        for name in self.report_to or ():
            if name not in installed and name not in UNLISTED_TRACKERS:
                raise ValueError(
                    f"report_to is {name!r}, but no tracker of this name is installed; installed ones: "
                    f"{', '.join(installed) or 'none'} (pip install 'latentlm[tracking]')."
                )

    def _check_muon(self) -> None:
        if not self.muon_learning_rate > 0:
            raise ValueError(f"muon_learning_rate is {self.muon_learning_rate}, but it must be above 0.")
        if not 0 <= self.muon_momentum < 1:
            raise ValueError(f"muon_momentum is {self.muon_momentum}, but it must be 0 or more and below 1.")
        if self.optim_args:
            raise ValueError(f"optim_args is {self.optim_args!r}, but with optim 'muon' it must not be set.")
