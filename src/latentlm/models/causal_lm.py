"""What the causal language models share: initialisation, the context limit, means over predicted tokens."""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .positions import check_context

logger = logging.get_logger(__name__)


class TransformerPreTrainedModel(PreTrainedModel):
    """Flags and initialisation: N(0, `initializer_range`), zero biases, and a smaller standard deviation for the
    projections that add to the residual stream (GPT-2, section 2.3)."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @property
    def num_residual_projections(self) -> int:
        """N of the residual projections' standard deviation `initializer_range / sqrt(N)`."""
        raise NotImplementedError

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if hasattr(module, "initialize_parameters"):
            module.initialize_parameters()
        if getattr(module, "adds_to_residual", False):
            std = self.config.initializer_range / math.sqrt(self.num_residual_projections)
            init.normal_(module.weight, mean=0.0, std=std)

    def _validate_generated_length(self, generation_config, input_ids_length, has_default_max_length) -> None:
        """A prompt that fills the context is an error; generation ends, with a warning, where the context ends."""
        limit = self.config.max_position_embeddings
        check_context(input_ids_length + 1, limit)  # the prompt and at least one new token
        if generation_config.max_length > limit:
            logger.warning(
                f"Generation stops after {limit - input_ids_length} new tokens, at `max_position_embeddings` {limit}; "
                f"`max_length` {generation_config.max_length} was asked for."
            )
            generation_config.max_length = limit
        super()._validate_generated_length(generation_config, input_ids_length, has_default_max_length)


def shifted(labels: torch.Tensor) -> torch.Tensor:
    """Label of the *next* token at every position `(B, T)`; -100 at the last one."""
    return nn.functional.pad(labels[:, 1:], (0, 1), value=-100)


def mean_over_predicted(
    values: torch.Tensor, shift_labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
) -> torch.Tensor:
    """Mean of `values` `(B, T)` over the positions whose next token counts (label not -100); where
    `num_items_in_batch` is given, their sum divided by it, so that micro-batches and processes add up to one big
    batch."""
    predicted = shift_labels.ne(-100)
    count = predicted.sum() if num_items_in_batch is None else num_items_in_batch
    return values.masked_fill(~predicted, 0).sum() / count
