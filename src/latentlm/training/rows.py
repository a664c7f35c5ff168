"""Rows as trainers read them: filled up to whole rounds in evaluations, endless in training, spread for samples."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import Trainer, default_data_collator
from transformers.trainer_utils import has_length

from latentlm.data.packing import stack_rows

# Label of all positions in rows that only fill up the last batches of an evaluation; the model never sees it.
FILLER = -101


def fill_rounds(rows: Dataset, multiple: int) -> Dataset:
    """`rows`, followed by rows labelled [`FILLER`] until processes share them evenly.

    Otherwise the last round of batches would repeat rows of the first one.
    """
    return FilledStream(rows, multiple) if isinstance(rows, IterableDataset) else FilledRows(rows, multiple)


@contextmanager
def equal_keys(trainer: Trainer, rows: Dataset) -> Iterator[None]:
    """Lets batches of a stream that one process shares out keep all columns: accelerate joins those of all processes by
    the keys of the first."""
    collator = trainer.data_collator
    if collator is stack_rows and isinstance(rows, IterableDataset) and trainer.args.world_size > 1:
        trainer.data_collator = default_data_collator
    try:
        yield
    finally:
        trainer.data_collator = collator


def split_filler(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The labels `(B, T)` of a batch without fillers, and which rows `(B,)`, bool, are real."""
    filler = labels == FILLER
    return labels.masked_fill(filler, -100), ~filler.any(-1)


def as_filler(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "labels": torch.full_like(torch.as_tensor(row["labels"]), FILLER)} if "labels" in row else row


class FilledRows(Dataset):
    """Rows with a length, which becomes a multiple of `multiple`."""

    def __init__(self, rows: Any, multiple: int):
        self.rows, self.multiple = rows, multiple

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.multiple) * self.multiple

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index] if index < len(self.rows) else as_filler(self.rows[0])


class FilledStream(IterableDataset):
    """A stream whose number of rows becomes a multiple of `multiple`."""

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
    """A stream that begins anew when it ends, so that a resumed run finds its place by the number of rows alone."""

    def __init__(self, rows: IterableDataset):
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            yield from self.rows


def spread_rows(rows: Any, count: int) -> list[dict[str, Any]]:
    """Always the same `count` rows, spread over a dataset (the first of a dictionary); the first ones of a stream."""
    if isinstance(rows, dict):
        rows = next(iter(rows.values()))
    length = length_of(rows)
    if length is None:
        return list(islice(rows, count))
    count = min(count, length)
    return [rows[i * length // count] for i in range(count)]


def length_of(rows: Any) -> int | None:
    """Number of rows, `None` for a stream."""
    return len(rows) if has_length(rows) else None
