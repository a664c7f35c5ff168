"""Preparation of training data from text: packed rows of tokens (`prepare_data(DataConfig(...))`), chunks of bytes
(`prepare_chunks(ChunkConfig(...))`), or rows of words (`prepare_texts(TextConfig(...))`)."""

from .chunks import ChunkDataset, prepare_chunks
from .config import ChunkConfig, DataConfig, TextConfig
from .packing import PackedDataset, PackedStream
from .prepare import PreparedData, PreparedText, prepare_data
from .texts import TextDataset, prepare_texts
from .tokenizers import token_bytes

__all__ = [
    "ChunkConfig",
    "ChunkDataset",
    "DataConfig",
    "PackedDataset",
    "PackedStream",
    "PreparedData",
    "PreparedText",
    "TextConfig",
    "TextDataset",
    "prepare_chunks",
    "prepare_data",
    "prepare_texts",
    "token_bytes",
]
