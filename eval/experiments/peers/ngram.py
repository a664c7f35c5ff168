"""Counts of n-grams ([`latentlm.evaluation.ngram`]) over the rows that a model is trained and scored on."""

import math
import time
from typing import Any

import numpy as np
from measures.pieces import by_times_seen

from latentlm.data import DataConfig, prepare_data
from latentlm.evaluation.ngram import NGram, choose_order
from latentlm.runs import Recipe

LABEL_IGNORED = -100


def flatten(rows: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids of all rows, how many tokens of its document stand before each in its row, and whether it is predicted."""
    columns = [(row["input_ids"].numpy(), row["position_ids"].numpy(), row["labels"].numpy()) for row in rows]
    ids, positions, labels = (np.concatenate(column) for column in zip(*columns, strict=True))
    begins = np.zeros(len(ids), dtype=bool)
    begins[np.cumsum([0, *(len(row) for row, _, _ in columns[:-1])])] = True
    return ids, positions, (labels != LABEL_IGNORED) & ~begins


def fit(recipe: Recipe) -> dict[str, Any]:
    """Count the training rows of a recipe once and score its validation rows: the tokens and bytes that a model is
    scored on. Fields of the record."""
    started = time.perf_counter()
    assert isinstance(recipe.data, DataConfig)
    data = prepare_data(recipe.data, recipe.max_position_embeddings)
    assert data.tokenizer is not None and data.token_bytes is not None
    vocab_size = len(data.tokenizer)
    rows: Any = data.train
    rows = [rows[i] for i in range(len(rows))]
    ids, history, predicted = flatten(rows)
    order = choose_order(vocab_size, ids, history, tail=max(len(rows) // 10, 1) * recipe.data.context_length)
    model = NGram(vocab_size, order).fit(ids, history)
    held_out, held_out_history, scored = flatten(data.validation)
    nats = -np.log(model.probabilities(held_out, held_out_history))[scored]
    num_bytes = float(data.token_bytes[held_out[scored]].sum())
    times = np.bincount(ids[predicted], minlength=vocab_size)
    read = held_out[np.flatnonzero(scored) - 1]
    return {
        "metrics": {
            "eval_bits_per_byte": float(nats.sum() / math.log(2) / num_bytes),
            "eval_loss": float(nats.mean()),
            "order": float(order),
            **by_times_seen(nats, read, held_out[scored], times, data.token_bytes),
        },
        "steps": 0,
        "seconds": time.perf_counter() - started,
        "flops": 0.0,
        "flops_method": "counting: no floating-point arithmetic in training",
        "parameters": {"total": model.num_counts, "embedding": model.num_counts, "body": 0},
        "tokens_seen": int(predicted.sum()),
        "bytes_seen": round(float(data.token_bytes[ids[predicted]].sum())),
    }
