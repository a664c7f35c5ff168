"""The `FSQTokenizer`, which segments text into pieces with codes of finite scalar quantization, in Python."""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tokenizers import decoders
from transformers import AddedToken, PreTrainedTokenizerBase

from .block_lossless_tokenizer import LosslessTokenizer
from .fsq_stream import encode_stream
from .fsq_vocabulary import AUTOENCODER_FILE, VOCABULARY_FILE, FSQVocabulary, Segmenter, spelling_table

SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "mask_token": "<mask>"}


class FSQTable(PreTrainedTokenizerBase if TYPE_CHECKING else object):
    """Mixin with the table of an FSQ tokenizer: spellings, codes and network. It precedes the base class of
    transformers.

    Attributes:
        vocabulary: the table, which the subclass sets.
        segmenter: the segmentation of bytes into ids, which the subclass sets.
    """

    vocabulary: FSQVocabulary
    segmenter: Segmenter

    @classmethod
    def from_vocabulary(cls, vocabulary: FSQVocabulary, **kwargs: Any) -> Any:
        """Make the tokenizer of a table that is not saved in a file yet. `kwargs` are those of the constructor."""
        with tempfile.TemporaryDirectory() as folder:
            path, weights = Path(folder) / VOCABULARY_FILE, None
            path.write_text(vocabulary.to_json(), encoding="utf-8")
            if vocabulary.weights is not None:
                weights = Path(folder) / AUTOENCODER_FILE
                weights.write_bytes(vocabulary.weights)
            return cls(vocab_file=str(path), autoencoder_file=weights and str(weights), **kwargs)

    @property
    def codes(self) -> np.ndarray:
        """The code index of every id, `(V,)`, int64; -1 for special tokens."""
        return np.pad(self.vocabulary.codes, (0, len(SPECIAL_TOKENS)), constant_values=-1)

    @property
    def levels(self) -> list[int]:
        """The levels of the quantization: the number of values of each digit of a code."""
        return list(self.vocabulary.levels)

    def piece_table(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the bytes of every id, `(V, 16)`, uint8, and their number, `(V,)`, int64, which is 0 for special
        tokens."""
        return spelling_table(self.vocabulary.spellings + [b""] * len(SPECIAL_TOKENS))

    @property
    def autoencoder_config(self) -> dict[str, Any] | None:
        """The fields of the [`FSQAutoencoderConfig`] of the network; None if the table was made without one."""
        return self.vocabulary.autoencoder

    @property
    def autoencoder(self) -> Any:
        """The network that computed the codes, an [`FSQAutoencoderModel`] in evaluation mode. It is loaded at first
        use.

        Raises:
            ValueError: if the tokenizer was saved without it.
        """
        return self.vocabulary.network

    def encode_bytes(self, data: bytes) -> list[int]:
        """Return the ids of any byte string, without special tokens. `decode_bytes` restores exactly `data`."""
        return self.segmenter(data)

    def encode_stream(self, chunks: Iterable[str | bytes]) -> Iterator[int]:
        """Yield the ids of a text that comes in chunks of any size. They are exactly those of `encode_bytes` for the
        whole text, and each is yielded as soon as it is decided. Special tokens are neither added nor recognised.

        Only the undecided part of the text is buffered: a part of a word, or a run of one character, whose ids depend
        on its length.

        Args:
            chunks: text or UTF-8 bytes, cut anywhere, also inside a character.

        Raises:
            ValueError: if the bytes are not UTF-8, or end inside a character.
            TypeError: if a chunk is neither text nor bytes.
        """
        return encode_stream(self.segmenter, chunks)

    def spell(self, ids: np.ndarray) -> bytes:
        spellings = self.vocabulary.spellings
        return b"".join([spellings[index] for index in ids.tolist()])

    @property
    def saved_framing(self) -> dict[str, Any]:
        """The options `add_bos_token` and `add_eos_token` in an entry of its own, because transformers ignores them
        beside a `tokenizer.json`."""
        return {"framing": {"add_bos_token": self.add_bos_token, "add_eos_token": self.add_eos_token}}

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the table, and the network if there is one, to files with their standard names, and return the
        paths."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        path = Path(save_directory) / f"{prefix}{VOCABULARY_FILE}"
        path.write_text(self.vocabulary.to_json(), encoding="utf-8")
        if self.vocabulary.weights is None:
            return (str(path),)
        weights = Path(save_directory) / f"{prefix}{AUTOENCODER_FILE}"
        weights.write_bytes(self.vocabulary.weights)
        return str(path), str(weights)


class FSQTokenizer(FSQTable, LosslessTokenizer):
    """The reference implementation of the FSQ tokenizer, in Python.

    A text is cut into stretches by the `boundary` of the vocabulary. Each stretch is segmented into the fewest tokens,
    or at the lowest cost if the vocabulary has costs; among equals, the longest last piece is taken. There is no
    unknown token. See [`LosslessTokenizer`] for its guarantees.

    Args:
        vocab_file: `fsq_vocabulary.json`, see [`FSQVocabulary`].
        autoencoder_file: `fsq_autoencoder.safetensors`, the weights of the network that computed the codes.
        mode: `"table"`, or `"neural"`, which runs the network and uses only pieces that the network encodes to their
            code and reconstructs from it. Both are lossless, and decoding reads the table.
        cache_size: number of stretches whose ids are cached; 0 for none.
        add_bos_token, add_eos_token: whether every encoded sequence begins with `<bos>` and ends with `<eos>`; by
            default with `<bos>` alone.
        pad_token, bos_token, eos_token, mask_token: the texts of the last four ids.
        framing: the values of `add_bos_token` and `add_eos_token` when the tokenizer was saved.
        **kwargs: arguments of `PreTrainedTokenizer`.

    Raises:
        ValueError: if `mode` or `cache_size` is invalid, a file is damaged, or table and network do not belong
            together.
    """

    vocab_files_names = {"vocab_file": VOCABULARY_FILE, "autoencoder_file": AUTOENCODER_FILE}
    name_decoder = decoders.ByteLevel()

    def __init__(
        self,
        vocab_file: str,
        autoencoder_file: str | None = None,
        mode: Literal["table", "neural"] = "table",
        cache_size: int = 1 << 16,
        add_bos_token: bool | None = None,
        add_eos_token: bool | None = None,
        pad_token: str | AddedToken = "<pad>",
        bos_token: str | AddedToken = "<bos>",
        eos_token: str | AddedToken = "<eos>",
        mask_token: str | AddedToken = "<mask>",
        framing: dict[str, bool] | None = None,
        **kwargs: Any,
    ) -> None:
        if mode not in ("table", "neural"):
            raise ValueError(f"mode is {mode!r}, but must be 'table' or 'neural'")
        if cache_size < 0:
            raise ValueError(f"cache_size is {cache_size}, but must be at least 0")
        special_tokens = dict(zip(SPECIAL_TOKENS, (pad_token, bos_token, eos_token, mask_token), strict=True))
        self.vocabulary = load_vocabulary(vocab_file, autoencoder_file, special_tokens)
        self.mode = mode
        neural = mode == "neural"
        self.segmenter = Segmenter(self.vocabulary, cache_size, neural, self.autoencoder if neural else None)
        self.word_pattern = self.segmenter.pattern
        super().__init__(
            self.vocabulary.names,
            self.vocabulary.lengths,
            special_tokens,
            *resolve_framing(add_bos_token, add_eos_token, framing),
            mode=mode,
            cache_size=cache_size,
            **kwargs,
        )


def resolve_framing(
    add_bos_token: bool | None, add_eos_token: bool | None, framing: dict[str, bool] | None
) -> tuple[bool, bool]:
    """Return `add_bos_token` and `add_eos_token`. For each, an argument precedes the saved value, and this the
    default."""
    saved = {"add_bos_token": True, "add_eos_token": False, **(framing or {})}
    return (
        saved["add_bos_token"] if add_bos_token is None else add_bos_token,
        saved["add_eos_token"] if add_eos_token is None else add_eos_token,
    )


def load_vocabulary(
    vocab_file: str, autoencoder_file: str | None, special_tokens: dict[str, str | AddedToken]
) -> FSQVocabulary:
    """Load a table, and check it against the network and the special tokens.

    Raises:
        ValueError: if a file is damaged, if the network is not that of the table, or if a piece is the text of a
            special token.
    """
    vocabulary = FSQVocabulary.load(vocab_file, autoencoder_file)
    for name, token in special_tokens.items():
        if str(token).encode() in vocabulary.pieces or str(token) in vocabulary.names:
            raise ValueError(f"{name} {str(token)!r} is also a piece of {vocab_file}; choose another text for it")
    return vocabulary


__all__ = ["FSQTokenizer"]
