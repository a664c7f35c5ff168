"""From text anywhere to packed rows of tokens: `prepare_data(DataConfig(...))`."""

from .config import DataConfig
from .packing import PackedDataset, PackedStream
from .prepare import PreparedData, prepare_data
from .tokenizers import token_bytes

__all__ = ["DataConfig", "PackedDataset", "PackedStream", "PreparedData", "prepare_data", "token_bytes"]
