"""The encoders of EncodZall: from bytes to one vector per word, in packed rows, and from these to the words' vectors in
their text."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map
from transformers.utils.import_utils import is_tracing

from .block_attention import FORMS, rotary_table
from .block_layers import PreNormLayer, make_norm
from .block_learned_dropout import make_learned_dropout, make_shared_mask_attention
from .block_masks import bidirectional_mask, sequence_mask
from .block_ngram_embedding import make_ngram_embedding
from .block_ragged import take
from .configuration_encodzall import EncodzallConfig
from .encodzall_base import EncodzallPreTrainedModel
from .encodzall_embedding import make_text_embedding
from .encodzall_packing import Packing

SLOTS_TOGETHER = 2048
"""The number of slots of the rows that a CPU encodes at a time without a gradient. What lies between the layers then
stays in its caches, and memory is used again instead of asked for."""

Encoded = tuple[torch.Tensor, list[torch.Tensor | None]]
"""Vectors, and the penalties of each layer's masks, if there are any."""


def in_groups(encode: Callable[..., Encoded], order: torch.Tensor, *values: torch.Tensor) -> Encoded:
    """Apply `encode` to values `(B, T, ...)`, a few rows at a time, in the given order `(B,)`."""
    groups = order.split(max(1, SLOTS_TOGETHER // values[0].shape[1]))
    parts = [encode(*(value[rows] for value in values)) for rows in groups]
    back = order.argsort()
    return tree_map(lambda *same: None if same[0] is None else torch.cat(same)[back], *parts)


class WordPooling(nn.Module):
    """Pooling of the vectors of words' bytes in rows `(R, L, D)` to one vector per word `(B, S, D)`."""

    def __init__(self, config: EncodzallConfig):
        super().__init__()
        self.kind = config.word_pooling
        if self.kind == "query":
            self.query = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, hidden_states: torch.Tensor, packing: Packing) -> torch.Tensor:
        if self.kind == "mean":
            return means_of_words(hidden_states, packing)
        lengths, word = packing["lengths"], packing["word"].flatten()
        num_words = lengths.numel() + 1  # the last one has the empty slots
        hidden_states = hidden_states.flatten(0, 1)

        def sums(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(num_words, values.shape[-1]).index_add(0, word, values)

        def largest(values: torch.Tensor) -> torch.Tensor:
            lowest = values.new_full((num_words, values.shape[-1]), -torch.inf)
            return lowest.scatter_reduce(0, word.unsqueeze(1).expand_as(values), values, "amax")

        if self.kind == "max":
            pooled = largest(hidden_states)[:-1]
        else:
            scores = self.query(hidden_states)  # (R * L, 1)
            weights = (scores - largest(scores.detach())[word]).exp()
            pooled = (sums(hidden_states * weights) / sums(weights).clamp(min=1))[:-1]  # the largest weight is 1
        return take(pooled.unflatten(0, lengths.shape), packing["vector"])


def means_of_words(values: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Return the mean of each word's values in rows `(R, L, D)`: `(B, S, D)`, 0 after a text's last word."""
    lengths, word = packing["lengths"], packing["word"].flatten()
    sums = values.new_zeros(lengths.numel() + 1, values.shape[-1]).index_add(0, word, values.flatten(0, 1))
    means = sums[:-1] / lengths.flatten().clamp(min=1).unsqueeze(1)
    return take(means.unflatten(0, lengths.shape), packing["vector"])


def mean_of_text(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the mean `(B, K)` over each text's words `(B, S, K)`, weighted by `(B, S)`."""
    return (values * weights.unsqueeze(-1)).sum(1) / weights.sum(1, keepdim=True)


class EncodzallEncoders(EncodzallPreTrainedModel):
    """The layers of both encoders, and the functions that apply them; [`EncodzallModel`] calls these in turn."""

    def __init__(self, config: EncodzallConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_ngrams = make_ngram_embedding(config)
        self.rotary = rotary_table(config)
        attention = FORMS[config.attention_form]

        def layers(count: int) -> nn.ModuleList:
            return nn.ModuleList(
                PreNormLayer(config, attention(config, i), learned_dropout=make_learned_dropout(config, i))
                for i in range(count)
            )

        self.word_mask_attention = make_shared_mask_attention(config, 0)
        self.word_encoder = layers(config.num_word_encoder_layers)
        self.word_norm = make_norm(config)
        self.word_pooling = WordPooling(config)
        self.context_mask_attention = make_shared_mask_attention(config, 0)
        self.context_encoder = layers(config.num_context_encoder_layers)
        self.context_norm = make_norm(config)
        self.text_embedding = make_text_embedding(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.gradient_checkpointing = False

    def encode_words(self, input_ids: torch.Tensor, packing: Packing) -> Encoded:
        """Apply Encoder 1 and the pooling, in rows `(R, L, D)` in which no word sees another. Return the vectors
        `(B, S, D)` of the words of ids `(B, T)`, 0 after a text's last word, and the penalties of each layer's masks
        `(B, K)`, a mean over the bytes of each text, however often a word of it lies in the rows."""
        ids, word, offset = take(input_ids, packing["source"]), packing["word"], packing["offset"]
        if self.encodes_in_groups(offset):
            order = torch.arange(len(offset), device=offset.device)
            rows, costs = in_groups(self.encode_rows, order, ids, word, offset)
        else:
            rows, costs = self.encode_rows(ids, word, offset)
        penalties = [
            None if cost is None else mean_of_text(means_of_words(cost, packing), packing["lengths"]) for cost in costs
        ]
        return self.word_pooling(rows, packing), penalties

    def encodes_in_groups(self, values: torch.Tensor) -> bool:
        """Whether rows of values `(B, T, ...)` are encoded a few at a time, which is faster on a CPU."""
        # FSDP wants as many calls of a layer in every process.
        alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        without_gradient = not (torch.is_grad_enabled() or self.training)
        return without_gradient and alone and values.device.type == "cpu" and not is_tracing(values)

    def encode_rows(self, ids: torch.Tensor, word: torch.Tensor, offset: torch.Tensor) -> Encoded:
        """Apply Encoder 1 to rows `(R, L)` of a [`Packing`]: return `(R, L, D)`, and the penalties of each layer's
        masks `(R, L, K)`."""
        rows = self.dropout(self.embed_in_words(ids, offset))
        mask = sequence_mask(self.config, rows, is_causal=False, segments=word)
        rotary = self.rotary(rows, offset)
        deciding = self.word_mask_attention
        shared_attention = None if deciding is None else deciding(rows, mask=mask)[0]
        penalties: list[torch.Tensor | None] = []
        for layer in self.word_encoder:
            rows, costs = layer(rows, None, shared_attention, mask=mask, rotary=rotary)
            penalties.append(costs)
        return self.word_norm(rows), penalties

    def encode_context(self, memory: torch.Tensor, word_mask: torch.Tensor, **kwargs: Any) -> Encoded:
        """Apply Encoder 2 to the words of texts `(B, S, D)`, of which `(B, S)` are real: return `(B, S, D)`, 0 where a
        word is not real, and the penalties of each layer's masks `(B, K)`."""
        mask = bidirectional_mask(self.config, memory, word_mask)
        rotary = self.rotary(memory, torch.arange(memory.shape[1], device=memory.device).unsqueeze(0))
        hidden_states = self.dropout(memory)
        shared: dict[str, Any] = {"mask": mask, **kwargs}
        deciding = self.context_mask_attention
        shared_attention = None if deciding is None else deciding(hidden_states, **shared)[0]
        penalties: list[torch.Tensor | None] = []
        for layer in self.context_encoder:
            hidden_states, costs = layer(hidden_states, None, shared_attention, rotary=rotary, **shared)
            penalties.append(None if costs is None else mean_of_text(costs, word_mask))
        return self.context_norm(hidden_states) * word_mask.unsqueeze(-1), penalties

    def embed_in_words(self, ids: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """Return the embeddings `(R, L, D)` of ids `(R, L)` at known offsets `(R, L)` in their words, with those of the
        n-grams that end with them in the word."""
        embeddings = self.embed_tokens(ids)
        return embeddings if self.embed_ngrams is None else embeddings + self.embed_ngrams(ids, offset)
