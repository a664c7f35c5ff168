"""What the tokenizers share that lose nothing of any text: everything goes through its bytes."""

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AddedToken, BatchEncoding, PreTrainedTokenizer
from transformers.tokenization_utils_base import PaddingStrategy, TruncationStrategy

Offset = tuple[int, int]


def _keep_surrogates_or_replace(error: UnicodeError) -> tuple[str | bytes, int]:
    """Codec error handler: an encoded lone surrogate comes back as it was, any other invalid byte becomes U+FFFD."""
    try:
        return codecs.lookup_error("surrogatepass")(error)
    except UnicodeError:
        return codecs.replace_errors(error)


codecs.register_error("latentlm.surrogates_or_replace", _keep_surrogates_or_replace)


class LosslessTokenizer(PreTrainedTokenizer):
    """A tokenizer of bytes, as Python; not one by itself.

    - Every `str` survives `decode(encode(text))`, lone surrogates included (encoded as three bytes each, Python's
      "surrogatepass"); every byte string survives `decode_bytes(encode_bytes(data))`.
    - `decode` shows bytes that are not valid UTF-8 as U+FFFD. Where a model writes an encoded surrogate, that text
      cannot be printed; `decode(ids, errors="replace")` always can.
    - Special tokens written out in a text (`"<eos>"`) become that token, as everywhere in transformers;
      `split_special_tokens=True` (in a call or in the constructor) reads them as plain text.
    - `return_offsets_mapping=True` gives each token's `(start, end)` in characters; the tokens that share a character
      all have its span.
    - Ids beyond the vocabulary (of a model whose embedding is rounded up) decode to nothing.

    Args:
        token_names: how the ids from 0 on are called.
        token_lengths: bytes of each, int64.
        special_tokens: by name (`pad_token`, ...), in the order of their ids, which follow.
        add_bos_token: begin every encoded sequence with `<bos>`, as documents begin in training.
        add_eos_token: end every encoded sequence with `<eos>`.
        **kwargs: those of `PreTrainedTokenizer` (`model_max_length`, `padding_side`, `extra_special_tokens`, …).
    """

    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self,
        token_names: list[str],
        token_lengths: np.ndarray,
        special_tokens: dict[str, str | AddedToken],
        add_bos_token: bool,
        add_eos_token: bool,
        **kwargs: Any,
    ) -> None:
        self.token_names = token_names
        self.token_ids = {name: index for index, name in enumerate(token_names)}
        self.token_lengths = token_lengths
        self.special_names = tuple(special_tokens)
        self.add_bos_token = add_bos_token
        self.add_eos_token = add_eos_token
        self._added_tokens_decoder = {
            len(token_names) + i: AddedToken(token, special=True, normalized=False) if isinstance(token, str) else token
            for i, token in enumerate(special_tokens.values())
        }
        super().__init__(**special_tokens, **kwargs)

    # --- vocabulary -------------------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Ids without those of tokens added later, which `len(tokenizer)` counts too."""
        return len(self.token_names) + len(self.special_names)

    def get_vocab(self) -> dict[str, int]:
        return self.token_ids | self._added_tokens_encoder

    def _convert_token_to_id(self, token: str) -> int | None:
        return self.token_ids.get(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.token_names[index] if 0 <= index < len(self.token_names) else ""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self._decode(self.convert_tokens_to_ids(tokens))

    def _update_trie(self, unique_no_split_tokens: list[str] | None = None) -> None:
        """Called whenever tokens were added: compile the pattern that finds them in a text, the longest first."""
        super()._update_trie(unique_no_split_tokens)
        patterns = []
        for token in sorted(self._added_tokens_decoder.values(), key=lambda token: -len(token.content)):
            pattern = f"({re.escape(token.content)})"
            if token.single_word:
                pattern = rf"(?<!\w){pattern}(?!\w)"
            patterns.append((r"\s*" if token.lstrip else "") + pattern + (r"\s*" if token.rstrip else ""))
        self._added_tokens_pattern = re.compile("|".join(patterns))

    # --- text to ids ------------------------------------------------------------------------------------------------

    def encode_bytes(self, data: bytes) -> list[int]:
        """The ids of any byte string, without special tokens: `decode_bytes` gives exactly `data` back."""
        raise NotImplementedError

    def _encode_text(
        self, text: str, split_special_tokens: bool = False, with_offsets: bool = False
    ) -> tuple[list[int], list[Offset]]:
        """Ids of `text`, special tokens in it recognised unless split, and (if asked for) a character span per id."""
        ids: list[int] = []
        offsets: list[Offset] = []

        def add_plain(start: int, end: int) -> None:
            data = text[start:end].encode("utf-8", "surrogatepass")
            plain = self.encode_bytes(data)
            ids.extend(plain)
            if with_offsets and plain:
                offsets.extend(character_spans(data, self.token_lengths[plain], start))

        position = 0
        for match in () if split_special_tokens else self._added_tokens_pattern.finditer(text):
            add_plain(position, match.start())
            ids.append(self._added_tokens_encoder[match[match.lastindex]])
            offsets.append(match.span(match.lastindex))
            position = match.end()
        add_plain(position, len(text))
        return ids, offsets

    def tokenize(self, text: str, split_special_tokens: bool | None = None, **kwargs: Any) -> list[str]:
        """The tokens of `text` by name (`"<0x61>"` for `"a"`), without those added around it."""
        if split_special_tokens is None:
            split_special_tokens = self.split_special_tokens
        return self.convert_ids_to_tokens(self._encode_text(text, split_special_tokens)[0])

    def _encode_plus(  # type: ignore[override]  # the base class spells out what goes to `kwargs` here
        self,
        text: Any,
        text_pair: Any = None,
        *,
        add_special_tokens: bool = True,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        max_length: int | None = None,
        stride: int = 0,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: Any = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        split_special_tokens: bool | None = None,
        **kwargs: Any,
    ) -> BatchEncoding:
        """One text (or pair) through buffers instead of one Python string per token; adds the offsets that the Python
        tokenizers of transformers silently leave out. Batches come back here one by one; ids and words go to the base.
        """
        if split_special_tokens is None:
            split_special_tokens = self.split_special_tokens
        if not isinstance(text, str) or kwargs.get("sanitize_control_tokens"):
            holds_text = isinstance(text, (list, tuple)) and not (text and isinstance(text[0], int))
            if return_offsets_mapping and (kwargs.get("is_split_into_words") or not holds_text):
                raise ValueError("return_offsets_mapping needs plain strings, not ids or text split into words")
            return super()._encode_plus(
                text,
                text_pair,
                add_special_tokens=add_special_tokens,
                padding_strategy=padding_strategy,
                truncation_strategy=truncation_strategy,
                max_length=max_length,
                stride=stride,
                pad_to_multiple_of=pad_to_multiple_of,
                padding_side=padding_side,
                return_tensors=return_tensors,
                return_attention_mask=return_attention_mask,
                return_overflowing_tokens=return_overflowing_tokens,
                return_offsets_mapping=return_offsets_mapping,
                return_length=return_length,
                split_special_tokens=split_special_tokens,
                **kwargs,
            )

        ids, offsets = self._encode_text(text, split_special_tokens, return_offsets_mapping)
        pair_ids = pair_offsets = None
        if text_pair is not None:
            pair_ids, pair_offsets = self._encode_text(text_pair, split_special_tokens, return_offsets_mapping)

        encoding = self.prepare_for_model(
            ids,
            pair_ids,
            add_special_tokens=add_special_tokens,
            truncation=truncation_strategy.value,
            max_length=max_length,
            stride=stride,
            return_attention_mask=False,
            return_overflowing_tokens=return_overflowing_tokens,
            return_token_type_ids=kwargs.get("return_token_type_ids"),
            return_special_tokens_mask=kwargs.get("return_special_tokens_mask", False),
            verbose=kwargs.get("verbose", True),
        )
        if return_offsets_mapping:
            added = self.num_special_tokens_to_add(pair=pair_ids is not None) if add_special_tokens else 0
            too_many = len(ids) + len(pair_ids or []) + added - len(encoding["input_ids"])
            offsets, pair_offsets, _ = self.truncate_sequences(
                offsets, pair_offsets, too_many, truncation_strategy, stride
            )
            none = (0, 0) if add_special_tokens else None
            encoding["offset_mapping"] = self._frame(offsets, pair_offsets, none, none)
        encoding = self.pad(
            encoding,
            padding=padding_strategy.value,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            return_attention_mask=return_attention_mask,
        )
        if return_length:
            encoding["length"] = len(encoding["input_ids"])
        return BatchEncoding(encoding.data, tensor_type=return_tensors, prepend_batch_axis=True)

    def _frame(self, first: list, second: list | None, bos: Any, eos: Any) -> list:
        """`first` (and `second`), each between `bos` and `eos` where these are added (None: never)."""
        before = [bos] if self.add_bos_token and bos is not None else []
        after = [eos] if self.add_eos_token and eos is not None else []
        framed = before + first + after
        return framed if second is None else framed + before + second + after

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        return self._frame(token_ids_0, token_ids_1, self.bos_token_id, self.eos_token_id)

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens=True)
        second = None if token_ids_1 is None else [0] * len(token_ids_1)
        return self._frame([0] * len(token_ids_0), second, 1, 1)

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        return [0] * len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))

    def _pad(self, encoded_inputs: Any, *args: Any, padding_side: str | None = None, **kwargs: Any) -> dict:
        """Pads the offsets along with what the base class pads."""
        padded = super()._pad(encoded_inputs, *args, padding_side=padding_side, **kwargs)
        if "offset_mapping" in padded:
            offsets = list(padded["offset_mapping"])
            missing = [(0, 0)] * (len(padded[self.model_input_names[0]]) - len(offsets))
            on_the_left = (padding_side or self.padding_side) == "left"
            padded["offset_mapping"] = missing + offsets if on_the_left else offsets + missing
        return padded

    # --- ids to text ------------------------------------------------------------------------------------------------

    def decode_bytes(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> bytes:
        """The exact bytes that `token_ids` stand for, valid UTF-8 or not.

        Special tokens are left out, or written as their text with `skip_special_tokens=False`.

        Raises:
            ValueError: for a negative id, such as the -100 of ignored labels.
        """
        ids = np.asarray(token_ids.tolist() if hasattr(token_ids, "tolist") else list(token_ids), dtype=np.int64)
        if ids.size and ids.min() < 0:
            raise ValueError(f"token ids must not be negative, got {ids.min()} (ignored labels must be removed first)")
        is_plain = ids < len(self.token_names)
        if is_plain.all():
            return self.spell(ids)
        pieces: list[bytes] = []
        position = 0
        for other in np.flatnonzero(~is_plain):
            pieces.append(self.spell(ids[position:other]))
            token = self._added_tokens_decoder.get(int(ids[other]))
            if token is not None and not (skip_special_tokens and token.special):
                pieces.append(token.content.encode("utf-8", "surrogatepass"))
            position = other + 1
        pieces.append(self.spell(ids[position:]))
        return b"".join(pieces)

    def spell(self, ids: np.ndarray) -> bytes:
        """The bytes of ids `(N,)`, int64, none of them special or added."""
        raise NotImplementedError

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        errors: str = "latentlm.surrogates_or_replace",
        **kwargs: Any,
    ) -> str:
        """Text of `token_ids`; `errors` names the codec's error handler. Spaces are never cleaned up."""
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return self.decode_bytes(ids, skip_special_tokens).decode("utf-8", errors)

    # --- saving -----------------------------------------------------------------------------------------------------

    def _save_pretrained(
        self, save_directory: str, file_names: tuple[str, ...], *args: Any, **kwargs: Any
    ) -> tuple[str, ...]:
        add_to_config(file_names, self.saved_framing)
        return super()._save_pretrained(save_directory, file_names, *args, **kwargs)

    @property
    def saved_framing(self) -> dict[str, Any]:
        """The two options as `tokenizer_config.json` needs them, which transformers leaves out."""
        return {"add_bos_token": self.add_bos_token, "add_eos_token": self.add_eos_token}


def add_to_config(file_names: tuple[str, ...], fields: dict[str, Any]) -> None:
    """Add fields to the `tokenizer_config.json` among files that are being saved."""
    config_file = Path(next(name for name in file_names if str(name).endswith("tokenizer_config.json")))
    config = json.loads(config_file.read_text(encoding="utf-8")) | fields
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    config_file.write_text(text + "\n", encoding="utf-8")


def character_spans(data: bytes, lengths: np.ndarray, start: int) -> Iterator[Offset]:
    """The span in characters of each token; `lengths` `(N,)` are their bytes, `data` begins at character `start`."""
    opens_character = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80  # not a continuation byte
    character = np.cumsum(opens_character) - 1 + start  # of each byte
    ends = np.cumsum(lengths)
    return zip(character[ends - lengths].tolist(), (character[ends - 1] + 1).tolist(), strict=True)
