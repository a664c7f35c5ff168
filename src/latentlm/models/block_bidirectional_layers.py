"""Layers of EncodZall: pre-RMSNorm, no biases, grouped-query attention with rotary positions, SwiGLU."""

import torch
from torch import nn
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import eager_attention_forward, rotate_half

from .block_attention import Rotary, call_backend


def rotate(states: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Queries or keys `(B, H, T, D / H)` turned by the `cos` and `sin` `(B, T, D / H)` of their positions."""
    cos, sin = (table.unsqueeze(1) for table in rotary)
    return states * cos + rotate_half(states) * sin


class GroupedAttention(nn.Module):
    """What self- and cross-attention share; with `values_only` there is nothing to choose from, and no query or key."""

    def __init__(self, config, layer_idx: int, is_causal: bool, values_only: bool = False):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = is_causal
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        kv_size = config.num_key_value_heads * self.head_dim
        if not values_only:
            self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
            self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def split_heads(self, states: torch.Tensor) -> torch.Tensor:
        """`(B, T, H * D_head)` to `(B, H, T, D_head)`."""
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def attend(self, query, key, value, attention_mask, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        kwargs.setdefault("is_causal", self.is_causal)
        kwargs |= {"dropout": self.config.attention_dropout if self.training else 0.0, "scaling": self.scaling}
        kind = self.config._attn_implementation
        output, weights = call_backend(
            self, query, key, value, attention_mask, kind, eager=eager_attention_forward, **kwargs
        )
        return self.o_proj(output.flatten(-2)), weights


class GroupedSelfAttention(GroupedAttention):
    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, T, D)
        rotary: Rotary,
        attention_mask: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key = (rotate(self.split_heads(p(hidden_states)), rotary) for p in (self.q_proj, self.k_proj))
        value = self.split_heads(self.v_proj(hidden_states))
        if past_key_values is not None:
            key, value = past_key_values.self_attention_cache.update(key, value, self.layer_idx)
        return self.attend(query, key, value, attention_mask, **kwargs)


class MemoryAttention(GroupedAttention):
    """Queries look at the words of the memory, whose keys are made once and then cached."""

    def __init__(self, config, layer_idx: int, one_word: bool):
        super().__init__(config, layer_idx, is_causal=False, values_only=one_word)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, T, D)
        memory: torch.Tensor,  # (B, S, D)
        rotary: tuple[Rotary, Rotary] | None,  # of the queries and of the memory
        memory_mask: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query = self.split_heads(self.q_proj(hidden_states))
        if rotary is not None:
            query = rotate(query, rotary[0])
        if past_key_values is not None and past_key_values.is_updated.get(self.layer_idx):
            layer = past_key_values.cross_attention_cache.layers[self.layer_idx]
            key, value = layer.keys, layer.values
        else:
            key, value = (self.split_heads(projection(memory)) for projection in (self.k_proj, self.v_proj))
            if rotary is not None:
                key = rotate(key, rotary[1])
            if past_key_values is not None:
                key, value = past_key_values.cross_attention_cache.update(key, value, self.layer_idx)
                past_key_values.is_updated[self.layer_idx] = True
        return self.attend(query, key, value, memory_mask, **kwargs)

    def read_own_word(self, memory: torch.Tensor) -> torch.Tensor:
        """What attention to one word alone gives, the word of each token `(..., D)`: its value, whatever the query."""
        value = self.v_proj(memory).unflatten(-1, (-1, self.head_dim))
        return self.o_proj(value.repeat_interleave(self.num_key_value_groups, -2).flatten(-2))


class SwiGLU(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


def rms_norm(config) -> nn.RMSNorm:
    return nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class BidirectionalLayer(GradientCheckpointingLayer):
    """h += SelfAttention(RMSNorm(h)); h += SwiGLU(RMSNorm(h))."""

    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.self_attn_norm = rms_norm(config)
        self.self_attn = GroupedSelfAttention(config, layer_idx, is_causal=False)
        self.mlp_norm = rms_norm(config)
        self.mlp = SwiGLU(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: torch.Tensor, rotary: Rotary, attention_mask=None, **kwargs) -> torch.Tensor:
        attended, _ = self.self_attn(self.self_attn_norm(hidden_states), rotary, attention_mask, **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))


class MemoryDecoderLayer(GradientCheckpointingLayer):
    """A causal layer that also reads the memory: of a whole text, or the one word that each of its tokens spells (all
    that a layer with `one_word` can do)."""

    def __init__(self, config, layer_idx: int, one_word: bool = False):
        super().__init__()
        self.self_attn_norm = rms_norm(config)
        self.self_attn = GroupedSelfAttention(config, layer_idx, is_causal=True)
        if not one_word:
            self.cross_attn_norm = rms_norm(config)
        self.cross_attn = MemoryAttention(config, layer_idx, one_word)
        self.mlp_norm = rms_norm(config)
        self.mlp = SwiGLU(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, T, D)
        memory: torch.Tensor,  # (B, S, D), or (B, T, D) where each token has one word
        rotary: Rotary,
        attention_mask: torch.Tensor | None = None,
        memory_rotary: tuple[Rotary, Rotary] | None = None,
        memory_mask: torch.Tensor | None = None,
        one_word: bool = False,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        attended, _ = self.self_attn(
            self.self_attn_norm(hidden_states), rotary, attention_mask, past_key_values, **kwargs
        )
        hidden_states = hidden_states + self.dropout(attended)
        if one_word:
            read = self.cross_attn.read_own_word(memory)
        else:
            query = self.cross_attn_norm(hidden_states)
            read, _ = self.cross_attn(query, memory, memory_rotary, memory_mask, past_key_values, **kwargs)
        hidden_states = hidden_states + self.dropout(read)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))
