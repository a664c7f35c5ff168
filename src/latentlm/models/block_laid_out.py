"""Cached steps for one token of one sequence on a CPU: few operations, and weights laid out for them.

Such a step reads every weight once, for one vector. Its time depends on the order in which the weights lie in memory,
and on the number of operations beside the products.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.cache_utils import DynamicCache
from transformers.utils.import_utils import is_torchdynamo_compiling

from .block_attention import Attention, Rotary, rotate, self_pairs
from .block_layers import FeedForward, PreNormLayer, is_plain
from .block_masks import Mask


class LayerWeights(NamedTuple):
    """The weights of a layer as `(in, out)`.

    A product with one vector reads them faster in this order than in the `(out, in)` of a linear layer (20 and 13 GB/s
    at D 256). Gains of norms are multiplied into the weights that read the norm's output.

    Attributes:
        hooks: [`hooks_inside`] the layer. Where there is one, the modules have to be called.
        qkv, output: of self-attention.
        query, pairs, read: the queries, the keys and values, and the output of cross-attention; None where there is
            none. Without a norm of the memory `pairs` is None too: its keys are made elsewhere.
        up, down: of the feed-forward block; `up` includes the gates, if there are any.
    """

    hooks: list[dict[int, Any]]
    qkv: torch.Tensor
    output: torch.Tensor
    query: torch.Tensor | None
    pairs: torch.Tensor | None
    read: torch.Tensor | None
    up: torch.Tensor
    down: torch.Tensor

    @classmethod
    def of(cls, layer: Any) -> "LayerWeights":
        attention, cross, mlp = layer.self_attn, layer.cross_attn, layer.mlp
        memory_norm = layer.cross_attn_key_norm
        return cls(
            hooks_inside(layer),
            laid_out(layer.self_attn_norm, attention.qkv_proj),
            laid_out(None, attention.o_proj),
            None if cross is None else laid_out(layer.cross_attn_query_norm, cross.q_proj),
            None if cross is None or memory_norm is None else laid_out(memory_norm, cross.kv_proj),
            None if cross is None else laid_out(None, cross.o_proj),
            laid_out(layer.mlp_norm, *([] if mlp.gate_proj is None else [mlp.gate_proj]), mlp.up_proj),
            laid_out(None, mlp.down_proj),
        )


def laid_out(norm: Any, *linears: nn.Linear) -> torch.Tensor:
    """Return the weights `(in, out)` of linear layers that read the same input, with the gain of the norm before them
    if there is one."""
    weights = torch.cat([linear.weight.detach() for linear in linears]).t()
    return (weights if norm is None else weights * norm.weight.detach().unsqueeze(1)).contiguous()


def hooks_of(modules: Iterable[nn.Module]) -> list[dict[int, Any]]:
    """Return the dictionaries in which torch keeps the hooks of modules, also those to come: `any` of the list tells
    whether there is one."""
    return [hooks for module in modules for hooks in (module._forward_hooks, module._forward_pre_hooks)]


def hooks_inside(layer: nn.Module) -> list[dict[int, Any]]:
    """Return [`hooks_of`] the parts of a layer. Its own run when it is called."""
    return hooks_of(module for module in layer.modules() if module is not layer)


def is_plain_step(states: torch.Tensor) -> bool:
    """Whether weights may be read directly for states of one token `(1, ..., D)`: on a CPU, without gradients, autocast
    or compilation."""
    return (
        states.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not is_torchdynamo_compiling()
    )


PLAIN = {PreNormLayer, FeedForward, Attention, nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Dropout, nn.Identity}
"""The modules of a simple layer: no masks of LearnedDropout, no other form of attention, no adapters."""


def are_simple(layers: Any, norm: type[nn.Module]) -> bool:
    """Whether there are layers, all of them simple ([`is_simple`]) and with norms of this type."""
    return len(layers) > 0 and all(is_simple(layer) and isinstance(layer.mlp_norm, norm) for layer in layers)


def is_simple(layer: PreNormLayer) -> bool:
    """Whether a layer is simple: attention by sdpa, no part in training mode, without biases, gates and hooks."""
    if layer.self_attn is None or layer.cross_first or layer.cross_attn_gate is not None:
        return False
    if any(hooks_inside(layer)):
        return False
    for module in layer.modules():
        if module.training or type(module) not in PLAIN or isinstance(getattr(module, "bias", None), torch.Tensor):
            return False
        if isinstance(module, nn.Linear) and not is_plain(module, torch.device("cpu")):
            return False
        if isinstance(module, Attention) and module.config._attn_implementation != "sdpa":
            return False
    return True


def attend(
    attention: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Attend with a query `(1, H * d)`, or `(1, H, 1, d)`, to keys and values `(1, h, T, d)`: `(1, H * d)`."""
    query, grouped = query.view(1, -1, 1, key.shape[3]), attention.num_key_value_groups > 1
    return nn.functional.scaled_dot_product_attention(query, key, value, mask, enable_gqa=grouped).view(1, -1)


class LaidOutLayers:
    """Runs layers for one token of one sequence whose keys are in a `DynamicCache`. It belongs to that cache, and holds
    the weights of each simple layer from its first step on. It is no part of the cache, so that a copy or a pickle of
    the cache has no weights in it."""

    of_cache: "WeakKeyDictionary[DynamicCache, LaidOutLayers]" = WeakKeyDictionary()

    def __init__(self) -> None:
        self.weights: WeakKeyDictionary[PreNormLayer, LayerWeights | None] = WeakKeyDictionary()

    @classmethod
    def of(cls, cache: Any, states: torch.Tensor, mask: Mask, options: dict[str, Any]) -> "LaidOutLayers | None":
        """Return the object that belongs to a cache, for a step that reads states `(B, T, D)`. Return None where the
        step is not for one token of one sequence that sees all before it, or where the caller wants more outputs than
        states."""
        if type(cache) is not DynamicCache or states.shape[:2] != (1, 1) or mask.tensor is not None:
            return None
        if mask.arguments or states.dtype != torch.float32 or not is_plain_step(states):
            return None
        if any(value is not None and value is not False for value in options.values()):
            return None
        if cache not in cls.of_cache:
            cls.of_cache[cache] = cls()
        return cls.of_cache[cache]

    def of_layer(self, layer: PreNormLayer) -> LayerWeights | None:
        """Return the laid-out weights of a layer, or None where the layer itself has to be called."""
        if layer not in self.weights:
            self.weights[layer] = LayerWeights.of(layer) if are_simple([layer], nn.LayerNorm) else None
        weights = self.weights[layer]
        return None if weights is None or layer.training or any(weights.hooks) else weights

    def step(
        self,
        layer: Any,
        weights: LayerWeights,
        states: torch.Tensor,  # (1, 1, D)
        memory: Any,  # (1, 1, D), where there is cross-attention
        rotary: Rotary | None,
        memory_rotary: tuple[Rotary, Rotary] | None,
        store: Any,
    ) -> torch.Tensor:
        """Return the layer's new states `(1, 1, D)`."""
        attention, cross, mlp, states = layer.self_attn, layer.cross_attn, layer.mlp, states[0]
        sizes = (attention.width, attention.part_size, attention.part_size)
        parts = (self.normed(layer, states) @ weights.qkv).split(sizes, 1)
        read = self.attend(attention, parts[0], parts[1:], (rotary, rotary), store)
        states = torch.addmm(states, read, weights.output)
        if weights.query is not None and weights.pairs is not None and weights.read is not None:
            query = self.normed(layer, states) @ weights.query
            parts = (self.normed(layer, memory[0]) @ weights.pairs).chunk(2, 1)
            read = self.attend(cross, query, parts, memory_rotary or (None, None), store)
            states = torch.addmm(states, read, weights.read)
        inner = self.normed(layer, states) @ weights.up
        inner = nn.functional.relu(inner).square() if mlp.squares else nn.functional.gelu(inner)
        return torch.addmm(states, inner, weights.down).unsqueeze(0)

    def normed(self, layer: Any, states: torch.Tensor) -> torch.Tensor:
        """Normalise `(1, D)` without the norm's gain."""
        return nn.functional.layer_norm(states, states.shape[1:], None, None, layer.mlp_norm.eps)

    def attend(
        self,
        attention: Attention,
        query: torch.Tensor,  # (1, H * d)
        pair: Sequence[torch.Tensor],  # (1, h * d) each
        rotary: tuple[Rotary | None, Rotary | None],  # of the query and the key
        store: Any,
    ) -> torch.Tensor:
        """Attend with a query to its own key and all keys so far: `(1, H * d)`."""
        query, key, value = (part.view(1, -1, 1, attention.head_dim) for part in (query, *pair))
        key, value = self_pairs(store, attention.layer_idx, (rotate(key, rotary[1]), value))
        return attend(attention, rotate(query, rotary[0]), key, value)
