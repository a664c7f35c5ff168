"""Packing of documents into rows of T = `context_length` tokens, which preserves the boundaries between documents.

Row i is `tokens[i * (T - 1) : i * (T - 1) + T]`. The last token of a row is the first of the next row, so every token
is predicted exactly once. `position_ids` restart at 0 at the beginning of a row or document. From them a model
distinguishes documents, because rows have no `attention_mask`. `labels` are the input ids, with -100 for the first
token of each row and document. [`stack_rows`] makes batches. A collator that pads would add an attention mask, with
which the documents of a row would be joined.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase, default_data_collator

from .cache import MapsFile
from .tokenizers import encode_documents

IGNORED = -100  # label of a token that is not predicted


def pack_row(
    tokens: np.ndarray, starts: np.ndarray, context_length: int, pad_token_id: int = 0
) -> dict[str, torch.Tensor]:
    """Return one row: `input_ids`, `position_ids` and `labels`, each `(context_length,)`, int64.

    Args:
        tokens: at most `context_length` ids. A shorter row is padded; the padding is a document without labels.
        starts: indices of `tokens` at which documents begin.
        context_length: number of tokens of the row.
        pad_token_id: id of the padding.
    """
    input_ids = np.full(context_length, pad_token_id, dtype=np.int64)
    input_ids[: len(tokens)] = tokens
    labels = input_ids.copy()
    labels[0] = IGNORED
    labels[starts] = IGNORED
    labels[len(tokens) :] = IGNORED
    index = np.arange(context_length)
    opening = np.zeros(context_length, dtype=np.int64)
    opening[starts] = starts
    if len(tokens) < context_length:
        opening[len(tokens)] = len(tokens)
    position_ids = index - np.maximum.accumulate(opening)
    return {
        "input_ids": torch.from_numpy(input_ids),
        "position_ids": torch.from_numpy(position_ids),
        "labels": torch.from_numpy(labels),
    }


def stack_rows(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a batch of rows, without `position_ids` if each row is one document. Models in training treat all batches
    with positions as packed, because a test of the values would synchronize with the accelerator."""
    batch = default_data_collator(rows)
    positions = batch.get("position_ids")
    if positions is not None and bool((positions == torch.arange(positions.shape[-1])).all()):
        del batch["position_ids"]
    return batch


class PackedDataset(MapsFile, Dataset[dict[str, torch.Tensor]]):
    """A dataset of the packed rows of a tokenized corpus in memory or on disk.

    Args:
        tokens: ids of all documents, concatenated. A memory map is not copied, also not in worker processes.
        starts: index of the first token of each document, ascending, int64.
        context_length: number of tokens of a row.
        pad_token_id: id that pads the last row. If it is None, an incomplete last row is left out.
        max_rows: largest number of rows, of which the first are used.
    """

    mapped = "tokens"

    def __init__(
        self,
        tokens: np.ndarray,
        starts: np.ndarray,
        context_length: int,
        pad_token_id: int | None = None,
        max_rows: int | None = None,
    ) -> None:
        self.tokens = tokens
        self.starts = starts
        self.context_length = context_length
        self.pad_token_id = pad_token_id
        predicted = max(len(tokens) - 1, 0)
        step = context_length - 1
        self.rows = predicted // step if pad_token_id is None else -(-predicted // step)
        if max_rows is not None:
            self.rows = min(self.rows, max_rows)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        if not -self.rows <= row < self.rows:
            raise IndexError(f"row {row} of {self.rows}")
        begin = (row % self.rows) * (self.context_length - 1)
        tokens = self.tokens[begin : begin + self.context_length]
        first, last = np.searchsorted(self.starts, (begin, begin + len(tokens)))
        return pack_row(tokens, self.starts[first:last] - begin, self.context_length, self.pad_token_id or 0)


class PackedStream(IterableDataset[dict[str, torch.Tensor]]):
    """A stream of rows that are packed while documents are read, in the same order in every pass.

    In a run of several processes Accelerate distributes the rows. A resumed run reads and skips the rows that were
    used, so `ignore_data_skip` must be off. The tokens after the last full row are left out.

    Args:
        documents: returns an iterator over all documents.
        tokenizer: the tokenizer of the documents.
        context_length: number of tokens of a row.

    Raises:
        ValueError: during iteration, if there are several DataLoader workers, or the text is shorter than one row.
    """

    def __init__(
        self, documents: Callable[[], Iterator[str]], tokenizer: PreTrainedTokenizerBase, context_length: int
    ) -> None:
        self.documents = documents
        self.tokenizer = tokenizer
        self.context_length = context_length

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ValueError(f"dataloader_num_workers: {worker.num_workers} would repeat a stream; must be 0 or 1")
        tokens = np.empty(0, dtype=np.int64)
        starts = np.empty(0, dtype=np.int64)  # indices of `tokens`
        is_empty = True
        for documents, _ in encode_documents(self.documents(), self.tokenizer):
            lengths = [len(tokens)] + [len(document) for document in documents]
            starts = np.concatenate((starts, np.cumsum(lengths)[:-1]))
            tokens = np.concatenate((tokens, *documents))
            begin = 0
            while begin + self.context_length <= len(tokens):
                first, last = np.searchsorted(starts, (begin, begin + self.context_length))
                row = tokens[begin : begin + self.context_length]
                yield pack_row(row, starts[first:last] - begin, self.context_length)
                is_empty = False
                begin += self.context_length - 1
            tokens = tokens[begin:]
            starts = starts[starts >= begin] - begin
        if is_empty:
            raise ValueError(
                f"dataset: the training stream ended before one row of {self.context_length} tokens; documents that "
                "are held out for validation are no part of it"
            )
