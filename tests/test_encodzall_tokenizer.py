"""The tokenizer of EncodZall: nothing is lost, words of every id, truncation by words, conventions of transformers."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from latentlm import EncodzallTokenizer
from latentlm.models.encodzall_words import find_words

tokenizer = EncodzallTokenizer()
TEXTS = ["Zoë reads 日本語 😀 and\r\nmore\x00 ", "", "   ", "\n", "x" * 500, "\ud800 alone", "naïve\u00a0café\u3000end"]


def test_ids_are_bytes_then_the_special_tokens():
    assert tokenizer("aé").input_ids == [97, 0xC3, 0xA9, 258]
    assert len(tokenizer) == 264
    names = ["<pad>", "<bos>", "<eos>", "<mask>", "<vowel>", "<consonant>", "<nonspace>", "<any>"]
    assert tokenizer.convert_ids_to_tokens(range(256, 264)) == names
    assert tokenizer("<mask> c<vowel>t", add_special_tokens=False).input_ids == [259, 32, 99, 260, 116]
    assert tokenizer("<mask>", split_special_tokens=True).input_ids == [*b"<mask>", 258]
    assert (tokenizer.mask_token_id, tokenizer.vowel_mask_token_id, tokenizer.any_mask_token_id) == (259, 260, 263)


@pytest.mark.parametrize("text", TEXTS)
def test_nothing_is_lost(text):
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert b"".join(tokenizer.decode_bytes([id_]) for id_ in ids) == text.encode("utf-8", "surrogatepass")


def test_any_bytes_and_naughty_strings_survive(shared_data):
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(bytes(range(256)))) == bytes(range(256))
    lines = (shared_data / "blns" / "blns.jsonl").read_text(encoding="utf-8").split("\n")
    for text in (json.loads(line)["text"] for line in lines if line):
        assert tokenizer.decode(tokenizer(text, split_special_tokens=True).input_ids, skip_special_tokens=True) == text


def test_every_id_has_its_word_and_padding_has_none():
    for side in ("left", "right"):
        encoded = EncodzallTokenizer(padding_side=side)(TEXTS, padding=True, return_tensors="pt")
        columns = (encoded[name] for name in ("input_ids", "attention_mask", "word_ids"))
        for ids, mask, words, text in zip(*columns, TEXTS, strict=True):
            alone = tokenizer(text)
            kept = mask.bool()
            assert ids[kept].tolist() == alone.input_ids and words[kept].tolist() == alone["word_ids"]
            assert words[~kept].tolist() == [-1] * int((~kept).sum())
            assert alone["word_ids"] == find_words(ids[kept][None], 16)[0].tolist()
    assert tokenizer("a bc").data["word_ids"] == [0, 0, 1, 1, 2]


def test_encodings_made_elsewhere_are_padded_too():
    rows = [tokenizer(text) for text in TEXTS]
    padded = tokenizer.pad(rows, return_tensors="pt")
    together = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert all(torch.equal(padded[name], together[name]) for name in together)
    assert "word_ids" in tokenizer.pad([{"input_ids": [97, 258]}])


def test_offsets_are_characters():
    text = "aé 日"
    encoded = tokenizer(text, return_offsets_mapping=True)
    spans = encoded["offset_mapping"]
    assert spans == [(0, 1), (1, 2), (1, 2), (2, 3), (3, 4), (3, 4), (3, 4), (0, 0)]


def test_truncation_leaves_out_whole_words_and_counts_them(caplog):
    encoded = tokenizer("some words here and there", truncation=True, max_length=14, return_offsets_mapping=True)
    assert tokenizer.decode(encoded.input_ids) == "some words <eos>"
    assert encoded["offset_mapping"][-2] == (10, 11) and len(encoded["offset_mapping"]) == len(encoded.input_ids)
    assert encoded["word_ids"][-1] == 2
    assert "5 words" in caplog.text and "the last 3 are left out" in caplog.text
    exact = tokenizer("some words", truncation=True, max_length=11)
    assert tokenizer.decode(exact.input_ids) == "some words<eos>"
    one_long_word = tokenizer("extraordinary", truncation=True, max_length=6)
    assert tokenizer.decode(one_long_word.input_ids) == "extra<eos>"
    assert len(tokenizer("word " * 50, truncation=True, max_length=32, padding="max_length").input_ids) == 32


def test_special_token_masks_and_pairs():
    encoded = tokenizer("ab", "c", return_special_tokens_mask=True)
    assert encoded.input_ids == [97, 98, 258, 99, 258]
    assert encoded["special_tokens_mask"] == [0, 0, 1, 0, 1]
    assert encoded["word_ids"] == [0, 0, 1, 2, 3]


def test_saving_keeps_everything(tmp_path):
    EncodzallTokenizer(max_word_bytes=9, model_max_length=77).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, EncodzallTokenizer)
    assert (loaded.max_word_bytes, loaded.model_max_length, loaded.add_eos_token) == (9, 77, True)
    assert loaded("a word of twelve: abcdefghijkl").data == EncodzallTokenizer(max_word_bytes=9)(
        "a word of twelve: abcdefghijkl"
    ).data  # fmt: skip


def test_a_long_text_is_whole_and_a_long_word_is_cut():
    words = tokenizer("y" * 10_000)["word_ids"]
    assert max(words) == -(-10_000 // 13) and torch.bincount(torch.tensor(words)).max() <= 16
    assert len(tokenizer("text " * 20_000).input_ids) == 100_001


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="max_word_bytes is 7"):
        EncodzallTokenizer(max_word_bytes=7)
