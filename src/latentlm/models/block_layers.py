"""The pre-norm transformer layer of all architectures, with its norms and feed-forward blocks."""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .block_attention import Attention, Rotary, SingleKeyAttention
from .block_masks import CAUSAL, Mask


def uses_rms_norm(config: Any) -> bool:
    """Whether layers have RMSNorm and SwiGLU instead of LayerNorm and GELU: those whose configuration has
    `rms_norm_eps`."""
    return hasattr(config, "rms_norm_eps")


def make_norm(config: Any) -> nn.LayerNorm | nn.RMSNorm:
    """Make the norm of all blocks; a LayerNorm has a bias if `use_bias` is set."""
    if uses_rms_norm(config):
        return nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=config.use_bias)


class FeedForward(nn.Module):
    """Feed-forward block, D to `intermediate_size` F and back, with exact GELU, squared ReLU (2109.08668) or as SwiGLU
    (2002.05202). LearnedDropout multiplies its output."""

    learned_dropout: Any  # LearnedDropout, handed in by who makes the layer

    def __init__(self, config: Any, learned_dropout: nn.Module | None = None):
        super().__init__()
        bias = getattr(config, "use_bias", False)
        self.gate_proj = None
        if uses_rms_norm(config):
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=bias)
        self.down_proj.adds_to_residual = True  # pyright: ignore[reportArgumentType]
        self.learned_dropout = learned_dropout
        self.squares = getattr(config, "hidden_act", None) == "relu2"

    def forward(self, hidden_states: torch.Tensor, **mask_inputs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the output `(B, T, D)`, and the penalties of the mask `(B, T, K)` if there are any."""
        if self.learned_dropout is None:
            return self.down_proj(self.activate(hidden_states)), None
        output = self.down_proj(self.activate(hidden_states))
        mask, probability = self.learned_dropout(output, **mask_inputs)
        return output * mask, self.learned_dropout.penalise(probability)

    def activate(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the inner channels `(B, T, F)`."""
        if self.gate_proj is not None:
            return nn.functional.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states)
        inner = self.up_proj(hidden_states)
        return nn.functional.relu(inner).square() if self.squares else nn.functional.gelu(inner)


def is_plain(linear: nn.Module, device: torch.device) -> bool:
    """Whether reading a layer's weights gives the same as calling it."""
    # accelerate, which keeps weights elsewhere, marks a layer with `_hf_hook`.
    hooks = linear._forward_hooks or linear._forward_pre_hooks or hasattr(linear, "_hf_hook")
    plain = type(linear) is nn.Linear and type(linear.weight) is nn.Parameter and linear.weight.device == device
    return plain and not hooks


def execution_device(model: Any) -> torch.device:
    """Return the device to which ids of a model go. Offloaded weights are on `meta`, which is where `model.device` then
    says the model is; accelerate's hook tells where they are computed with."""
    device = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    return model.device if device is None else torch.device(device)


class PreNormLayer(GradientCheckpointingLayer):
    """Pre-norm layer with residual connections.

    h += SelfAttention(norm(h)); with a memory h += gate * CrossAttention(norm(h), memory); h += FeedForward(norm(h)).

    Args:
        config: of the model; gives norm, feed-forward block, biases and dropout.
        self_attn: None where the layer only reads a memory.
        cross_attn: None where there is no memory.
        learned_dropout: the mask of the feed-forward block, if there is one.
        cross_first: whether the memory is read before the sequence itself.
        norms_memory: whether the layer has a norm for the memory.
        gated: whether a learned scalar, 1 at the start, multiplies what is read from the memory.
    """

    cross_attn: Any  # Attention, or None

    def __init__(
        self,
        config: Any,
        self_attn: Attention | None,
        cross_attn: Attention | None = None,
        learned_dropout: nn.Module | None = None,
        cross_first: bool = False,
        norms_memory: bool = False,
        gated: bool = False,
    ):
        super().__init__()
        self.cross_first = cross_first
        if self_attn is not None:
            self.self_attn_norm = make_norm(config)
        self.self_attn = self_attn
        if cross_attn is not None and not isinstance(cross_attn, SingleKeyAttention):
            self.cross_attn_query_norm = make_norm(config)
        self.cross_attn_key_norm = make_norm(config) if norms_memory else None
        self.cross_attn = cross_attn
        self.cross_attn_gate = nn.Parameter(torch.empty(1)) if gated else None  # FSDP2 shards no 0-dim parameter
        self.mlp_norm = make_norm(config)
        self.mlp = FeedForward(config, learned_dropout)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def initialize_parameters(self) -> None:
        if self.cross_attn_gate is not None:
            init.ones_(self.cross_attn_gate)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, T, D)
        memory: torch.Tensor | None = None,  # (B, S, D); without one and its mask nothing is read
        shared_attention: torch.Tensor | None = None,  # (B, T, M), of LearnedDropout
        rotary: Rotary | None = None,
        memory_rotary: tuple[Rotary, Rotary] | None = None,  # of queries and of the memory
        memory_mask: Mask | None = None,  # that of self-attention where None
        single_key: bool = False,  # whether each position has a memory of its own, (B, T, D)
        has_read_self: bool = False,  # whether the hidden states are those of [`read_self`]
        laid_out: Any = None,  # `LaidOutLayers`, where they may do a step of this layer
        mask: Mask = CAUSAL,
        **shared: Any,  # of every attention: `past_key_values` and what backends take
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the new hidden states `(B, T, D)`, and the penalties of LearnedDropout's mask `(B, T, K)` if there are
        any.

        Pass by position whatever may carry a gradient: reentrant checkpointing sees no other arguments.
        """
        if laid_out is not None and not single_key and (weights := laid_out.of_layer(self)) is not None:
            store = shared["past_key_values"]
            return laid_out.step(self, weights, hidden_states, memory, rotary, memory_rotary, store), None
        reads = self.cross_attn is not None and not (memory is None and memory_mask is None)  # a store may have it
        if reads and self.cross_first:
            memory_mask = mask if memory_mask is None else memory_mask
            hidden_states = self.read_memory(hidden_states, memory, single_key, memory_rotary, memory_mask, **shared)
        if self.self_attn is not None and not has_read_self:
            hidden_states = self.read_self(hidden_states, rotary, mask=mask, **shared)
        if reads and not self.cross_first:
            memory_mask = mask if memory_mask is None else memory_mask
            hidden_states = self.read_memory(hidden_states, memory, single_key, memory_rotary, memory_mask, **shared)
        output, penalties = self.mlp(
            self.mlp_norm(hidden_states), shared_attention=shared_attention, mask=mask, **shared
        )
        return self.add(hidden_states, output), penalties

    def read_self(self, hidden_states: torch.Tensor, rotary: Rotary | None, **shared: Any) -> torch.Tensor:
        """Return h + SelfAttention(norm(h)), where the layer has self-attention."""
        assert self.self_attn is not None
        read, _ = self.self_attn(self.self_attn_norm(hidden_states), rotary=rotary, **shared)
        return self.add(hidden_states, read)

    def read_memory(
        self,
        hidden_states: torch.Tensor,
        memory: torch.Tensor | None,
        single_key: bool,
        rotary: tuple[Rotary, Rotary] | None,
        mask: Mask,
        **shared: Any,
    ) -> torch.Tensor:
        """Return h + gate * CrossAttention(norm(h), memory); the arguments are those of the forward."""
        if single_key:
            return self.add(hidden_states, self.cross_attn.read_single(memory))
        query = self.cross_attn_query_norm(hidden_states)
        if self.cross_attn_key_norm is not None:
            memory = self.cross_attn_key_norm(memory)
        query_rotary, key_rotary = rotary or (None, None)
        read, _ = self.cross_attn(query, mask, query_rotary, memory, key_rotary, **shared)
        if self.cross_attn_gate is not None:
            read = self.cross_attn_gate * read
        return self.add(hidden_states, read)

    def add(self, hidden_states: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Add a block's output, after dropout, to the residual stream."""
        return hidden_states + (self.dropout(output) if self.dropout.p else output)
