"""What every tokenizer of the package keeps: words and characters of encodings, added tokens, threads, stop strings."""

import copy
import json
import pickle
import random
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import each_causal_architecture
from conftest import REPOSITORY
from datasets.fingerprint import Hasher
from transformers import AddedToken, AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, LogitsProcessorList

from latentlm import EncodzallTokenizer, FSQTokenizer, FSQTokenizerFast
from latentlm.data.tokenizers import token_bytes, tokenizer_fingerprint
from latentlm.models.tokenization_byte import ByteTokenizer

HUB_CONFIGS = REPOSITORY / "hub_configs"
FSQ = HUB_CONFIGS / "fsq-tokenizer-tiny"
MAKERS: dict[str, Callable[[], Any]] = {
    "byte": ByteTokenizer,
    "encodzall": EncodzallTokenizer,
    "fsq": lambda: FSQTokenizer.from_pretrained(FSQ),
    "fsq_neural": lambda: FSQTokenizer.from_pretrained(FSQ, mode="neural"),
    "fsq_fast": lambda: FSQTokenizerFast.from_pretrained(FSQ),
}
each_tokenizer = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
TEXTS = ["Zoë reads 日本語, <eos> and\r\n don't stop 😀 ", "", "  x", "the documentation of Python"]
WORDS = [["The", "naïve", "king", "of", "日本"], ["the"], ["two ", "own", "\nspaces", "", "<eos>", "end"]]


# --- words and characters ---------------------------------------------------------------------------------------------


def known(encoding: Any) -> dict[str, Any]:
    """All that an encoding says of its tokens. Where an empty text would be does not matter."""
    fields = json.loads(encoding.__getstate__())
    ranges = fields["sequence_ranges"]
    fields["sequence_ranges"] = {name: span for name, span in ranges.items() if span["start"] < span["end"]}
    return {name: fields[name] for name in fields if name not in ("type_ids", "overflowing")}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_special_tokens": False},
        {"text_pair": ["é the", "b", "", "of this"]},
        {"truncation": True, "max_length": 6},
        {"truncation": "only_second", "max_length": 50, "text_pair": ["one the " * 30] * 4},
        {"padding": True},
        {"padding": "max_length", "max_length": 70, "padding_side": "left"},
        {"split_special_tokens": True, "pad_to_multiple_of": 8, "padding": True},
    ],
    ids=str,
)
def test_encodings_in_python_are_those_of_the_fast_tokenizer(options):
    slow, fast = MAKERS["fsq"](), MAKERS["fsq_fast"]()
    for inputs, more in ((TEXTS, {}), (WORDS, {"is_split_into_words": True})):
        options = dict(options)
        if more and "text_pair" in options:
            options["text_pair"] = [["é", "the"] * 30, ["of", "Python"] * 30, ["b"] * 60]
        found, expected = (kind(inputs, return_offsets_mapping=True, **options, **more) for kind in (slow, fast))
        assert dict(found) == dict(expected)
        assert [known(encoding) for encoding in found.encodings] == [known(row) for row in expected.encodings]
        assert found.n_sequences == expected.n_sequences
        for kind in (slow, fast):  # offsets are kept also where they are not asked for
            asked = kind(inputs, return_offsets_mapping=True, **options, **more)["offset_mapping"]
            assert [row.offsets for row in kind(inputs, **options, **more).encodings] == asked
    cut = {"truncation": True, "max_length": 20}
    for other in (lambda kind: kind(("é", "the"), is_split_into_words=True, **cut), lambda kind: kind("a", "b", **cut)):
        assert [known(row) for row in other(slow).encodings] == [known(row) for row in other(fast).encodings]


@each_tokenizer
def test_given_words_stay_apart(make):
    tokenizer = make()
    for words, text in zip(WORDS, ["The naïve king of 日本", "the", "two own\nspaces <eos> end"], strict=True):
        encoded = tokenizer(words, is_split_into_words=True, return_offsets_mapping=True)
        ids = [i for i, word in zip(encoded.input_ids, encoded.word_ids(), strict=True) if word is not None]
        assert tokenizer.decode(ids) == text
        found = {index: set() for index, word in enumerate(words) if word}
        for word, (start, end) in zip(encoded.word_ids(), encoded["offset_mapping"], strict=True):
            if word is None:
                assert (start, end) == (0, 0)
            else:
                assert 0 <= start <= end <= len(words[word])
                found[word].update(range(start, end))
        assert found == {index: set(range(len(words[index]))) for index in found}
    batch = tokenizer(WORDS, is_split_into_words=True)
    assert batch.input_ids == [tokenizer(words, is_split_into_words=True).input_ids for words in WORDS]
    pair = tokenizer((["a", "bé"]), ["c", "d"], is_split_into_words=True)
    spelled = {}
    for index, word, sequence in zip(pair.input_ids, pair.word_ids(), pair.sequence_ids(), strict=True):
        spelled.setdefault((sequence, word), []).append(index)
    spelled.pop((None, None), None)  # <bos>, <eos>
    assert {place: tokenizer.decode(ids).strip() for place, ids in spelled.items()} == {
        (0, 0): "a", (0, 1): "bé", (1, 0): "c", (1, 1): "d"
    }  # fmt: skip


def test_words_of_encodzall_are_those_of_the_model():
    """A given word begins where one of the model's does; the space after it belongs to both."""
    tokenizer = EncodzallTokenizer()
    words = ["The", "naïve", "king", "of", "日本"]
    encoded = tokenizer(words, is_split_into_words=True)
    assert encoded["word_ids"] == tokenizer(" ".join(words))["word_ids"]
    assert encoded.word_ids() == [*encoded["word_ids"][:-1], None]
    padded = tokenizer([words, ["a"]], is_split_into_words=True, padding=True, padding_side="left", return_tensors="pt")
    assert padded["word_ids"][1].tolist() == [-1] * (padded["input_ids"].shape[1] - 2) + [0, 1]
    assert padded.word_ids(1) == [None] * (padded["input_ids"].shape[1] - 2) + [0, None]
    parts = tokenizer(["well-", "known", "extraordinarily-long-words"], is_split_into_words=True)
    assert max(parts["word_ids"]) == 4  # of three words the last is cut in two, and the end
    assert max(word for word in parts.word_ids() if word is not None) == 2
    assert tokenizer("two words").word_ids() == [0] * 4 + [1] * 5 + [None]


@each_tokenizer
def test_characters_and_tokens_find_each_other(make):
    tokenizer = make()
    texts = ["naïve <eos> 日本語", "b"]
    batch = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
    for encoded in (batch, pickle.loads(pickle.dumps(batch)), copy.deepcopy(batch), batch.to("cpu")):
        assert len(encoded.encodings) == 2
        for row, text in enumerate(texts):
            assert encoded.tokens(row) == tokenizer.convert_ids_to_tokens(encoded["input_ids"][row])
            for place in range(len(text)):
                token = encoded.char_to_token(row, place)
                start, end = encoded.token_to_chars(row, token)
                assert start <= place < end
                word = encoded.char_to_word(row, place)
                assert word == encoded.token_to_word(row, token) == encoded.word_ids(row)[token]
                assert encoded.token_to_sequence(row, token) == 0
                first, last = encoded.word_to_tokens(row, word)
                assert first <= token < last
                assert encoded.word_to_chars(row, word)[0] <= place < encoded.word_to_chars(row, word)[1]
        assert encoded.sequence_ids(1)[0] is None and encoded.char_to_token(1, 1) is None
        assert encoded[0].special_tokens_mask == [int(word is None) for word in encoded.word_ids(0)]
    for single in (tokenizer(texts[0]), tokenizer(texts[0], return_tensors="pt")):
        assert len(single.encodings) == 1 and single.char_to_token(3) == single.encodings[0].char_to_token(3)
    changed = tokenizer("ab")
    changed.input_ids.append(7)  # as recipes do with the end of a text
    assert changed.char_to_token(1) == tokenizer("ab").char_to_token(1)
    assert tokenizer(texts, ["b", "b"]).n_sequences == 2 and batch.n_sequences == 1


def test_a_tokenizer_without_bos_frames_nothing():
    tokenizer = ByteTokenizer(add_eos_token=True)
    tokenizer.bos_token = None
    encoded = tokenizer("ab", "c", return_offsets_mapping=True)
    assert encoded.sequence_ids() == [0, 0, None, 1, None]
    assert encoded["offset_mapping"] == [(0, 1), (1, 2), (0, 0), (0, 1), (0, 0)]


def test_ids_have_no_characters():
    for tokenizer in (ByteTokenizer(), EncodzallTokenizer()):
        assert tokenizer([97, 98]).encodings is None
        with pytest.raises(ValueError, match="return_offsets_mapping needs text"):
            tokenizer([[97, 98]], return_offsets_mapping=True)
        with pytest.raises(ValueError, match="expected a string, a list of strings or a list of ids, got int"):
            tokenizer(97)
        with pytest.raises(ValueError, match="return_tensors must be None"):
            tokenizer("abc", truncation=True, max_length=2, return_overflowing_tokens=True, return_tensors="pt")


TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}A:{% generation %}{{ m['content'] }}{% endgeneration %}"
    "{% else %}U:{{ m['content'] }}{% endif %}\n{% endfor %}"
)


@each_tokenizer
@pytest.mark.parametrize("tensors", [None, "pt"])
def test_the_mask_of_what_an_assistant_says(make, tensors):
    tokenizer = make()
    chats = [
        [{"role": "user", "content": "héllo"}, {"role": "assistant", "content": said}, {"role": "user", "content": "é"}]
        for said in ("naïve 日本", "y<eos>")
    ]
    options = {"chat_template": TEMPLATE, "return_assistant_tokens_mask": True, "return_tensors": tensors}
    for given in (chats, chats[:1], chats[0]):
        found = tokenizer.apply_chat_template(given, padding=True, **options)
        ids, masks = (np.atleast_2d(found[name]) for name in ("input_ids", "assistant_masks"))
        said = [tokenizer.decode(row[mask == 1]) for row, mask in zip(ids, masks, strict=True)]
        assert said == ["naïve 日本", "y<eos>"][: 2 if given is chats else 1]


# --- added tokens -----------------------------------------------------------------------------------------------------

ADDED = ["é", "č", "café", "ß", "the", "New York", "日本", "<très>"]


@each_tokenizer
@pytest.mark.parametrize("special", [False, True])
def test_added_tokens_are_their_text(make, special, tmp_path):
    tokenizer = make()
    before = len(tokenizer)
    tokenizer.add_tokens(ADDED[:4], special_tokens=special)
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text in ADDED[4:]])
    tokenizer.save_pretrained(tmp_path / "one")
    loaded = type(tokenizer).from_pretrained(tmp_path / "one")
    loaded.save_pretrained(tmp_path / "two")
    others = [pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer), loaded]
    others.append(type(tokenizer).from_pretrained(tmp_path / "two"))
    text = "x é č café ß the New York 日本 <très> other 鿿 ÿ\r"  # what "é" is called in GPT-2's alphabet begins 鿿
    expected = tokenizer(text, add_special_tokens=False).input_ids
    for other in (tokenizer, *others):
        assert sorted(other.get_vocab().values()) == list(range(len(other)))
        assert other(text, add_special_tokens=False).input_ids == expected
        assert other.decode(expected) == text
        assert other.convert_tokens_to_string(other.tokenize(text)) == text
        assert other.convert_tokens_to_ids(other.convert_ids_to_tokens(expected)) == expected
        for added in ADDED:
            index = other.convert_tokens_to_ids(added)
            assert other.get_vocab()[added] == index and other.convert_ids_to_tokens(index) == added
            assert other.encode(added, add_special_tokens=False) == [index]
            assert other.decode([index], skip_special_tokens=True) == ("" if special else added)
            assert other.decode([0xE2, index, 0x82]) == f"\ufffd{added}\ufffd"  # between bytes of one character
            assert other.decode_bytes([0xE2, index], skip_special_tokens=False) == b"\xe2" + added.encode()
        plain = other(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert other.decode(plain, skip_special_tokens=True) == text
    assert len(tokenizer) - before == len(ADDED) - (not special and "the" in make().get_vocab())
    assert token_bytes(tokenizer)[0xE9] == 1


@each_tokenizer
def test_a_token_cannot_be_called_as_bytes_are(make):
    tokenizer = make()
    with pytest.raises(ValueError, match="'<0x41>' cannot be added: its text is how bytes are called"):
        tokenizer.add_tokens(["<0x41>"])
    assert tokenizer.decode(tokenizer.encode("<0x41>", add_special_tokens=False)) == "<0x41>"


@each_tokenizer
def test_names_and_texts_join_to_a_string(make):
    """Pipelines hand over words that they have joined before."""
    tokenizer = make()
    tokens = tokenizer.tokenize("日本 <eos>")
    assert tokenizer.convert_tokens_to_string(["naïve words ", *tokens, " more"]) == "naïve words 日本 <eos> more"


@each_tokenizer
def test_negative_ids_are_refused(make):
    tokenizer = make()
    for ids in ([104, -100], np.array([104, -100]), torch.tensor([104, -100]), -100, (-1,)):
        for convert in (tokenizer.decode, tokenizer.convert_ids_to_tokens):
            with pytest.raises(ValueError, match="must not be negative, got -1"):
                convert(ids)
    for refused in (tokenizer.batch_decode, tokenizer.decode):
        with pytest.raises(ValueError, match="must not be negative, got -100"):
            refused([[104], [104, -100]])
    with pytest.raises(ValueError, match="must not be negative, got -100"):
        tokenizer.decode_bytes([104, -100])
    assert tokenizer.convert_ids_to_tokens(len(tokenizer) + 5) == ""


# --- nothing is kept from call to call --------------------------------------------------------------------------------


@pytest.fixture
def switching():
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@each_tokenizer
def test_threads_get_what_one_thread_gets(make, switching):
    generator = random.Random(0)
    words = ["alpha", "be", "gamma delta", "naïve", "日本", "the<eos>"]
    texts = [" ".join(generator.choices(words, k=generator.randrange(10, 80))) for _ in range(200)]

    def encode(tokenizer: Any, text: str) -> tuple[dict, list]:
        options = {"split_special_tokens": len(text) % 3 == 0, "max_length": 20 + len(text) % 50}
        padding = "max_length" if len(text) % 2 else False
        encoded = tokenizer(text, truncation=True, padding=padding, return_offsets_mapping=True, **options)
        return dict(encoded), encoded.word_ids()

    alone = make()
    expected = [encode(alone, text) for text in texts]
    shared = make()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: encode(shared, text), texts * 2))
    assert found == expected * 2


@each_tokenizer
def test_use_leaves_the_fingerprint_alone(make, tmp_path):
    tokenizer = make()
    before, own = Hasher.hash(tokenizer), tokenizer_fingerprint(tokenizer)
    assert before == Hasher.hash(make())
    encoded = tokenizer(TEXTS, padding=True, truncation=True, max_length=9, return_offsets_mapping=True)
    encoded.word_ids(1)
    tokenizer(WORDS[0], is_split_into_words=True, split_special_tokens=True)
    tokenizer.decode(tokenizer.encode_bytes(b"caf\xc3\xa9 \xff"))
    tokenizer.decode_bytes([97, 98])
    tokenizer.get_vocab()
    if isinstance(tokenizer, (FSQTokenizer, FSQTokenizerFast)):
        tokenizer.autoencoder, tokenizer.codes, tokenizer.piece_table()
    tokenizer.save_pretrained(tmp_path)
    assert Hasher.hash(tokenizer) == before and tokenizer_fingerprint(tokenizer) == own


# --- stop strings -----------------------------------------------------------------------------------------------------


class Script:
    """Makes a model write given ids."""

    def __init__(self, ids: list[int], start: int):
        self.ids, self.start = ids, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -1e9)
        forced[:, self.ids[input_ids.shape[1] - self.start]] = 0
        return forced


def assert_stops(model: Any, tokenizer: Any, start: int | None = None) -> None:
    cases = [
        ("un café END", ["END", "é"], "un café"),
        ("un café noir", ["é"], "un café"),
        ("one END two", ["é", "END"], "one END"),
        ("你好。再见", ["。"], "你好。"),
        ("no stop", ["日"], "no stop"),
    ]
    for text, stops, expected in cases:
        inputs = tokenizer("The", return_tensors="pt")
        begin = inputs["input_ids"].shape[1] if start is None else start
        ids = tokenizer(text, add_special_tokens=False).input_ids
        script = LogitsProcessorList([Script(ids, begin)])
        options = {"max_new_tokens": len(ids), "do_sample": False, "eos_token_id": None}
        found = model.generate(**inputs, **options, stop_strings=stops, tokenizer=tokenizer, logits_processor=script)
        assert tokenizer.decode(found[0, begin:]) == expected


@each_causal_architecture
def test_generation_stops_at_strings(architecture):
    folder = HUB_CONFIGS / architecture.tiny
    model = architecture.auto_class.from_config(AutoConfig.from_pretrained(folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert_stops(model, tokenizer)
    if isinstance(tokenizer, FSQTokenizerFast):
        assert_stops(model, FSQTokenizer.from_pretrained(folder))


def test_encodzall_stops_at_strings():
    folder = HUB_CONFIGS / "encodzall-tiny"
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.from_pretrained(folder)).eval()
    assert_stops(model, AutoTokenizer.from_pretrained(folder), start=1)


# --- published folders ------------------------------------------------------------------------------------------------

FOLDERS = sorted(path for path in HUB_CONFIGS.iterdir() if path.is_dir())
WITHOUT = {"fsq-tokenizer-original"}  # trained before the tokenizer is built


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_published_folder_has_its_tokenizer(folder: Path):
    """Or, where that is another's (GPT-2's), says so and gives no other."""
    config = AutoConfig.from_pretrained(folder)
    recipes = "".join(path.read_text(encoding="utf-8") for path in folder.glob("recipe*.yaml"))
    if folder.name in WITHOUT or "tokenizer: openai-community/gpt2" in recipes:
        with pytest.raises(OSError, match=f"{folder.name} holds no tokenizer"):
            AutoTokenizer.from_pretrained(folder)
        return
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert all(tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text for text in TEXTS)
    if config.model_type != "fsq_autoencoder":  # whose vocabulary are bytes
        assert len(tokenizer) <= config.vocab_size
        assert tokenizer.model_max_length == config.max_position_embeddings
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            assert getattr(tokenizer, name) == getattr(config, name)


def test_the_language_model_on_fsq_codes_has_the_published_tokenizer():
    for path in (HUB_CONFIGS / "fsq-tokenizer-tiny").iterdir():
        if path.name in ("tokenizer.json", "fsq_vocabulary.json", "fsq_autoencoder.safetensors"):
            assert (HUB_CONFIGS / "fsq-tiny" / path.name).read_bytes() == path.read_bytes()
