"""The base class of the lossless tokenizers in Python, which encode the UTF-8 bytes of a text."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
from tokenizers import Encoding, decoders
from transformers import AddedToken, BatchEncoding, PreTrainedTokenizer
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils.generic import PaddingStrategy

from .block_lossless_decoding import LosslessDecoding
from .block_row_encodings import Encodings, Offset, Part, Row, all_ids, build_encoding, missing_spaces

T = TypeVar("T")


class LosslessTokenizer(LosslessDecoding, PreTrainedTokenizer):
    """Abstract base class of the lossless tokenizers in Python.

    - `decode(encode(text))` restores every `str`, including lone surrogates, which are encoded as three bytes each
      (Python's "surrogatepass"). `decode_bytes(encode_bytes(data))` restores every byte string.
    - `decode` writes bytes that are not valid UTF-8 as U+FFFD. If a model generates an encoded surrogate, that text
      cannot be printed; the text of `decode(ids, errors="replace")` always can.
    - The text of a special token (`"<eos>"`) in an input is encoded as that token, as in transformers. With
      `split_special_tokens=True`, in a call or in the constructor, it is read as plain text.
    - Encodings have words and characters as those of fast tokenizers do (`word_ids()`, `char_to_token()` and others).
      `return_offsets_mapping=True` returns the `(start, end)` of each token in characters. All tokens that share a
      character have its span.
    - Between two pre-split words (`is_split_into_words=True`) a space is inserted, unless there is white space already.
      Offsets are then relative to each word, and do not cover that space.
    - Ids beyond the vocabulary, which a model with a padded embedding may generate, decode to nothing.

    Args:
        token_names: the names of the N plain ids, from 0 on.
        token_lengths: the number of bytes of each plain id, `(N,)`, int64.
        special_tokens: the special tokens by the name of their attribute (such as `pad_token`), in the order of their
            ids, which follow the plain ids.
        add_bos_token: whether every encoded sequence begins with `<bos>`, as documents do in training.
        add_eos_token: whether every encoded sequence ends with `<eos>`.
        **kwargs: arguments of `PreTrainedTokenizer`, such as `model_max_length` and `extra_special_tokens`.
    """

    model_input_names = ["input_ids", "attention_mask"]
    word_pattern: re.Pattern[bytes]
    """The pattern whose successive matches are the words of plain text, for `find_words`."""
    space_ends_word = False
    """Whether the space between two pre-split words belongs to the first of them, instead of the second."""
    name_decoder: Any = decoders.ByteFallback()
    """The decoder, of the library `tokenizers`, that maps names of tokens to bytes. Here `"<0x61>"` is a byte."""

    def __init__(
        self,
        token_names: list[str],
        token_lengths: np.ndarray,
        special_tokens: dict[str, str | AddedToken],
        add_bos_token: bool,
        add_eos_token: bool,
        **kwargs: Any,
    ) -> None:
        self._set_names(token_names)
        self._make_room([*special_tokens.values(), *kwargs.get("added_tokens_decoder", {}).values()])
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
        """The number of ids without added tokens, which `len(tokenizer)` counts too."""
        return len(self.token_names) + len(self.special_names)

    @property
    def is_fast(self) -> bool:
        """True, because pipelines and collators test this to learn whether encodings have words and characters."""
        return True

    @property
    def backend_tokenizer(self) -> SimpleNamespace:
        """An object with the attributes that `generate(stop_strings=…)` reads, with which it compares bytes instead of
        characters."""
        return SimpleNamespace(decoder=self.name_decoder, normalizer=None)

    def _convert_token_to_id(self, token: str) -> int | None:
        return self.token_ids.get(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.convert_ids_to_tokens(index)

    def _add_tokens(self, new_tokens: list[str] | list[AddedToken], special_tokens: bool = False) -> int:
        self._make_room(new_tokens, special_tokens)
        return super()._add_tokens(new_tokens, special_tokens)

    def _update_trie(self, unique_no_split_tokens: list[str] | None = None) -> None:
        """Compile the pattern that matches added tokens in a text, the longest first. transformers calls this whenever
        tokens are added."""
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
        """Return the ids of any byte string, without special tokens. `decode_bytes` is the inverse."""
        raise NotImplementedError

    def _encode_text(self, text: str, split_special_tokens: bool) -> list[Part]:
        """Return the parts of `text`. Special and added tokens in it are parts of their own, unless they are split."""
        parts = []

        def add_plain(start: int, end: int) -> None:
            if start < end:
                data = text[start:end].encode("utf-8", "surrogatepass")
                parts.append(Part(self.encode_bytes(data), data, start, end))

        position = 0
        for match in () if split_special_tokens else self._added_tokens_pattern.finditer(text):
            add_plain(position, match.start())
            group = match.lastindex
            assert group is not None  # each alternative is a group
            parts.append(Part([self._added_tokens_encoder[match[group]]], None, *match.span(group)))
            position = match.end()
        add_plain(position, len(text))
        return parts

    def _encode_words(self, words: Sequence[str], split_special_tokens: bool) -> list[Part]:
        """Return the parts of all words in order, with spaces between words."""
        before = missing_spaces(words)
        after = [False] * len(words)
        if self.space_ends_word:
            for index in np.flatnonzero(before):
                after[next(i for i in reversed(range(index)) if words[i])] = True
            before = [False] * len(words)
        parts = []
        for index, word in enumerate(words):
            spaced = " " * before[index] + word + " " * after[index]
            for part in self._encode_text(spaced, split_special_tokens):
                assert part.start is not None and part.end is not None  # parts of text have a place
                start, end = part.start - before[index], part.end - before[index]
                parts.append(replace(part, start=start, end=end, word=index, word_length=len(word)))
        return parts

    def _encode_input(self, text: Any, split_special_tokens: bool) -> list[Part]:
        """Return the parts of an input, which is a text, a list of words, or a list of ids."""
        if isinstance(text, str):
            return self._encode_text(text, split_special_tokens)
        if isinstance(text, (list, tuple)):
            if all(isinstance(word, str) for word in text):
                return self._encode_words(text, split_special_tokens)
            if all(isinstance(index, int) for index in text):
                return [Part(list(text))]
        raise ValueError(f"expected a string, a list of strings or a list of ids, got {type(text).__name__}")

    def find_words(self, ids: list[int]) -> list[int]:
        """Return the index of the word of each id. The ids contain no special tokens around the text. A special or
        added token in the text is a word of its own."""
        words: list[int] = []
        count = 0
        for is_plain, run in groupby(ids, lambda index: index < len(self.token_names)):
            run = np.array(list(run))
            if is_plain:
                ends = np.cumsum([len(word) for word in self.word_pattern.findall(self.spell(run))])
                places = np.searchsorted(ends, np.cumsum(self.token_lengths[run]))
            else:
                ends = places = np.arange(len(run))
            words.extend((count + places).tolist())
            count += len(ends)
        return words

    def tokenize(
        self,
        text: str,
        pair: str | None = None,
        add_special_tokens: bool = False,
        split_special_tokens: bool | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Return the names of the tokens of `text` (`"<0x61>"` for `"a"`), without special tokens around it."""
        split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        parts = self._encode_text(text, split)
        return self.convert_ids_to_tokens(all_ids(parts))

    def _encode_plus(  # pyright: ignore[reportIncompatibleMethodOverride]  # the base spells `kwargs` out
        self,
        text: Any,
        text_pair: Any = None,
        *,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        max_length: int | None = None,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: Any = None,
        return_attention_mask: bool | None = None,
        return_length: bool = False,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Encode one or many texts or pairs of texts, without one Python string per token.

        Raises:
            ValueError: if overflowing tokens are to be returned as tensors.
        """
        if kwargs.get("sanitize_control_tokens"):
            return super()._encode_plus(
                text,
                text_pair,
                padding_strategy=padding_strategy,
                max_length=max_length,
                pad_to_multiple_of=pad_to_multiple_of,
                padding_side=padding_side,
                return_tensors=return_tensors,
                return_attention_mask=return_attention_mask,
                return_length=return_length,
                **kwargs,
            )
        if return_tensors and kwargs.get("return_overflowing_tokens"):
            raise ValueError("return_overflowing_tokens gives lists of any length: return_tensors must be None")
        is_batch, texts = split_batch(text, text_pair, is_split_into_words)
        encoded = [self._encode_row(first, second, max_length=max_length, **kwargs) for first, second in texts]
        columns = {name: [row[name] for _, row in encoded] for name in (encoded[0][1] if encoded else ())}
        padded = self.pad(
            columns if is_batch else {name: column[0] for name, column in columns.items()},
            padding=padding_strategy.value,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            return_attention_mask=return_attention_mask,
        )
        rows = padded["input_ids"] if is_batch else [padded["input_ids"]]
        if return_length:
            padded["length"] = [len(ids) for ids in rows] if is_batch else len(rows[0])
        encodings = None
        if all(row.has_text for row, _ in encoded):
            side = padding_side or self.padding_side
            make = partial(self._make_encoding, padding_side=side)
            encodings = Encodings(partial(make, row, len(ids)) for (row, _), ids in zip(encoded, rows, strict=True))
        is_pair = any(second is not None for _, second in texts)
        return BatchEncoding(
            dict(padded), encodings, return_tensors, prepend_batch_axis=not is_batch, n_sequences=1 + is_pair
        )

    def _encode_row(
        self,
        text: Any,
        text_pair: Any,
        *,
        max_length: int | None,
        add_special_tokens: bool = True,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        stride: int = 0,
        split_special_tokens: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_offsets_mapping: bool = False,
        **kwargs: Any,
    ) -> tuple[Row, dict[str, Any]]:
        """Encode one text or pair without padding. Return the sources of its ids, and the fields of the encoding.

        Raises:
            ValueError: if overflowing tokens of a pair are requested with truncation 'longest_first', or offsets of
                ids.
        """
        split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        is_pair = text_pair is not None
        texts = [text, text_pair] if is_pair else [text]
        sources = [self._encode_input(each, split) for each in texts]
        whole = [all_ids(parts) for parts in sources]
        first, second = pair_of(whole)
        overflowing, too_many = [], 0
        if truncation_strategy != TruncationStrategy.DO_NOT_TRUNCATE and max_length:
            added = self.num_special_tokens_to_add(is_pair) if add_special_tokens else 0
            too_many = sum(map(len, whole)) + added - max_length
        if too_many > 0:
            if return_overflowing_tokens and is_pair and truncation_strategy == TruncationStrategy.LONGEST_FIRST:
                raise ValueError("return_overflowing_tokens for pairs needs truncation 'only_first' or 'only_second'")
            first, second, overflowing = self.truncate_sequences(first, second, too_many, truncation_strategy, stride)
        prepared = self.prepare_for_model(
            first,
            second,
            add_special_tokens=add_special_tokens,
            truncation=False,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=kwargs.get("return_token_type_ids"),
            return_special_tokens_mask=kwargs.get("return_special_tokens_mask", False),
            verbose=kwargs.get("verbose", True),
        ).data
        if return_overflowing_tokens and overflowing:
            prepared |= {"overflowing_tokens": overflowing, "num_truncated_tokens": too_many}

        from_right = self.truncation_side == "right"
        lengths = [len(ids) for ids in (first, second) if ids is not None]
        cuts = [slice(n) if from_right else slice(len(ids) - n, None) for ids, n in zip(whole, lengths, strict=True)]
        row = Row(list(zip(sources, cuts, strict=True)), add_special_tokens)
        if return_offsets_mapping:
            if not row.has_text:
                raise ValueError("return_offsets_mapping needs text, not ids")
            prepared["offset_mapping"] = self._offsets(row)
        return row, prepared

    def _places(self, row: Row) -> np.ndarray:
        """Return the text of each of the n ids, 0 or 1, or -1 for special tokens around the texts: `(n,)`, int64."""
        texts = [[number] * len(all_ids(parts)[cut]) for number, (parts, cut) in enumerate(row.sources)]
        bos, eos = (
            -1 if row.framed and token is not None else None for token in (self.bos_token_id, self.eos_token_id)
        )
        return np.array(self._frame(*pair_of(texts), bos, eos), dtype=np.int64)

    def _offsets(self, row: Row) -> list[Offset]:
        """Return the `(start, end)` of each id in characters, `(0, 0)` for special tokens around the text."""
        places = self._places(row)
        offsets = np.zeros((len(places), 2), dtype=np.int64)
        for number, (parts, cut) in enumerate(row.sources):
            spans = [span for part in parts for span in part.offsets(self.token_lengths)][cut]
            offsets[places == number] = np.array(spans).reshape(-1, 2)
        return [(start, end) for start, end in offsets.tolist()]

    def _make_encoding(self, row: Row, length: int, padding_side: str) -> Encoding:
        """Return the encoding of a sequence, padded to `length`, in the form that fast tokenizers return."""
        texts = [all_ids(parts)[cut] for parts, cut in row.sources]
        around = (self.bos_token_id, self.eos_token_id) if row.framed else (None, None)
        ids = self._frame(*pair_of(texts), *around)
        places = self._places(row)
        words: list[int | None] = [None] * len(ids)
        ranges = {}
        for number, (parts, cut) in enumerate(row.sources):
            inside = np.flatnonzero(places == number).tolist()
            word_of_ids = [part.word for part in parts for _ in part.ids]
            if None in word_of_ids:  # parts of unsplit text have no word
                word_of_ids = self.find_words(all_ids(parts))
            for place, word in zip(inside, word_of_ids[cut], strict=True):
                words[place] = word
            ranges[str(number)] = {"start": inside[0], "end": inside[-1] + 1} if inside else {"start": 0, "end": 0}
        encoding = build_encoding(
            ids=ids,
            type_ids=[0] * len(ids),
            tokens=self.convert_ids_to_tokens(ids),
            words=words,
            offsets=self._offsets(row),
            special_tokens_mask=(places < 0).astype(int).tolist(),
            attention_mask=[1] * len(ids),
            overflowing=[],
            sequence_ranges=ranges,
        )
        if length > len(ids):
            encoding.pad(length, direction=padding_side, pad_id=self.pad_token_id, pad_token=str(self.pad_token))
        return encoding

    def _frame(self, first: list[int], second: list[int] | None, bos: int | None, eos: int | None) -> list[int]:
        """Return `first` (and `second`), each between `bos` and `eos`. These are left out if they are None or their
        option is off."""
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

    def _pad(self, encoded_inputs: Any, *args: Any, padding_side: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Pad the fields that the base class pads, and the offsets."""
        padded = super()._pad(encoded_inputs, *args, padding_side=padding_side, **kwargs)
        if "offset_mapping" in padded:
            offsets = list(padded["offset_mapping"])
            missing = [(0, 0)] * (len(padded[self.model_input_names[0]]) - len(offsets))
            on_the_left = (padding_side or self.padding_side) == "left"
            padded["offset_mapping"] = missing + offsets if on_the_left else offsets + missing
        return padded

    # --- saving -----------------------------------------------------------------------------------------------------

    def _save_pretrained(
        self, save_directory: str, file_names: tuple[str, ...], *args: Any, **kwargs: Any
    ) -> tuple[str, ...]:
        add_to_config(file_names, self.saved_framing)
        return super()._save_pretrained(save_directory, file_names, *args, **kwargs)

    @property
    def saved_framing(self) -> dict[str, Any]:
        """The fields `add_bos_token` and `add_eos_token` of `tokenizer_config.json`, which transformers leaves out."""
        return {"add_bos_token": self.add_bos_token, "add_eos_token": self.add_eos_token}


def pair_of(texts: list[T]) -> tuple[T, T | None]:
    """Return a list of one or two elements as a pair, whose second element is None if there is only one."""
    return texts[0], texts[1] if len(texts) > 1 else None


def add_to_config(file_names: tuple[str, ...], fields: dict[str, Any]) -> None:
    """Add fields to `tokenizer_config.json`, whose path is among the saved files."""
    config_file = Path(next(name for name in file_names if str(name).endswith("tokenizer_config.json")))
    config = json.loads(config_file.read_text(encoding="utf-8")) | fields
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    config_file.write_text(text + "\n", encoding="utf-8")


def split_batch(text: Any, text_pair: Any, is_split_into_words: bool) -> tuple[bool, list[tuple[Any, Any]]]:
    """Return whether an input is a batch, and each text with its second text or None, by the rules of transformers.

    Raises:
        ValueError: if the numbers of first and second texts differ, or a row is neither a text nor a pair.
    """
    first = text[0] if isinstance(text, (list, tuple)) and text else None
    if not isinstance(text, (list, tuple)) or isinstance(first, (str if is_split_into_words else int)):
        return False, [(text, text_pair)]
    if is_split_into_words and first is None:
        return False, [(text, text_pair)]
    if text_pair is not None:
        if not isinstance(text_pair, (list, tuple)) or len(text_pair) != len(text):
            raise ValueError("where `text` is a batch, `text_pair` must be one of the same length")
        return True, list(zip(text, text_pair, strict=True))
    rows = []
    for row in text:
        is_row = isinstance(row, (list, tuple)) and not all(isinstance(index, int) for index in row)
        if is_row and is_split_into_words and not isinstance(row, tuple):
            is_row = False  # a list of words is one text
        if is_row and len(row) > 2:
            raise ValueError(f"expected a text or a pair of texts, got {len(row)} texts")
        rows.append((*row, None)[:2] if is_row else (row, None))
    return True, rows
