"""The `data:` part of a recipe: `DataConfig` of a language model, `ChunkConfig` of the FSQ autoencoder, `TextConfig`
of EncodZall."""

import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args, get_type_hints

from ..models.block_byte_pieces import BOUNDARIES, MAX_PIECE_BYTES
from .sources import PYTHON_DOCS

MIN_BPE_VOCAB_SIZE = 256 + 3  # the byte alphabet and <pad>, <bos>, <eos>
MIN_FSQ_VOCAB_SIZE = 256 + 4  # the bytes and <pad>, <bos>, <eos>, <mask>


@dataclass
class SourceConfig:
    """Which text to read, and how to split it.

    Raises:
        ValueError: naming the field, its value and what would be right.
    """

    # "python_docs" (the documentation that comes with Python, nothing to download); a path or glob of .txt, .jsonl,
    # .json or .parquet files; or what `datasets.load_dataset` takes: a name on the Hub, a local dataset folder.
    dataset: str = "python_docs"
    # For Hub datasets: which configuration ("wikitext-2-raw-v1"), and which split to train on.
    dataset_config: str | None = None
    train_split: str = "train"
    # Where validation text comes from. A split of `dataset`; or another dataset or other files (then `validation_split`
    # says which of its splits, by default "train"). With neither, `validation_fraction` of `dataset` is held out.
    validation_split: str | None = None
    validation_dataset: str | None = None
    # Share of the UTF-8 bytes held out. Whole documents, chosen by the hash of their text: the same ones in every run,
    # whatever the tokenizer, and never a copy of a training document.
    validation_fraction: float = 0.05
    # Evaluate on the first rows only. Streaming without a validation source holds out this many rows.
    max_validation_rows: int | None = None
    # Column that holds the text (all formats but .txt).
    text_column: str = "text"
    # A regular expression. A line of a text file (or a row of any other dataset) in which it is found opens a new
    # document; WikiText: '^ = [^=].* = $'. Without it, a text file or a row is one document. In python_docs,
    # whose pages are documents without it, the expression may go on over the lines below.
    document_start: str | None = None
    # Use repeated paragraphs (text between blank lines) only where they occur first, before anything is held out; with
    # a validation source, also drop training paragraphs that it contains. null: do this for python_docs only.
    drop_repeated_paragraphs: bool | None = None
    # Where tokenized corpora and trained tokenizers are kept; default $LATENTLM_CACHE, else ~/.cache/latentlm.
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            value = getattr(self, field.name)
            allowed = get_args(hints[field.name]) or (hints[field.name],)
            if type(value) not in allowed and not (type(value) is int and float in allowed):
                wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
                raise ValueError(f"{field.name}: {value!r} is a {type(value).__name__}, but must be {wanted}")
        for name in ("dataset", "train_split", "text_column"):
            self._require(bool(getattr(self, name)), name, "must not be empty")
        self._require(0 < self.validation_fraction < 1, "validation_fraction", "must lie between 0 and 1")
        self._require_rows("max_validation_rows")
        if self.document_start is not None:
            try:
                re.compile(self.document_start)
            except re.error as error:
                raise ValueError(
                    f"document_start: {self.document_start!r} is not a regular expression: {error}"
                ) from error

    def _require(self, condition: bool, name: str, what: str) -> None:
        if not condition:
            raise ValueError(f"{name}: {getattr(self, name)!r} {what}")

    def _require_rows(self, name: str) -> None:
        rows = getattr(self, name)
        self._require(rows is None or rows >= 1, name, "must be at least 1, or null for all")

    @property
    def drops_repeats(self) -> bool:
        """Whether repeated paragraphs are left out."""
        chosen = self.drop_repeated_paragraphs
        return self.dataset == PYTHON_DOCS if chosen is None else chosen

    def cache_path(self) -> Path:
        """The cache folder, not necessarily there yet."""
        return Path(self.cache_dir or os.environ.get("LATENTLM_CACHE") or "~/.cache/latentlm").expanduser()


@dataclass
class DataConfig(SourceConfig):
    """Text as rows of tokens, for a language model.

    Raises:
        ValueError: naming the field, its value and what would be right.
    """

    # Train on the first rows only (repeatedly, if `max_steps` asks for more), to study overfitting.
    max_train_rows: int | None = None
    # Read and tokenize while training, without a cache on disk; for corpora that do not fit there. Needs `max_steps`.
    streaming: bool = False
    # "bytes"; "bpe" (a byte-level BPE trained on the training text); or a tokenizer to load, by path or Hub name.
    tokenizer: str = "bytes"
    # For "bpe": its size, special tokens included. A small corpus may yield fewer.
    tokenizer_vocab_size: int = 8192
    # Tokens in a row, at most the model's `max_position_embeddings`.
    context_length: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(bool(self.tokenizer), "tokenizer", "must not be empty")
        self._require(self.context_length >= 2, "context_length", "must be at least 2")
        self._require_rows("max_train_rows")
        self._require(not self.streaming or self.max_train_rows is None, "max_train_rows", "does not go with streaming")
        self._require(
            self.tokenizer != "bpe" or self.tokenizer_vocab_size >= MIN_BPE_VOCAB_SIZE,
            "tokenizer_vocab_size",
            f"must be at least {MIN_BPE_VOCAB_SIZE}: 256 bytes and 3 special tokens",
        )
        has_validation_source = self.validation_split is not None or self.validation_dataset is not None
        self._require(
            not self.streaming or has_validation_source or self.max_validation_rows is not None,
            "streaming",
            "needs validation_split, validation_dataset, or max_validation_rows to hold out from the stream",
        )
        self._require(
            not self.streaming or has_validation_source or self.tokenizer != "bpe",
            "tokenizer",
            "would be trained on the validation rows that are held out from a stream: give validation_split or"
            " validation_dataset, or a tokenizer that exists",
        )


@dataclass
class ChunkConfig(SourceConfig):
    """Text as chunks of bytes, for the FSQ autoencoder: the pieces of a tokenizer's vocabulary, each as often as the
    text uses it, or all chunks of one length.

    Raises:
        ValueError: naming the field, its value and what would be right.
    """

    # "pieces" (chosen from the text; training and validation see the same, weighted by their use) or "fixed".
    chunks: str = "pieces"
    # For "pieces": tokens of the tokenizer to come, of which 256 are single bytes and 4 special.
    tokenizer_vocab_size: int = 32768
    # For "pieces": they lie inside "words", or inside "lines", across spaces.
    boundary: str = "words"
    # For "pieces": how much their use counts in training, from 0 (all alike) to 1 (as often as in the text).
    sampling_exponent: float = 0.5
    # For "pieces": share of random strings among the training chunks, so that unseen strings get sensible codes too.
    random_share: float = 0.05
    # For "fixed": bytes in a chunk.
    chunk_bytes: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.chunks in ("pieces", "fixed"), "chunks", "must be 'pieces' or 'fixed'")
        self._require(self.boundary in BOUNDARIES, "boundary", f"must be one of {', '.join(BOUNDARIES)}")
        self._require(
            self.tokenizer_vocab_size >= MIN_FSQ_VOCAB_SIZE,
            "tokenizer_vocab_size",
            f"must be at least {MIN_FSQ_VOCAB_SIZE}: 256 bytes and 4 special tokens",
        )
        self._require(0 <= self.sampling_exponent <= 1, "sampling_exponent", "must lie between 0 and 1")
        self._require(0 <= self.random_share < 1, "random_share", "must be at least 0 and below 1")
        allowed = 1 <= self.chunk_bytes <= MAX_PIECE_BYTES
        self._require(allowed, "chunk_bytes", f"must lie between 1 and {MAX_PIECE_BYTES}")


@dataclass
class TextConfig(SourceConfig):
    """Text as rows of whole words in bytes, for EncodZall.

    Raises:
        ValueError: naming the field, its value and what would be right.
    """

    # Train on the first rows only (over and over, where `max_steps` says so): to see a model overfit.
    max_train_rows: int | None = None
    # Bytes in a row and the end of the text, at most the model's `max_position_embeddings`.
    context_length: int = 400
    # Words in a row, the end among them.
    max_words: int = 320
    # Longer words are cut; the model's `max_word_bytes`.
    max_word_bytes: int = 16
    # Share of rows of one to eight words only: without them, a single word is unlike anything that was trained on.
    short_rows: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_rows("max_train_rows")
        self._require(self.max_word_bytes >= 8, "max_word_bytes", "must be at least 8")
        self._require(
            self.context_length > self.max_word_bytes, "context_length", "must hold a word (max_word_bytes) and the end"
        )
        self._require(self.max_words >= 2, "max_words", "must be at least 2: a word and the end")
        self._require(0 <= self.short_rows < 1, "short_rows", "must lie in [0, 1)")
