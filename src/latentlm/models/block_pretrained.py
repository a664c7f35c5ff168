"""What the causal language models share: flags, initialisation, the end of the context, shifted labels."""

import math
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .block_outputs import Base, TakesCache
from .block_positions import check_context, end_with_context

logger = logging.get_logger(__name__)


class TransformerPreTrainedModel(TakesCache, PreTrainedModel):
    """Base class with flags and initialisation: N(0, `initializer_range`), zero biases, and a smaller standard
    deviation for the projections that add to the residual stream (GPT-2, section 2.3)."""

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
        """N in the residual projections' standard deviation `initializer_range / sqrt(N)`."""
        raise NotImplementedError

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        initialize: Any = getattr(module, "initialize_parameters", None)
        if initialize is not None:
            initialize()
        if getattr(module, "adds_to_residual", False):
            std = self.config.initializer_range / math.sqrt(self.num_residual_projections)
            weight: Any = module.weight
            init.normal_(weight, mean=0.0, std=std)

    def _prepare_generated_length(
        self,
        generation_config: Any,
        has_default_max_length: bool,
        has_default_min_length: bool,
        model_input_name: str,
        input_ids_length: int,
        inputs_tensor: torch.Tensor,  # ids (B, T) or embeddings (B, T, D)
    ) -> Any:
        """Refuse a prompt that fills the context, and end generation, with a warning, where the context ends."""
        mixin: Any = super()  # GenerationMixin
        generation_config = mixin._prepare_generated_length(
            generation_config,
            has_default_max_length,
            has_default_min_length,
            model_input_name,
            input_ids_length,
            inputs_tensor,
        )
        limit, prompt = self.config.max_position_embeddings, inputs_tensor.shape[1]
        # PEFT puts a method of its own in place of this one, by which virtual tokens later join the prompt.
        adapted = getattr(getattr(self, "prepare_inputs_for_generation", None), "__self__", None)
        prompt += getattr(getattr(adapted, "active_peft_config", None), "num_virtual_tokens", 0)
        check_context(prompt + 1, limit)  # the prompt and at least one new token
        # `max_length` counts ids, which embeddings in their place are not.
        end_with_context(generation_config, input_ids_length, limit - prompt, limit)
        return generation_config


class TrainedByOthers(Base):
    """Mixin that warns which losses are left out when TRL replaces the forward. It goes before the
    `PreTrainedModel`."""

    @property
    def further_losses(self) -> list[str]:
        """The names of the losses that training adds to `lm_loss`."""
        raise NotImplementedError

    def __setattr__(self, name: str, value: Any) -> None:
        # TRL's trainers put a forward in place of this one that calls the backbone and knows the next token's loss.
        function = getattr(value, "__func__", value)
        replaced = name == "forward" and "fused_lm_head" in (getattr(function, "__kwdefaults__", None) or ())
        if replaced and self.further_losses:
            logger.warning(
                f"TRL trains with `lm_loss` alone: {', '.join(self.further_losses)} of {type(self).__name__} are left "
                "out. transformers' own Trainer has them."
            )
        super().__setattr__(name, value)


def pop_shift_labels(kwargs: dict, labels: torch.Tensor | None) -> torch.Tensor | None:
    """Return the label of the next token at every position `(B, T)`: `shift_labels` of a forward, or its `labels`,
    shifted.

    `shift_labels` is no parameter of a forward: Trainer takes every parameter whose name contains "label" for a column
    that a batch must have, and evaluates without a loss where one is missing.
    """
    shift_labels = kwargs.pop("shift_labels", None)
    return shifted(labels) if shift_labels is None and labels is not None else shift_labels


def shifted(labels: torch.Tensor) -> torch.Tensor:
    """Return the label of the *next* token at every position `(B, T)`; -100 at the last one."""
    return nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
