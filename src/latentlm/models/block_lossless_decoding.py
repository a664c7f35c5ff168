"""Decoding of ids to bytes and text, and the names of tokens, for tokenizers whose tokens represent bytes."""

import codecs
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from transformers import AddedToken, PreTrainedTokenizerBase

BYTE_NAMES = re.compile("(?:<0x[0-9A-F]{2}>)+")


def _keep_surrogates_or_replace(error: UnicodeError) -> tuple[str | bytes, int]:
    """Handle a codec error: decode an encoded lone surrogate to that surrogate, and any other invalid byte to
    U+FFFD."""
    try:
        return codecs.lookup_error("surrogatepass")(error)
    except UnicodeError:
        return codecs.replace_errors(error)


codecs.register_error("latentlm.surrogates_or_replace", _keep_surrogates_or_replace)


class LosslessDecoding(PreTrainedTokenizerBase if TYPE_CHECKING else object):
    """Mixin for the decoding of lossless tokenizers. It precedes the tokenizer class of transformers, slow or fast,
    among the bases.

    An added token always represents its own text. If other bytes already have that name ("é" is the byte 0xE9 in the
    alphabet of GPT-2), the token gets a new id, and the bytes are renamed, here to `"<0xE9>"`.

    Attributes:
        token_names: the names of the N plain ids, from 0 on. Special and added tokens follow them.
        token_ids: the plain ids by name.
        token_lengths: the number of bytes of each plain id, `(N,)`, int64.
        pad_token_id, bos_token_id, eos_token_id: ids that every one of these tokenizers has.
    """

    token_names: list[str]
    token_ids: dict[str, int]
    token_lengths: np.ndarray
    pad_token_id: int
    bos_token_id: int
    eos_token_id: int
    decoding_errors = "latentlm.surrogates_or_replace"

    if TYPE_CHECKING:

        @property
        def added_tokens_encoder(self) -> dict[str, int]: ...

    def spell(self, ids: np.ndarray) -> bytes:
        """Return the joined bytes of plain ids `(N,)`, int64."""
        raise NotImplementedError

    @classmethod
    def _from_pretrained(cls, resolved_vocab_files: dict[str, str | None], name: str, *args: Any, **kwargs: Any) -> Any:
        """Load a tokenizer as transformers does.

        Raises:
            OSError: if the folder has no tokenizer. Byte ids would otherwise be used for a model that was trained on
                others.
        """
        if resolved_vocab_files.get("tokenizer_config_file") is None:
            raise OSError(f"{name} holds no tokenizer: tokenizer_config.json is missing; a run saves it with its model")
        vocabulary = cls.vocab_files_names.get("vocab_file")
        if vocabulary is not None and resolved_vocab_files.get("vocab_file") is None:
            raise OSError(f"{name} holds no {cls.__name__}: {vocabulary} is missing")
        return super()._from_pretrained(resolved_vocab_files, name, *args, **kwargs)

    def _set_names(self, token_names: list[str]) -> None:
        self.token_names = list(token_names)
        self.token_ids = {name: index for index, name in enumerate(token_names)}

    def _make_room(self, new_tokens: Iterable[str | AddedToken] | None, special: bool = False) -> None:
        """Rename the plain ids that have the name of a new token but represent other bytes.

        Raises:
            ValueError: if the text of a new token has the form of such a new name, `"<0xE9>"`.
        """
        for token in new_tokens or ():
            text = str(token)
            if BYTE_NAMES.fullmatch(text):
                raise ValueError(f"token {text!r} cannot be added: its text is how bytes are called; choose another")
            index = self.token_ids.get(text)
            if index is None:
                continue
            spelled = self.spell(np.array([index]))
            # Plain text must not have the id of a special token, because decoding skips special tokens.
            if special or getattr(token, "special", False) or spelled != text.encode("utf-8", "surrogatepass"):
                name = "".join(f"<0x{byte:02X}>" for byte in spelled)
                del self.token_ids[text]
                self.token_ids[name] = index
                self.token_names[index] = name

    def get_vocab(self) -> dict[str, int]:
        return self.token_ids | self.added_tokens_encoder

    @overload
    def convert_ids_to_tokens(self, ids: int, skip_special_tokens: bool = False) -> str: ...

    @overload
    def convert_ids_to_tokens(self, ids: list[int], skip_special_tokens: bool = False) -> list[str]: ...

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> str | list[str]:
        """Return the names of `ids`, or `""` for an id beyond the vocabulary.

        Raises:
            ValueError: if an id is negative.
        """
        rows = check_ids(ids)
        added = self.added_tokens_decoder
        skipped = set(self.all_special_ids) if skip_special_tokens and rows.ndim else ()
        names = []
        for index in np.atleast_1d(rows).tolist():
            if index in skipped:
                continue
            if index in added:
                names.append(added[index].content)
            else:
                names.append(self.token_names[index] if index < len(self.token_names) else "")
        return names if rows.ndim else names[0]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text of tokens, which are given by name. A string that is not the name of a token is taken as
        text, because pipelines also join words with this method."""
        pieces = []
        for token in tokens:
            index: Any = self.convert_tokens_to_ids(token)
            is_text = index is None
            pieces.append(token.encode("utf-8", "surrogatepass") if is_text else self.decode_bytes([index], False))
        return b"".join(pieces).decode("utf-8", self.decoding_errors)

    def decode_bytes(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> bytes:
        """Return the exact bytes that `token_ids` represent, which need not be valid UTF-8.

        Args:
            skip_special_tokens: if False, special tokens are decoded to their text.

        Raises:
            ValueError: if an id is negative, such as the -100 of ignored labels.
        """
        ids = check_ids(token_ids)
        is_plain = ids < len(self.token_names)
        if is_plain.all():
            return self.spell(ids)
        added = self.added_tokens_decoder
        pieces: list[bytes] = []
        position = 0
        for other in np.flatnonzero(~is_plain):
            pieces.append(self.spell(ids[position:other]))
            token = added.get(int(ids[other]))
            if token is not None and not (skip_special_tokens and token.special):
                pieces.append(token.content.encode("utf-8", "surrogatepass"))
            position = other + 1
        pieces.append(self.spell(ids[position:]))
        return b"".join(pieces)

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        errors: str | None = None,
        **kwargs: Any,
    ) -> str:
        """Return the text of `token_ids`. `errors` names the error handler of the codec. Spaces are never cleaned
        up."""
        data = self.decode_bytes(np.atleast_1d(check_ids(token_ids)), skip_special_tokens)
        return data.decode("utf-8", errors or self.decoding_errors)

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        """Apply the chat template as transformers does. The mask of the assistant's tokens also covers all tokens of
        the last character of an answer."""
        encoded: Any = super().apply_chat_template(*args, **kwargs)
        if kwargs.get("return_assistant_tokens_mask"):
            masks = encoded["assistant_masks"]
            rows = [masks] if isinstance(next(iter(masks), 0), int) else masks
            for row, encoding in zip(rows, encoded.encodings, strict=True):
                spans = encoding.offsets
                for i in range(1, len(spans)):
                    shares_character = spans[i - 1][0] <= spans[i][0] < min(spans[i - 1][1], spans[i][1])
                    if row[i - 1] and shares_character:
                        row[i] = 1
        return encoded


def check_ids(token_ids: Any) -> np.ndarray:
    """Return ids, in the shape that they have, as int64.

    Raises:
        ValueError: if an id is negative.
    """
    if hasattr(token_ids, "tolist"):
        token_ids = token_ids.tolist()
    ids = np.asarray(token_ids if isinstance(token_ids, int) else list(token_ids), dtype=np.int64)
    if ids.size and ids.min() < 0:
        raise ValueError(f"token ids must not be negative, got {ids.min()} (ignored labels must be removed first)")
    return ids
