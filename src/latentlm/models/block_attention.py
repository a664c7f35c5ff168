"""Attention through the attention interface of transformers. A sequence attends to itself or to a memory, in
multi-head, grouped or multi-head latent form, with or without a store of keys."""

from copy import copy
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaRotaryEmbedding,
    eager_attention_forward,
    repeat_kv,
    rotate_half,
)

from .block_masks import CAUSAL, Mask, fold, fold_keys, gather_keys, unfold

Rotary = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of positions, `(B or 1, T, d)` each."""

Pair = tuple[torch.Tensor, torch.Tensor]
"""What a store keeps of each position: tensors `(B, h, T, d)` and `(B, h, T, d')`."""


def call_backend(
    module: nn.Module,
    query: torch.Tensor,  # (B, H, T, d)
    key: torch.Tensor,  # (B, H or its groups, T_key, d)
    value: torch.Tensor,  # (B, H or its groups, T_key, d_value)
    attention_mask: Any,  # what the backend takes
    kind: str,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute attention with the backend `kind` of transformers: `(B, T, H, d_value)`, and the probabilities if it has
    them.

    Queries and keys are padded with zeros, which change no score, where a kernel wants another head size. sdpa is
    faster on sizes that fill its vectors, and flex attention refuses sizes under 16. On CPU, flex attention is wrong
    for sizes that fill vectors: where the number of keys is a multiple of a vector but not of a block (8, 24, 40, …
    with AVX2), torch's product of queries and keys reads keys beyond the last one, whatever lies there, and writes
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
    backend = ALL_ATTENTION_FUNCTIONS.get_interface(kind, eager_attention_forward)
    output, weights = backend(module, query, key, value, attention_mask, **kwargs)
    return output[..., :size] if fill else output, weights


def rotate(states: torch.Tensor, rotary: Rotary | None) -> torch.Tensor:
    """Rotate queries or keys `(B, H, T, d)` by their positions (RoPE, Su et al. 2021, 2104.09864); without positions,
    return them as they are."""
    if rotary is None:
        return states
    cos, sin = (table.unsqueeze(1) for table in rotary)
    return states * cos + rotate_half(states) * sin


def merged_linear(in_features: int, parts: tuple[int, ...], bias: bool) -> nn.Linear:
    """Make one linear layer of several linear maps of the same input. Its `parts`, the number of rows of each map, tell
    optimizers that treat a matrix as a whole where each map is."""
    linear = nn.Linear(in_features, sum(parts), bias=bias)
    linear.parts = parts  # pyright: ignore[reportArgumentType]
    return linear


class Attention(nn.Module):
    """Attention of a sequence to itself or, with `reads_memory`, to a memory: other states, whose keys have their own
    positions.

    A form of attention defines how queries are made, which pair a store keeps for each position, and how pairs unfold
    into keys and values. This class is the regular form: a key and a value for each head, or for each group of heads.

    Args:
        config: of the model.
        layer_idx: the index of these keys in a store.
        reads_memory: whether keys are made of a memory.
        num_heads: the number of heads; `num_attention_heads` if None.
        num_key_value_groups: how many heads share a key and a value; the configuration's if None.
        has_output: whether a projection into the residual stream follows.
    """

    config: Any
    scaling: float

    def __init__(
        self,
        config: Any,
        layer_idx: int,
        *,
        reads_memory: bool = False,
        num_heads: int | None = None,
        num_key_value_groups: int | None = None,
        has_output: bool = True,
    ):
        super().__init__()
        self.config = config
        self.attention_dropout = config.attention_dropout
        self.layer_idx = layer_idx
        self.reads_memory = reads_memory
        self.num_heads = num_heads or config.num_attention_heads
        self.num_key_value_groups = num_key_value_groups or config.num_key_value_groups
        self.num_key_value_heads = self.num_heads // self.num_key_value_groups
        self.width = config.hidden_size  # of all heads together
        self.head_dim = self.width // self.num_heads
        self.bias = getattr(config, "use_bias", False)
        self.make_projections()
        if has_output:
            self.o_proj = nn.Linear(self.width, config.hidden_size, bias=self.bias)
            self.o_proj.adds_to_residual = True  # pyright: ignore[reportArgumentType]
        else:
            self.o_proj = nn.Identity()

    def make_projections(self) -> None:
        """Make the projections. All that is made of the same states comes from one product, which is faster than
        several small ones."""
        size = self.config.hidden_size
        self.scaling = self.head_dim**-0.5
        self.part_size = self.num_key_value_heads * self.head_dim  # of keys, and of values
        if self.reads_memory:
            self.q_proj = nn.Linear(size, self.width, bias=self.bias)
            self.kv_proj = merged_linear(size, (self.part_size, self.part_size), self.bias)
        else:
            self.qkv_proj = merged_linear(size, (self.width, self.part_size, self.part_size), self.bias)

    def split_heads(self, states: torch.Tensor, size: int | None = None) -> torch.Tensor:
        """Turn `(B, T, h * d)` into `(B, h, T, d)`; d is by default the heads' size."""
        return states.view(*states.shape[:-1], -1, size or self.head_dim).transpose(1, 2)

    # ---- The form ----

    @property
    def pair_shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Number and size of the heads in the first and the second part of a pair."""
        return (self.num_key_value_heads, self.head_dim), (self.num_key_value_heads, self.head_dim)

    def project(self, hidden_states: torch.Tensor, rotary: Rotary | None) -> tuple[torch.Tensor, Pair]:
        """Return queries `(B, H, T, d)` and pairs, both of the states `(B, T, D)`."""
        states = self.qkv_proj(hidden_states)
        if rotary is None:
            query, key, value = states.split((self.width, self.part_size, self.part_size), -1)
            return self.split_query(query, rotary), self.split_pair(key, value, rotary)
        both, value = states.split((self.width + self.part_size, self.part_size), -1)
        both = rotate(self.split_heads(both), rotary)  # together, which takes half as many operations
        query, key = both.split((self.num_heads, self.num_key_value_heads), 1)
        return query, (key, self.split_heads(value))

    def queries(self, hidden_states: torch.Tensor, rotary: Rotary | None) -> torch.Tensor:
        """Return the queries `(B, H, T, d)` of states `(B, T, D)` to a memory."""
        return self.split_query(self.q_proj(hidden_states), rotary)

    def pairs(self, memory: torch.Tensor, rotary: Rotary | None) -> Pair:
        """Return the pairs of a memory `(B, S, D)`."""
        key, value = self.kv_proj(memory).chunk(2, -1)
        return self.split_pair(key, value, rotary)

    def split_query(self, query: torch.Tensor, rotary: Rotary | None) -> torch.Tensor:
        return rotate(self.split_heads(query), rotary)

    def split_pair(self, key: torch.Tensor, value: torch.Tensor, rotary: Rotary | None) -> Pair:
        return rotate(self.split_heads(key), rotary), self.split_heads(value)

    def unfold(self, pair: Pair) -> Pair:
        """Return the keys and values `(B, h, T, d)` of a pair."""
        return pair

    def read_single(self, memory: torch.Tensor) -> torch.Tensor:
        """Return the attention's output `(B, T, D)` where each position sees a single key, that of its own memory
        `(B, T, D)`. It is the projected value, whatever the query."""
        _, value = self.unfold(self.pairs(memory, None))
        return self.o_proj(repeat_kv(value, self.num_key_value_groups).transpose(1, 2).flatten(-2))

    # ---- All forms ----

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, T, D)
        mask: Mask = CAUSAL,
        rotary: Rotary | None = None,
        memory: torch.Tensor | None = None,  # (B, S, D)
        memory_rotary: Rotary | None = None,
        past_key_values: Any = None,  # a store of keys: see [`self_pairs`] and [`memory_pairs`]
        **kwargs,  # of the backend
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the attention's output `(B, T, D)`, and the probabilities `(B, H, T, T_key)` if the backend has
        them."""
        kind = mask.backend or self.config._attn_implementation
        if self.reads_memory:
            query = self.queries(hidden_states, rotary)
            pair = memory_pairs(past_key_values, self, memory, memory_rotary)
        else:
            query, pair = self.project(hidden_states, rotary)
            if past_key_values is not None:
                pair = self_pairs(past_key_values, self.layer_idx, pair)
        if past_key_values is None and (paged := kwargs.pop("cache", None)) is not None:
            # Here, not in the backend: its heads may be others than the cache's, and are filled below.
            pair = update_paged_cache(paged, pair, self.layer_idx, kwargs)
            kind = kind.removeprefix("paged|")
        key, value = self.unfold(pair)
        batch, _, length, _ = query.shape
        if mask.band is not None:
            query = fold(query, mask.band).flatten(0, 1)
            key, value = fold_keys(key, mask.band), fold_keys(value, mask.band)
        if mask.seen is not None:
            key, value = repeat_kv(key, self.num_key_value_groups), repeat_kv(value, self.num_key_value_groups)
            dropout = self.attention_dropout if self.training else 0.0
            output = attend_seen(query, key, value, mask.seen, mask.tensor, self.scaling, dropout)
            return self.o_proj(output.flatten(-2)), None
        if mask.arguments:
            kwargs = {**mask.arguments, **kwargs}
        kwargs.setdefault("is_causal", mask.is_causal)
        kwargs.update(dropout=self.attention_dropout if self.training else 0.0, scaling=self.scaling)
        output, weights = call_backend(self, query, key, value, mask.tensor, kind, **kwargs)
        if mask.band is not None:
            output = unfold(output, batch, length)
        return self.o_proj(output.flatten(-2)), weights


def attend_seen(
    query: torch.Tensor,  # (B, H, T, d)
    key: torch.Tensor,  # (B, H, S, d)
    value: torch.Tensor,  # (B, H, S, d_v)
    seen: torch.Tensor,  # (B, T, K), int64
    real: torch.Tensor,  # (B, T, K, 1), bool
    scaling: float,
    dropout: float,
) -> torch.Tensor:
    """Attend to the few keys that each query sees: `(B, T, H, d_v)`, in time and memory that do not grow with S.
    Products are elementwise, since one small matrix product for each query would be slower."""
    query = query.transpose(1, 2).unsqueeze(2) * scaling  # (B, T, 1, H, d)
    scores = (query * gather_keys(key, seen)).sum(-1).masked_fill(~real, float("-inf"))  # (B, T, K, H)
    weights = nn.functional.dropout(scores.softmax(2, dtype=torch.float32), dropout).to(value.dtype)
    return (weights.unsqueeze(-1) * gather_keys(value, seen)).sum(2)


class ProjectedRMSNorm(nn.RMSNorm):
    """RMSNorm of what a linear layer returns. It computes in the dtype of its weight, since under autocast the two
    differ, and for different dtypes torch has no fused kernel. transformers initialises every class whose name contains
    "RMSNorm"."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.to(self.weight.dtype))


class LatentAttention(Attention):
    """Multi-head latent attention (DeepSeek-V2, 2405.04434, section 2.1). Queries, and keys with values, are made from
    low-rank latents. Positions rotate a small separate part, whose key all heads share. A store keeps the latent and
    that key."""

    def make_projections(self) -> None:
        config, size = self.config, self.config.hidden_size
        eps = norm_eps(config)
        self.rope_size, self.latent_size = config.latent_rope_size, config.key_value_latent_size
        self.scaling = (self.head_dim + self.rope_size) ** -0.5
        self.num_key_value_groups = 1  # every head has keys of its own, made of the shared latent
        self.q_down = nn.Linear(size, config.query_latent_size, bias=self.bias)
        self.q_norm = ProjectedRMSNorm(config.query_latent_size, eps=eps)
        self.q_up = nn.Linear(config.query_latent_size, self.width + self.num_heads * self.rope_size, bias=self.bias)
        self.kv_down = merged_linear(size, (self.latent_size, self.rope_size), self.bias)
        self.kv_norm = ProjectedRMSNorm(self.latent_size, eps=eps)
        self.kv_up = merged_linear(self.latent_size, (self.width, self.width), self.bias)

    @property
    def pair_shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return (1, self.latent_size), (1, self.rope_size)

    def project(self, hidden_states: torch.Tensor, rotary: Rotary | None) -> tuple[torch.Tensor, Pair]:
        return self.queries(hidden_states, rotary), self.pairs(hidden_states, rotary)

    def queries(self, hidden_states: torch.Tensor, rotary: Rotary | None) -> torch.Tensor:
        query = self.split_heads(self.q_up(self.q_norm(self.q_down(hidden_states))), self.head_dim + self.rope_size)
        plain, positional = query.split((self.head_dim, self.rope_size), -1)
        return torch.cat((plain, rotate(positional, rotary)), -1)

    def pairs(self, memory: torch.Tensor, rotary: Rotary | None) -> Pair:
        latent, key = self.kv_down(memory).unsqueeze(1).split((self.latent_size, self.rope_size), -1)
        return self.kv_norm(latent), rotate(key, rotary)

    def unfold(self, pair: Pair) -> Pair:
        latent, positional = pair
        key, value = (self.split_heads(states) for states in self.kv_up(latent.squeeze(1)).chunk(2, -1))
        return torch.cat((key, positional.expand(-1, self.num_heads, -1, -1)), -1), value


class SingleKeyAttention(Attention):
    """Attention in which each position sees a single key. Its output is that key's value, so that it has neither
    queries nor keys."""

    def make_projections(self) -> None:
        size = self.num_key_value_heads * self.head_dim
        self.v_proj = nn.Linear(self.config.hidden_size, size, bias=self.bias)

    def pairs(self, memory: torch.Tensor, rotary: Rotary | None) -> Pair:
        value = self.split_heads(self.v_proj(memory))
        return value, value


def norm_eps(config: Any) -> float:
    """Return the epsilon of the configuration's norms."""
    return config.rms_norm_eps if hasattr(config, "rms_norm_eps") else config.layer_norm_eps


def rotary_table(config: Any) -> LlamaRotaryEmbedding:
    """Make the rotary embedding for the form of attention that a configuration names."""
    if config.attention_form == "latent":
        config = copy(config)
        config.head_dim = config.latent_rope_size
    return LlamaRotaryEmbedding(config)


FORMS: dict[str, type[Attention]] = {"regular": Attention, "latent": LatentAttention}
"""The attention classes by the configuration's `attention_form`."""


# ---- Stores of keys ----


def self_pairs(store: Any, layer_idx: int, pair: Pair) -> Pair:
    """Store the pairs of the present positions, and return those of all positions so far. A store is a cache of
    transformers, or any object with `update(key, value, layer_idx)`."""
    if isinstance(store, EncoderDecoderCache):
        store = store.self_attention_cache
    return store.update(*pair, layer_idx)


def memory_pairs(store: Any, attention: Attention, memory: Any, rotary: Rotary | None) -> Pair:
    """Return the pairs of a memory, which is None where the store already has them. An `EncoderDecoderCache` gets them
    once, other caches append them to those before, and a store with a method of this name decides itself."""
    layer_idx = attention.layer_idx
    if store is None:
        return attention.pairs(memory, rotary)
    if hasattr(store, "memory_pairs"):
        return store.memory_pairs(attention, memory, rotary)
    if not isinstance(store, EncoderDecoderCache):
        return store.update(*attention.pairs(memory, rotary), layer_idx)
    if store.is_updated.get(layer_idx):
        layer: Any = store.cross_attention_cache.layers[layer_idx]
        return layer.keys, layer.values
    store.is_updated[layer_idx] = True
    return store.cross_attention_cache.update(*attention.pairs(memory, rotary), layer_idx)


def update_paged_cache(
    cache: Any,  # transformers' PagedAttentionCache
    pair: Pair,  # of batch size 1
    layer_idx: int,
    kwargs: dict[str, Any],
) -> Pair:
    """Store the pairs in the paged cache of `generate_batch`, and return those of all its requests, earlier tokens
    included.

    That cache has one shape for all layers, the self-attention's. Heads of other sizes are stored side by side in it,
    and narrower ones with zeros after them.

    Raises:
        ValueError: if they do not fit.
    """
    allocator = cache.layer_to_allocator[layer_idx]
    shape = (allocator.num_key_value_heads, allocator.head_dim)
    shapes = [(states.shape[1], states.shape[3]) for states in pair]
    if kwargs.get("block_table") is not None and any(own != shape for own in shapes):
        raise ValueError(
            f"The flash kernel of `generate_batch` reads heads of the cache, {shape}, but cache layer {layer_idx} has "
            f"{shapes[0]} (number, size). Give `ContinuousBatchingConfig(max_blocks_per_request=0)`."
        )

    def to_cache(states: torch.Tensor) -> torch.Tensor:
        missing = shape[0] * shape[1] - states.shape[1] * states.shape[3]
        side_by_side = nn.functional.pad(states.transpose(1, 2).flatten(-2), (0, missing))
        return side_by_side.unflatten(-1, shape).transpose(1, 2)

    def from_cache(states: torch.Tensor, heads: int, size: int) -> torch.Tensor:
        return states.transpose(1, 2).flatten(-2)[..., : heads * size].unflatten(-1, (heads, size)).transpose(1, 2)

    key, value = cache.update(*map(to_cache, pair), layer_idx, kwargs)
    return from_cache(key, *shapes[0]), from_cache(value, *shapes[1])
