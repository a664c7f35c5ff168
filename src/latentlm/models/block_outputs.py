"""Model outputs. A field whose name ends in `_loss` is a named loss: trainers log every such field without further
code."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

if TYPE_CHECKING:
    from transformers.modeling_utils import PreTrainedModel as Base  # what classes are mixed into
else:
    Base = object


class TakesCache(Base):
    """Mixin that goes before `PreTrainedModel`. transformers 5.24 passes a cache to models as `cache`, and earlier
    versions as `past_key_values`; outputs that inherit from those of transformers know both names."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(kwargs.get("cache"), Cache):  # the paged one of `generate_batch` is none, and has that name only
            kwargs["past_key_values"] = kwargs.pop("cache")
        return super().__call__(*args, **kwargs)


@dataclass
class CausalModelOutput(BaseModelOutputWithPast):
    """Output of a causal model without head.

    Args:
        last_hidden_state: `(B, T, D)`, after the final norm and the position subtraction.
        mask_penalties: `(B, T, K)`, float32: what LearnedDropout's masks cost at each token, one value for each of
            `config.mask_losses`, averaged over its modules.
    """

    mask_penalties: torch.Tensor | None = None


@dataclass
class CausalLMOutput(CausalLMOutputWithPast):
    """Output of a causal language model.

    Args:
        loss: scalar; in training the weighted sum of all terms, in evaluation `lm_loss` alone.
        logits: `(B, T, V)`, or fewer positions with `logits_to_keep`; None in training where the loss was taken in
            chunks.
        past_key_values: the cache, if one was used.
        hidden_states: one `(B, T, D)` per layer and one for the input; the last one is what the output layer reads.
        attentions: one `(B, H, T, T)` per self-attention.
        lm_loss: scalar, next-token cross-entropy in nats. Like every term: a mean over the predicted tokens, or, where
            `num_items_in_batch` is given, their sum divided by it.
        mask_entropy_loss: scalar, -M log2 M of LearnedDropout's masks, unweighted; None where its weight is 0.
        mask_l1_loss: scalar, M^2 / 2 or M of these masks, unweighted; None where its weight is 0.
    """

    lm_loss: torch.Tensor | None = None
    mask_entropy_loss: torch.Tensor | None = None
    mask_l1_loss: torch.Tensor | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if value is None:  # transformers would look at all fields, to do the same; a step of generation has many of it
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


@dataclass
class EncoderDecoderModelOutput(CausalModelOutput):
    """[`CausalModelOutput`] of a causal encoder-decoder.

    Args:
        cross_attentions: one `(B, H_cross, T, T)` per decoder layer.
        encoder_last_hidden_state: `(B, T, D)`, the encoder output that the decoder attends to.
        input_embeddings: `(B, T, D)`, token plus position embeddings after dropout: what the encoder reads.
    """

    cross_attentions: tuple[torch.Tensor, ...] | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    input_embeddings: torch.Tensor | None = None


@dataclass
class EncoderDecoderCausalLMOutput(CausalLMOutput):
    """[`CausalLMOutput`] of a causal encoder-decoder.

    Args:
        cross_attentions: one `(B, H_cross, T, T)` per decoder layer.
        encoder_last_hidden_state: `(B, T, D)`.
        embedding_loss: scalar, unweighted; computed wherever labels are given and the configuration asks for it, but
            not where tokens continue a cache, which does not hold the embeddings before them.
    """

    cross_attentions: tuple[torch.Tensor, ...] | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    embedding_loss: torch.Tensor | None = None
