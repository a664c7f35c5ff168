"""`ByteTokenizer`: exact round trips, the usual behaviour of a transformers tokenizer, offsets, saving."""

import copy
import json
import pickle
import random

import numpy as np
import pytest
import torch
from transformers import AddedToken, AutoTokenizer, TextStreamer

from latentlm.models.tokenization_byte import ByteTokenizer

PAD, BOS, EOS = 256, 257, 258
TEXTS = [
    "",
    "hello",
    " two  spaces , and 'quotes' n't ",
    "\x00\r\n\t",
    "naïve café €",
    "日本語テキスト",
    "👩‍👩‍👧 🇩🇪",
    "\ud800 lone \udfff surrogates \ud83d\ude00",
    "<0x41> <pad",
    "𐎠" * 5,
]


@pytest.fixture
def tokenizer():
    return ByteTokenizer()


@pytest.mark.parametrize("text", TEXTS)
def test_text_round_trips(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == list(text.encode("utf-8", "surrogatepass"))
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    tokens = tokenizer.tokenize(text)
    assert tokenizer.convert_tokens_to_ids(tokens) == ids
    assert tokenizer.convert_tokens_to_string(tokens) == text


def test_naughty_strings_round_trip(tokenizer, shared_data):
    with open(shared_data / "blns" / "blns.jsonl", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    decoded = tokenizer.batch_decode(tokenizer(texts).input_ids, skip_special_tokens=True)
    assert decoded == texts


def test_bytes_round_trip(tokenizer):
    rng = random.Random(0)
    for length in (0, 1, 2, 17, 1000):
        data = rng.randbytes(length)
        ids = tokenizer.encode_bytes(data)
        assert tokenizer.decode_bytes(ids) == data
        assert tokenizer.decode_bytes(np.array(ids, dtype=np.uint16)) == data
        assert tokenizer.decode_bytes(torch.tensor([BOS, *ids, EOS, PAD])) == data
    assert tokenizer.encode_bytes(bytes(range(256))) == list(range(256))


def test_invalid_utf8_decodes_with_replacement(tokenizer):
    assert tokenizer.decode(list(b"a\xffb\xe2\x82")) == "a\ufffdb\ufffd"
    assert tokenizer.decode(list("\ud800".encode("utf-8", "surrogatepass")), errors="replace").isprintable()
    assert tokenizer.decode(list(b"\xc3")) == "\ufffd"
    with pytest.raises(ValueError, match="-100"):
        tokenizer.decode([97, -100])


def test_special_ids_are_above_the_bytes(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (PAD, BOS, EOS)
    assert tokenizer.vocab_size == len(tokenizer) == len(tokenizer.get_vocab()) == 259
    assert sorted(tokenizer.get_vocab().values()) == list(range(259))
    assert tokenizer.convert_ids_to_tokens([0x41, EOS]) == ["<0x41>", "<eos>"]
    assert tokenizer.convert_tokens_to_ids(["<0x41>", "<bos>", "unknown"]) == [0x41, BOS, None]
    assert tokenizer.decode([97, 300, 98]) == "ab"  # beyond the vocabulary: nothing to show


def test_bos_and_eos_options():
    a, b = 97, 98
    for bos, eos in [(True, False), (True, True), (False, True), (False, False)]:
        tokenizer = ByteTokenizer(add_bos_token=bos, add_eos_token=eos)
        before, after = [BOS] * bos, [EOS] * eos
        assert tokenizer.encode("a") == [*before, a, *after]
        assert tokenizer.encode("a", "b") == [*before, a, *after, *before, b, *after]
        assert tokenizer.encode("") == before + after
        assert tokenizer.encode("", add_special_tokens=False) == []
        assert tokenizer.num_special_tokens_to_add() == bos + eos
        assert tokenizer.num_special_tokens_to_add(pair=True) == 2 * (bos + eos)
        encoding = tokenizer("a", "b", return_special_tokens_mask=True, return_token_type_ids=True)
        assert encoding.special_tokens_mask == [1] * bos + [0] + [1] * eos + [1] * bos + [0] + [1] * eos
        assert len(encoding.token_type_ids) == len(encoding.attention_mask) == len(encoding.input_ids)


def test_special_tokens_in_text():
    tokenizer = ByteTokenizer(add_bos_token=False)
    assert tokenizer.encode("a<eos>b") == [97, EOS, 98]
    assert tokenizer.decode([97, EOS, 98]) == "a<eos>b"
    assert tokenizer.decode([97, EOS, 98], skip_special_tokens=True) == "ab"
    literal = tokenizer.encode("a<eos>b", split_special_tokens=True)
    assert literal == list(b"a<eos>b")
    assert tokenizer("a<eos>b", split_special_tokens=True).input_ids == literal
    assert tokenizer(["a<eos>b"], split_special_tokens=True).input_ids == [literal]
    assert ByteTokenizer(add_bos_token=False, split_special_tokens=True).encode("a<eos>b") == literal
    assert len(tokenizer.tokenize("a<eos>")) == 2
    assert len(tokenizer.tokenize("a<eos>", split_special_tokens=True)) == 6


def test_added_tokens():
    tokenizer = ByteTokenizer(add_bos_token=False, extra_special_tokens=["<mask>"])
    assert tokenizer.convert_tokens_to_ids("<mask>") == 259 and len(tokenizer) == 260
    tokenizer.add_tokens(["é", "éa", AddedToken("word", single_word=True), AddedToken("<x>", lstrip=True, rstrip=True)])
    assert tokenizer.encode("é") == [260] and tokenizer.encode("éab") == [261, 98]  # the longest wins; not a byte token
    assert tokenizer.encode("word words") == [262, *b" words"]
    assert tokenizer.encode("a <x> b") == [97, 263, 98]
    assert tokenizer.decode([97, 260, 259], skip_special_tokens=True) == "aé"
    assert tokenizer.encode("a<mask>") == [97, 259]


def test_batches_and_padding(tokenizer):
    texts = ["ab", "", "abcd"]
    right = tokenizer(texts, padding=True, return_tensors="pt")
    assert right.input_ids.tolist() == [[BOS, 97, 98, PAD, PAD], [BOS] + [PAD] * 4, [BOS, *b"abcd"]]
    assert right.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]
    left = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
    assert left.input_ids.tolist()[0] == [PAD, PAD, BOS, 97, 98]
    assert left.attention_mask.tolist()[1] == [0, 0, 0, 0, 1]
    fixed = tokenizer("ab", padding="max_length", max_length=6, return_tensors="pt")
    assert fixed.input_ids.tolist() == [[BOS, 97, 98, PAD, PAD, PAD]]
    assert tokenizer("ab", padding=True, pad_to_multiple_of=8, return_length=True)["length"] == 8
    assert tokenizer(texts).input_ids == [tokenizer(text).input_ids for text in texts]
    assert tokenizer([("a", "b")]).input_ids == [tokenizer("a", "b").input_ids]
    assert tokenizer(["a", "b"], ["c", "d"]).input_ids[1] == tokenizer("b", "d").input_ids
    assert tokenizer([[1, 2]]).input_ids == [[BOS, 1, 2]]
    assert tokenizer(["ab", "c"], is_split_into_words=True).input_ids == [BOS, *b"ab c"]


@pytest.mark.parametrize("side", ["right", "left"])
def test_truncation(side):
    tokenizer = ByteTokenizer(add_eos_token=True, truncation_side=side)
    kept = b"ab" if side == "right" else b"ef"
    encoding = tokenizer("abcdef", truncation=True, max_length=4, return_offsets_mapping=True)
    assert encoding.input_ids == [BOS, *kept, EOS]
    start = 0 if side == "right" else 4
    assert encoding.offset_mapping == [(0, 0), (start, start + 1), (start + 1, start + 2), (0, 0)]
    pair = tokenizer("abc", "def", truncation="only_first", max_length=8, return_offsets_mapping=True)
    assert len(pair.input_ids) == len(pair.offset_mapping) == 8
    assert tokenizer("abc", truncation=True, max_length=10).input_ids == [BOS, *b"abc", EOS]
    assert len(tokenizer("x" * 50, truncation=True, max_length=7).input_ids) == 7
    limited = ByteTokenizer(model_max_length=5)
    assert len(limited("x" * 50, truncation=True).input_ids) == 5


@pytest.mark.parametrize("text", [*TEXTS, "a<eos>é<bos>"])
def test_offsets_are_characters(text):
    tokenizer = ByteTokenizer(add_eos_token=True)
    encoding = tokenizer(text, return_offsets_mapping=True)
    assert encoding.offset_mapping[0] == encoding.offset_mapping[-1] == (0, 0)
    expected = []
    for piece_start, piece in _pieces(text):
        if piece in ("<eos>", "<bos>"):
            expected.append((piece_start, piece_start + len(piece)))
        else:
            for i, character in enumerate(piece, piece_start):
                expected += [(i, i + 1)] * len(character.encode("utf-8", "surrogatepass"))
    assert encoding.offset_mapping[1:-1] == expected


def _pieces(text):
    position = 0
    while position < len(text):
        special = next((s for s in ("<eos>", "<bos>", "<pad>") if text.startswith(s, position)), None)
        piece = special or text[position]
        yield position, piece
        position += len(piece)


def test_offsets_in_batches(tokenizer):
    batch = tokenizer(["é", "abc"], padding=True, return_offsets_mapping=True, return_tensors="pt")
    assert batch.offset_mapping.tolist()[0] == [[0, 0], [0, 1], [0, 1], [0, 0]]
    left = tokenizer(["é", "abc"], padding=True, padding_side="left", return_offsets_mapping=True)
    assert left.offset_mapping[0] == [(0, 0), (0, 0), (0, 1), (0, 1)]
    with pytest.raises(ValueError, match="return_offsets_mapping"):
        tokenizer([1, 2], return_offsets_mapping=True)


def test_streaming(tokenizer, capsys):
    text = "héllo wörld 日本 👍\nend"
    streamer = TextStreamer(tokenizer, skip_special_tokens=True)
    for token in tokenizer(text).input_ids:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert capsys.readouterr().out == text + "\n"


def test_copies_and_pickles(tokenizer):
    tokenizer.add_tokens(["word"])
    for clone in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert clone.encode("a word<eos>") == tokenizer.encode("a word<eos>")


def test_saved_and_loaded_without_latentlm(tmp_path, run_without_latentlm):
    ByteTokenizer.register_for_auto_class()
    tokenizer = ByteTokenizer(
        add_bos_token=False, model_max_length=123, padding_side="left", extra_special_tokens=["<mask>"]
    )
    tokenizer.add_eos_token = True  # changed after construction: saved too
    tokenizer.add_tokens(["word"])
    tokenizer.pad_token = "<eos>"
    tokenizer.save_pretrained(tmp_path / "first")
    again = ByteTokenizer.from_pretrained(tmp_path / "first")
    texts = ["a word<mask>é", "日本<eos>"]
    expected = tokenizer(texts, padding=True).input_ids
    assert again(texts, padding=True).input_ids == expected
    assert again.get_vocab() == tokenizer.get_vocab()
    again.save_pretrained(tmp_path / "second")
    script = f"""
import json
from transformers import AutoTokenizer
for folder in sys.argv[1:]:
    t = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    ids = t({texts!r}, padding=True).input_ids
    options = [t.model_max_length, t.padding_side, len(t), t.add_bos_token, t.add_eos_token, t.pad_token]
    print(json.dumps([type(t).__name__, ids, *options]))
"""
    output = run_without_latentlm(script, tmp_path / "first", tmp_path / "second")
    for line in output.splitlines()[-2:]:
        assert json.loads(line) == ["ByteTokenizer", expected, 123, "left", 261, False, True, "<eos>"]


def test_options_can_be_given_when_loading(tmp_path):
    ByteTokenizer().save_pretrained(tmp_path)
    assert ByteTokenizer.from_pretrained(tmp_path).encode("a") == [BOS, 97]
    assert ByteTokenizer.from_pretrained(tmp_path, add_bos_token=False).encode("a") == [97]
    loaded = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)
    assert loaded.encode("a") == [BOS, 97]
