"""Cached steps of a single row on a CPU: the layers of a causal stack as a chain of few operations."""

from typing import Any

import torch
from torch import nn

from .block_attention import Pair, Rotary
from .block_laid_out import LayerWeights, are_simple, attend, hooks_of
from .block_row_cache import StackCache, from_items


class RingViews:
    """Keys and values `(1, h, C, d)` as views of the rings `(1, C, item)` of all layers. They are made again only for
    other rings, since that takes a third as long as all of a step beside its products."""

    rings: list[torch.Tensor] | None = None

    def of(self, rings: list[torch.Tensor], shapes: Any) -> list[Pair]:
        """Return the views of rings. A cache that lays its rings out anew makes another list of them."""
        if rings is not self.rings:
            self.rings, self.pairs = rings, [from_items(ring, shapes) for ring in rings]
        return self.pairs


class SingleRow:
    """The layers of a stack, for one row. [`SingleRow.of`] tells for which layers it works.

    Attributes:
        hooks: [`hooks_of`] all modules. Where there is one, the modules have to be called.
    """

    def __init__(self, layers: Any):
        self.layers = [LayerWeights.of(layer) for layer in layers]
        self.hooks = hooks_of(module for layer in layers for module in layer.modules())
        self.views, self.memory_views = RingViews(), RingViews()
        self.attention = layers[0].self_attn  # and all others are of its sizes
        self.eps = torch.full((1, 1), layers[0].mlp_norm.eps, dtype=torch.float32, device="cpu")

    @classmethod
    def of(cls, layers: Any, states: torch.Tensor) -> "SingleRow | None":
        """Make it for layers with RMSNorm that read states `(1, D)` in float32; None unless all are simple."""
        return cls(layers) if states.dtype == torch.float32 and are_simple(layers, nn.RMSNorm) else None

    def step(self, stack: Any, cache: StackCache, states: torch.Tensor) -> torch.Tensor:
        """Return the states `(1, D)` after the layers; the symbol's own keys and values are written to the rings. The
        host reads the numbers of the cache, since it runs on a CPU."""
        attention, length, capacity = self.attention, int(cache.lengths), cache.capacity
        width, size = attention.width, attention.head_dim
        turns, memory_turns = turns_of(stack, cache, states)
        # Where all is seen, a mask would only take time.
        mask = cache.visible()[..., : length + 1] if cache.segment_starts.item() else None
        lacks_rows = stack.reads_memory and int(cache.segments) < stack.lookback
        memory_mask = stack.visible_rows(cache.segments) if lacks_rows else None
        pairs = self.views.of(cache.items, attention.pair_shapes)
        memory_pairs = self.memory_views.of(cache.memory, attention.pair_shapes)
        for i, weights in enumerate(self.layers):
            qkv = self.normed(states) @ weights.qkv
            turn(qkv[:, : -attention.part_size].view(-1, size), turns)
            cache.items[i][:, length % capacity].copy_(qkv[:, width:])
            key, value = pairs[i]
            if length + 1 < capacity:
                key, value = key[:, :, : length + 1], value[:, :, : length + 1]
            states = torch.addmm(states, attend(attention, qkv[:, :width], key, value, mask), weights.output)
            if weights.query is not None and weights.read is not None and memory_turns is not None:
                query = self.normed(states) @ weights.query
                turn(query.view(-1, size), memory_turns)
                read = attend(attention, query, *memory_pairs[i], memory_mask)
                states = torch.addmm(states, read, weights.read)
            gate, inner = (self.normed(states) @ weights.up).chunk(2, 1)
            states = torch.addmm(states, nn.functional.silu(gate) * inner, weights.down)
        return states

    def normed(self, states: torch.Tensor) -> torch.Tensor:
        """Normalise `(1, D)` as RMSNorm does without its gain, in three operations instead of eight."""
        return states * torch.addmm(self.eps, states, states.t(), alpha=1 / states.shape[1]).rsqrt_()


def turns_of(stack: Any, cache: StackCache, states: torch.Tensor) -> tuple[Rotary, Rotary | None]:
    """Return [`turns_at`] the place of the next symbol of a cache's only row, and at that of its segment; None for the
    latter where the stack reads no memory."""
    turns = turns_at(stack.rotary, int(cache.lengths), states)
    if not stack.reads_memory:
        return turns, None
    return turns, turns_at(stack.memory_rotary, int(cache.segments), states)


def turns_at(rotary: Any, position: int, states: torch.Tensor) -> Rotary:
    """Return the cosines and sines of a position, both `(d,)`. The sines have the sign with which half of them are
    used."""
    if rotary.rope_type == "default":
        angles = rotary.inv_freq.float() * position  # a model that was moved to a shorter dtype has it shorter too
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos)), torch.cat((-sin, sin))
    cos, sin = (table.flatten() for table in rotary(states, torch.full((1, 1), position, device=states.device)))
    first, second = sin.chunk(2)
    return cos, torch.cat((-first, second))


def turn(states: torch.Tensor, turns: Rotary) -> None:
    """Rotate heads `(n, d)` in place, as `rotate` does."""
    halves_swapped = states.roll(states.shape[1] // 2, 1)
    states.mul_(turns[0]).addcmul_(halves_swapped, turns[1])
