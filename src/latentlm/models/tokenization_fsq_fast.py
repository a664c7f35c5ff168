"""`FSQTokenizerFast`: the same ids as [`FSQTokenizer`], from a `tokenizer.json`."""

from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken as FastAddedToken
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

from .byte_pieces import text_pattern
from .fsq_vocabulary import AUTOENCODER_FILE, NUM_BYTES, VOCABULARY_FILE, FSQVocabulary, Segmenter
from .lossless_tokenizer import add_to_config
from .tokenization_fsq import SPECIAL_TOKENS, FSQTable, FSQTokenizer, load_vocabulary, resolve_framing


class FSQTokenizerFast(FSQTable, PreTrainedTokenizerFast):
    """A Unigram model with equal scores is exactly the program for the fewest tokens, with the same rule among equals;
    a table with costs gives it scores.

    Gives the ids of [`FSQTokenizer`] for every text that is valid Unicode; a lone surrogate, which Rust's strings
    cannot hold, is an error of `tokenizers`. `encode_bytes` and `decode_bytes` take any bytes. Arguments are those of
    [`FSQTokenizer`] without `mode` and `cache_size`.
    """

    vocab_files_names = {
        "tokenizer_file": "tokenizer.json",
        "vocab_file": VOCABULARY_FILE,
        "autoencoder_file": AUTOENCODER_FILE,
    }
    slow_tokenizer_class = FSQTokenizer
    model_input_names = ["input_ids", "attention_mask"]
    _segmenter: Segmenter | None = None

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
        backend = {"tokenizer_file": tokenizer_file}
        if tokenizer_file is None:
            backend = {"tokenizer_object": build_backend(self.vocabulary, special_tokens)}
        add_bos_token, add_eos_token = resolve_framing(add_bos_token, add_eos_token, framing)
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        super().__init__(
            vocab_file=vocab_file,
            add_bos_token=add_bos_token,
            add_eos_token=add_eos_token,
            **backend,
            **special_tokens,
            **kwargs,
        )

    @classmethod
    def convert_to_native_format(cls, **kwargs: Any) -> dict[str, Any]:
        """Nothing to convert: the constructor reads the files themselves."""
        kwargs.pop("trust_remote_code", None)
        return kwargs

    def _save_pretrained(
        self, save_directory: str, file_names: tuple[str, ...], *args: Any, **kwargs: Any
    ) -> tuple[str, ...]:
        """Beside `tokenizer.json` the files that the slow class, and this one's codes, are made from."""
        add_to_config(file_names, self.saved_framing)
        files = super()._save_pretrained(save_directory, file_names, *args, **kwargs)
        return files + self.save_vocabulary(save_directory)

    def encode_bytes(self, data: bytes) -> list[int]:
        """The ids of any byte string, without special tokens: `decode_bytes` gives exactly `data` back."""
        if self._segmenter is None:
            self._segmenter = Segmenter(self.vocabulary, cache_size=1 << 16)
        return self._segmenter(data)

    def decode_bytes(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> bytes:
        """The exact bytes that `token_ids` stand for, valid UTF-8 or not; special tokens are left out, or written as
        their text with `skip_special_tokens=False`.

        Raises:
            ValueError: for a negative id, such as the -100 of ignored labels.
        """
        spellings, added = self.vocabulary.spellings, self.added_tokens_decoder
        pieces = []
        for index in token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids:
            if index < 0:
                raise ValueError(f"token ids must not be negative, got {index} (ignored labels must be removed first)")
            if index < len(spellings):
                pieces.append(spellings[index])
            elif index in added and not (skip_special_tokens and added[index].special):
                pieces.append(added[index].content.encode())
        return b"".join(pieces)


def build_pre_tokenizer(boundary: str) -> pre_tokenizers.PreTokenizer:
    """Cuts a text into stretches, and shows their bytes in the byte-level alphabet."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(text_pattern(boundary)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False, trim_offsets=False),
        ]
    )


def build_backend(vocabulary: FSQVocabulary, special_tokens: dict[str, str | AddedToken]) -> Tokenizer:
    """The `tokenizers.Tokenizer` of a table."""
    costs = vocabulary.costs or [1] * len(vocabulary.names)
    pairs = zip(vocabulary.names, costs, strict=True)
    backend = Tokenizer(models.Unigram([(name, -float(cost)) for name, cost in pairs]))
    backend.pre_tokenizer = build_pre_tokenizer(vocabulary.boundary)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([FastAddedToken(str(token), normalized=False) for token in special_tokens.values()])
    assert backend.get_vocab_size() == NUM_BYTES + len(vocabulary.pieces) + len(special_tokens)
    return backend


__all__ = ["FSQTokenizerFast"]
