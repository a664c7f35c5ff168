"""A causal transformer over rows, windowed or not, with or without memory rows to look at, and its cache.

Rows are aligned to the left and have lengths of their own: what follows a row's end is never seen by what is before.
In cached decoding rows advance at their own pace: a mask says which rows take part in a step.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.utils import logging

from .block_attention import FORMS, Attention, Pair, Rotary, rotary_table
from .block_compiled_row import CompiledRow
from .block_laid_out import is_plain_step
from .block_layers import PreNormLayer, make_norm
from .block_learned_dropout import make_learned_dropout, make_shared_mask_attention
from .block_masks import look_back_mask, sequence_mask, step_mask
from .block_row_cache import StackCache, from_items, to_items, where_active
from .block_single_row import SingleRow

logger = logging.get_logger(__name__)


class Record:
    """A store of keys that remembers the pairs of whole rows, so that a cache can be filled with them."""

    def __init__(self) -> None:
        self.pairs: dict[int, Pair] = {}

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int) -> Pair:
        self.pairs[layer_idx] = (key.detach(), value.detach())
        return key, value

    def memory_pairs(self, attention: Attention, memory: torch.Tensor, rotary: Rotary | None) -> Pair:
        return attention.pairs(memory, rotary)


class RingStep:
    """A store of keys for the next symbol of every row of a cache."""

    def __init__(self, cache: StackCache):
        self.cache, self.places = cache, cache.places()

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int) -> Pair:
        items = self.cache.push(layer_idx, self.places, to_items((key, value)))
        return from_items(items, ((key.shape[1], key.shape[3]), (value.shape[1], value.shape[3])))

    def memory_pairs(self, attention: Attention, memory: None, rotary: None) -> Pair:
        return from_items(self.cache.memory[attention.layer_idx], attention.pair_shapes)


class StackOutput(NamedTuple):
    """What a stack makes of whole rows.

    Attributes:
        states: `(R, T, D)` after the final norm.
        pairs: of the attentions whose keys a cache keeps.
        inputs: the input of each layer, `(R, T, D)` each.
        penalties: `(R, T, K)`, float32, the penalties of each layer's LearnedDropout mask; None where it has none.
    """

    states: torch.Tensor
    pairs: list[Pair]
    inputs: list[torch.Tensor]
    penalties: list[torch.Tensor | None]


class CausalStack(nn.Module):
    """Causal transformer layers and a final norm, with or without memory rows to look back at.

    Args:
        config: of the model.
        num_layers: number of layers.
        window: number of symbols that self-attention sees, the present one included; None for all.
        lookback: number of past rows that a symbol sees beside its current one; None where there is no memory.
    """

    def __init__(self, config: Any, num_layers: int, window: int | None, lookback: int | None = None):
        super().__init__()
        self.config = config
        self.window = window
        self.reads_memory = lookback is not None
        self.lookback = lookback or 0
        self.rotary = rotary_table(config)
        if self.reads_memory:
            self.memory_rotary: Any = LlamaRotaryEmbedding(config)
        # In the cache the attentions of the layers come first, then those that decide masks.
        self.mask_attention = make_shared_mask_attention(config, num_layers) if num_layers else None
        self.layers: Any = nn.ModuleList(self.make_layer(i, num_layers + i) for i in range(num_layers))
        self.norm = make_norm(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def make_layer(self, i: int, mask_idx: int) -> PreNormLayer:
        memory = Attention(self.config, i, reads_memory=True) if self.reads_memory else None
        masks = make_learned_dropout(self.config, mask_idx)
        layer = PreNormLayer(self.config, FORMS[self.config.attention_form](self.config, i), memory, masks)
        layer._can_checkpoint_with_cache = True  # what is recorded twice is recorded alike
        return layer

    def forward(
        self,
        embeddings: torch.Tensor,  # (R, T, D)
        segments: torch.Tensor | None = None,  # (R, T): the segment of each input, for segment-local attention
        memory: tuple[torch.Tensor, torch.Tensor] | None = None,  # past rows (R, S, D), current rows (R, S + 1, D)
        memory_segments: torch.Tensor | None = None,  # (R, T): the row that each position reads as its current one
        has_read_self: bool = False,  # whether the embeddings are what [`read_self`] makes of them
    ) -> StackOutput:
        record, rows = Record(), None
        embeddings = self.residual(embeddings)
        shared: dict[str, Any] = {**self.self_options(embeddings, segments), "past_key_values": record}
        hidden_states = embeddings if has_read_self else self.dropout(embeddings)
        inputs, penalties = [], []
        shared_attention = self.decide_masks(hidden_states, mask=shared["mask"], past_key_values=record)
        if memory is not None and memory_segments is not None:
            past, current = memory
            number = torch.arange(current.shape[1], device=past.device)
            number = torch.cat((number[:-1], number)).unsqueeze(0)
            rows = torch.cat((past, current), 1)
            shared["memory_rotary"] = (
                self.memory_rotary(embeddings, memory_segments),
                self.memory_rotary(past, number),
            )
            shared["memory_mask"] = look_back_mask(
                self.config, embeddings, memory_segments, past.shape[1], self.lookback
            )
        for i, layer in enumerate(self.layers):
            inputs.append(hidden_states)
            has_read = has_read_self and i == 0
            hidden_states, costs = layer(hidden_states, rows, shared_attention, has_read_self=has_read, **shared)
            penalties.append(costs)
        pairs = [record.pairs[a.layer_idx] for a in self.cached_attentions if a.layer_idx in record.pairs]
        return StackOutput(self.norm(hidden_states), pairs, inputs, penalties)

    def residual(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the embeddings in the dtype of the norms. Where they come from a linear layer the two differ under
        autocast, and the sums of all layers would be in the shorter one."""
        return embeddings.to(self.norm.weight.dtype)

    def read_self(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Apply the first layer's self-attention, which no memory changes, to embeddings: `(R, T, D)` to
        `(R, T, D)`."""
        embeddings = self.residual(embeddings)
        return self.layers[0].read_self(self.dropout(embeddings), **self.self_options(embeddings))

    def self_options(self, embeddings: torch.Tensor, segments: torch.Tensor | None = None) -> dict[str, Any]:
        """Return positions and mask of the self-attention of whole rows."""
        positions = torch.arange(embeddings.shape[1], device=embeddings.device).unsqueeze(0)
        mask = sequence_mask(self.config, embeddings, window=self.window, segments=segments)
        return {"rotary": self.rotary(embeddings, positions), "mask": mask}

    def decide_masks(self, hidden_states: torch.Tensor, **shared: Any) -> torch.Tensor | None:
        """Return the attention output from which the masks of all layers are made, `(R, T, M)`; None where each layer
        has an attention of its own."""
        return None if self.mask_attention is None else self.mask_attention(hidden_states, **shared)[0]

    @property
    def cached_attentions(self) -> list[Attention]:
        """The attentions whose keys a cache keeps, in its order."""
        own = [layer.self_attn for layer in self.layers]
        if self.mask_attention is not None:
            return [*own, self.mask_attention]
        masks = [layer.mlp.learned_dropout for layer in self.layers]
        return own + [mask.attention for mask in masks if mask is not None]

    # ---- Cached decoding ----

    def new_cache(self, num_rows: int, like: torch.Tensor) -> StackCache:
        """Make the cache of rows that have seen nothing."""
        zeros = torch.zeros(num_rows, dtype=torch.long, device=like.device)
        capacity = self.window or 64

        def zeros_of(attention: Attention, length: int) -> torch.Tensor:
            size = sum(heads * size for heads, size in attention.pair_shapes)
            return like.new_zeros(num_rows, length, size)

        reading = self.layers if self.reads_memory else []
        return StackCache(
            items=[zeros_of(attention, capacity) for attention in self.cached_attentions],
            lengths=zeros,
            longest=0,
            window=self.window,
            segment_starts=zeros.clone(),
            memory=[zeros_of(layer.cross_attn, self.lookback + 1) for layer in reading],
            segments=zeros - 1,
        )

    def fill_cache(self, cache: StackCache, pairs: list[Pair], lengths: torch.Tensor) -> None:
        """Put the first `lengths` `(R,)` symbols of a forward over `(R, T)`, given its pairs, into the cache."""
        items = [to_items(pair) for pair in pairs]
        capacity = self.window or max(64, 2 * items[0].shape[1]) if items else 1
        last = lengths.unsqueeze(1) - 1
        places = torch.arange(capacity, device=last.device)
        positions = (last - (last - places) % capacity).clamp(min=0)  # those before the first are never seen
        cache.items = [layer.gather(1, positions.unsqueeze(-1).expand(-1, -1, layer.shape[-1])) for layer in items]
        cache.lengths, cache.longest = lengths.clone(), items[0].shape[1] if items else 0

    def fill_memory(self, cache: StackCache, past: torch.Tensor, current: torch.Tensor, segments: torch.Tensor) -> None:
        """Put the memory rows that the segments `(R,)` to come see into the cache: from the past `(R, S, D)`, and each
        segment's own from the current rows `(R, S + 1, D)`."""
        last = segments.unsqueeze(1) - 1
        places = torch.arange(self.lookback, device=last.device)
        numbers = (last - (last - places) % max(self.lookback, 1)).clamp(min=0)  # (R, lookback); the rest is not seen
        size = past.shape[-1]
        seen = past.gather(1, numbers.unsqueeze(-1).expand(-1, -1, size))
        own = current.gather(1, segments.view(-1, 1, 1).expand(-1, 1, size))
        rotary = self.memory_rotary(past, torch.cat((numbers, segments.unsqueeze(1)), 1))
        rows = torch.cat((seen, own), 1)
        cache.memory = [to_items(layer.cross_attn.pairs(rows, rotary)).detach() for layer in self.layers]
        cache.segments = segments.clone()

    def open_row(self, cache: StackCache, opening: torch.Tensor, current: torch.Tensor, past: torch.Tensor) -> None:
        """Begin the next segment of some rows.

        Args:
            opening: `(R,)`, bool, which rows.
            current: `(R, D)`, the new segment's memory row.
            past: `(R, D)`, the row that the segment that ends here leaves to be looked back at. For a first segment it
                may hold anything: it is written where nothing sees it before the next one is.
        """
        lookback = self.lookback
        number = cache.segments + 1
        states, numbers = current.unsqueeze(1), number.unsqueeze(1)
        places = torch.full_like(numbers, lookback)
        if lookback:
            states, numbers = torch.stack((past, current), 1), torch.cat((numbers - 1, numbers), 1)
            places = torch.cat((numbers[:, :1] % lookback, places), 1)
        rotary = self.memory_rotary(states, numbers)
        for layer, memory in zip(self.layers, cache.memory, strict=True):
            items = to_items(layer.cross_attn.pairs(states, rotary)).to(memory.dtype)
            index = places.unsqueeze(-1).expand_as(items)
            memory.scatter_(1, index, where_active(opening, items, memory.gather(1, index)))
        cache.segments = where_active(opening, number, cache.segments)

    def visible_rows(self, segments: torch.Tensor) -> torch.Tensor:
        """Return which memory rows of the cache are seen from segments `(n,)`: `(n, 1, 1, lookback + 1)`, bool."""
        places = torch.arange(self.lookback + 1, device=segments.device)
        return ((places < segments.unsqueeze(1)) | (places == self.lookback))[:, None, None]

    def step(self, cache: StackCache, active: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """Take the next symbol of the active rows `(R,)`, bool, embedded as `(R, D)`, and return its hidden state
        `(R, D)` after the final norm. In other rows the state means nothing, and the cache does not change."""
        embeddings = self.residual(embeddings)
        if not self.layers:
            cache.advance(active)
            return self.norm(embeddings)
        cache.make_room()
        if len(active) == 1 and (single := self.single_row(cache, embeddings)) is not None:
            if not active.item():
                return embeddings
            hidden_states = single.step(self, cache, embeddings)
            cache.advance(active)
            return self.norm(hidden_states)
        if cache.compile_options is not None:
            logger.warning_once(
                "`compile_config` has no effect on some steps. Compiled are those of a single text on a CPU, in "
                "evaluation mode and without autocast, of layers with regular attention by 'sdpa' and without "
                "LearnedDropout, adapters, hooks and quantized weights."
            )
        hidden_states = self.dropout(embeddings).unsqueeze(1)
        shared: dict[str, Any] = {
            "mask": step_mask(self.config, hidden_states, cache.visible()),
            "past_key_values": RingStep(cache),
        }
        shared_attention = self.decide_masks(hidden_states, **shared)
        shared["rotary"] = self.rotary(hidden_states, cache.lengths.unsqueeze(1))
        if self.reads_memory:
            shared["memory_mask"] = step_mask(self.config, hidden_states, self.visible_rows(cache.segments))
            shared["memory_rotary"] = (self.memory_rotary(hidden_states, cache.segments.unsqueeze(1)), None)
        for layer in self.layers:
            hidden_states, _ = layer(hidden_states, None, shared_attention, **shared)
        cache.advance(active)
        return self.norm(hidden_states)[:, 0]

    def single_row(self, cache: StackCache, states: torch.Tensor) -> SingleRow | CompiledRow | None:
        """Return what does the steps of a cache's only row, whose states are `(1, D)`; None where the layers themselves
        have to."""
        if self.training or not is_plain_step(states):
            return None
        if cache.single is None:
            options = cache.compile_options
            if options is None:
                cache.single = SingleRow.of(self.layers, states) or False
            else:
                cache.single = CompiledRow.of(self.layers, options) or False
        return cache.single if cache.single and not any(cache.single.hooks) else None
