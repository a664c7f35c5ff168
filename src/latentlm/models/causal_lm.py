"""What the causal language models share: initialisation, how a forward begins, means over predicted tokens."""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .positions import check_context, resolve_position_ids

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

    def embed(
        self,
        input_ids: torch.LongTensor | None,  # (B, T)
        attention_mask: torch.Tensor | None,
        position_ids: torch.LongTensor | None,
        past_key_values: Cache | None,
        inputs_embeds: torch.FloatTensor | None,  # (B, T, D)
        use_cache: bool | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, Cache | None]:
        """How every forward begins: token embeddings `(B, T, D)`, the causal mask of the backend, positions
        `(B or 1, T)`, and the cache to fill.

        Raises:
            ValueError: if not exactly one of `input_ids` and `inputs_embeds` is given, or the context is too long.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        # Before a cache is made: with an empty one, masking_utils would no longer keep packed documents apart.
        mask = create_causal_mask(self.config, inputs_embeds, attention_mask, past_key_values, position_ids)
        positions = resolve_position_ids(
            inputs_embeds, attention_mask, position_ids, past_key_values, self.config.max_position_embeddings
        )
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        return inputs_embeds, mask, positions, past_key_values

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
