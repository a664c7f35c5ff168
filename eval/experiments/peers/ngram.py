"""Counts of n-grams, interpolated (Witten & Bell 1991): the yardstick. A model that does not pass it has learned less
than a table holds.

For a context h with the counts c, T distinct continuations and the shorter context h':

    p(w | h) = (c(h w) + T(h) p(w | h')) / (c(h) + T(h))

down to the uniform distribution over the vocabulary.
"""

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from latentlm.data import DataConfig, prepare_data
from latentlm.runs import Recipe

MAX_ORDER = 6
LABEL_IGNORED = -100


class NGram:
    """Counts of all n-grams up to an order, as sorted arrays.

    Args:
        vocab_size: V; `V ** order` must fit into 63 bits.
        order: longest n-gram, its last token included.
    """

    def __init__(self, vocab_size: int, order: int = MAX_ORDER):
        if not 1 <= order <= MAX_ORDER or vocab_size**order >= 2**63:
            raise ValueError(
                f"order is {order}, but must lie in 1 to {MAX_ORDER}, and {vocab_size} ** order below 2 ** 63"
            )
        self.vocab_size, self.order = vocab_size, order
        self.grams: list[tuple[np.ndarray, np.ndarray]] = []  # of each order: keys, counts
        self.contexts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # keys, counts, distinct continuations

    def keys(self, ids: np.ndarray, history: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
        """The n-gram that ends at each place of `ids` `(N,)`, as one number, and the places that have so much history.

        Args:
            history: `(N,)` tokens of its own text before each place.
        """
        places = np.flatnonzero(history >= order - 1)
        keys = np.zeros(len(places), dtype=np.int64)
        for back in range(order - 1, -1, -1):
            keys = keys * self.vocab_size + ids[places - back]
        return keys, places

    def fit(self, ids: np.ndarray, history: np.ndarray) -> "NGram":
        """Count every n-gram of a text, where documents follow each other (`history` begins again at 0)."""
        for order in range(1, self.order + 1):
            keys, counts = np.unique(self.keys(ids, history, order)[0], return_counts=True)
            contexts, first = np.unique(keys // self.vocab_size, return_index=True)
            distinct = np.diff(np.append(first, len(keys)))
            totals = np.add.reduceat(counts, first) if len(keys) else counts
            self.grams.append((keys, counts))
            self.contexts.append((contexts, totals, distinct))
        return self

    def probabilities(self, ids: np.ndarray, history: np.ndarray) -> np.ndarray:
        """Of each token of `ids` `(N,)` after those before it, float64."""
        *_, result = self.by_order(ids, history)
        return result

    def by_order(self, ids: np.ndarray, history: np.ndarray) -> Iterator[np.ndarray]:
        """[`probabilities`] with n-grams of at most 1, 2, ... tokens."""
        result = np.full(len(ids), 1 / self.vocab_size)
        for order in range(1, self.order + 1):
            keys, places = self.keys(ids, history, order)
            count = look_up(*self.grams[order - 1], keys)
            contexts, totals, distinct = self.contexts[order - 1]
            total = look_up(contexts, totals, keys // self.vocab_size)
            kinds = look_up(contexts, distinct, keys // self.vocab_size)
            known = places[total > 0]
            numerator = count[total > 0] + kinds[total > 0] * result[known]
            result[known] = numerator / (total + kinds)[total > 0]
            yield result.copy()

    def distribution(self, context: np.ndarray) -> np.ndarray:
        """`(V,)` probabilities of what follows `context`."""
        context = context[max(len(context) - self.order + 1, 0) :]
        texts = [np.append(context, token) for token in range(self.vocab_size)]
        history = np.tile(np.arange(len(context) + 1), self.vocab_size)
        return self.probabilities(np.concatenate(texts), history)[len(context) :: len(context) + 1]

    @property
    def num_counts(self) -> int:
        return sum(len(keys) for keys, _ in self.grams)


def look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Values by key, 0 where there is none; `keys` are sorted."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=np.int64)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)


def flatten(rows: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids of all rows, how many tokens of its document stand before each in its row, and whether it is predicted."""
    columns = [(row["input_ids"].numpy(), row["position_ids"].numpy(), row["labels"].numpy()) for row in rows]
    ids, positions, labels = (np.concatenate(column) for column in zip(*columns, strict=True))
    begins = np.zeros(len(ids), dtype=bool)
    begins[np.cumsum([0, *(len(row) for row, _, _ in columns[:-1])])] = True
    return ids, positions, (labels != LABEL_IGNORED) & ~begins


def choose_order(rows: Sequence[Any], vocab_size: int, longest: int) -> int:
    """The order that is best for the last tenth of the training rows, counted on the others."""
    tenth = max(len(rows) // 10, 1)
    model = NGram(vocab_size, longest).fit(*flatten(rows[:-tenth])[:2])
    ids, history, scored = flatten(rows[-tenth:])
    nats = [-np.log(probabilities)[scored].sum() for probabilities in model.by_order(ids, history)]
    return int(np.argmin(nats)) + 1


def fit(recipe: Recipe) -> dict[str, Any]:
    """Count the training rows of a recipe once and score its validation rows: the tokens and bytes that a model is
    scored on. Fields of the record."""
    started = time.perf_counter()
    assert isinstance(recipe.data, DataConfig)
    data = prepare_data(recipe.data, recipe.max_position_embeddings)
    assert data.tokenizer is not None and data.token_bytes is not None
    vocab_size = len(data.tokenizer)
    longest = min(MAX_ORDER, int(63 * math.log(2) / math.log(vocab_size)))
    rows: Any = data.train
    rows = [rows[i] for i in range(len(rows))]
    order = choose_order(rows, vocab_size, longest)
    ids, history, predicted = flatten(rows)
    model = NGram(vocab_size, order).fit(ids, history)
    held_out, held_out_history, scored = flatten(data.validation)
    nats = -np.log(model.probabilities(held_out, held_out_history))[scored].sum()
    num_bytes = float(data.token_bytes[held_out[scored]].sum())
    return {
        "metrics": {
            "eval_bits_per_byte": float(nats / math.log(2) / num_bytes),
            "eval_loss": float(nats / scored.sum()),
            "order": float(order),
        },
        "steps": 0,
        "seconds": time.perf_counter() - started,
        "flops": 0.0,
        "flops_method": "counting: no floating-point arithmetic in training",
        "parameters": {"total": model.num_counts, "embedding": model.num_counts, "body": 0},
        "tokens_seen": int(predicted.sum()),
        "bytes_seen": round(float(data.token_bytes[ids[predicted]].sum())),
    }
