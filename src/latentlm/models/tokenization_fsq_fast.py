"""The `FSQTokenizerFast`, which gives the ids of [`FSQTokenizer`] from a `tokenizer.json`."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import AddedToken as FastAddedToken
from tokenizers import Encoding, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AddedToken, BatchEncoding, PreTrainedTokenizerFast

from .block_byte_pieces import characters_pattern
from .block_lossless_decoding import LosslessDecoding
from .block_lossless_tokenizer import add_to_config, split_batch
from .block_row_encodings import build_encoding, missing_spaces
from .fsq_vocabulary import AUTOENCODER_FILE, NUM_BYTES, VOCABULARY_FILE, FSQVocabulary
from .tokenization_fsq import SPECIAL_TOKENS, FSQTable, FSQTokenizer, load_vocabulary, resolve_framing

_BACKEND_IN_USE = threading.RLock()
"""A lock for calls of fast tokenizers. A call sets the truncation and padding of its backend before it encodes, and no
other call may come in between."""


class FSQTokenizerFast(FSQTable, LosslessDecoding, PreTrainedTokenizerFast):  # pyright: ignore[reportIncompatibleMethodOverride]
    """The fast FSQ tokenizer, a Unigram model of `tokenizers`. With equal scores the model finds the fewest tokens,
    with the rule of [`FSQTokenizer`] among equals; a table with costs defines other scores.

    The ids are those of [`FSQTokenizer`] for every text that is valid Unicode. A lone surrogate, which the strings of
    Rust cannot hold, raises an error in `tokenizers`. `encode_bytes` and `decode_bytes` take any bytes. The ids may
    differ where `tokenizers` and the Python code of transformers do: with `split_special_tokens=True` this class still
    finds added tokens that are not special; a token added with `single_word=True` is found beside other characters;
    and a pair of texts is truncated in another order.

    Arguments are those of [`FSQTokenizer`] without `mode` and `cache_size`, and:

    Args:
        tokenizer_file: `tokenizer.json`; without it, the backend is built from the table.
    """

    vocab_files_names = {
        "tokenizer_file": "tokenizer.json",
        "vocab_file": VOCABULARY_FILE,
        "autoencoder_file": AUTOENCODER_FILE,
    }
    slow_tokenizer_class = FSQTokenizer
    model_input_names = ["input_ids", "attention_mask"]
    decoding_errors = "replace"  # as in Rust, whose strings hold no surrogates

    def __init__(
        self,
        vocab_file: str,
        tokenizer_file: str | None = None,
        autoencoder_file: str | None = None,
        add_bos_token: bool | None = None,
        add_eos_token: bool | None = None,
        pad_token: str | AddedToken = "<pad>",
        bos_token: str | AddedToken = "<bos>",
        eos_token: str | AddedToken = "<eos>",
        mask_token: str | AddedToken = "<mask>",
        framing: dict[str, bool] | None = None,
        **kwargs: Any,
    ) -> None:
        special_tokens = dict(zip(SPECIAL_TOKENS, (pad_token, bos_token, eos_token, mask_token), strict=True))
        self.vocabulary = load_vocabulary(vocab_file, autoencoder_file, special_tokens)
        self.segmenter = self.vocabulary.segmenter
        self.token_lengths = self.vocabulary.lengths
        self._set_names(self.vocabulary.names)
        # transformers would copy a `tokenizer_object` through JSON, which is not exact: see `_load_backend`.
        if tokenizer_file is None:
            self._tokenizer = build_backend(self.vocabulary, special_tokens)
        else:
            self._tokenizer = self._load_backend(Path(tokenizer_file).read_text(encoding="utf-8"))
        add_bos_token, add_eos_token = resolve_framing(add_bos_token, add_eos_token, framing)
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        super().__init__(
            vocab_file=vocab_file,
            add_bos_token=add_bos_token,
            add_eos_token=add_eos_token,
            **special_tokens,
            **kwargs,
        )

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Return the arguments unchanged, because the constructor reads the files itself."""
        return kwargs

    def _save_pretrained(
        self, save_directory: str, file_names: tuple[str, ...], *args: Any, **kwargs: Any
    ) -> tuple[str, ...]:
        """Save `tokenizer.json`, and the files from which the slow class and the codes of this class are loaded."""
        add_to_config(file_names, self.saved_framing)
        files = super()._save_pretrained(save_directory, file_names, *args, **kwargs)
        return files + self.save_vocabulary(save_directory)

    # --- added tokens -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        count = len(self.token_names)
        return count + sum(index >= count for index in self.added_tokens_decoder)

    def _add_tokens(self, new_tokens: list[Any], special_tokens: bool = False) -> int:
        self._make_room(new_tokens, special_tokens)
        with self._own_names(self._tokenizer):
            return super()._add_tokens(new_tokens, special_tokens)

    @contextmanager
    def _own_names(self, backend: Tokenizer) -> Iterator[None]:
        """Show the backend the names of the tokenizer in this context. The backend gives a new token the id that its
        model has for the name. For encoding, its model needs the names in the byte-level alphabet."""
        if self.token_names == self.vocabulary.names:
            yield
            return
        model = backend.model
        backend.model = models.Unigram([(name, 0.0) for name in self.token_names])
        try:
            yield
        finally:
            backend.model = model

    def _load_backend(self, text: str) -> Tokenizer:
        """Return the backend that was saved as `text`. Its added tokens are added again, because the backend itself
        would take some for bytes with the same name."""
        content = json.loads(text)
        saved = sorted(content["added_tokens"], key=lambda token: token.pop("id"))
        backend = Tokenizer.from_str(json.dumps(content | {"added_tokens": []}))
        added = [AddedToken(**token) for token in saved]
        self._make_room(added)
        with self._own_names(backend):
            backend.add_tokens(added)
        return backend

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tokenizer": self._tokenizer.to_str()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._tokenizer = self._load_backend(state["_tokenizer"])

    def _convert_token_to_id_with_added_voc(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, token: str
    ) -> int | None:  # None where there is no such token
        index = self.token_ids.get(token)  # the backend does not have the names of renamed bytes
        return super()._convert_token_to_id_with_added_voc(token) if index is None else index

    # --- text to ids and back ---------------------------------------------------------------------------------------

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **kwargs: Any
    ) -> list[str]:
        encoding = self(text, pair, add_special_tokens=add_special_tokens, **kwargs)
        return self.convert_ids_to_tokens(encoding.input_ids)

    def _encode_plus(  # pyright: ignore[reportIncompatibleMethodOverride]  # the base spells `kwargs` out
        self,
        text: Any,
        text_pair: Any = None,
        *,
        is_split_into_words: bool = False,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Encode as in transformers, one call at a time. A space separates pre-split words, as in
        [`LosslessTokenizer`]."""
        if not is_split_into_words:
            with _BACKEND_IN_USE:
                return super()._encode_plus(text, text_pair, return_tensors=return_tensors, **kwargs)
        is_batch, rows = split_batch(text, text_pair, is_split_into_words)
        rows = [[words for words in row if words is not None] for row in rows]
        spaces = [[missing_spaces(words) for words in row] for row in rows]
        spaced = [
            [[" " * space + word for word, space in zip(*both, strict=True)] for both in zip(row, missing, strict=True)]
            for row, missing in zip(rows, spaces, strict=True)
        ]
        texts: Any = [tuple(row) if len(row) == 2 else row[0] for row in spaced] if is_batch else spaced[0][0]
        pair = spaced[0][1] if not is_batch and text_pair is not None else None
        with _BACKEND_IN_USE:
            encoded = super()._encode_plus(texts, pair, is_split_into_words=True, **kwargs)
        samples = encoded.get("overflow_to_sample_mapping", range(len(rows)))
        encodings = [
            without_spaces(encoding, spaces[sample])
            for encoding, sample in zip(encoded.encodings or (), samples, strict=True)
        ]
        is_row = not is_batch and not kwargs.get("return_overflowing_tokens")
        if "offset_mapping" in encoded:
            offsets = [encoding.offsets for encoding in encodings]
            encoded["offset_mapping"] = offsets[0] if is_row else offsets
        return BatchEncoding(encoded.data, encodings, return_tensors, prepend_batch_axis=is_row)


def without_spaces(encoding: Encoding, spaces: list[list[bool]]) -> Encoding:
    """Return an encoding whose offsets are relative to the words that the caller passed. `spaces` says for each text
    which words had a space put before them."""
    fields = json.loads(encoding.__getstate__())
    for i, (sequence, word) in enumerate(zip(encoding.sequence_ids, encoding.word_ids, strict=True)):
        if word is not None and sequence is not None and spaces[sequence][word]:
            fields["offsets"][i] = [max(place - 1, 0) for place in fields["offsets"][i]]
    return build_encoding(**fields | {"overflowing": []})


def build_pre_tokenizer(boundary: str) -> pre_tokenizers.PreTokenizer:
    """Make the pre-tokenizer, which maps the bytes of a text to the byte-level alphabet, and then cuts it into
    stretches. The opposite order is slower, because each stretch is mapped by itself."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False, trim_offsets=False),
            pre_tokenizers.Split(Regex(characters_pattern(boundary)), "isolated"),
        ]
    )


def build_backend(vocabulary: FSQVocabulary, special_tokens: dict[str, str | AddedToken]) -> Tokenizer:
    """Make the `tokenizers.Tokenizer` of a table."""
    costs = vocabulary.costs or [1] * len(vocabulary.names)
    pairs = zip(vocabulary.names, costs, strict=True)
    backend = Tokenizer(models.Unigram([(name, -float(cost)) for name, cost in pairs]))
    backend.pre_tokenizer = build_pre_tokenizer(vocabulary.boundary)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([FastAddedToken(str(token), normalized=False) for token in special_tokens.values()])
    assert backend.get_vocab_size() == NUM_BYTES + len(vocabulary.pieces) + len(special_tokens)
    return backend


__all__ = ["FSQTokenizerFast"]
