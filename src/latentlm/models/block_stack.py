"""A causal transformer over rows, windowed or not, with or without memory rows to look at, and its cache.

Rows are aligned to the left and have lengths of their own: what follows a row's end is never seen by what is before.
In cached decoding rows advance at their own pace: a mask says which rows take part in a step.
"""

from copy import copy

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from .block_attention import Rotary
from .block_attention_forms import (
    FORMS,
    Band,
    RegularAttention,
    causal_window,
    look_back,
    make_mask,
    same_segment,
    step_mask,
)
from .block_bidirectional_layers import SwiGLU, rms_norm
from .block_row_cache import StackCache, where_active


class StackLayer(GradientCheckpointingLayer):
    """h += SelfAttention(RMSNorm(h)); given memory h += RowAttention(RMSNorm(h), rows); h += SwiGLU(RMSNorm(h))."""

    def __init__(self, config, reads_memory: bool):
        super().__init__()
        self.self_attn_norm = rms_norm(config)
        self.self_attn = FORMS[config.attention_form](config)
        if reads_memory:
            self.row_attn_norm = rms_norm(config)
            self.row_attn = RegularAttention(config)
        self.mlp_norm = rms_norm(config)
        self.mlp = SwiGLU(config)
        self.mlp.down_proj.adds_to_residual = True
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (R, T, D)
        rotary: Rotary,
        mask,
        memory: torch.Tensor | None = None,  # (R, S, D)
        memory_rotary: tuple[Rotary, Rotary] | None = None,
        memory_mask=None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states `(R, T, D)`, and the items of self-attention `(R, T, item)`."""
        normed = self.self_attn_norm(hidden_states)
        items = self.self_attn.items(normed, rotary)
        hidden_states = self.attend(self.self_attn, hidden_states, normed, items, rotary, mask)
        if memory is not None:
            rows = self.row_attn.items(memory, memory_rotary[1])
            normed = self.row_attn_norm(hidden_states)
            hidden_states = self.attend(self.row_attn, hidden_states, normed, rows, memory_rotary[0], memory_mask)
        return self.feed_forward(hidden_states), items

    def attend(self, attention, hidden_states, normed, items, rotary, mask) -> torch.Tensor:
        read = attention.attend(attention.queries(normed, rotary), *attention.unfold(items), mask)
        return hidden_states + self.dropout(read)

    def feed_forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))


class CausalStack(nn.Module):
    """Layers and a final norm.

    Args:
        config: of the model.
        num_layers: of the stack.
        window: symbols that self-attention sees, the present one included; None for all.
        lookback: rows of the past that a symbol sees beside its current one; None where there is no memory.
    """

    def __init__(self, config, num_layers: int, window: int | None, lookback: int | None = None):
        super().__init__()
        self.config = config
        self.window = window
        self.lookback = lookback
        turned = copy(config)
        if config.attention_form == "latent":
            turned.head_dim = config.latent_rope_size
        self.rotary = LlamaRotaryEmbedding(turned)
        if lookback is not None:
            self.memory_rotary = LlamaRotaryEmbedding(config)
        self.layers = nn.ModuleList([StackLayer(config, lookback is not None) for _ in range(num_layers)])
        self.norm = rms_norm(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        embeddings: torch.Tensor,  # (R, T, D)
        segments: torch.Tensor | None = None,  # (R, T): the segment of each input, for segment-local attention
        memory: tuple[torch.Tensor, torch.Tensor] | None = None,  # past rows (R, S, D), current rows (R, S + 1, D)
        memory_segments: torch.Tensor | None = None,  # (R, T): the row that each position reads as its current one
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """Hidden states `(R, T, D)` after the final norm, each layer's items `(R, T, item)`, and what each layer
        reads `(R, T, D)`."""
        positions = torch.arange(embeddings.shape[1], device=embeddings.device).unsqueeze(0)
        rotary = self.rotary(embeddings, positions)
        mask = self.mask(embeddings, segments)
        shared = ()
        if memory is not None:
            past, current = memory
            number = torch.arange(current.shape[1], device=past.device)
            number = torch.cat((number[:-1], number)).unsqueeze(0)
            turns = (self.memory_rotary(embeddings, memory_segments), self.memory_rotary(past, number))
            visible = look_back(memory_segments, past.shape[1], self.lookback)
            seen = make_mask(self.config, embeddings, number.shape[1], visible)
            shared = (torch.cat((past, current), 1), turns, seen)
        hidden_states, items, inputs = self.dropout(embeddings), [], []
        for layer in self.layers:
            inputs.append(hidden_states)
            hidden_states, layer_items = layer(hidden_states, rotary, mask, *shared)
            items.append(layer_items)
        return self.norm(hidden_states), items, inputs

    def mask(self, embeddings: torch.Tensor, segments: torch.Tensor | None):
        """The backend's mask, by the cheapest means that this backend has."""
        length, window = embeddings.shape[1], self.window
        if window is not None and window >= length:
            window = None
        if segments is None and self.config._attn_implementation == "sdpa":
            if window is None:
                return None
            if length > 2 * window:
                return Band(embeddings, window)
        visible = causal_window(window)
        if segments is not None:
            visible = same_segment(segments, visible)
        return make_mask(self.config, embeddings, length, visible)

    # ---- Cached decoding ----

    def new_cache(self, num_rows: int, like: torch.Tensor) -> StackCache:
        """The cache of rows that have seen nothing."""
        zeros = torch.zeros(num_rows, dtype=torch.long, device=like.device)
        capacity = self.window or 64
        item_sizes = [layer.self_attn.item_size for layer in self.layers]
        reads = [] if self.lookback is None else [layer.row_attn.item_size for layer in self.layers]
        return StackCache(
            items=[like.new_zeros(num_rows, capacity, size) for size in item_sizes],
            lengths=zeros,
            longest=0,
            window=self.window,
            segment_starts=zeros.clone(),
            memory=[like.new_zeros(num_rows, (self.lookback or 0) + 1, size) for size in reads],
            segments=zeros - 1,
        )

    def fill_cache(self, cache: StackCache, items: list[torch.Tensor], lengths: torch.Tensor) -> None:
        """Remember the first `lengths` `(R,)` symbols of a forward whose items `(R, T, item)` are given."""
        capacity = self.window or max(64, 2 * items[0].shape[1]) if items else 1
        last = lengths.unsqueeze(1) - 1
        places = torch.arange(capacity, device=last.device)
        positions = (last - (last - places) % capacity).clamp(min=0)  # those before the first are never seen
        cache.items = [
            layer.detach().gather(1, positions.unsqueeze(-1).expand(-1, -1, layer.shape[-1])) for layer in items
        ]
        cache.lengths, cache.longest = lengths.clone(), items[0].shape[1] if items else 0

    def fill_memory(self, cache: StackCache, past: torch.Tensor, current: torch.Tensor, segments: torch.Tensor) -> None:
        """Remember the memory rows that the segments `(R,)` to come see: of the past `(R, S, D)` and, at its own
        place, of the current rows `(R, S + 1, D)`."""
        last = segments.unsqueeze(1) - 1
        places = torch.arange(self.lookback, device=last.device)
        numbers = (last - (last - places) % max(self.lookback, 1)).clamp(min=0)  # (R, lookback); the rest is not seen
        size = past.shape[-1]
        seen = past.gather(1, numbers.unsqueeze(-1).expand(-1, -1, size))
        own = current.gather(1, segments.view(-1, 1, 1).expand(-1, 1, size))
        rotary = self.memory_rotary(past, torch.cat((numbers, segments.unsqueeze(1)), 1))
        rows = torch.cat((seen, own), 1)
        cache.memory = [layer.row_attn.items(rows, rotary).detach() for layer in self.layers]
        cache.segments = segments.clone()

    def open_row(self, cache: StackCache, opening: torch.Tensor, current: torch.Tensor, past: torch.Tensor) -> None:
        """Begin the next segment of some rows.

        Args:
            opening: `(R,)`, bool, which.
            current: `(R, D)`, its row of the memory.
            past: `(R, D)`, what the segment that ends here leaves to be looked back at; any at the first, which is
                written where nothing sees it before the next one is.
        """
        lookback = self.lookback or 0
        number = cache.segments + 1
        rows, numbers = current.unsqueeze(1), number.unsqueeze(1)
        places = torch.full_like(numbers, lookback)
        if lookback:
            rows, numbers = torch.stack((past, current), 1), torch.cat((numbers - 1, numbers), 1)
            places = torch.cat((numbers[:, :1] % lookback, places), 1)
        rotary = self.memory_rotary(current, numbers)
        for layer, memory in zip(self.layers, cache.memory, strict=True):
            items = layer.row_attn.items(rows, rotary).to(memory.dtype)
            index = places.unsqueeze(-1).expand_as(items)
            memory.scatter_(1, index, where_active(opening, items, memory.gather(1, index)))
        cache.segments = where_active(opening, number, cache.segments)

    def visible_rows(self, segments: torch.Tensor) -> torch.Tensor:
        """Which memory rows of the cache are seen from segments `(n,)`: `(n, 1, 1, lookback + 1)`."""
        places = torch.arange(self.lookback + 1, device=segments.device)
        return ((places < segments.unsqueeze(1)) | (places == self.lookback))[:, None, None]

    def step(self, cache: StackCache, active: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """The next symbol of the active rows `(R,)`, bool, embedded `(R, D)`: its hidden state `(R, D)` after the final
        norm. Of other rows the state means nothing, and the cache does not change."""
        hidden_states = embeddings.unsqueeze(1)
        rotary = self.rotary(hidden_states, cache.lengths.unsqueeze(1))
        mask = row_mask = row_rotary = None
        if self.lookback is not None:
            row_mask = step_mask(self.config, hidden_states, self.visible_rows(cache.segments))
            row_rotary = self.memory_rotary(hidden_states, cache.segments.unsqueeze(1))
        for i, layer in enumerate(self.layers):
            normed = layer.self_attn_norm(hidden_states)
            items = cache.push(i, layer.self_attn.items(normed, rotary)[:, 0])
            if mask is None:
                mask = step_mask(self.config, hidden_states, cache.visible(items.shape[1]))
            hidden_states = layer.attend(layer.self_attn, hidden_states, normed, items, rotary, mask)
            if self.lookback is not None:
                normed = layer.row_attn_norm(hidden_states)
                hidden_states = layer.attend(
                    layer.row_attn, hidden_states, normed, cache.memory[i], row_rotary, row_mask
                )
            hidden_states = layer.feed_forward(hidden_states)
        cache.advance(active)
        return self.norm(hidden_states)[:, 0]
