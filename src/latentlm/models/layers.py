"""The pre-norm causal transformer layer and its feed-forward block."""

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import Rotary, SelfAttention


def layer_norm(config) -> nn.LayerNorm:
    """The LayerNorm of all blocks: its bias follows `use_bias`."""
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=config.use_bias)


class FeedForward(nn.Module):
    """D to `intermediate_size` and back, with exact GELU."""

    def __init__(self, config):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.use_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.use_bias)
        self.down_proj.adds_to_residual = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(nn.functional.gelu(self.up_proj(hidden_states)))


class CausalLayer(GradientCheckpointingLayer):
    """h += SelfAttention(LN(h)); h += FeedForward(LN(h))."""

    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.self_attn_norm = layer_norm(config)
        self.self_attn = SelfAttention(config, layer_idx)
        self.mlp_norm = layer_norm(config)
        self.mlp = FeedForward(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, T, D)
        attention_mask: torch.Tensor | None = None,
        rotary: Rotary | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        attended, _ = self.self_attn(
            self.self_attn_norm(hidden_states), attention_mask, rotary, past_key_values, **kwargs
        )
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))
