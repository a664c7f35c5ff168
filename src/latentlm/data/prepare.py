"""Preparation of the data of a language model: the tokenizer, training rows and validation rows."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from .cache import build_once
from .config import DataConfig, SourceConfig
from .packing import PackedDataset, PackedStream
from .paragraphs import without_repeats
from .sources import Source, open_source
from .splitting import Split, document_key, split_by_hash
from .tokenizers import (
    encode_documents,
    load_bpe,
    load_tokenizer,
    special_id,
    token_bytes,
    token_dtype,
    tokenizer_fingerprint,
    train_bpe,
)

FORMAT = 1  # version of the format of a cached corpus, a part of its identity
STREAM_BPE_DOCUMENTS = 20_000  # number of first documents of a stream on which its BPE is trained


@dataclass(frozen=True)
class PreparedData:
    """The data of a trainer, and their description.

    The rows of the autoencoder (`prepare_chunks`) are those of [`ChunkDataset`], without a tokenizer. The rows of
    EncodZall (`prepare_texts`) are those of [`TextDataset`].

    Attributes:
        tokenizer: the tokenizer, with `model_max_length`. Its length is the least `vocab_size` of the model.
        train, validation: rows of int64 tensors `input_ids`, `position_ids` and `labels`, each `(context_length,)` (see
            `latentlm.data.packing`), to be stacked by `stack_rows`. A `train` that is streamed is an `IterableDataset`
            without a length.
        token_bytes: `(len(tokenizer),)`, float32, number of UTF-8 bytes of each token id, for bits per byte.
        info: source, documents, bytes, tokens, rows and hash of the tokens of both splits, and the dropped paragraphs
            (None where a number is not known for a stream). It can be written as JSON.
        files: further files for the run folder, by name.
    """

    tokenizer: PreTrainedTokenizerBase | None
    train: Dataset[dict[str, torch.Tensor]] | IterableDataset[dict[str, torch.Tensor]]
    validation: Dataset[dict[str, torch.Tensor]]
    token_bytes: np.ndarray | None
    info: dict[str, Any]
    files: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class PreparedText(PreparedData):
    """[`PreparedData`] with a tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    token_bytes: np.ndarray


def prepare_data(config: DataConfig, max_position_embeddings: int | None = None) -> PreparedText:
    """Read, split, tokenize and pack the text that `config` describes. The tokens are cached, except in streaming.

    All processes of a run may call this at the same time. One does the work, and the others wait.

    Args:
        config: the data section of a recipe.
        max_position_embeddings: longest context of the model, or None without a limit.

    Raises:
        ValueError: if the text cannot be found or read, is too short, or does not fit the model.
    """
    check_fits(config.context_length, max_position_embeddings)
    train_source, validation_source = open_sources(config, config.streaming)
    tokenizer = None if config.tokenizer == "bpe" else load_tokenizer(config.tokenizer)
    prepare = _prepare_stream if config.streaming else _prepare_corpus
    data = prepare(config, train_source, validation_source, tokenizer)
    data.tokenizer.model_max_length = max_position_embeddings or config.context_length
    return data


def check_fits(context_length: int, max_position_embeddings: int | None) -> None:
    """Raise ValueError if rows are longer than the context of the model (None without a limit)."""
    if max_position_embeddings is not None and context_length > max_position_embeddings:
        raise ValueError(
            f"context_length: {context_length} is longer than the model's max_position_embeddings"
            f" ({max_position_embeddings})"
        )


def open_sources(config: SourceConfig, streaming: bool = False) -> tuple[Source, Source | None]:
    """Return the source of training text, and that of validation text if there is another one, else None."""

    def open_(dataset: str, split: str, dataset_config: str | None) -> Source:
        return open_source(
            dataset,
            split=split,
            dataset_config=dataset_config,
            text_column=config.text_column,
            document_start=config.document_start,
            streaming=streaming,
        )

    train = open_(config.dataset, config.train_split, config.dataset_config)
    validation = None
    if config.validation_dataset is not None:
        validation = open_(config.validation_dataset, config.validation_split or "train", None)
    elif config.validation_split is not None:
        validation = open_(config.dataset, config.validation_split, config.dataset_config)
    return without_repeats(train, validation) if config.drops_repeats else train, validation


def count_repeats(source: Source) -> dict[str, dict[str, int] | None]:
    """Return the numbers of dropped paragraphs and bytes of a source that has been read, for the `info` of prepared
    data, and print them."""
    if source.repeats is None:
        return {"repeated_paragraphs": None}
    tqdm.write(f"Left out {source.repeats.paragraphs:,} repeated paragraphs ({source.repeats.bytes:,} bytes).")
    return {"repeated_paragraphs": asdict(source.repeats)}


# --- a corpus that is tokenized once and cached on disk -------------------------------------------------------------


def _prepare_corpus(
    config: DataConfig,
    train_source: Source,
    validation_source: Source | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> PreparedText:
    identity = {
        "format": FORMAT,
        "train": train_source.fingerprint(),
        "validation": validation_source.fingerprint() if validation_source else config.validation_fraction,
        "text_column": config.text_column,
        "document_start": config.document_start,
        "tokenizer": _tokenizer_identity(config, tokenizer),
    }
    folder = config.cache_path() / f"corpus-{hash_identity(identity)}"
    build_once(folder, lambda unfinished: _write_corpus(unfinished, config, train_source, validation_source, tokenizer))
    tokenizer = tokenizer or load_bpe(folder / "tokenizer")
    counts = json.loads((folder / "info.json").read_text(encoding="utf-8"))

    def rows(split: str, **options: Any) -> PackedDataset:
        tokens = np.memmap(folder / f"{split}.tokens", dtype=counts["dtype"], mode="r")
        starts = np.load(folder / f"{split}.starts.npy")
        return PackedDataset(tokens, starts, config.context_length, **options)

    train = rows("train", max_rows=config.max_train_rows)
    if not len(train):
        raise ValueError(
            f"dataset: the training text of {train_source.name!r} has {counts['train']['tokens']} tokens, fewer than"
            f" one context (context_length: {config.context_length})"
        )
    validation = rows(
        "validation", pad_token_id=special_id(tokenizer, "pad_token"), max_rows=config.max_validation_rows
    )
    return _prepared(config, tokenizer, train, validation, counts, folder)


def _tokenizer_identity(config: DataConfig, tokenizer: PreTrainedTokenizerBase | None) -> Any:
    return ["bpe", config.tokenizer_vocab_size] if tokenizer is None else tokenizer_fingerprint(tokenizer)


def hash_identity(identity: dict[str, Any]) -> str:
    """Return a hash of 16 hexadecimal digits of values that JSON can represent."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _write_corpus(
    folder: Path,
    config: DataConfig,
    train_source: Source,
    validation_source: Source | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    """Write the files of a cache folder: `tokenizer/` (of a BPE), `{train,validation}.tokens` and `.starts.npy`, and
    `info.json`."""
    train, validation = split_corpus(config, train_source, validation_source)
    if tokenizer is None:
        tokenizer = train_bpe(train(), config.tokenizer_vocab_size)
        tokenizer.save_pretrained(folder / "tokenizer")
    counts = {
        "train": _write_tokens(folder, "train", train(), tokenizer),
        "validation": _write_tokens(folder, "validation", validation(), tokenizer),
        "dtype": token_dtype(len(tokenizer)).name,
        **count_repeats(train_source),
    }
    (folder / "info.json").write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")


def split_corpus(
    config: SourceConfig, train_source: Source, validation_source: Source | None
) -> tuple[Callable[[], Iterator[str]], Callable[[], Iterator[str]]]:
    """Return two functions that return iterators over the training and the validation documents. No document is in
    both."""
    if validation_source is None:
        split = split_by_hash(progress(train_source.documents(), "Reading"), config.validation_fraction)
        return lambda: split.train(train_source.documents()), lambda: split.validation(train_source.documents())
    split = Split(frozenset(map(document_key, validation_source.documents())))
    if not split.held_out:
        raise ValueError(f"validation_dataset: the validation split of {validation_source.name!r} is empty")
    return lambda: split.train(train_source.documents()), validation_source.documents


def _write_tokens(
    folder: Path, split: str, documents: Iterator[str], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    starts: list[np.ndarray] = []
    size = tokens = 0
    digest = hashlib.sha256()
    with open(folder / f"{split}.tokens", "wb") as file:
        for arrays, batch_size in encode_documents(progress(documents, f"Tokenizing {split}"), tokenizer):
            lengths = np.array([len(array) for array in arrays], dtype=np.int64)
            starts.append(tokens + np.cumsum(lengths) - lengths)
            data = np.concatenate(arrays).tobytes()
            file.write(data)
            digest.update(data)
            tokens += int(lengths.sum())
            size += batch_size
    if not starts:
        raise ValueError(f"dataset: the {split} split is empty (documents of the validation split are not trained on)")
    np.save(folder / f"{split}.starts.npy", np.concatenate(starts))
    return {"documents": sum(map(len, starts)), "bytes": size, "tokens": tokens, "sha256": digest.hexdigest()}


def progress(documents: Iterator[str], what: str) -> Iterator[str]:
    """Yield documents, and show the number of characters in a progress bar with the label `what`."""
    with tqdm(desc=what, unit=" characters", unit_scale=True) as bar:
        for text in documents:
            yield text
            bar.update(len(text))


# --- a stream ---------------------------------------------------------------------------------------------------------


def _prepare_stream(
    config: DataConfig,
    train_source: Source,
    validation_source: Source | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> PreparedText:
    """Prepare a stream, of which only the validation rows and a first training row are read now. Without a validation
    source the first documents of the stream are held out."""
    if tokenizer is None:
        tokenizer = _stream_bpe(config, train_source)

    arrays: list[np.ndarray] = []
    keys: list[int] = []
    size = tokens = 0
    enough = float("inf")
    if config.max_validation_rows is not None:
        enough = config.max_validation_rows * (config.context_length - 1) + 1
    for text in (validation_source or train_source).documents():
        [[array], text_size] = next(encode_documents([text], tokenizer))
        arrays.append(array)
        keys.append(document_key(text))
        size += text_size
        tokens += len(array)
        if tokens >= enough:
            break
    if not arrays:
        raise ValueError(f"dataset: the validation split of {(validation_source or train_source).name!r} is empty")
    lengths = np.array([len(array) for array in arrays], dtype=np.int64)
    validation = PackedDataset(
        np.concatenate(arrays),
        np.cumsum(lengths) - lengths,
        config.context_length,
        pad_token_id=special_id(tokenizer, "pad_token"),
        max_rows=config.max_validation_rows,
    )
    documents = partial(_without, frozenset(keys), train_source.documents)
    train = PackedStream(documents, tokenizer, config.context_length)
    next(iter(train))  # a stream without one row is an error now, not when training starts
    digest = hashlib.sha256(validation.tokens.tobytes()).hexdigest()
    counts = {"documents": len(arrays), "bytes": size, "tokens": tokens, "sha256": digest}
    return _prepared(config, tokenizer, train, validation, {"train": dict.fromkeys(counts), "validation": counts}, None)


def _stream_bpe(config: DataConfig, source: Source) -> PreTrainedTokenizerBase:
    """Return the BPE of the first documents of a stream. It is cached by their content, since the name of a stream says
    nothing about it."""

    def first() -> Iterator[str]:
        return islice(source.documents(), STREAM_BPE_DOCUMENTS)

    size = config.tokenizer_vocab_size
    identity = {"documents": list(map(document_key, first())), "vocab_size": size}
    folder = config.cache_path() / f"tokenizer-{hash_identity(identity)}"
    build_once(folder, lambda unfinished: train_bpe(first(), size).save_pretrained(unfinished))
    return load_bpe(folder)


def _without(keys: frozenset[int], documents: Callable[[], Iterator[str]]) -> Iterator[str]:
    return Split(keys).train(documents())


def _prepared(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    train: PackedDataset | PackedStream,
    validation: PackedDataset,
    counts: dict[str, Any],
    folder: Path | None,
) -> PreparedText:
    info = {
        "dataset": config.dataset,
        "dataset_config": config.dataset_config,
        "validation_dataset": config.validation_dataset,
        "tokenizer": config.tokenizer,
        "vocab_size": len(tokenizer),
        "context_length": config.context_length,
        "repeated_paragraphs": counts.get("repeated_paragraphs"),
        "train": counts["train"] | {"rows": len(train) if isinstance(train, PackedDataset) else None},
        "validation": counts["validation"] | {"rows": len(validation)},
        "cache": None if folder is None else str(folder),
    }
    return PreparedText(tokenizer, train, validation, token_bytes(tokenizer), info)
