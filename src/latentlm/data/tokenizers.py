"""Tokenizers for a corpus (bytes, a byte-level BPE trained on it, or a pretrained one), and the bytes of their
tokens."""

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from ..models.block_lossless_decoding import LosslessDecoding
from ..models.tokenization_byte import ByteTokenizer
from ..models.tokenization_fsq_fast import FSQTokenizerFast

# Tokenizers of latentlm, by the name of the class in a saved tokenizer.
OWN_TOKENIZERS: dict[str, Any] = {"ByteTokenizer": ByteTokenizer, "FSQTokenizer": FSQTokenizerFast}
BATCH_CHARACTERS = 1 << 20  # number of characters from which on a batch of documents is encoded


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer by path or Hub name, or return that of `"bytes"`. If it has no padding token, its end token
    becomes the padding token.

    Raises:
        ValueError: if the tokenizer cannot be loaded, or has no end token.
    """
    if name == "bytes":
        return ByteTokenizer()
    try:
        # `auto_map` of a saved tokenizer of latentlm names a code file. The class of this package is loaded instead.
        kind = get_tokenizer_config(name).get("tokenizer_class") or ""
        tokenizer = OWN_TOKENIZERS.get(kind, AutoTokenizer).from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"tokenizer: {name!r} is neither 'bytes', 'bpe' nor a tokenizer that can be loaded: {error}"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer: {name!r} has no eos_token, which has to end every document")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def train_bpe(documents: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, as that of GPT-2, with at most `vocab_size` tokens. The result is deterministic.

    Like `ByteTokenizer`, it is lossless and begins an encoded text with `<bos>`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        documents,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<pad>", "<bos>", "<eos>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A",
        pair="<bos> $A <bos> $B:1",
        special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def load_bpe(folder: Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer of [`train_bpe`] from the folder of `save_pretrained`."""
    return PreTrainedTokenizerFast.from_pretrained(folder)


def special_id(tokenizer: PreTrainedTokenizerBase, name: str) -> int | None:
    """Return the id of a special token by its name (`"pad_token"`), or None if the tokenizer has none."""
    return getattr(tokenizer, f"{name}_id")


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash that changes if the ids of a text may change."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        backend = copy.deepcopy(tokenizer.backend_tokenizer)
        backend.no_truncation()  # truncation and padding are those of the last call
        backend.no_padding()
        description = backend.to_str()
    else:
        description = json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(f"{special}{description}".encode()).hexdigest()


def encode_documents(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[np.ndarray], int]]:
    """Yield batches of documents as integer arrays `[<bos>, …, <eos>]`, with the number of UTF-8 bytes of each batch.

    If the tokenizer has no `<bos>`, documents begin with its `<eos>`. The texts of special tokens in a document are
    encoded as plain text, because they must not end the document.
    """
    bos, eos = special_id(tokenizer, "bos_token"), special_id(tokenizer, "eos_token")
    assert eos is not None  # `load_tokenizer` checks this
    bos = eos if bos is None else bos
    for texts in _batches(documents):
        data = [text.encode("utf-8", "surrogatepass") for text in texts]
        if isinstance(tokenizer, ByteTokenizer):
            ids = [np.frombuffer(piece, np.uint8) for piece in data]
        else:
            ids = tokenizer(
                texts,
                add_special_tokens=False,
                split_special_tokens=True,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]
        dtype = token_dtype(len(tokenizer))
        arrays = [np.concatenate(([bos], document, [eos]), dtype=dtype, casting="unsafe") for document in ids]
        yield arrays, sum(map(len, data))


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the dtype of cached ids, which is uint16 if every id fits into it, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in documents:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return the number of UTF-8 bytes of each token id, `(len(tokenizer),)`, float32, which is 0 for special tokens.

    The sum over the tokens of a text is the exact number of its bytes for the tokenizers of this package and for every
    byte-level BPE. For tokenizers like SentencePiece (`▁` for a space, `<0x41>` for a byte) it is exact except for the
    space that is added before a text. For any other tokenizer, a token has the bytes to which it decodes alone.
    """
    special = set(tokenizer.all_special_ids)
    added = tokenizer.added_tokens_decoder
    lengths = tokenizer.token_lengths if isinstance(tokenizer, LosslessDecoding) else None
    kind = _decoder_kind(tokenizer) if lengths is None else None
    sizes = np.zeros(len(tokenizer), dtype=np.float32)
    for token, index in tokenizer.get_vocab().items():
        if index in special:
            continue
        if index in added:
            sizes[index] = len(added[index].content.encode("utf-8", "surrogatepass"))
        elif lengths is not None:
            sizes[index] = lengths[index]
        elif kind == "spaces" and token.startswith("<0x") and token.endswith(">"):
            sizes[index] = 1
        elif kind == "byte_level":
            sizes[index] = len(token)  # in the ByteLevel alphabet, each character is a byte
        elif kind == "spaces":
            sizes[index] = len(token.replace("▁", " ").encode())
        else:
            text = tokenizer.decode([index])
            assert isinstance(text, str)
            sizes[index] = len(text.encode())
    return sizes


def _decoder_kind(tokenizer: PreTrainedTokenizerBase) -> str | None:
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"] or {}
    kinds = {part["type"] for part in decoder.get("decoders", [decoder]) if part}
    if "ByteLevel" in kinds:
        return "byte_level"
    return "spaces" if kinds & {"ByteFallback", "Metaspace"} else None
