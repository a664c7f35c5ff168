"""Training data for EncodZall, whose rows are the bytes of whole words of one document, followed by an end."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from ..models.configuration_encodzall import EncodzallConfig
from ..models.encodzall_words import EOS, PAD, find_words
from ..models.tokenization_encodzall import EncodzallTokenizer
from .cache import MapsFile, build_once
from .config import TextConfig
from .prepare import PreparedData, check_fits, count_repeats, hash_identity, open_sources, progress, split_corpus
from .tokenizers import token_bytes

FORMAT = 2  # version of the format of a cached corpus, a part of its identity
IGNORED = -100
SHORT = 8  # largest number of words of a short row


class TextDataset(MapsFile, Dataset):
    """A dataset of texts in bytes. A row has `input_ids` `(context_length,)`, int64, which are bytes, an end and
    padding, and `labels`, the same with -100 for padding.

    Args:
        data: `(N,)`, uint8, all texts, concatenated.
        rows: `(R, 2)`, first and last + 1 byte of each row.
        context_length: number of ids of a row, including the end.
    """

    mapped = "data"

    def __init__(self, data: np.ndarray, rows: np.ndarray, context_length: int):
        self.data, self.rows, self.context_length = data, rows, context_length

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        start, end = self.rows[row]
        input_ids = torch.full((self.context_length,), PAD)
        input_ids[: end - start] = torch.from_numpy(self.data[start:end].astype(np.int64))
        input_ids[end - start] = EOS
        return {"input_ids": input_ids, "labels": input_ids.masked_fill(input_ids == PAD, IGNORED)}


def prepare_texts(config: TextConfig, max_position_embeddings: int | None = None) -> PreparedData:
    """Read the text that `config` describes, split it into training and validation, and cut it into rows. The result is
    cached.

    All processes of a run may call this at the same time. One does the work, and the others wait.

    Args:
        config: the data section of a recipe.
        max_position_embeddings: longest context of the model, or None without a limit.

    Raises:
        ValueError: if the text cannot be found or read, is too short, or does not fit the model.
    """
    check_fits(config.context_length, max_position_embeddings)
    train_source, validation_source = open_sources(config)
    identity = {
        "format": FORMAT,
        "train": train_source.fingerprint(),
        "validation": validation_source.fingerprint() if validation_source else config.validation_fraction,
        "text_column": config.text_column,
        "document_start": config.document_start,
        "row": [config.context_length, config.max_words, config.max_word_bytes, config.short_rows],
    }
    folder = config.cache_path() / f"texts-{hash_identity(identity)}"

    def write(unfinished: Path) -> None:
        train, validation = split_corpus(config, train_source, validation_source)
        counts = {
            name: _write_rows(unfinished, name, progress(documents, f"Cutting {name}"), config)
            for name, documents in (("train", train()), ("validation", validation()))
        } | count_repeats(train_source)
        (unfinished / "info.json").write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")

    build_once(folder, write)
    counts = json.loads((folder / "info.json").read_text(encoding="utf-8"))
    tokenizer = EncodzallTokenizer(
        max_word_bytes=config.max_word_bytes, model_max_length=max_position_embeddings or config.context_length
    )

    def rows(split: str, most: int | None) -> TextDataset:
        data = np.memmap(folder / f"{split}.bytes", dtype=np.uint8, mode="r")
        return TextDataset(data, np.load(folder / f"{split}.rows.npy")[:most], config.context_length)

    train, validation = rows("train", config.max_train_rows), rows("validation", config.max_validation_rows)
    info = {
        "dataset": config.dataset,
        "dataset_config": config.dataset_config,
        "validation_dataset": config.validation_dataset,
        "tokenizer": EncodzallConfig.model_type,
        "vocab_size": len(tokenizer),
        "context_length": config.context_length,
        "repeated_paragraphs": counts.get("repeated_paragraphs"),
        "train": counts["train"] | {"rows": len(train)},
        "validation": counts["validation"] | {"rows": len(validation)},
        "cache": str(folder),
    }
    return PreparedData(tokenizer, train, validation, token_bytes(tokenizer), info)


def _write_rows(folder: Path, split: str, documents: Iterator[str], config: TextConfig) -> dict[str, int | str]:
    rows: list[np.ndarray] = []
    size = count = 0
    generator = np.random.default_rng(0)  # for the lengths of short rows, which do not depend on the seed of a run
    digest = hashlib.sha256()
    with open(folder / f"{split}.bytes", "wb") as file:
        for text in documents:
            data = text.encode("utf-8", "surrogatepass")
            if not data:
                continue
            lengths = (config.context_length - 1, config.max_words - 1, config.max_word_bytes)
            rows.append(size + cut_rows(data, *lengths, config.short_rows, generator))
            file.write(data)
            digest.update(data)
            size += len(data)
            count += 1
    if not rows:
        raise ValueError(f"dataset: the {split} split is empty (documents of the validation split are not trained on)")
    np.save(folder / f"{split}.rows.npy", np.concatenate(rows))
    return {"documents": count, "bytes": size, "sha256": digest.hexdigest()}


def cut_rows(
    data: bytes, max_bytes: int, max_words: int, max_word_bytes: int, short: float, generator: np.random.Generator
) -> np.ndarray:
    """Return the first and last + 1 byte `(R, 2)` of rows of whole words that cover all bytes of a document.

    Args:
        data: the bytes of the document.
        max_bytes: largest number of bytes of a row.
        max_words: largest number of words of a row.
        max_word_bytes: longer words are split.
        short: share of the rows that have at most `SHORT` words.
        generator: the source of the random lengths of these rows.
    """
    ids = torch.frombuffer(bytearray(data), dtype=torch.uint8).long()[None]
    words = find_words(ids, max_word_bytes)[0].numpy()
    starts = np.flatnonzero(np.diff(words, prepend=-1))  # the first byte of each word
    ends = np.append(starts[1:], len(data))
    cuts, word = [0], 0
    while word < len(starts):
        fits = int(np.searchsorted(ends, starts[word] + max_bytes, side="right"))
        is_short = short and generator.random() < short
        most = min(max_words, int(generator.integers(1, SHORT + 1))) if is_short else max_words
        word = min(fits, word + most)
        cuts.append(int(ends[word - 1]))
    return np.column_stack((cuts[:-1], cuts[1:]))
