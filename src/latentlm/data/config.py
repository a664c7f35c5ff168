"""The `data` section of a recipe, which is a `DataConfig` for a language model, a `ChunkConfig` for the FSQ
autoencoder, or a `TextConfig` for EncodZall."""

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
    """The source of the text, and its split into training and validation.

    Raises:
        ValueError: if a value is invalid, with a message that names the field, the value and valid ones.
    """

    # "python_docs" (the documentation that comes with Python, without a download), a path or glob of .txt, .jsonl,
    # .json or .parquet files, a folder of them or of `save_to_disk` of `datasets`, or the name of a dataset on the Hub.
    dataset: str = "python_docs"
    # The configuration of a Hub dataset (such as "wikitext-2-raw-v1"), and the split to train on.
    dataset_config: str | None = None
    train_split: str = "train"
    # The source of validation text: a split of `dataset`, or another dataset or other files, whose split is then
    # `validation_split`, by default "train". With neither, `validation_fraction` of `dataset` is held out.
    validation_split: str | None = None
    validation_dataset: str | None = None
    # Share of the UTF-8 bytes that is held out. Whole documents are chosen by the hash of their text. They are the same
    # in every run and with every tokenizer, and never copies of training documents.
    validation_fraction: float = 0.05
    # Number of first rows to evaluate on. Streaming without a validation source holds out as many rows.
    max_validation_rows: int | None = None
    # The column with the text, in all formats except .txt.
    text_column: str = "text"
    # A regular expression. A line of a text file (or a row of any other dataset) that it matches begins a new document;
    # for WikiText it is '^ = [^=].* = $'. Without it, a text file, a row or a page of python_docs is one document. In
    # python_docs a match may extend over several lines.
    document_start: str | None = None
    # Whether repeated paragraphs (text between blank lines) are dropped, except for their first occurrence, before text
    # is held out. Training paragraphs that a validation source contains are dropped too. null is true for python_docs.
    drop_repeated_paragraphs: bool | None = None
    # The folder for tokenized corpora and trained tokenizers, by default $LATENTLM_CACHE, else ~/.cache/latentlm.
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
        """Whether repeated paragraphs are dropped."""
        chosen = self.drop_repeated_paragraphs
        return self.dataset == PYTHON_DOCS if chosen is None else chosen

    def cache_path(self) -> Path:
        """Return the cache folder, which may not exist yet."""
        return Path(self.cache_dir or os.environ.get("LATENTLM_CACHE") or "~/.cache/latentlm").expanduser()


@dataclass
class DataConfig(SourceConfig):
    """The data of a language model, whose rows are tokens.

    Raises:
        ValueError: if a value is invalid, with a message that names the field, the value and valid ones.
    """

    # Number of first rows to train on, in several epochs if `max_steps` needs more. It serves to study overfitting.
    max_train_rows: int | None = None
    # Whether text is read and tokenized during training, without a cache, for corpora that are too large for the disk.
    # This needs `max_steps`.
    streaming: bool = False
    # "bytes", "bpe" (a byte-level BPE that is trained on the training text), or the path or Hub name of a tokenizer.
    tokenizer: str = "bytes"
    # Number of tokens of "bpe", including special tokens. A small corpus may yield fewer.
    tokenizer_vocab_size: int = 8192
    # Number of tokens of a row, at most `max_position_embeddings` of the model.
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
    """The data of the FSQ autoencoder, whose rows are chunks of bytes: the pieces of a vocabulary, weighted by their
    use in the text, or the text in chunks of one length.

    Raises:
        ValueError: if a value is invalid, with a message that names the field, the value and valid ones.
    """

    # "pieces" (chosen from the text, and the same for training and validation) or "fixed" (chunks of one length).
    chunks: str = "pieces"
    # For "pieces": number of tokens of the future tokenizer, of which 256 are single bytes and 4 are special.
    tokenizer_vocab_size: int = 32768
    # For "pieces": whether they lie inside "words", or inside "lines" and may contain spaces.
    boundary: str = "words"
    # For "pieces": exponent, in [0, 1], of the uses in the text, to which the sampling probability is proportional.
    sampling_exponent: float = 0.5
    # For "pieces": share of random strings among the training chunks, so that unseen strings get useful codes too.
    random_share: float = 0.05
    # For "fixed": number of bytes of a chunk.
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
    """The data of EncodZall, whose rows are whole words in bytes.

    Raises:
        ValueError: if a value is invalid, with a message that names the field, the value and valid ones.
    """

    # Number of first rows to train on, in several epochs if `max_steps` needs more. It serves to study overfitting.
    max_train_rows: int | None = None
    # Number of bytes of a row, including the end of the text, at most `max_position_embeddings` of the model.
    context_length: int = 400
    # Largest number of words of a row, including the end.
    max_words: int = 320
    # Number of bytes above which a word is split. It must be `max_word_bytes` of the model.
    max_word_bytes: int = 16
    # Share of rows with only one to eight words, so that the model is also trained on short texts.
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
