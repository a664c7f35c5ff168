"""Positions of tokens in their documents, and the limit of the context."""

from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.utils import logging
from transformers.utils.import_utils import is_torchdynamo_compiling, is_tracing

logger = logging.get_logger(__name__)


def resolve_position_ids(
    inputs_embeds: torch.Tensor,  # (B, T, D)
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    past_key_values: Cache | None,
    max_position_embeddings: int,
) -> torch.Tensor:
    """Return positions `(B or 1, T)`: those that were given; else counted over the real tokens of a `(B, T_seen)` mask,
    so that left padding moves nothing; else consecutive.

    Raises:
        ValueError: a position is not below `max_position_embeddings`.
    """
    length = inputs_embeds.shape[1]
    if position_ids is not None:
        # Reading them would make an accelerator wait; there the embedding's own bounds check has to do.
        if not is_torchdynamo_compiling() and position_ids.device.type == "cpu" and position_ids.numel():
            check_context(int(position_ids.max()) + 1, max_position_embeddings)
        return position_ids
    seen = past_key_values.get_seq_length() if past_key_values is not None else 0
    if not torch.is_tensor(seen):
        check_context(seen + length, max_position_embeddings)
    if attention_mask is not None and attention_mask.ndim == 2:
        # Padding before the first token gets position 0; nothing attends to it.
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    return (torch.arange(length, device=inputs_embeds.device) + seen).unsqueeze(0)


def document_ids(
    position_ids: torch.Tensor,  # (B or 1, T), restarting at 0 for each packed document
    attention_mask: torch.Tensor | None,  # (B, T_seen)
) -> torch.Tensor:
    """Return the document of its row that each token belongs to, `(B or 1, T)`. A document begins at every real token
    at position 0."""
    return document_begins(position_ids, attention_mask).cumsum(-1)


def document_begins(position_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Return whether a document begins at each token, `(B or 1, T)`, bool; arguments as of [`document_ids`]."""
    begins = position_ids == 0
    return begins if attention_mask is None else begins & attention_mask[:, -position_ids.shape[1] :].bool()


def packs_documents(
    position_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    look: bool = True,
) -> bool:
    """Whether a row holds several documents: a real token at position 0 comes after another real token. A mask
    `(B, 1, T, T)` defines visibility by itself. Compiled code cannot look at values, and with `look` an accelerator has
    to wait; where nothing looks, every row without a cache may hold several."""
    if position_ids is None or position_ids.shape[1] == 1:
        return False
    if attention_mask is not None and len(attention_mask.shape) != 2:
        return False
    if not look or is_tracing(position_ids):
        return past_key_values is None
    begins = document_begins(position_ids, attention_mask)
    if attention_mask is None:
        return bool(begins[:, 1:].any())
    real = attention_mask[:, -position_ids.shape[1] :].bool()
    return bool((begins & (real.cumsum(-1) > 1)).any())


def check_context(length: int, max_position_embeddings: int) -> None:
    """Raise a ValueError when `length` tokens do not fit the model."""
    if length > max_position_embeddings:
        raise ValueError(
            f"A context of {length} tokens does not fit: `max_position_embeddings` is {max_position_embeddings}. "
            "Shorten or truncate the input (for tokenizers: `truncation=True, max_length=...`)."
        )


def end_with_context(
    generation_config: Any, input_ids_length: int, new_tokens: int, max_position_embeddings: int
) -> None:
    """Let generation end, with a warning, after `new_tokens`, with which the context is full."""
    if generation_config.max_length > input_ids_length + new_tokens:
        logger.warning(
            f"Generation stops after {new_tokens} new tokens, at `max_position_embeddings` {max_position_embeddings}; "
            f"`max_length` {generation_config.max_length} was asked for."
        )
        generation_config.max_length = input_ids_length + new_tokens
