"""Cached steps of a single row on a CPU: the layers of a causal stack as a chain of few operations.

Such a step reads every weight once, for one vector. What counts is the order in which weights lie in memory, and how
many operations there are beside the products.
"""

from typing import Any, NamedTuple

import torch
from torch import nn

from .block_attention import Attention, Rotary
from .block_layers import PreNormLayer, is_plain
from .block_row_cache import from_items


class LayerWeights(NamedTuple):
    """The weights of a layer as `(in, out)`: the product of one vector with them reads memory faster than with
    `(out, in)`, as which a linear layer keeps them (20 and 13 GB/s, D 256). Gains of norms are in what reads the norm.

    Attributes:
        qkv, output: of self-attention.
        query, read: of cross-attention, its queries and its output; None where there is no memory.
        up, down: of the feed-forward block; gates and what they multiply in one product.
    """

    qkv: torch.Tensor
    output: torch.Tensor
    query: torch.Tensor | None
    read: torch.Tensor | None
    up: torch.Tensor
    down: torch.Tensor

    @classmethod
    def of(cls, layer: Any) -> "LayerWeights":
        attention, memory, mlp = layer.self_attn, layer.cross_attn, layer.mlp
        return cls(
            laid_out(layer.self_attn_norm, attention.qkv_proj),
            laid_out(None, attention.o_proj),
            None if memory is None else laid_out(layer.cross_attn_query_norm, memory.q_proj),
            None if memory is None else laid_out(None, memory.o_proj),
            laid_out(layer.mlp_norm, mlp.gate_proj, mlp.up_proj),
            laid_out(None, mlp.down_proj),
        )


def laid_out(norm: nn.RMSNorm | None, *linears: nn.Linear) -> torch.Tensor:
    """The weights `(in, out)` of linear layers that read the same, after a norm if there is one."""
    weights = torch.cat([linear.weight.detach() for linear in linears]).t()
    return (weights if norm is None else weights * norm.weight.detach().unsqueeze(1)).contiguous()


def is_simple(layer: PreNormLayer) -> bool:
    """Whether a layer is of the plain case that [`SingleRow`] does."""
    if layer.training or layer.mlp.learned_dropout is not None:
        return False
    for module in layer.modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return False
        if isinstance(module, nn.Linear) and not is_plain(module, torch.device("cpu")):
            return False
        if isinstance(module, Attention) and (
            type(module) is not Attention
            or module.query_norm is not None
            or module.config._attn_implementation != "sdpa"
        ):
            return False
    return True


class SingleRow:
    """The layers of a stack, for one row; [`SingleRow.of`] says which."""

    def __init__(self, layers: Any):
        self.layers = [LayerWeights.of(layer) for layer in layers]
        attention, norm = layers[0].self_attn, layers[0].mlp_norm
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.width, self.part_size, self.pair_shapes = attention.width, attention.part_size, attention.pair_shapes
        self.eps = torch.full((1, 1), norm.eps)

    @classmethod
    def of(cls, layers: Any, states: torch.Tensor) -> "SingleRow | None":
        """Of layers that read states `(1, D)`, in the plain case: float32 on a CPU, regular attention by sdpa, no masks
        of LearnedDropout, and no adapter, hook or autocast, for which modules have to be called."""
        plain = states.device.type == "cpu" and states.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return cls(layers) if plain and len(layers) and all(map(is_simple, layers)) else None

    def step(
        self,
        states: torch.Tensor,  # (1, D)
        rings: list[torch.Tensor],  # (1, C, item) of each layer
        length: int,  # symbols before this one
        mask: torch.Tensor | None,  # (1, 1, 1, C), bool; None where all that the ring holds is seen
        turns: Rotary,  # [`turns_at`] its place
        memory: list[torch.Tensor],  # (1, S, item) of each layer; none where it reads no memory
        memory_mask: torch.Tensor | None,  # (1, 1, 1, S), bool; None where all is seen
        memory_turns: Rotary | None,
    ) -> torch.Tensor:
        """The states `(1, D)` after the layers; the symbol's own keys and values go to the rings."""
        for i, weights in enumerate(self.layers):
            qkv = self.normed(states) @ weights.qkv
            turn(qkv[:, : -self.part_size].view(-1, self.head_dim), turns)
            items = rings[i]
            items[:, length % items.shape[1]].copy_(qkv[:, self.width :])
            read = self.attend(qkv[:, : self.width], items[:, : length + 1], mask)
            states = torch.addmm(states, read, weights.output)
            if weights.query is not None and weights.read is not None and memory_turns is not None:
                query = self.normed(states) @ weights.query
                turn(query.view(-1, self.head_dim), memory_turns)
                states = torch.addmm(states, self.attend(query, memory[i], memory_mask), weights.read)
            gate, inner = (self.normed(states) @ weights.up).chunk(2, 1)
            states = torch.addmm(states, nn.functional.silu(gate) * inner, weights.down)
        return states

    def normed(self, states: torch.Tensor) -> torch.Tensor:
        """RMSNorm of `(1, D)` without its gain, in three operations in place of eight."""
        return states * torch.addmm(self.eps, states, states.t(), alpha=1 / states.shape[1]).rsqrt_()

    def attend(self, query: torch.Tensor, items: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """What a query `(1, H * d)` reads `(1, H * d)` of items `(1, T, item)`."""
        key, value = from_items(items, self.pair_shapes)
        query = query.view(1, self.num_heads, 1, self.head_dim)
        grouped = key.shape[1] < self.num_heads
        read = nn.functional.scaled_dot_product_attention(query, key, value, mask, enable_gqa=grouped)
        return read.view(1, -1)


def turns_at(rotary: Any, position: int, states: torch.Tensor) -> Rotary:
    """Cosines of a position and, with the sign that half of them get, sines, both `(d,)`."""
    if rotary.rope_type == "default":
        angles = rotary.inv_freq * position
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos)), torch.cat((-sin, sin))
    cos, sin = (table.flatten() for table in rotary(states, torch.full((1, 1), position)))
    first, second = sin.chunk(2)
    return cos, torch.cat((-first, second))


def turn(states: torch.Tensor, turns: Rotary) -> None:
    """Turn heads `(n, d)` in place, as `rotate` does."""
    halves_swapped = states.roll(states.shape[1] // 2, 1)
    states.mul_(turns[0]).addcmul_(halves_swapped, turns[1])
