"""The training section of a recipe: transformers' `TrainingArguments` and a few fields of our own."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

logger = logging.get_logger(__name__)


@dataclass
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

    def __post_init__(self):
        if not self.use_cpu and not torch.accelerator.is_available():
            self.use_cpu = True
        super().__post_init__()
        if self.n_gpu > 1:
            # Without a launcher transformers falls back to DataParallel, which loses the named losses.
            logger.warning(f"Training on one of {self.n_gpu} GPUs; `accelerate launch -m latentlm.train` uses all.")
            self._n_gpu = 1
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor is {self.label_smoothing_factor}, but the models compute their own named "
                "losses and know no label smoothing; it must be 0."
            )
        if not self.average_tokens_across_devices:
            raise ValueError(
                "average_tokens_across_devices is false, but then processes with fewer tokens would weigh more; "
                "it must be true."
            )
        if self.push_to_hub and self.hub_strategy != HubStrategy.END:
            raise ValueError(f"hub_strategy is {self.hub_strategy.value!r}, but a run is published once: use 'end'.")
        for name in ("sample_prompts", "sample_prompt_tokens", "sample_new_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but it must be 0 or more.")
