"""Datasets for trainers: with filler rows for evaluation, endless streams for training, and evenly spaced rows for
samples."""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from transformers import Trainer, default_data_collator
from transformers.trainer_utils import has_length

from latentlm.data.packing import stack_rows

# Label of all positions of filler rows, which pad the last batches of an evaluation. The model never reads it.
FILLER = -101


def fill_rounds(rows: Dataset, multiple: int) -> Dataset:
    """Return a dataset of `rows`, followed by rows with the label [`FILLER`] up to a multiple of `multiple`.

    Otherwise accelerate would repeat rows of the first batches in the last ones.
    """
    return FilledStream(rows, multiple) if isinstance(rows, IterableDataset) else FilledRows(rows, multiple)


@contextmanager
def equal_keys(trainer: Trainer, rows: Dataset) -> Iterator[None]:
    """Return a context in which all batches of a stream that one process distributes have the same columns, because
    accelerate concatenates them by the keys of the first batch."""
    collator = trainer.data_collator
    if collator is stack_rows and isinstance(rows, IterableDataset) and trainer.args.world_size > 1:
        trainer.data_collator = default_data_collator
    try:
        yield
    finally:
        trainer.data_collator = collator


def split_filler(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the labels `(B, T)` with -100 instead of [`FILLER`], and which rows are not fillers, `(B,)`, bool."""
    filler = labels == FILLER
    return labels.masked_fill(filler, -100), ~filler.any(-1)


def as_filler(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the label [`FILLER`] at all positions, or the row itself if it has no labels."""
    return {**row, "labels": torch.full_like(torch.as_tensor(row["labels"]), FILLER)} if "labels" in row else row


class FilledRows(Dataset):
    """A dataset with filler rows up to a multiple of `multiple`."""

    def __init__(self, rows: Any, multiple: int):
        self.rows, self.multiple = rows, multiple

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.multiple) * self.multiple

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= len(self):  # so that a loop over the rows ends, as that of a sampler by length
            raise IndexError(f"row {index} of {len(self)}")
        return self.rows[index] if index < len(self.rows) else as_filler(self.rows[0])


class FilledStream(IterableDataset):
    """A stream with filler rows up to a multiple of `multiple`."""

    def __init__(self, rows: IterableDataset, multiple: int):
        self.rows, self.multiple = rows, multiple

    def __iter__(self) -> Iterator[dict[str, Any]]:
        count, row = 0, {}
        for row in self.rows:
            count += 1
            yield row
        for _ in range(-count % self.multiple):
            yield as_filler(row)


class EndlessStream(IterableDataset):
    """A stream that restarts when it ends, so that a resumed run continues after skipping the number of rows read. One
    that is shuffled has another order in each pass.

    Raises:
        ValueError: during iteration, if the stream is empty, or can be read only once.
    """

    def __init__(self, rows: IterableDataset):
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for reads in itertools.count():
            is_empty = True
            if (set_epoch := getattr(self.rows, "set_epoch", None)) is not None:
                set_epoch(reads)
            for row in self.rows:
                is_empty = False
                yield row
            if is_empty:
                worker = get_worker_info()
                if not reads and worker is not None and worker.id:
                    return  # a stream of `datasets` with fewer parts than workers leaves the last ones without rows
                problem = "can be read only once" if reads else "has no rows"
                raise ValueError(f"train_dataset ({type(self.rows).__name__}) {problem}; training reads it repeatedly.")


def spread_rows(rows: Any, count: int) -> list[dict[str, Any]]:
    """Return the same `count` evenly spaced rows of a dataset (the first one of a dictionary) in every call, or the
    first rows of a stream. A shorter dataset has fewer."""
    if isinstance(rows, dict):
        rows = next(iter(rows.values()))
    length = length_of(rows)
    if length is None:
        return list(itertools.islice(rows, count))
    count = min(count, length)
    return [rows[i * length // count] for i in range(count)]


def length_of(rows: Any) -> int | None:
    """Return the number of rows, or None for a stream."""
    return len(rows) if has_length(rows) else None
