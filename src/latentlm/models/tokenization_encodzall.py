"""The `EncodzallTokenizer`, which encodes a text as its bytes and an end token, each with the index of its word.

Ids 0–255 are the bytes, 256 is `<pad>`, 257 `<bos>`, 258 `<eos>` and 259 `<mask>`, which masks a whole word. Four ids
mask one character: 260 `<vowel>`, 261 `<consonant>`, 262 `<nonspace>` (any other visible character) and 263 `<any>`.
"""

from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from .block_lossless_tokenizer import LosslessTokenizer
from .encodzall_words import WHITE_SPACE, find_words
from .tokenization_byte import BYTE_TOKENS, NUM_BYTES

SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "mask_token": "<mask>",
    "vowel_mask_token": "<vowel>",
    "consonant_mask_token": "<consonant>",
    "nonspace_mask_token": "<nonspace>",
    "any_mask_token": "<any>",
}

logger = logging.get_logger(__name__)


class EncodzallTokenizer(LosslessTokenizer):
    """A byte-level tokenizer that also determines the word of each byte; see [`LosslessTokenizer`] for its guarantees.

    Encoding returns `input_ids`, `attention_mask` and `word_ids`, which start at 0 and are -1 for padding. The end of
    the text is a word of its own, so the empty text also has one. The method `word_ids()` of an encoding counts only
    the words of the text, or those passed with `is_split_into_words=True`, as everywhere in transformers. Truncation
    removes whole words at the end, and logs their number.

    Args:
        max_word_bytes: maximum length of a word in bytes, at least 8. Longer words are split, but not inside a
            character.
        add_bos_token, add_eos_token: whether every encoded text begins with `<bos>` and ends with `<eos>`; the model
            expects only the end.
        **kwargs: arguments of `PreTrainedTokenizer`, and the texts of the special tokens.

    Raises:
        ValueError: if `max_word_bytes` is below 8.
    """

    vocab_files_names: dict[str, str] = {}
    model_input_names = ["input_ids", "attention_mask", "word_ids"]
    space_ends_word = True  # as in `find_words`

    def __init__(
        self, max_word_bytes: int = 16, add_bos_token: bool = False, add_eos_token: bool = True, **kwargs: Any
    ) -> None:
        if max_word_bytes < 8:
            raise ValueError(f"max_word_bytes is {max_word_bytes}, but must be at least 8.")
        self.max_word_bytes = max_word_bytes
        special_tokens = {name: kwargs.pop(name, token) for name, token in SPECIAL_TOKENS.items()}
        lengths = np.ones(NUM_BYTES, dtype=np.int64)
        super().__init__(BYTE_TOKENS, lengths, special_tokens, add_bos_token, add_eos_token, **kwargs)

    def encode_bytes(self, data: bytes) -> list[int]:
        return list(data)

    def spell(self, ids: np.ndarray) -> bytes:
        return ids.astype(np.uint8).tobytes()

    def find_words(self, ids: list[int]) -> list[int]:
        """Return the word index of each id."""
        if not ids:
            return []
        return find_words(torch.tensor([ids], dtype=torch.long, device="cpu"), self.max_word_bytes)[0].tolist()

    def truncate_sequences(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: Any = "longest_first",
        stride: int = 0,
    ) -> tuple[list[int], list[int], list[int]]:
        """Remove whole words at the end of a single text, in total at least `num_tokens_to_remove` ids. Pairs, and
        texts that are truncated on the left, are truncated as in transformers."""
        if pair_ids is None and num_tokens_to_remove > 0 and self.truncation_side == "right" and ids:
            words = self.find_words(ids)
            room = max(len(ids) - num_tokens_to_remove, 0)
            # If the first word does not fit, it is cut, because an empty text would carry no information.
            end = next((n for n in range(room, 0, -1) if words[n] != words[n - 1]), room)
            logger.warning(
                f"A text of {words[-1] + 1:,} words is longer than the model holds: "
                f"the last {words[-1] + 1 - (words[end - 1] + 1 if end else 0):,} are left out."
            )
            num_tokens_to_remove = len(ids) - end
        return super().truncate_sequences(ids, pair_ids, num_tokens_to_remove, truncation_strategy, stride)

    def _pad(self, encoded_inputs: Any, *args: Any, padding_side: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Add `word_ids` to an encoding, and pad them together with its ids."""
        if "word_ids" not in encoded_inputs:
            encoded_inputs["word_ids"] = self.find_words(list(encoded_inputs["input_ids"]))
        padded = super()._pad(encoded_inputs, *args, padding_side=padding_side, **kwargs)
        words = list(padded["word_ids"])
        missing = [-1] * (len(padded["input_ids"]) - len(words))
        on_the_left = (padding_side or self.padding_side) == "left"
        padded["word_ids"] = missing + words if on_the_left else words + missing
        return padded

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """Return 1 for special tokens, as everywhere in transformers, and for white space. White space belongs to the
        word before it, so pipelines must neither return it as a word of its own nor mask it."""
        mask = super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens)
        framed = already_has_special_tokens
        ids = token_ids_0 if framed else self.build_inputs_with_special_tokens(token_ids_0, token_ids_1)
        return [int(flag or id_ in WHITE_SPACE) for flag, id_ in zip(mask, ids, strict=True)]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        return ()  # the 256 bytes need no file

    @property
    def saved_framing(self) -> dict[str, Any]:
        return {**super().saved_framing, "max_word_bytes": self.max_word_bytes}


__all__ = ["EncodzallTokenizer"]
