"""From text anywhere to packed rows of tokens: `prepare_data(DataConfig(...))`;
and to chunks of bytes: `prepare_chunks(ChunkConfig(...))`."""

from .chunks import ChunkDataset, prepare_chunks
from .config import ChunkConfig, DataConfig
from .packing import PackedDataset, PackedStream
from .prepare import PreparedData, prepare_data
from .tokenizers import token_bytes

__all__ = [
    "ChunkConfig",
    "ChunkDataset",
    "DataConfig",
    "PackedDataset",
    "PackedStream",
    "PreparedData",
    "prepare_chunks",
    "prepare_data",
    "token_bytes",
]
