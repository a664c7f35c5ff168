"""Cached steps of a single row on a CPU with compiled layers."""

from typing import Any, NamedTuple

import torch
from torch import nn

from .block_attention import Rotary
from .block_laid_out import are_simple, hooks_of
from .block_row_cache import StackCache
from .block_single_row import turns_of


class LayerParameters(NamedTuple):
    """The parameters of a layer that a step reads: gains of norms `(D,)` and weights `(out, in)`. What belongs to
    cross-attention is None where there is none."""

    norm: torch.Tensor
    qkv: torch.Tensor
    output: torch.Tensor
    query_norm: torch.Tensor | None
    query: torch.Tensor | None
    read: torch.Tensor | None
    mlp_norm: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor

    @classmethod
    def of(cls, layer: Any) -> "LayerParameters":
        attention, cross, mlp = layer.self_attn, layer.cross_attn, layer.mlp
        return cls(
            layer.self_attn_norm.weight,
            attention.qkv_proj.weight,
            attention.o_proj.weight,
            None if cross is None else layer.cross_attn_query_norm.weight,
            None if cross is None else cross.q_proj.weight,
            None if cross is None else cross.o_proj.weight,
            layer.mlp_norm.weight,
            mlp.gate_proj.weight,
            mlp.up_proj.weight,
            mlp.down_proj.weight,
        )


class CompiledRow:
    """The layers of a stack, for one row, each compiled by `torch.compile`. [`CompiledRow.of`] tells for which layers
    it works.

    A matrix–vector product is written as a sum of products, of which inductor makes a loop with all threads that reads
    weights once. torch's own product with one vector has one thread. Layers of equal shapes share their code. Sums
    are in float32 at least, also where weights have fewer bits.

    Attributes:
        hooks: [`hooks_of`] all modules. Where there is one, the modules have to be called.
    """

    def __init__(self, layers: Any, options: dict[str, Any]):
        self.layers = [LayerParameters.of(layer) for layer in layers]
        self.hooks = hooks_of(module for layer in layers for module in layer.modules())
        self.attention = layers[0].self_attn  # and all others are of its sizes
        self.eps = layers[0].mlp_norm.eps
        self.run = torch.compile(layer_step, **options)

    @classmethod
    def of(cls, layers: Any, options: dict[str, Any]) -> "CompiledRow | None":
        """Make it for layers with RMSNorm; None unless all are simple. `options` are arguments of `torch.compile`."""
        return cls(layers, options) if are_simple(layers, nn.RMSNorm) else None

    def step(self, stack: Any, cache: StackCache, states: torch.Tensor) -> torch.Tensor:
        """Return the states `(1, D)` after the layers; the symbol's own keys and values are written to the rings."""
        turns, memory_turns = turns_of(stack, cache, states)
        seen = cache.visible().flatten()
        memory_seen = stack.visible_rows(cache.segments).flatten() if stack.reads_memory else None
        place = cache.places().flatten()
        hidden = states[0].to(torch.promote_types(states.dtype, torch.float32))
        for i, parameters in enumerate(self.layers):
            memory = cache.memory[i][0] if stack.reads_memory else None
            hidden = self.run(
                hidden,
                parameters,
                (self.attention.num_key_value_heads, self.attention.head_dim),
                self.eps,
                cache.items[i][0],
                place,
                seen,
                turns,
                memory,
                memory_seen,
                memory_turns,
            )
        return hidden.unsqueeze(0).to(states.dtype)


def layer_step(
    hidden: torch.Tensor,  # (D,), in float32 or float64
    weights: LayerParameters,
    heads: tuple[int, int],  # key–value heads h, and their size d
    eps: float,  # of the norms
    ring: torch.Tensor,  # (C, 2 * h * d), to which the symbol's own key and value are written
    place: torch.Tensor,  # (1,), where
    seen: torch.Tensor,  # (C,), bool, which places of the ring are seen
    turns: Rotary,  # (d,) each
    memory: torch.Tensor | None,  # (S, 2 * h * d)
    memory_seen: torch.Tensor | None,  # (S,), bool
    memory_turns: Rotary | None,
) -> torch.Tensor:
    """Return the states `(D,)` of one symbol after a layer, for its states before."""
    size = heads[0] * heads[1]  # of keys, and of values
    qkv = product(weights.qkv, normed(hidden, weights.norm, eps))
    query, key = turned(qkv[:-size].view(-1, heads[1]), turns).flatten().split((len(hidden), size))
    ring.index_copy_(0, place, torch.cat((key, qkv[-size:])).to(ring.dtype).unsqueeze(0))
    hidden = hidden + product(weights.output, attend(query, ring, heads, seen))
    if memory is not None and memory_seen is not None and memory_turns is not None:
        assert weights.query is not None and weights.query_norm is not None and weights.read is not None
        query = product(weights.query, normed(hidden, weights.query_norm, eps)).view(-1, heads[1])
        read = attend(turned(query, memory_turns).flatten(), memory, heads, memory_seen)
        hidden = hidden + product(weights.read, read)
    inputs = normed(hidden, weights.mlp_norm, eps)
    inner = nn.functional.silu(product(weights.gate, inputs)) * product(weights.up, inputs)
    return hidden + product(weights.down, inner)


def product(weight: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Multiply a matrix `(out, in)` with a vector `(in,)`. One loop makes the sums of both halves, a tenth faster than
    one sum after the other."""
    return torch.cat([(part * vector).sum(1) for part in weight.chunk(2)])


def normed(states: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    """Apply RMSNorm to `(D,)`."""
    return states * torch.rsqrt(states.square().mean() + eps) * gain


def turned(states: torch.Tensor, turns: Rotary) -> torch.Tensor:
    """Rotate heads `(n, d)`, as `turn` does in place."""
    first, second = states.chunk(2, 1)
    (cos, _), (_, sin) = (table.chunk(2) for table in turns)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), 1)


def attend(query: torch.Tensor, items: torch.Tensor, heads: tuple[int, int], seen: torch.Tensor) -> torch.Tensor:
    """Attend with queries `(H * d,)` to the keys and values in items `(C, 2 * h * d)` where `seen` `(C,)` says so:
    `(H * d,)`."""
    keys, values = items.view(len(items), 2, heads[0], 1, heads[1]).unbind(1)
    scores = (keys * query.view(heads[0], -1, heads[1])).sum(-1) * heads[1] ** -0.5  # (C, h, H / h)
    shares = scores.masked_fill(~seen.view(-1, 1, 1), -torch.inf).softmax(0)
    return (shares.unsqueeze(-1) * values).sum(0).flatten()
