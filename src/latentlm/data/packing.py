"""Rows of `context_length` tokens out of a stream of documents, with the borders between documents kept.

Row i is `tokens[i * (T - 1) : i * (T - 1) + T]`: neighbours share one token, the last of a row being the first of the
next, so that every token is predicted exactly once. `position_ids` restart at 0 where a row or a document begins (this
is how a model tells documents apart: rows come without `attention_mask`). `labels` are the input ids, with -100 for
tokens that nothing of the same document and row comes before. [`stack_rows`] makes batches; a collator that pads would
add an attention mask and join the documents.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase, default_data_collator

from .tokenizers import encode_documents

IGNORED = -100  # label of a token that is not predicted


def pack_row(
    tokens: np.ndarray, starts: np.ndarray, context_length: int, pad_token_id: int = 0
) -> dict[str, torch.Tensor]:
    """One row: `input_ids`, `position_ids` and `labels`, int64 of shape `(context_length,)`.

    Args:
        tokens: at most `context_length` ids; fewer are padded, the padding being one more document without labels.
        starts: indices into `tokens` where documents begin.
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
    """A batch of rows, without `position_ids` where no row has several documents: models in training keep documents
    apart wherever there are positions, since to look would make an accelerator wait."""
    batch = default_data_collator(rows)
    positions = batch.get("position_ids")
    if positions is not None and bool((positions == torch.arange(positions.shape[-1])).all()):
        del batch["position_ids"]
    return batch


class PackedDataset(Dataset[dict[str, torch.Tensor]]):
    """Rows of a tokenized corpus that lies in memory or on disk.

    Args:
        tokens: ids of all documents, one after another; a memory map stays one, in worker processes too.
        starts: index of each document's first token, ascending, int64.
        context_length: tokens in a row.
        pad_token_id: fills up the last row; None leaves out what does not fill a row.
        max_rows: use only the first.
    """

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

    def __getstate__(self) -> dict[str, Any]:
        """Pickling (for spawned workers) would copy a memory map's content; its file name is enough."""
        state = self.__dict__.copy()
        if isinstance(self.tokens, np.memmap):
            state["tokens"] = (self.tokens.filename, self.tokens.dtype)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.tokens, tuple):
            filename, dtype = self.tokens
            self.tokens = np.memmap(filename, dtype=dtype, mode="r")


class PackedStream(IterableDataset[dict[str, torch.Tensor]]):
    """Rows packed while documents are read; the same rows in the same order in every pass.

    In a run of several processes Accelerate hands out the rows. Resuming reads and skips what was seen already (the
    Trainer's way), so `ignore_data_skip` must stay off. The tokens after the last full row are left out.

    Raises:
        ValueError: on iterating, if a second DataLoader worker reads the same stream, or it holds less than one row.
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
        starts = np.empty(0, dtype=np.int64)  # into `tokens`
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
            raise ValueError(f"dataset: the training stream ended before one row of {self.context_length} tokens")
