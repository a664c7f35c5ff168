"""The `ByteTokenizer`, which encodes text as its UTF-8 bytes, one token per byte.

Token ids 0–255 are the bytes themselves, 256 is `<pad>`, 257 `<bos>` and 258 `<eos>`; extra special or added tokens
follow. There is no vocabulary file, because `tokenizer_config.json` holds everything.
"""

from typing import Any

import numpy as np
from transformers import AddedToken

from .block_byte_pieces import bytes_pattern
from .block_lossless_tokenizer import LosslessTokenizer

NUM_BYTES = 256
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(NUM_BYTES)]  # the names of bytes in `tokenizers`


class ByteTokenizer(LosslessTokenizer):
    """A byte-level tokenizer without a vocabulary file; see [`LosslessTokenizer`] for its guarantees.

    Args:
        add_bos_token: whether every encoded sequence begins with `<bos>`, as documents do in training.
        add_eos_token: whether every encoded sequence ends with `<eos>`.
        pad_token, bos_token, eos_token: the texts of tokens 256, 257 and 258.
        **kwargs: arguments of `PreTrainedTokenizer` (`model_max_length`, `padding_side`, `extra_special_tokens`, …).
    """

    vocab_files_names: dict[str, str] = {}
    word_pattern = bytes_pattern("words")

    def __init__(
        self,
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        pad_token: str | AddedToken = "<pad>",
        bos_token: str | AddedToken = "<bos>",
        eos_token: str | AddedToken = "<eos>",
        **kwargs: Any,
    ) -> None:
        special_tokens = {"pad_token": pad_token, "bos_token": bos_token, "eos_token": eos_token}
        lengths = np.ones(NUM_BYTES, dtype=np.int64)
        super().__init__(BYTE_TOKENS, lengths, special_tokens, add_bos_token, add_eos_token, **kwargs)

    def encode_bytes(self, data: bytes) -> list[int]:
        return list(data)

    def spell(self, ids: np.ndarray) -> bytes:
        return ids.astype(np.uint8).tobytes()

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        return ()  # the 256 bytes need no file


__all__ = ["ByteTokenizer"]
