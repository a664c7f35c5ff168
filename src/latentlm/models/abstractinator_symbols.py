"""Symbols of an alphabet, of one digit or several: their embedding, and the distribution of the next symbol."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from .block_attention import ProjectedRMSNorm
from .block_ngram_embedding import NgramEmbedding
from .configuration_abstractinator import AbstractinatorConfig, LevelConfig
from .configuration_ngram_embedding import MODULUS


class SymbolEmbedding(nn.Module):
    """Embedding of symbols: the sum of the embeddings of a symbol's digits, optionally through a smaller space.

    Args:
        config: of the model.
        num_ids: number of ids of a digit, special ids included.
        num_digits: number of digits of a symbol; each has a table of its own.
        size: of the smaller space; None for none.
    """

    def __init__(self, config: AbstractinatorConfig, num_ids: int, num_digits: int, size: int | None):
        super().__init__()
        self.num_ids = num_ids
        self.table = nn.Embedding(num_ids * num_digits, size or config.hidden_size)
        self.up = nn.Linear(size, config.hidden_size, bias=False) if size else nn.Identity()

    def forward(self, symbols: torch.Tensor, num_digits: int | None = None) -> torch.Tensor:
        """Return vectors `(..., D)` of symbols `(..., digits)`; of their first `num_digits` alone if given."""
        symbols = symbols[..., :num_digits]
        if symbols.shape[-1] == 1:
            return self.up(self.table(symbols.squeeze(-1)))
        offsets = self.num_ids * torch.arange(symbols.shape[-1], device=symbols.device)
        return self.up(self.table(symbols + offsets).sum(-2))


class SequenceEmbedding(SymbolEmbedding):
    """Embedding of symbols in sequences, with that of the n-grams that end with them if the level has n-gram tables.

    Args:
        config, num_ids, num_digits, size: as of [`SymbolEmbedding`].
        level: the level whose symbols they are.
    """

    def __init__(
        self, config: AbstractinatorConfig, level: LevelConfig, num_ids: int, num_digits: int, size: int | None
    ):
        super().__init__(config, num_ids, num_digits, size)
        self.ngrams = None
        if level.ngram_embedding is not None:
            self.ngrams = NgramEmbedding(SimpleNamespace(**vars(level), hidden_size=config.hidden_size))

    def of_rows(self, symbols: torch.Tensor) -> torch.Tensor:
        """Return vectors `(R, T, D)` of symbols `(R, T, digits)`, each row a sequence from its beginning."""
        vectors = self(symbols)
        if self.ngrams is None:
            return vectors
        depth = torch.arange(symbols.shape[1], device=symbols.device).unsqueeze(0)
        return vectors + self.ngrams(self.whole(symbols), depth)

    def of_last(self, recent: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        """Return vectors `(R, D)` of the last of the recent symbols `(R, P, digits)`, before which a sequence has
        `depth` `(R,)` symbols."""
        vectors = self(recent[:, -1])
        if self.ngrams is None:
            return vectors
        ids = self.whole(recent)
        return vectors + self.ngrams(ids[:, -1:], depth.unsqueeze(1), ids[:, :-1])[:, 0]

    def whole(self, symbols: torch.Tensor) -> torch.Tensor:
        """Return one number `(...)` for each symbol `(..., digits)`, by which n-grams are hashed: its digits to base
        `num_ids`."""
        number = symbols[..., 0]
        for k in range(1, symbols.shape[-1]):
            number = (number * self.num_ids + symbols[..., k]) % MODULUS
        return number


class LinearProduct(nn.Module):
    """Two linear maps, one after the other, presented as the one map that they make together. What reads an output
    layer's `weight` gets their product, whose gradient goes on to both."""

    bias = None

    def __init__(self, in_features: int, size: int, out_features: int):
        super().__init__()
        self.first = nn.Linear(in_features, size, bias=False)
        self.second = nn.Linear(size, out_features, bias=False)

    @property
    def weight(self) -> torch.Tensor:
        return self.second.weight @ self.first.weight

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(hidden_states))


class SymbolHead(nn.Module):
    """Next-symbol distributions, digit by digit.

    Digit k is predicted from the hidden state and the digits before it (RQ-Transformer, 2203.01941, section 3.2.2, with
    one linear map per digit in place of a transformer).

    Args:
        config: of the model.
        num_ids: number of ids of a digit.
        num_digits: number of digits of a symbol.
        size: of the space in which digits are told apart; None for D.
    """

    is_output = True

    def __init__(self, config: AbstractinatorConfig, num_ids: int, num_digits: int, size: int | None):
        super().__init__()
        self.num_digits = num_digits
        if num_digits > 1:
            self.digits = SymbolEmbedding(config, num_ids, num_digits, size)
            self.norm = ProjectedRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        width = config.hidden_size
        self.out = nn.ModuleList(
            LinearProduct(width, size, num_ids) if size else nn.Linear(width, num_ids, bias=False)
            for _ in range(num_digits)
        )

    def resize(self, resized: Callable[[Any], nn.Linear]) -> None:
        """Replace the layer that has an output for each id of the first digit."""
        layer = self.out[0]
        if isinstance(layer, LinearProduct):
            layer.second = resized(layer.second)
        else:
            self.out[0] = resized(layer)

    def digit_logits(self, hidden_states: torch.Tensor, known: torch.Tensor | None, k: int) -> torch.Tensor:
        """Return logits `(..., num_ids)` of digit k given the digits before it, `known` `(..., >= k)`."""
        if k:
            hidden_states = hidden_states + self.norm(self.digits(known, k))
        return self.out[k](hidden_states)

    def losses(self, hidden_states: torch.Tensor, symbols: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy in nats `(...)`, float32, of symbols `(..., digits)` after hidden states
        `(..., D)`."""
        total = hidden_states.new_zeros(symbols.shape[:-1], dtype=torch.float32)
        for k in range(self.num_digits):
            logits = self.digit_logits(hidden_states, symbols, k).float().flatten(0, -2)
            nats = nn.functional.cross_entropy(logits, symbols[..., k].flatten(), reduction="none")
            total = total + nats.view_as(total)
        return total

    def sample(self, hidden_states: torch.Tensor, choose: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Sample symbols `(n, digits)` after hidden states `(n, D)`; `choose` picks ids `(n,)` by logits `(n, V)`."""
        symbols = hidden_states.new_zeros(len(hidden_states), self.num_digits, dtype=torch.long)
        for k in range(self.num_digits):
            symbols[:, k] = choose(self.digit_logits(hidden_states, symbols, k))
        return symbols
