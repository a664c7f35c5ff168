"""Causal attention on the attention interface of transformers: what all kinds share, self- and cross-attention."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

Rotary = tuple[torch.Tensor, torch.Tensor]


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,  # (B, H, T, D / H)
    key: torch.Tensor,  # (B, H, T_key, D / H)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # additive, (B or 1, 1, T, T_key)
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out; the reference of the other backends. Returns `(B, T, H, D / H)` and the probabilities."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def call_backend(
    module: nn.Module,
    query: torch.Tensor,  # (B, H, T, d)
    key: torch.Tensor,  # (B, H or its groups, T_key, d)
    value: torch.Tensor,  # (B, H or its groups, T_key, d_value)
    attention_mask: Any,  # what the backend takes
    kind: str,
    eager: Callable = eager_attention_forward,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention by the backend `kind` of transformers: `(B, T, H, d_value)`, and the probabilities if it has them.

    Queries and keys get zeros, which change no score, where a kernel wants heads of another size. Those of sdpa are
    faster on sizes that fill their vectors, those of flex attention refuse sizes under 16. On CPU, flex attention is
    wrong for sizes that fill vectors: where the number of keys is a multiple of a vector but not of a block (8, 24, 40,
    … with AVX2), torch's product of queries and keys reads keys beyond the last one, whatever lies there, and writes
    their scores over the first rows' maxima. Its branch for other sizes is exact (torch 2.13, inductor's
    `CppMicroGemmFP32Vec`, `ntail_transpose_b`).
    """
    fill = 0
    if kind == "flex_attention":
        fill = -query.shape[-1] % 16 + (query.device.type == "cpu")
    elif kind == "sdpa" and query.shape[2] > 1:
        fill = -query.shape[-1] % 16
    size = value.shape[-1]
    if fill:
        query, key = (nn.functional.pad(states, (0, fill)) for states in (query, key))
        value = nn.functional.pad(value, (0, query.shape[-1] - size))
    backend = ALL_ATTENTION_FUNCTIONS.get_interface(kind, eager)
    output, weights = backend(module, query, key, value, attention_mask, **kwargs)
    return output[..., :size], weights


class CausalAttention(nn.Module):
    """What every attention here shares: heads, cache and backend. Its width is D unless the subclass says otherwise."""

    is_causal = True  # read by the sdpa and flash backends, which then need no mask

    def __init__(self, config, num_heads: int, layer_idx: int, width: int | None = None):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx  # index of this attention's layer in the cache
        self.num_heads = num_heads
        self.head_dim = (width or config.hidden_size) // num_heads
        self.scaling = self.head_dim**-0.5

    def split_heads(self, states: torch.Tensor) -> torch.Tensor:
        """`(B, T, D)` to `(B, H, T, D / H)`."""
        return states.view(*states.shape[:-1], self.num_heads, self.head_dim).transpose(1, 2)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        rotary: Rotary | None,
        past_key_values: Cache | None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Projected `(B, T, D)` queries, keys and values to the heads' outputs side by side `(B, T, D)`, and the
        probabilities."""
        query, key, value = (self.split_heads(states) for states in (query, key, value))
        if rotary is not None:
            query, key = apply_rotary_pos_emb(query, key, *rotary)
        kind = self.config._attn_implementation
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        elif (cache := kwargs.pop("cache", None)) is not None:
            # Here, not in the backend: its heads may be others than the cache's, and are filled below.
            key, value = update_paged_cache(cache, key, value, self.layer_idx, kwargs)
            kind = kind.removeprefix("paged|")
        kwargs |= {"dropout": self.config.attention_dropout if self.training else 0.0, "scaling": self.scaling}
        output, weights = call_backend(self, query, key, value, attention_mask, kind, **kwargs)
        return output.flatten(-2), weights  # (B, T, H, D / H) to (B, T, D)


def update_paged_cache(
    cache,  # transformers' PagedAttentionCache
    key: torch.Tensor,  # (1, H, T, D / H)
    value: torch.Tensor,
    layer_idx: int,
    kwargs: dict,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values `(1, H, T_key, D / H)` of all requests in a batch of `generate_batch`, earlier tokens included.

    That cache has one shape for all layers, the self-attention's: heads of other sizes are stored side by side in it,
    narrower ones with zeros after them.
    """
    allocator = cache.layer_to_allocator[layer_idx]
    shape = (allocator.num_key_value_heads, allocator.head_dim)
    heads, size = key.shape[1], key.shape[3]
    missing = shape[0] * shape[1] - heads * size
    if kwargs.get("block_table") is not None and (heads, size) != shape:
        raise ValueError(
            f"The flash kernel of `generate_batch` reads heads of the cache, {shape}, but cache layer {layer_idx} has "
            f"{(heads, size)} (number, size). Give `ContinuousBatchingConfig(max_blocks_per_request=0)`."
        )

    def to_cache(states: torch.Tensor) -> torch.Tensor:
        side_by_side = nn.functional.pad(states.transpose(1, 2).flatten(-2), (0, missing))
        return side_by_side.unflatten(-1, shape).transpose(1, 2)

    def from_cache(states: torch.Tensor) -> torch.Tensor:
        return states.transpose(1, 2).flatten(-2)[..., : heads * size].unflatten(-1, (heads, size)).transpose(1, 2)

    return tuple(map(from_cache, cache.update(to_cache(key), to_cache(value), layer_idx, kwargs)))


def output_projection(config) -> nn.Linear:
    """D to D, into the residual stream."""
    projection = nn.Linear(config.hidden_size, config.hidden_size, bias=config.use_bias)
    projection.adds_to_residual = True
    return projection


class SelfAttention(CausalAttention):
    def __init__(self, config, layer_idx: int):
        super().__init__(config, config.num_attention_heads, layer_idx)
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.use_bias)
        self.o_proj = output_projection(config)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, T, D)
        attention_mask: torch.Tensor | None = None,
        rotary: Rotary | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key, value = self.qkv_proj(hidden_states).chunk(3, dim=-1)
        output, weights = self.attend(query, key, value, attention_mask, rotary, past_key_values, **kwargs)
        return self.o_proj(output), weights


class CrossAttention(CausalAttention):
    """Position t attends to encoder positions up to t. Keys are projected once per encoder position and then cached."""

    def __init__(self, config, layer_idx: int):
        super().__init__(config, config.num_cross_attention_heads, layer_idx)
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.use_bias)
        self.kv_proj = nn.Linear(config.hidden_size, 2 * config.hidden_size, bias=config.use_bias)
        self.o_proj = output_projection(config)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, T, D), the queries
        encoder_states: torch.Tensor,  # (B, T, D), of the same positions
        attention_mask: torch.Tensor | None = None,
        rotary: Rotary | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, (key, value) = self.q_proj(hidden_states), self.kv_proj(encoder_states).chunk(2, dim=-1)
        output, weights = self.attend(query, key, value, attention_mask, rotary, past_key_values, **kwargs)
        return self.o_proj(output), weights
