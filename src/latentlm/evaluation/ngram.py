"""An n-gram model with Witten-Bell interpolation (Witten & Bell 1991), as a baseline for language models.

For a context h, which occurs c(h) times with T(h) distinct continuations, and the context h' without its first token:

    p(w | h) = (c(h w) + T(h) p(w | h')) / (c(h) + T(h))

The recursion ends with the uniform distribution over the vocabulary.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentlm.data import PackedDataset, PreparedData

MAX_ORDER = 7
MOST_SCORED = 1 << 19  # largest number of tokens on which an order is chosen


class NGram:
    """An n-gram model, whose counts of all orders are one sorted array.

    For each position of the text, the array has a number that consists of its token and the `order - 1` tokens after
    it, the first in the highest bits. A token is stored as its id + 1, and a place outside of the document as 0. In the
    sorted array, all occurrences of an n-gram of any order are a range, and so are those of a context.

    Args:
        vocab_size: V. `order` numbers from 0 to V must fit into 64 bits.
        order: number of tokens of the longest n-grams.

    Raises:
        ValueError: if `order` is below 1 or above [`longest_order`].
    """

    def __init__(self, vocab_size: int, order: int):
        if not 1 <= order <= longest_order(vocab_size):
            raise ValueError(
                f"order is {order}, but must lie in 1 to {longest_order(vocab_size)} with {vocab_size} tokens"
            )
        self.vocab_size, self.order = vocab_size, order
        self.bits = vocab_size.bit_length()
        self.windows = np.empty(0, dtype=np.uint64)

    def fit(self, ids: np.ndarray, history: np.ndarray) -> "NGram":
        """Count the n-grams of a text.

        Args:
            ids: `(N,)`, the tokens.
            history: `(N,)`, number of tokens of the same document before each token.

        Returns:
            This model.
        """
        windows = np.zeros(len(ids), dtype=np.uint64)
        for ahead in range(self.order):
            windows <<= np.uint64(self.bits)
            following = ids[ahead:].astype(np.uint64) + np.uint64(1)
            following[history[ahead:] < ahead] = 0
            windows[: len(following)] |= following
        windows.sort()
        self.windows = windows
        return self

    def probabilities(self, ids: np.ndarray, history: np.ndarray) -> np.ndarray:
        """Return the probability of each token given those before it, `(N,)`, float64. The arguments are those of
        [`fit`]."""
        *_, result = self.by_order(ids, history)
        return result

    def by_order(self, ids: np.ndarray, history: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the [`probabilities`] of the models with n-grams of at most 1, 2, ... tokens."""
        result = np.full(len(ids), 1 / self.vocab_size)
        for order in range(1, self.order + 1):
            places = np.flatnonzero(history >= order - 1)
            grams = np.zeros(len(places), dtype=np.uint64)
            for back in range(order - 1, -1, -1):
                grams = (grams << np.uint64(self.bits)) | (ids[places - back].astype(np.uint64) + np.uint64(1))
            # In sorted order, n-grams and their contexts are looked up in one pass over the counts.
            grams, inverse = np.unique(grams, return_inverse=True)
            count, total, kinds = (values[inverse] for values in self.look_up(grams, order))
            known = total > 0
            places, count, total, kinds = places[known], count[known], total[known], kinds[known]
            result[places] = (count + kinds * result[places]) / (total + kinds)
            yield result.copy()

    def look_up(self, grams: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return, for N n-grams of `order` tokens, their counts, the counts of their contexts, and the numbers of
        distinct continuations of these, `(N,)` each."""
        if not len(self.windows):
            none = np.zeros(len(grams), dtype=np.int64)
            return none, none, none
        rest = np.uint64((1 << self.bits * (self.order - order)) - 1)  # the bits of the tokens after the n-gram
        last = np.uint64((1 << self.bits) - 1)
        first = grams << np.uint64(self.bits * (self.order - order))
        count = np.searchsorted(self.windows, first | rest, "right") - np.searchsorted(self.windows, first)
        begin = ((grams & ~last) | np.uint64(1)) << np.uint64(self.bits * (self.order - order))
        end = ((grams | last) << np.uint64(self.bits * (self.order - order))) | rest
        low, high = np.searchsorted(self.windows, begin), np.searchsorted(self.windows, end, "right")
        starts = self.starts(rest)
        return count, high - low, np.searchsorted(starts, high) - np.searchsorted(starts, low)

    def starts(self, rest: np.uint64) -> np.ndarray:
        """Return the indices of the sorted windows at which a new n-gram begins. `rest` is the mask of the bits after
        the n-gram."""
        return np.flatnonzero(np.append(True, (self.windows[1:] ^ self.windows[:-1]) > rest))

    def distribution(self, context: np.ndarray) -> np.ndarray:
        """Return the probabilities of the next token after `context`, `(V,)`, float64."""
        context = context[max(len(context) - self.order + 1, 0) :]
        texts = [np.append(context, token) for token in range(self.vocab_size)]
        history = np.tile(np.arange(len(context) + 1), self.vocab_size)
        return self.probabilities(np.concatenate(texts), history)[len(context) :: len(context) + 1]

    @property
    def num_counts(self) -> int:
        """The number of distinct n-grams of all orders."""
        total = 0
        for order in range(1, self.order + 1):
            shift = self.bits * (self.order - order)
            grams = self.windows[self.starts(np.uint64((1 << shift) - 1))] >> np.uint64(shift)
            total += int(np.count_nonzero(grams & np.uint64((1 << self.bits) - 1)))
        return total


def longest_order(vocab_size: int) -> int:
    """Return the largest order for a vocabulary size."""
    return min(MAX_ORDER, 64 // vocab_size.bit_length())


def choose_order(vocab_size: int, ids: np.ndarray, history: np.ndarray, tail: int | None = None) -> int:
    """Return the order that is best for the end of a text if the rest is counted.

    Args:
        vocab_size: V.
        ids, history: those of [`NGram.fit`].
        tail: number of tokens at the end, by default a tenth of the text, and at most 2**19.
    """
    tail = tail or min(max(len(ids) // 10, 1), MOST_SCORED)
    model = NGram(vocab_size, longest_order(vocab_size)).fit(ids[:-tail], history[:-tail])
    ids, history = ids[-tail:], np.minimum(history[-tail:], np.arange(tail))
    nats = [-np.log(probabilities)[history > 0].sum() for probabilities in model.by_order(ids, history)]
    return int(np.argmin(nats)) + 1


@dataclass(frozen=True)
class NGramScore:
    """The score of an n-gram model of a training text on the held-out text.

    Attributes:
        bits_per_byte: bits per byte of the held-out text, including the ends of its documents.
        nats_per_token: nats per token, to compare with `eval_lm_loss` of a model.
        order: number of tokens of the longest n-grams.
        num_counts: number of distinct n-grams.
    """

    bits_per_byte: float
    nats_per_token: float
    order: int
    num_counts: int


def score_ngram(data: PreparedData) -> NGramScore:
    """Count the training text once and score the held-out text, with contexts that extend over rows of a document.

    Raises:
        ValueError: if the data are a stream or have no tokens.
    """
    if data.tokenizer is None or data.token_bytes is None:
        raise ValueError("n-grams are counted of tokens, and these data have none")
    vocab_size = len(data.tokenizer)
    ids, history = documents(data.train)
    order = choose_order(vocab_size, ids, history)
    model = NGram(vocab_size, order).fit(ids, history)
    held_out, held_out_history = documents(data.validation)
    scored = held_out_history > 0
    nats = -np.log(model.probabilities(held_out, held_out_history))[scored].sum()
    num_bytes = data.token_bytes[held_out[scored]].sum(dtype=np.float64)
    return NGramScore(float(nats / math.log(2) / num_bytes), float(nats / scored.sum()), order, model.num_counts)


def documents(rows: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens `(N,)` of all rows, and the number of tokens of the same document before each, `(N,)`, int64.

    Raises:
        ValueError: if the rows are a stream.
    """
    if not isinstance(rows, PackedDataset):
        raise ValueError("streaming: n-grams are counted of text that is there as a whole, not of a stream")
    ids = np.asarray(rows.tokens[: len(rows) * (rows.context_length - 1) + 1])
    opening = np.zeros(len(ids), dtype=np.int64)
    starts = rows.starts[rows.starts < len(ids)]
    opening[starts] = starts
    return ids, np.arange(len(ids)) - np.maximum.accumulate(opening)
