"""The tokenizers of a corpus: a trained BPE, pretrained ones, and how many bytes each token stands for."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from latentlm.data import DataConfig, prepare_data, token_bytes
from latentlm.data.tokenizers import encode_documents, load_tokenizer, tokenizer_fingerprint, train_bpe
from latentlm.models.tokenization_byte import ByteTokenizer

TEXTS = ["the cat sat on the mat\n" * 5, "naïve 日本語 👍 the the", "  spaces\t and\n\n\nlines <eos> <bos>", "x"]


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(TEXTS, 300)


def test_bpe_keeps_any_text(bpe):
    assert (bpe.pad_token_id, bpe.bos_token_id, bpe.eos_token_id) == (0, 1, 2)
    assert 259 < len(bpe) <= 300
    for text in [*TEXTS, "unseen: Ω\x00\x7f ⁂"]:
        [[ids], size] = next(encode_documents([text], bpe))
        assert (ids[0], ids[-1]) == (1, 2) and not set(ids[1:-1]) & {0, 1, 2}
        assert bpe.decode(ids[1:-1]) == text
        assert token_bytes(bpe)[ids].sum() == len(text.encode()) == size
    assert bpe.encode("the") == [1, *bpe.encode("the", add_special_tokens=False)]
    assert bpe.encode("a<eos>")[-1] == 2  # for a user, as in every tokenizer; in a corpus (above) it is text


def test_bpe_is_deterministic(bpe):
    for _ in range(3):  # the hash maps of `tokenizers` are seeded anew each time
        assert tokenizer_fingerprint(train_bpe(TEXTS, 300)) == tokenizer_fingerprint(bpe)


def test_saved_bpe_loads_and_is_usable_for_a_corpus(bpe, tmp_path):
    bpe.save_pretrained(tmp_path / "tokenizer")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert loaded.encode(TEXTS[1]) == bpe.encode(TEXTS[1])
    assert isinstance(loaded, PreTrainedTokenizerFast) and loaded.pad_token == "<pad>"
    (tmp_path / "text.txt").write_text("\n".join(TEXTS * 5))
    config = DataConfig(
        dataset=str(tmp_path / "text.txt"),
        tokenizer=str(tmp_path / "tokenizer"),
        context_length=16,
        cache_dir=str(tmp_path / "cache"),
    )
    data = prepare_data(config)
    labels = np.concatenate([row["labels"].numpy() for row in data.validation])
    assert data.token_bytes[labels[labels >= 0]].sum() == data.info["validation"]["bytes"]


def test_a_saved_byte_tokenizer_is_loaded_as_our_class(tmp_path):
    ByteTokenizer(add_bos_token=False).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert type(tokenizer) is ByteTokenizer and not tokenizer.add_bos_token


def test_token_bytes_of_bytes():
    tokenizer = ByteTokenizer(extra_special_tokens=["<mask>"])
    tokenizer.add_tokens(["é!"])
    assert token_bytes(tokenizer).tolist() == [1.0] * 256 + [0.0] * 4 + [3.0]


def fast(vocab, decoder, pre_tokenizer=None, **special):
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocab)}, unk_token=vocab[0]))
    tokenizer.decoder = decoder
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=vocab[0], **special)


def test_token_bytes_of_other_kinds():
    sentencepiece = fast(
        ["<unk>", "</s>", "<0xE6>", "▁été", "a"],
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
        eos_token="</s>",
    )
    assert token_bytes(sentencepiece).tolist() == [0, 0, 1, 6, 1]
    metaspace = fast(["<unk>", "▁the", "re"], decoders.Metaspace())
    assert token_bytes(metaspace).tolist() == [0, 4, 2]
    word_piece = fast(["[UNK]", "the", "##re"], decoders.WordPiece())
    assert token_bytes(word_piece)[1] == 3


def test_pretrained_without_pad_or_bos(tmp_path):
    whitespace = pre_tokenizers.Whitespace()
    fast(["<unk>", "<end>", "a"], decoders.Fuse(), whitespace, eos_token="<end>").save_pretrained(tmp_path / "eos")
    tokenizer = load_tokenizer(str(tmp_path / "eos"))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1
    [[ids], _] = next(encode_documents(["a a"], tokenizer))
    assert ids.tolist() == [1, 2, 2, 1]
    fast(["<unk>", "a"], decoders.Fuse()).save_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match="has no eos_token"):
        load_tokenizer(str(tmp_path / "none"))


def test_unknown_tokenizer(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer: .* is neither 'bytes', 'bpe' nor"):
        load_tokenizer(str(tmp_path / "nothing"))
