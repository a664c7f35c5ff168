"""The pre-norm causal transformer layer and its feed-forward block."""

from itertools import groupby

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import is_torchdynamo_compiling

from .block_attention import Rotary, SelfAttention
from .block_learned_dropout import LearnedDropout


def layer_norm(config) -> nn.LayerNorm:
    """The LayerNorm of all blocks: its bias follows `use_bias`."""
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=config.use_bias)


class FeedForward(nn.Module):
    """D to `intermediate_size` F and back, with exact GELU; with LearnedDropout on its output, or on groups of its F
    channels, which are then not computed where the mask is 0 (at inference)."""

    def __init__(self, config, learned_dropout: LearnedDropout | None = None):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.use_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.use_bias)
        self.down_proj.adds_to_residual = True
        self.learned_dropout = learned_dropout

    def forward(self, hidden_states: torch.Tensor, **mask_inputs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The output `(B, T, D)`, and the penalties of the mask `(B, T, K)` if there are any."""
        if self.learned_dropout is None:
            return self.down_proj(self.activate(hidden_states)), None
        if self.learned_dropout.groups is None:
            output = self.down_proj(self.activate(hidden_states))
            mask, probability = self.learned_dropout(output, **mask_inputs)
            output = output * mask
        else:
            mask, probability = self.learned_dropout(hidden_states, **mask_inputs)
            if self.can_skip(hidden_states):
                output = self.compute_active_groups(hidden_states, mask)
            else:
                groups = self.activate(hidden_states).unflatten(-1, (mask.shape[-1], -1))  # (B, T, G, F / G)
                output = self.down_proj((groups * mask.unsqueeze(-1)).flatten(-2))
        return output, self.learned_dropout.penalise(probability)

    def activate(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(self.up_proj(hidden_states))

    def can_skip(self, hidden_states: torch.Tensor) -> bool:
        """Whether masked groups are left out: not where a gradient needs them, not in one compiled graph, whose shapes
        cannot depend on the mask, and not where an adapter, quantization, a hook or offloading stands between the layer
        and its weights."""
        return (
            not self.training
            and not torch.is_grad_enabled()
            and not is_torchdynamo_compiling()
            and all(is_plain(linear, hidden_states.device) for linear in (self.up_proj, self.down_proj))
        )

    def compute_active_groups(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The same output, each group of channels computed for those tokens alone whose mask `(B, T, G)` has it on."""
        tokens_ND = hidden_states.flatten(0, -2)
        active_GN = mask.flatten(0, -2).T.bool()
        size = self.up_proj.out_features // mask.shape[-1]
        output_ND = torch.zeros_like(tokens_ND)
        if self.down_proj.bias is not None:
            output_ND = output_ND + self.down_proj.bias
        counts = active_GN.sum(1).tolist()
        for everywhere, run in groupby(range(len(counts)), key=lambda group: counts[group] == len(tokens_ND)):
            groups = list(run)
            if everywhere:  # neighbouring groups in one product
                output_ND = output_ND + self.compute_channels(tokens_ND, groups[0] * size, (groups[-1] + 1) * size)
                continue
            for group in groups:
                if counts[group]:
                    tokens = active_GN[group].nonzero().squeeze(1)
                    part = self.compute_channels(tokens_ND[tokens], group * size, (group + 1) * size)
                    output_ND.index_add_(0, tokens, part.to(output_ND.dtype))  # narrower under autocast
        return output_ND.view_as(hidden_states)

    def compute_channels(self, tokens_ND: torch.Tensor, start: int, end: int) -> torch.Tensor:
        """What the inner channels from `start` to `end` add to the output of the given tokens."""
        bias = None if self.up_proj.bias is None else self.up_proj.bias[start:end]
        channels = nn.functional.gelu(nn.functional.linear(tokens_ND, self.up_proj.weight[start:end], bias))
        return nn.functional.linear(channels, self.down_proj.weight[:, start:end])


def is_plain(linear: nn.Module, device: torch.device) -> bool:
    """Whether reading the weights of a layer is the same as calling it."""
    # accelerate, which keeps weights elsewhere, marks a layer with `_hf_hook`.
    hooks = linear._forward_hooks or linear._forward_pre_hooks or hasattr(linear, "_hf_hook")
    plain = type(linear) is nn.Linear and type(linear.weight) is nn.Parameter and linear.weight.device == device
    return plain and not hooks


class CausalLayer(GradientCheckpointingLayer):
    """h += SelfAttention(LN(h)); h += FeedForward(LN(h))."""

    def __init__(self, config, layer_idx: int, learned_dropout: LearnedDropout | None = None):
        super().__init__()
        self.self_attn_norm = layer_norm(config)
        self.self_attn = SelfAttention(config, layer_idx)
        self.mlp_norm = layer_norm(config)
        self.mlp = FeedForward(config, learned_dropout)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, T, D)
        shared_attention: torch.Tensor | None = None,  # (B, T, M), of LearnedDropout
        attention_mask: torch.Tensor | None = None,
        rotary: Rotary | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The new hidden states, and the penalties of the mask `(B, T, K)` if there are any."""
        shared = {"attention_mask": attention_mask, "past_key_values": past_key_values, **kwargs}
        attended, _ = self.self_attn(self.self_attn_norm(hidden_states), rotary=rotary, **shared)
        hidden_states = hidden_states + self.dropout(attended)
        output, penalties = self.mlp(self.mlp_norm(hidden_states), shared_attention=shared_attention, **shared)
        return hidden_states + self.dropout(output), penalties
