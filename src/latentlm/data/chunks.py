"""Training data for the FSQ autoencoder, whose rows are chunks of at most 16 bytes."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from ..models.block_byte_pieces import MAX_PIECE_BYTES
from ..models.fsq_vocabulary import spelling_table
from ..models.tokenization_fsq import SPECIAL_TOKENS
from .cache import build_once
from .config import ChunkConfig
from .pieces import Pieces, choose_pieces, load_pieces, save_pieces
from .prepare import PreparedData, count_repeats, hash_identity, open_sources, progress, split_corpus
from .sources import Source

FORMAT = 2  # version of the format of cached chunks, a part of their identity
PIECES_FILE = "pieces.json"
INFO_FILE = "info.json"
NOT_HOW = ("dataset", "cache_dir", "drop_repeated_paragraphs")  # fingerprints include these, or they change no row
DRAWS = 1 << 20  # number of training rows, which are drawn once
RANDOM_CHUNKS = 1 << 16  # number of random strings to draw from
Documents = Callable[[], Iterator[str]]
END = 256  # the symbol after the last byte of a chunk
IGNORED = -100


class ChunkDataset(Dataset[dict[str, torch.Tensor]]):
    """A dataset of chunks of C bytes. A row has `input_ids` `(C,)` (bytes, then 256), `labels` `(C,)` (bytes, one 256,
    then -100), both int64, and `use`, a float32 scalar.

    Args:
        chunks: `(N, C)`, uint8.
        lengths: `(N,)`, number of bytes of each chunk.
        uses: `(N,)`, number of uses of each chunk in the text, which are the weights of the metrics "by use".
        order: `(rows,)`, the chunk of each row; None if each chunk is one row.
    """

    def __init__(self, chunks: np.ndarray, lengths: np.ndarray, uses: np.ndarray, order: np.ndarray | None = None):
        self.chunks, self.lengths, self.uses, self.order = chunks, lengths, uses, order

    def __len__(self) -> int:
        return len(self.chunks if self.order is None else self.order)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        index = row if self.order is None else self.order[row]
        length = int(self.lengths[index])
        input_ids = self.chunks[index].astype(np.int64)
        input_ids[length:] = END
        labels = input_ids.copy()
        labels[length + 1 :] = IGNORED
        return {
            "input_ids": torch.from_numpy(input_ids),
            "labels": torch.from_numpy(labels),
            "use": torch.tensor(float(self.uses[index])),
        }


def prepare_chunks(config: ChunkConfig) -> PreparedData:
    """Read the text that `config` describes, split it into training and validation, and cut it into chunks. The result
    is cached.

    All processes of a run may call this at the same time. One does the work, and the others wait.

    Raises:
        ValueError: if the text cannot be found or read, or is too short.
    """
    train_source, validation_source = open_sources(config)
    identity = {
        "format": FORMAT,
        "train": train_source.fingerprint(),
        "validation": validation_source.fingerprint() if validation_source else config.validation_fraction,
        "how": {name: value for name, value in asdict(config).items() if name not in NOT_HOW},
    }
    folder = config.cache_path() / f"chunks-{hash_identity(identity)}"
    build_once(folder, lambda unfinished: _write_chunks(unfinished, config, train_source, validation_source))
    counts = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
    if config.chunks == "pieces":
        pieces = load_pieces(folder / PIECES_FILE)
        train, validation = _piece_rows(pieces, config)
        files = {PIECES_FILE: folder / PIECES_FILE}
    else:
        train, validation = (_fixed_rows(folder / f"{split}.npy") for split in ("train", "validation"))
        files = {}
    if config.max_validation_rows is not None:
        rows = min(config.max_validation_rows, len(validation))
        validation = ChunkDataset(validation.chunks[:rows], validation.lengths[:rows], validation.uses[:rows])
    info = {
        "dataset": config.dataset,
        "dataset_config": config.dataset_config,
        "validation_dataset": config.validation_dataset,
        "tokenizer": "bytes",
        "vocab_size": END + 1,
        "context_length": train.chunks.shape[1],
        "chunks": config.chunks,
        **counts,
        "train": {"rows": len(train), "sha256": _digest(train)},
        "validation": {"rows": len(validation), "sha256": _digest(validation)},
        "cache": str(folder),
    }
    return PreparedData(None, train, validation, None, info, files)


def _digest(rows: ChunkDataset) -> str:
    parts = [rows.chunks, rows.lengths, rows.uses] + ([] if rows.order is None else [rows.order])
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


def _write_chunks(folder: Path, config: ChunkConfig, train_source: Source, validation_source: Source | None) -> None:
    """Write the files of a cache folder: `info.json`, and either `pieces.json` or the fixed chunks of `train.npy` and
    `validation.npy`, whose last column are the lengths."""
    train, validation = split_corpus(config, train_source, validation_source)
    _write_rows(folder, config, train, validation)
    (folder / INFO_FILE).write_text(json.dumps(count_repeats(train_source)) + "\n", encoding="utf-8")


def _write_rows(folder: Path, config: ChunkConfig, train: Documents, validation: Documents) -> None:
    if config.chunks == "pieces":
        documents = progress(train(), "Reading")
        special = [token.encode() for token in SPECIAL_TOKENS.values()]
        pieces = choose_pieces(documents, config.tokenizer_vocab_size, config.boundary, forbidden=special)
        save_pieces(pieces, folder / PIECES_FILE)
        return
    for name, documents in (("train", train()), ("validation", validation())):
        rows = [chunk for text in progress(documents, f"Cutting {name}") for chunk in _cut(text, config.chunk_bytes)]
        if not rows:
            raise ValueError(f"dataset: the {name} split is empty")
        chunks, lengths = spelling_table(rows)
        np.save(folder / f"{name}.npy", np.column_stack((chunks, lengths.astype(np.uint8))))


def _cut(text: str, size: int) -> list[bytes]:
    data = text.encode("utf-8", "surrogatepass")
    return [data[start : start + size] for start in range(0, len(data), size)]


def _fixed_rows(path: Path) -> ChunkDataset:
    table = np.load(path)
    return ChunkDataset(table[:, :-1], table[:, -1], np.ones(len(table), dtype=np.int64))


def _piece_rows(pieces: Pieces, config: ChunkConfig) -> tuple[ChunkDataset, ChunkDataset]:
    """Return the random draws for training, and every byte and piece once for evaluation."""
    chunks, lengths = spelling_table([bytes([byte]) for byte in range(256)] + pieces.pieces)
    uses = np.concatenate((pieces.byte_counts, pieces.counts))
    generator = np.random.default_rng(0)
    random_chunks, random_lengths = _random_chunks(chunks, lengths, uses, generator)
    weights = np.maximum(uses, 1).astype(np.float64) ** config.sampling_exponent
    order = generator.choice(len(chunks), DRAWS, p=weights / weights.sum())
    is_random = generator.random(DRAWS) < config.random_share
    order[is_random] = len(chunks) + generator.integers(RANDOM_CHUNKS, size=int(is_random.sum()))
    train = ChunkDataset(
        np.concatenate((chunks, random_chunks)),
        np.concatenate((lengths, random_lengths)),
        np.concatenate((uses, np.zeros(RANDOM_CHUNKS, dtype=uses.dtype))),
        order,
    )
    return train, ChunkDataset(chunks, lengths, uses)


def _random_chunks(
    chunks: np.ndarray, lengths: np.ndarray, uses: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return random strings `(N, 16)`, uint8, and their lengths `(N,)`, from 2 to 16. Their bytes are independent, with
    the frequencies of the text."""
    inside = np.arange(MAX_PIECE_BYTES) < lengths[:, None]
    frequency = np.bincount(chunks[inside], np.broadcast_to(uses[:, None], chunks.shape)[inside], minlength=256) + 1.0
    drawn = generator.choice(256, (RANDOM_CHUNKS, MAX_PIECE_BYTES), p=frequency / frequency.sum()).astype(np.uint8)
    return drawn, generator.integers(2, MAX_PIECE_BYTES + 1, RANDOM_CHUNKS)


def load_run_pieces(folder: Path) -> Pieces:
    """Return the pieces on which a run trained its autoencoder.

    Raises:
        ValueError: if the folder has no pieces.
    """
    path = folder / PIECES_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no {PIECES_FILE}: it is not the run of an autoencoder trained on pieces")
    return load_pieces(path)
