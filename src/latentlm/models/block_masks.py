"""Attention masks in the form that each backend takes. One [`Mask`] is made per forward.

All kinds work on every backend. Flash attention takes no mask but arguments: the lengths of separate sequences,
windows, causality. What these cannot express is computed without it: [`attend_seen`] looks back at rows, and sdpa takes
single steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    and_masks,
    causal_mask_function,
    create_bidirectional_mask,
    create_causal_mask,
    packed_sequence_mask_function,
    sliding_window_causal_mask_function,
)
from transformers.utils.generic import is_flash_attention_requested
from transformers.utils.import_utils import is_tracing

from .block_positions import document_ids, packs_documents

PACKED_CACHE = (
    "`position_ids` pack several documents into a row, and `past_key_values` is given: a cache cannot tell them apart. "
    "Leave the cache out, or give each document a row of its own."
)

Visible = Callable[..., Any]
"""A rule: of broadcastable indices (batch, head, query, key), whether the query sees the key."""


class Mask(NamedTuple):
    """What an attention passes to its backend. It is a named tuple, so that tools that move inputs between devices look
    inside.

    Attributes:
        tensor: additive or bool `(B or 1, 1, T, T_key)`, a BlockMask, or `(B, T_key)` for flash; None for none.
        is_causal: whether queries see no later key, where nothing else says so.
        arguments: further arguments of the backend, such as the windows and lengths of flash attention.
        backend: the name of the backend; None for the configured one, which each attention then looks up.
        band: the number of queries of a block, if the tensor is that of [`fold`]ed blocks.
        seen: `(B, T, K)`, int64, the only keys that each query may see; the tensor, bool `(B, T, K, 1)`, says which of
            these it does see. The backend is not called: see [`attend_seen`].
    """

    tensor: Any = None
    is_causal: bool = True
    arguments: dict[str, Any] | None = None
    backend: str | None = None
    band: int | None = None
    seen: torch.Tensor | None = None


CAUSAL = Mask()
"""The mask by which each token sees all before it, for rows that hold one document each."""


def causal_mask(
    config: PreTrainedConfig,
    states: torch.Tensor,  # (B, T, D)
    attention_mask: torch.Tensor | None = None,  # (B, T_seen), or whole (B, 1, T, T_seen)
    past_key_values: Cache | None = None,
    position_ids: torch.Tensor | None = None,  # (B or 1, T), restarting at 0 for each packed document
    look: bool = True,
) -> tuple[Mask, bool]:
    """Make the mask by which each token sees those before it in its document; also return whether rows pack several
    documents.

    Args:
        look: whether to look at padding and positions for a cheaper mask, which makes an accelerator wait. Flash
            attention always has to.

    Raises:
        ValueError: if packed documents come with a cache, or flash attention with a mask that is not of padding alone.
    """
    flash, arguments = is_flash_attention_requested(config), None
    rules: list[Visible] = []
    if flash and attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError(
            f"`attention_mask` has {attention_mask.ndim} dimensions, but `attn_implementation` "
            f"{config._attn_implementation!r} takes none but `(B, T)`, of padding. Use 'sdpa'."
        )
    look = look or flash
    packed = packs_documents(position_ids, attention_mask, past_key_values, look)
    if packed and position_ids is not None:
        if past_key_values is not None:
            raise ValueError(PACKED_CACHE)
        if flash and is_tracing(position_ids):
            arguments = {"position_ids": position_ids}  # nobody can look how many documents there are: flash does
        else:
            documents = document_ids(position_ids, attention_mask).expand(len(states), -1)
            if flash:
                return Mask(None, True, varlen_arguments(documents)), packed
            rules.append(packed_sequence_mask_function(documents))
    if not look and past_key_values is None and attention_mask is not None and attention_mask.ndim == 2:
        rules.append(real_keys(attention_mask))
        attention_mask = None
    if rules and attention_mask is None:  # not by transformers, whose further rules go through vmap
        return Mask(make_mask(config, states, states.shape[1], and_masks(causal_mask_function, *rules)), False), packed
    # Without the positions, of which transformers makes documents by a rule of its own.
    tensor = create_causal_mask(
        config, states, attention_mask, past_key_values, and_mask_function=and_masks(*rules) if rules else None
    )
    return Mask(tensor, True, arguments, config._attn_implementation), packed


def bidirectional_mask(
    config: PreTrainedConfig,
    states: torch.Tensor,  # (B, T, D), the queries
    padding: torch.Tensor,  # (B, S), 1 where a key is real; after its last real key a row has none
    memory: torch.Tensor | None = None,  # (B, S, D), the keys where they are not of the queries
) -> Mask:
    """Make the mask by which every query sees every real key."""
    if is_flash_attention_requested(config):
        if memory is not None:
            return Mask(None, False, memory_arguments(padding, states.shape[1]))
        return Mask(create_bidirectional_mask(config, states, padding), False)
    mask = make_mask(config, states, padding.shape[1], real_keys(padding))
    return Mask(mask, False, backend=config._attn_implementation)


def real_keys(padding: torch.Tensor) -> Visible:
    """Return the rule by which all queries see the keys that are real in `(B, S)`. Given a padding mask instead, the
    functions of transformers would check whether all keys are real, and an accelerator would wait."""
    real = padding.bool()

    def visible(batch, head, query, key):
        return real[batch, key]

    return visible


def sequence_mask(
    config: PreTrainedConfig,
    states: torch.Tensor,  # (B, T, D)
    is_causal: bool = True,
    window: int | None = None,
    segments: torch.Tensor | None = None,  # (B, T), each in one piece
) -> Mask:
    """Make the mask of rows without padding by the cheapest means that the backend has. Each position sees its segment,
    causally and within its last `window` positions if asked, itself included."""
    length = states.shape[1]
    if window is not None and window >= length:
        window = None
    if is_flash_attention_requested(config):
        arguments = {} if segments is None else varlen_arguments(segments)
        return Mask(None, is_causal, arguments if window is None else {**arguments, "sliding_window": window})
    if segments is None and config._attn_implementation == "sdpa":
        if window is None:
            return Mask(None, is_causal)
        if length > 2 * window:
            return Mask(band_tensor(states, window), False, band=window)
    rules: list[Visible] = [] if segments is None else [packed_sequence_mask_function(segments)]
    if is_causal:
        rules.append(causal_mask_function if window is None else sliding_window_causal_mask_function(window))
    return Mask(make_mask(config, states, length, and_masks(*rules)), False)


def look_back_mask(
    config: PreTrainedConfig,
    states: torch.Tensor,  # (B, T, D)
    segments: torch.Tensor,  # (B, T)
    num_past: int,
    lookback: int,
) -> Mask:
    """Make the mask of symbols that look back. Keys are `num_past` rows of the past, then the current rows; a symbol of
    segment s sees the rows s - `lookback` to s - 1 of the past and its own current row. With sdpa or flash attention
    only these are computed."""
    if config._attn_implementation == "sdpa" or is_flash_attention_requested(config):
        seen = segments.unsqueeze(-1) + torch.arange(-lookback, 1, device=states.device)
        real = (seen >= 0).unsqueeze(-1)
        seen = torch.cat((seen[..., :-1].clamp(min=0), seen[..., -1:] + num_past), -1)
        return Mask(real, seen=seen)

    def visible(batch, head, query, key):
        segment = segments[batch, query]
        past = (key < num_past) & (key < segment) & (key >= segment - lookback)
        return past | (key == num_past + segment)

    return Mask(make_mask(config, states, 2 * num_past + 1, visible), False)


def step_mask(config: PreTrainedConfig, states: torch.Tensor, seen: torch.Tensor) -> Mask:
    """Make the mask of single steps `(n, 1, D)` that see what `seen` says, bool `(n, 1, 1, C)`."""
    kind = config._attn_implementation
    if kind == "sdpa":
        return Mask(seen, False, backend=kind)  # as it is, which costs nothing
    if kind == "flex_attention" or is_flash_attention_requested(config):
        return Mask(seen, False, backend="sdpa")  # flex attention cannot do single steps everywhere

    def visible(batch, head, query, key):
        return seen[batch, 0, query, key]

    return Mask(make_mask(config, states, seen.shape[-1], visible), False)


def make_mask(config: PreTrainedConfig, states: torch.Tensor, num_keys: int, visible: Visible) -> Any:
    """Make the tensor or BlockMask that the configured backend reads, for queries `(B, T, D)` and `num_keys` keys.

    Raises:
        ValueError: if nothing makes masks for the backend.
    """
    kind = config._attn_implementation
    if kind not in ALL_MASK_ATTENTION_FUNCTIONS:
        raise ValueError(
            f"`attn_implementation` is {kind!r}, for which no mask function is registered, but windows and segments "
            f"need masks: call `transformers.AttentionMaskInterface.register({kind!r}, function)`."
        )
    return ALL_MASK_ATTENTION_FUNCTIONS[kind](
        batch_size=states.shape[0],
        q_length=states.shape[1],
        kv_length=num_keys,
        mask_function=visible,
        allow_is_causal_skip=False,
        device=states.device,
        dtype=states.dtype,
        config=config,
    )


# ---- Flash attention's arguments ----


def varlen_arguments(segments: torch.Tensor) -> dict[str, Any]:
    """Return the arguments by which flash attention separates sequences: rows `(B, T)`, one after the other, cut where
    the segment changes."""
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    starts = begins.flatten().nonzero().squeeze(1)
    bounds = nn.functional.pad(starts, (0, 1), value=segments.numel()).int()
    longest = int(bounds.diff().max())
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def memory_arguments(padding: torch.Tensor, num_queries: int) -> dict[str, Any]:
    """Return the arguments by which `num_queries` queries of each row see its real keys, which come first in `(B, S)`.
    The other keys are a sequence that no query sees."""
    size = padding.shape[1]
    counts = padding.long().sum(1)
    ends = torch.arange(1, len(padding) + 1, device=padding.device)
    keys = torch.stack((ends * size - size + counts, ends * size), 1)
    queries = (ends * num_queries).repeat_interleave(2)
    return {
        "cu_seq_lens_q": nn.functional.pad(queries, (1, 0)).int(),
        "cu_seq_lens_k": nn.functional.pad(keys.flatten(), (1, 0)).int(),
        "max_length_q": num_queries,
        "max_length_k": size,
    }


# ---- A band for sdpa: a causal window without computing what is outside of it ----
# Blocks of `window` queries see their own block of keys and the one before: O(T * window) in place of O(T^2).


def band_tensor(states: torch.Tensor, window: int) -> torch.Tensor:
    """Return the mask of folded states `(B, T, D)`: bool `(B * blocks, 1, window, 2 * window)`."""
    batch, length = states.shape[:2]
    query = torch.arange(window, device=states.device).unsqueeze(1)
    key = torch.arange(2 * window, device=states.device) - window  # from the block's first query
    visible = ((key <= query) & (query - key < window)).repeat(-(-length // window), 1, 1)
    visible[0, :, :window] = False  # nothing comes before the first block
    return visible.repeat(batch, 1, 1).unsqueeze(1)


def fold(states: torch.Tensor, window: int) -> torch.Tensor:
    """Fold `(B, H, T, d)` into blocks `(B, blocks, H, window, d)`."""
    states = nn.functional.pad(states, (0, 0, 0, -states.shape[2] % window))
    return states.unflatten(2, (-1, window)).transpose(1, 2)


def fold_keys(states: torch.Tensor, window: int) -> torch.Tensor:
    """Fold keys into blocks, each with the block before it: `(B * blocks, H, 2 * window, d)`."""
    blocks = fold(states, window)
    before = nn.functional.pad(blocks[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))
    return torch.cat((before, blocks), 3).flatten(0, 1)


def gather_keys(states: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Gather from `(B, H, S, d)` the keys that each query sees, by indices `(B, T, K)`: `(B, T, K, H, d)`."""
    batch, heads, size, _ = states.shape
    rows = states.transpose(1, 2).flatten(2).flatten(0, 1)  # (B * S, H * d)
    first = torch.arange(0, batch * size, size, device=seen.device).view(-1, 1, 1)
    gathered = rows.index_select(0, (seen + first).flatten())
    return gathered.unflatten(0, seen.shape).unflatten(-1, (heads, -1))


def unfold(output: torch.Tensor, batch: int, length: int) -> torch.Tensor:
    """Turn the backend's `(B * blocks, window, H, d)` back into `(B, T, H, d)`."""
    return output.unflatten(0, (batch, -1)).flatten(1, 2)[:, :length]
