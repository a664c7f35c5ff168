"""`FSQTokenizer`: text as pieces that have codes of finite scalar quantization, in Python."""

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
    """What both FSQ tokenizers know beside their ids: goes first among the bases. The class sets `vocabulary` and
    `segmenter`."""

    vocabulary: FSQVocabulary
    segmenter: Segmenter

    @classmethod
    def from_vocabulary(cls, vocabulary: FSQVocabulary, **kwargs: Any) -> Any:
        """The tokenizer of a table that is not in a file yet; `kwargs` as for the constructor."""
        with tempfile.TemporaryDirectory() as folder:
            path, weights = Path(folder) / VOCABULARY_FILE, None
            path.write_text(vocabulary.to_json(), encoding="utf-8")
            if vocabulary.weights is not None:
                weights = Path(folder) / AUTOENCODER_FILE
                weights.write_bytes(vocabulary.weights)
            return cls(vocab_file=str(path), autoencoder_file=weights and str(weights), **kwargs)

    @property
    def codes(self) -> np.ndarray:
        """Code index of every id, `(V,)`, int64; -1 for special tokens."""
        return np.pad(self.vocabulary.codes, (0, len(SPECIAL_TOKENS)), constant_values=-1)

    @property
    def levels(self) -> list[int]:
        """The levels of the quantization: the number of values of each dimension of a code."""
        return list(self.vocabulary.levels)

    def piece_table(self) -> tuple[np.ndarray, np.ndarray]:
        """The bytes of every id, `(V, 16)`, uint8, and their number, `(V,)`, int64; 0 for special tokens."""
        return spelling_table(self.vocabulary.spellings + [b""] * len(SPECIAL_TOKENS))

    @property
    def autoencoder_config(self) -> dict[str, Any] | None:
        """Fields of the network's [`FSQAutoencoderConfig`]; None if the table was made without one."""
        return self.vocabulary.autoencoder

    @property
    def autoencoder(self) -> Any:
        """The network that gave the codes, an [`FSQAutoencoderModel`] in evaluation mode; loaded at first use.

        Raises:
            ValueError: if the tokenizer was saved without it.
        """
        return self.vocabulary.network

    def encode_bytes(self, data: bytes) -> list[int]:
        """The ids of any byte string, without special tokens: `decode_bytes` gives exactly `data` back."""
        return self.segmenter(data)

    def encode_stream(self, chunks: Iterable[str | bytes]) -> Iterator[int]:
        """The ids of a text that comes in chunks of any size: exactly those of `encode_bytes` on the whole, yielded as
        soon as they are decided. Special tokens are neither added nor recognised.

        Only the undecided part of the text is buffered: a part of a word, or a run of one character, whose ids depend
        on its length.

        Args:
            chunks: text or UTF-8 bytes, cut anywhere, also inside a character.

        Raises:
            ValueError: if the bytes are not UTF-8, or end inside a character.
        """
        return encode_stream(self.segmenter, chunks)

    def spell(self, ids: np.ndarray) -> bytes:
        spellings = self.vocabulary.spellings
        return b"".join([spellings[index] for index in ids.tolist()])

    @property
    def saved_framing(self) -> dict[str, Any]:
        """Under a name of its own: beside a `tokenizer.json` transformers passes over the two options."""
        return {"framing": {"add_bos_token": self.add_bos_token, "add_eos_token": self.add_eos_token}}

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Writes the table, and the network if there is one, under their own names."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        path = Path(save_directory) / f"{prefix}{VOCABULARY_FILE}"
        path.write_text(self.vocabulary.to_json(), encoding="utf-8")
        if self.vocabulary.weights is None:
            return (str(path),)
        weights = Path(save_directory) / f"{prefix}{AUTOENCODER_FILE}"
        weights.write_bytes(self.vocabulary.weights)
        return str(path), str(weights)


class FSQTokenizer(FSQTable, LosslessTokenizer):
    """The reference implementation, in Python: a text is cut by `boundary`, and each stretch takes the fewest tokens
    (among equally few, the longest last piece). See [`LosslessTokenizer`] for its guarantees; there is no unknown
    token.

    Args:
        vocab_file: `fsq_vocabulary.json`, see [`FSQVocabulary`].
        autoencoder_file: `fsq_autoencoder.safetensors`, the network that the codes come from.
        mode: `"table"`, or `"neural"`: run the network, and use only pieces that it encodes to their code and
            reconstructs from it. Both are lossless, and decoding reads the table.
        cache_size: number of stretches whose ids are cached; 0 for none.
        add_bos_token, add_eos_token: frame every encoded sequence; by default with `<bos>` alone.
        pad_token, bos_token, eos_token, mask_token: the texts of the last four ids.
        framing: what `add_bos_token` and `add_eos_token` were when the tokenizer was saved.
        **kwargs: those of `PreTrainedTokenizer`.

    Raises:
        ValueError: if a file is damaged, or table and network do not belong together.
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
    """What is asked for, else what was saved, else the default."""
    saved = {"add_bos_token": True, "add_eos_token": False, **(framing or {})}
    return (
        saved["add_bos_token"] if add_bos_token is None else add_bos_token,
        saved["add_eos_token"] if add_eos_token is None else add_eos_token,
    )


def load_vocabulary(
    vocab_file: str, autoencoder_file: str | None, special_tokens: dict[str, str | AddedToken]
) -> FSQVocabulary:
    """The table, checked against the network and the special tokens.

    Raises:
        ValueError: also if a piece is the text of a special token.
    """
    vocabulary = FSQVocabulary.load(vocab_file, autoencoder_file)
    for name, token in special_tokens.items():
        if str(token).encode() in vocabulary.pieces or str(token) in vocabulary.names:
            raise ValueError(f"{name} {str(token)!r} is also a piece of {vocab_file}; choose another text for it")
    return vocabulary


__all__ = ["FSQTokenizer"]
