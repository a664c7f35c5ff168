"""`FSQTokenizer` and `FSQTokenizerFast`: nothing lost, the same ids, the fewest tokens, conventions of transformers."""

import copy
import dataclasses
import json
import os
import pickle
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import save
from test_fsq import small
from transformers import TextStreamer

from latentlm import FSQTokenizer, FSQTokenizerFast
from latentlm.models.block_byte_pieces import byte_characters, bytes_pattern, from_characters, to_characters
from latentlm.models.configuration_fsq import own_fields
from latentlm.models.fsq_vocabulary import AUTOENCODER_FILE, VOCABULARY_FILE, FSQVocabulary

SIZE = 1500
PAD, BOS, EOS, MASK = range(SIZE - 4, SIZE)
TEXTS = [
    "",
    "hello the world",
    " two  spaces , and 'quotes' don't\tnaïve",
    "\x00\r\n\t\x0b\x85\u00a0\u3000 x",
    "日本語テキスト, Ελληνικά, עברית",
    "👩‍👩‍👧 🇩🇪 e\u0301",
    "<eos> is written as <eos>, <bo s>",
    "def f(x):\n    return x_1 + 23.5  # note\n\n\n",
    "𐎠" * 5,
]


def common_pieces(boundary: str, count: int) -> list[bytes]:
    """Common substrings of the documentation inside Python, a few of which are no whole words."""
    from pydoc_data.topics import topics

    text = "".join(text for _, text in sorted(topics.items()))[:150_000] + "naïve Ελληνικά 日本語 " * 40
    found: Counter[bytes] = Counter()
    for stretch, uses in Counter(bytes_pattern(boundary).findall(text.encode())).items():
        for start in range(len(stretch)):
            for end in range(start + 2, min(start + 16, len(stretch)) + 1):
                found[stretch[start:end]] += uses * (end - start - 1)
    return [piece for piece, _ in sorted(found.items(), key=lambda item: (-item[1], item[0]))[:count]]


def vocabulary(boundary: str = "words", **changes) -> FSQVocabulary:
    fields = {
        "boundary": boundary,
        "levels": [8, 8, 8, 5],
        "pieces": common_pieces(boundary, SIZE - 260),
        "codes": np.random.default_rng(0).permutation(2560)[: SIZE - 4],
        "moved": [300],
        "inexact": [1, 400],
    }
    return FSQVocabulary(**fields | changes)


@pytest.fixture(scope="module", params=["words", "lines", "costs"])
def folder(request, tmp_path_factory) -> Path:
    """A repository saved by the fast tokenizer; of pieces inside words, across them, and inside with costs."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "costs":  # few different ones, so that many ways of cutting cost the same
        table = vocabulary(costs=np.random.default_rng(1).integers(1, 6, SIZE - 4).tolist())
    else:
        table = vocabulary(request.param)
    FSQTokenizerFast.from_vocabulary(table).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def slow(folder) -> FSQTokenizer:
    return FSQTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def fast(folder) -> FSQTokenizerFast:
    return FSQTokenizerFast.from_pretrained(folder)


@pytest.fixture(params=["slow", "fast"])
def tokenizer(request, slow, fast):
    return {"slow": slow, "fast": fast}[request.param]


# --- nothing is lost --------------------------------------------------------------------------------------------------


def assert_survives(slow, fast, text: str) -> None:
    """Through both classes, which give the same ids, the text read as text."""
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    ids = slow(text, **options).input_ids
    assert fast(text, **options).input_ids == ids
    assert slow.decode(ids) == fast.decode(ids) == text
    assert slow.decode_bytes(ids) == text.encode()
    assert all(0 <= index < SIZE - 4 for index in ids)


@pytest.mark.parametrize("text", TEXTS)
def test_texts_survive(slow, fast, text):
    assert_survives(slow, fast, text)


def assert_scalars_survive(slow, fast, step: int) -> None:
    scalars = [chr(code) for code in range(0, 0x110000, step) if not 0xD800 <= code < 0xE000]
    assert_survives(slow, fast, "\n".join(scalars))  # each a stretch of its own
    scalars = random.Random(0).sample(scalars, len(scalars) // 4)
    assert_survives(slow, fast, "".join(scalars))  # each beside others


def test_unicode_scalars_survive_alone_and_in_pairs(slow, fast):
    assert_scalars_survive(slow, fast, 11)
    ascii_pairs = "".join(chr(a) + chr(b) for a in range(128) for b in range(128))
    assert_survives(slow, fast, ascii_pairs)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["words"], indirect=True)
def test_every_unicode_scalar_survives(slow, fast):
    assert_scalars_survive(slow, fast, 1)


def test_random_bytes_survive(slow, fast):
    generator = random.Random(0)
    for _ in range(10_000):
        data = generator.randbytes(generator.randrange(40))
        ids = slow.encode_bytes(data)
        assert slow.decode_bytes(ids) == data
        assert fast.decode_bytes(ids) == data
    assert fast.encode_bytes(bytes(range(256))) == slow.encode_bytes(bytes(range(256)))
    assert slow.decode_bytes(torch.tensor([BOS, *ids, EOS, PAD])) == data
    assert fast.decode_bytes(np.array([BOS, *ids], dtype=np.uint16), skip_special_tokens=False) == b"<bos>" + data


def test_naughty_strings_and_all_languages_survive(slow, fast, shared_data):
    for path, field in (("blns/blns.jsonl", "text"), ("udhr/udhr_articles.jsonl", "text")):
        with open(shared_data / path, encoding="utf-8") as lines:
            texts = [json.loads(line)[field] for line in lines]
        for text in texts if path.startswith("blns") else texts[::9]:
            assert_survives(slow, fast, text)


def test_one_long_line_survives(slow, fast):
    text = "".join(random.Random(0).choices("ab c", k=1_000_000 if slow.vocabulary.boundary == "words" else 200_000))
    assert_survives(slow, fast, text)


def test_lone_surrogates(slow, fast):
    text = "\ud800 lone \udfff surrogates \ud83d\ude00"
    assert slow.decode(slow(text, add_special_tokens=False).input_ids) == text
    with pytest.raises((TypeError, UnicodeEncodeError)):
        fast(text)
    data = text.encode("utf-8", "surrogatepass")
    assert fast.decode_bytes(fast.encode_bytes(data)) == data


def test_special_tokens_in_a_text_are_tokens_or_text(tokenizer):
    text = "a<eos>b"
    assert EOS in tokenizer(text).input_ids
    ids = tokenizer(text, split_special_tokens=True).input_ids
    assert EOS not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


# --- the fewest tokens ------------------------------------------------------------------------------------------------


def fewest_tokens(stretch: bytes, ids: dict[bytes, int], costs: list[int] | None) -> list[int]:
    """Of all segmentations the shortest (the cheapest), of these the one with the longest last piece, and so on
    backwards."""

    def cost(option: list[bytes]) -> int:
        return len(option) if costs is None else sum(costs[ids[piece]] for piece in option)

    best: list[list[bytes]] = [[]]
    for end in range(1, len(stretch) + 1):
        options = [
            [*best[start], stretch[start:end]] for start in range(max(0, end - 16), end) if stretch[start:end] in ids
        ]
        least = min(map(cost, options))
        best.append(max((option for option in options if cost(option) == least), key=lambda option: len(option[-1])))
    return [ids[piece] for piece in best[-1]]


def test_segmentation_is_the_shortest_with_the_longest_last_piece(slow, fast):
    ids = {spelling: index for index, spelling in enumerate(slow.vocabulary.spellings)}
    generator = random.Random(0)
    for _ in range(300):
        pieces = generator.choices(slow.vocabulary.pieces, k=3)
        text = b"".join(piece[generator.randrange(len(piece)) :] for piece in pieces).decode("utf-8", "ignore")
        stretches = slow.segmenter.pattern.findall(text.encode())
        expected = [index for stretch in stretches for index in fewest_tokens(stretch, ids, slow.vocabulary.costs)]
        assert slow.encode_bytes(text.encode()) == expected
        assert fast(text, add_special_tokens=False, split_special_tokens=True).input_ids == expected


def test_pieces_do_not_cross_their_boundary(folder, slow):
    text = b"one two\nthree four"
    spelled = [slow.decode_bytes([index]) for index in slow.encode_bytes(text)]
    if slow.vocabulary.boundary == "words":
        assert all(b" " not in piece[1:] for piece in spelled)
    assert all(b"\n" not in piece[:-1] for piece in spelled)
    assert b"".join(slow.segmenter.pattern.findall(bytes(range(256)))) == bytes(range(256))


def test_the_cache_changes_nothing(folder, slow):
    text = "".join(TEXTS) * 3
    for size in (0, 2):
        other = FSQTokenizer.from_pretrained(folder, cache_size=size)
        assert other(text).input_ids == slow(text).input_ids


# --- conventions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_special_tokens": False},
        {"split_special_tokens": True},
        {"return_offsets_mapping": True, "return_special_tokens_mask": True},
        {"text_pair": ["b the", "", "é"] * 3},
        {"truncation": True, "max_length": 4},
        {"padding": True},
        {"padding": "max_length", "max_length": 64, "return_offsets_mapping": True},
        {"padding": True, "pad_to_multiple_of": 8, "padding_side": "left"},
        {"return_token_type_ids": True},
    ],
    ids=str,
)
def test_slow_and_fast_agree_on_everything(slow, fast, options):
    found, expected = slow(TEXTS, **options), fast(TEXTS, **options)
    assert dict(found) == dict(expected)


def test_overflow_keeps_every_token(slow, fast):
    text = TEXTS[2] * 3
    ids = slow(text, add_special_tokens=False).input_ids
    options = {"truncation": True, "max_length": 8, "stride": 2, "return_overflowing_tokens": True}
    windows = fast(text, **options)
    assert [row[1:] for row in windows.input_ids] == [
        ids[start : start + 7] for start in range(0, len(ids) - 2, 5)
    ]  # after <bos>; each begins with the last two of the one before
    cut = slow(text, **options)
    assert cut.input_ids[1:] == ids[:7] and cut["overflowing_tokens"] == ids[5:]


def test_offsets_cover_the_text_and_share_its_characters(tokenizer):
    text = TEXTS[2] + TEXTS[4] + TEXTS[5]
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    for index, (start, end) in zip(found.input_ids, found.offset_mapping, strict=True):
        spelled = tokenizer.decode_bytes([index])
        assert spelled in text[start:end].encode()
        if text[start:end].isascii():
            assert text[start:end].encode() == spelled
    assert found.offset_mapping[0][0] == 0 and found.offset_mapping[-1][1] == len(text)


def test_ids_and_names(tokenizer):
    assert len(tokenizer) == len(tokenizer.get_vocab()) == SIZE
    assert sorted(tokenizer.get_vocab().values()) == list(range(SIZE))
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (PAD, BOS, EOS)
    assert tokenizer.mask_token_id == MASK and tokenizer.unk_token is None
    assert tokenizer.all_special_ids == [BOS, EOS, PAD, MASK]
    tokens = tokenizer.tokenize(" the naïve")
    assert tokenizer.convert_tokens_to_string(tokens) == " the naïve"
    assert tokenizer.convert_ids_to_tokens(tokenizer.convert_tokens_to_ids(tokens)) == tokens
    assert tokenizer("")["input_ids"] == [BOS]  # no all-zero row of the mask
    assert tokenizer.decode(tokenizer(" the").input_ids, skip_special_tokens=False) == "<bos> the"


def test_codes_and_spellings_of_every_id(tokenizer):
    codes = tokenizer.codes
    assert codes.shape == (SIZE,) and codes.dtype == np.int64
    assert (codes[-4:] == -1).all() and len(set(codes[:-4].tolist())) == SIZE - 4
    chunks, lengths = tokenizer.piece_table()
    assert chunks.shape == (SIZE, 16) and chunks.dtype == np.uint8
    for index in (0, 255, 256, 700, SIZE - 5):
        assert bytes(chunks[index, : lengths[index]]) == tokenizer.decode_bytes([index])
    assert not lengths[-4:].any()


def test_ids_out_of_range(slow, tokenizer):
    with pytest.raises(ValueError, match="-100"):
        tokenizer.decode_bytes([97, -100])
    assert tokenizer.decode_bytes([97, SIZE + 7, 98]) == b"ab"
    assert slow.decode([97, SIZE + 7, 98]) == "ab"


def test_incomplete_characters_while_streaming(tokenizer, capsys):
    ids = list("aé€😀".encode())
    assert tokenizer.decode(ids[:2]) == "a\ufffd"
    streamer = TextStreamer(tokenizer)
    for index in ids:
        streamer.put(torch.tensor([index]))
    streamer.end()
    assert capsys.readouterr().out == "aé€😀\n"


def test_framing_is_saved(folder, tmp_path):
    for kind in (FSQTokenizer, FSQTokenizerFast):
        framed = kind.from_pretrained(folder, add_bos_token=False, add_eos_token=True)
        framed.save_pretrained(tmp_path / kind.__name__)
        again = kind.from_pretrained(tmp_path / kind.__name__)
        assert again("").input_ids == framed("").input_ids == [EOS]
    slow_of_fast = FSQTokenizer.from_pretrained(tmp_path / "FSQTokenizerFast")
    assert slow_of_fast("").input_ids == [EOS]


def test_chat_templates_work(tokenizer):
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
    found = tokenizer.apply_chat_template(
        [{"role": "user", "content": "the text"}], chat_template=template, tokenize=True, return_dict=False
    )
    assert found[-1] == EOS
    assert tokenizer.decode(found, skip_special_tokens=True).endswith("user: the text")


# --- the same everywhere ----------------------------------------------------------------------------------------------


def test_batches_copies_and_tensors_change_nothing(tokenizer):
    expected = [tokenizer(text).input_ids for text in TEXTS]
    assert tokenizer(TEXTS).input_ids == expected
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other(TEXTS).input_ids == expected
    padded = tokenizer(TEXTS, padding=True, return_tensors="pt")
    for row, ids in zip(padded.input_ids, expected, strict=True):
        assert row[: len(ids)].tolist() == ids and (row[len(ids) :] == PAD).all()


def test_several_processes_of_datasets_change_nothing(tokenizer):
    rows = Dataset.from_dict({"text": TEXTS * 3})
    mapped = rows.map(lambda row: {"ids": tokenizer(row["text"]).input_ids}, num_proc=2)
    assert mapped["ids"][:] == [tokenizer(text).input_ids for text in TEXTS] * 3


@pytest.mark.parametrize("folder", ["costs"], indirect=True)
def test_threads_change_nothing(folder, slow):
    code = (
        "import sys, json\nfrom latentlm import FSQTokenizerFast\n"
        "tokenizer = FSQTokenizerFast.from_pretrained(sys.argv[1])\n"
        "print(json.dumps(tokenizer(json.loads(sys.argv[2])).input_ids))"
    )
    texts = [text.replace("\x00", "") for text in TEXTS]
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), json.dumps(texts)],
        env={**os.environ, "TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == slow(texts).input_ids


LOAD = """
import json
from transformers import AutoTokenizer

from transformers.dynamic_module_utils import get_class_from_dynamic_module

slow_class = get_class_from_dynamic_module("tokenization_fsq.FSQTokenizer", sys.argv[1])
for load in (lambda name: AutoTokenizer.from_pretrained(name, trust_remote_code=True), slow_class.from_pretrained):
    tokenizer = load(sys.argv[1])
    print(type(tokenizer).__name__, type(tokenizer).__module__.split(".")[0])
    texts = json.loads(sys.argv[2])
    print(json.dumps(tokenizer(texts).input_ids))
    print(json.dumps(tokenizer.codes.tolist()))
"""


def assert_loaded(printed: str, slow: FSQTokenizer, texts: list[str]) -> None:
    lines = printed.splitlines()
    assert [lines[0], lines[3]] == [f"{kind} transformers_modules" for kind in ("FSQTokenizerFast", "FSQTokenizer")]
    for first in (1, 4):
        assert json.loads(lines[first]) == slow(texts).input_ids
        assert json.loads(lines[first + 1]) == slow.codes.tolist()


@pytest.mark.parametrize("folder", ["costs"], indirect=True)
def test_a_process_without_latentlm_loads_both(folder, slow, run_without_latentlm):
    texts = [text.replace("\x00", "") for text in TEXTS]
    assert_loaded(run_without_latentlm(LOAD, folder, json.dumps(texts)), slow, texts)


def test_a_process_without_latentlm_loads_both_over_http(mini_hub, run_without_latentlm):
    target = mini_hub.root / "org" / "tokenizer"
    FSQTokenizerFast.from_vocabulary(vocabulary()).save_pretrained(target)
    slow = FSQTokenizer.from_pretrained(target)
    printed = run_without_latentlm(LOAD, "org/tokenizer", json.dumps(TEXTS[1:3]), env=mini_hub.environment)
    assert_loaded(printed, slow, TEXTS[1:3])


def test_the_slow_tokenizer_alone_saves_and_loads(slow, tmp_path):
    slow.save_pretrained(tmp_path)
    again = FSQTokenizer.from_pretrained(tmp_path)
    assert again(TEXTS).input_ids == slow(TEXTS).input_ids


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def neural_folder(tmp_path_factory) -> Path:
    """A tokenizer with a network whose codes are in the table, wherever they do not collide."""
    folder = tmp_path_factory.mktemp("neural")
    network = small(levels=[8, 8, 8, 5], max_chunk_bytes=16)
    table = vocabulary(autoencoder=own_fields(network.config), weights=save(network.state_dict()))
    FSQTokenizerFast.from_vocabulary(table).save_pretrained(folder)
    return folder


class Network:
    """In place of the autoencoder: knows the table, but gets every third piece wrong, one way or the other."""

    def __init__(self, table: FSQVocabulary):
        self.table = table
        self.ids = {spelling: index for index, spelling in enumerate(table.spellings)}
        self.calls = 0

    def encode(self, chunks: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        spelled = [bytes(row[:n].tolist()) for row, n in zip(chunks, lengths.tolist(), strict=True)]
        ids = [self.ids[piece] for piece in spelled]
        return torch.tensor([-5 if index % 6 == 0 else int(self.table.codes[index]) for index in ids])

    def decode(self, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        by_code = dict(zip(self.table.codes.tolist(), self.table.spellings, strict=True))
        spelled = [by_code.get(code, b"?") for code in codes.tolist()]
        spelled = [b"wrong" if self.ids.get(piece, 0) % 6 == 3 else piece for piece in spelled]
        rows = [list(piece.ljust(16, b"\0")) for piece in spelled]
        return torch.tensor(rows, dtype=torch.uint8), torch.tensor([len(piece) for piece in spelled])


def test_neural_mode_uses_only_what_the_network_gets_right(neural_folder):
    table = FSQTokenizer.from_pretrained(neural_folder)
    neural = FSQTokenizer.from_pretrained(neural_folder, mode="neural")
    network = Network(table.vocabulary)
    neural.segmenter.autoencoder = network
    text = "".join(TEXTS[1:]) + "the documentation inside Python is what these pieces are from"
    ids = neural(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert neural.decode(ids) == text
    assert network.calls == 1  # all candidates in one batch
    right = {index for index in range(SIZE - 4) if index < 256 or index % 3}
    assert set(ids) <= right
    usable = {piece: index for piece, index in network.ids.items() if index in right}
    stretches = table.segmenter.pattern.findall(text.encode())
    assert ids == [index for stretch in stretches for index in fewest_tokens(stretch, usable, None)]
    assert ids != table(text, add_special_tokens=False, split_special_tokens=True).input_ids
    neural(text)
    assert network.calls == 1  # what was tried is remembered


def test_neural_mode_with_the_real_network_is_lossless(neural_folder):
    neural = FSQTokenizer.from_pretrained(neural_folder, mode="neural")
    for text in TEXTS:
        assert neural.decode(neural(text, split_special_tokens=True).input_ids, skip_special_tokens=True) == text
    assert not neural.autoencoder.training


def test_the_network_travels_with_the_tokenizer(neural_folder, tmp_path):
    FSQTokenizerFast.from_pretrained(neural_folder).save_pretrained(tmp_path)
    again = FSQTokenizer.from_pretrained(tmp_path)
    expected = FSQTokenizer.from_pretrained(neural_folder).autoencoder.state_dict()
    for name, tensor in again.autoencoder.state_dict().items():
        assert torch.equal(tensor, expected[name])


# --- bad input --------------------------------------------------------------------------------------------------------


def changed(folder: Path, change) -> str:
    content = json.loads((folder / VOCABULARY_FILE).read_text())
    change(content)
    path = folder / "changed.json"
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize("kind", [FSQTokenizer, FSQTokenizerFast])
def test_damaged_files_say_what_is_wrong(neural_folder, tmp_path, kind):
    whole = (neural_folder / VOCABULARY_FILE).read_text()
    cut = tmp_path / "cut.json"
    cut.write_text(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.json is not a whole FSQ vocabulary.*build the tokenizer again"):
        kind(vocab_file=str(cut))
    with pytest.raises(ValueError, match="does not match its sha256"):
        kind(vocab_file=changed(neural_folder, lambda content: content["codes"].reverse()))
    weights = tmp_path / AUTOENCODER_FILE
    weights.write_bytes((neural_folder / AUTOENCODER_FILE).read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(ValueError, match="holds another encoder than the one of the table"):
        kind(vocab_file=str(neural_folder / VOCABULARY_FILE), autoencoder_file=str(weights))
    with pytest.raises(ValueError, match="eos_token 'the' is also a piece"):
        kind(vocab_file=str(neural_folder / VOCABULARY_FILE), eos_token="the")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boundary": "letters"}, "boundary is 'letters', but must be one of words, lines"),
        ({"costs": [1] * 9}, f"a cost of at least 1 for each of {SIZE - 4}"),
        ({"costs": [0] * (SIZE - 4)}, "a cost of at least 1"),
        ({"levels": [8, 8, 8, 1]}, "levels are .* at least 2"),
        ({"codes": np.zeros(SIZE - 4, dtype=np.int64)}, "codes are not distinct"),
        ({"codes": np.arange(9)}, f"there are 9 codes for {SIZE - 4}"),
        ({"codes": np.arange(SIZE - 4) + 1500}, "codes must lie between 0 and 2559"),
        ({"pieces": [b"ab", b"ab"]}, "pieces are not distinct"),
        ({"pieces": [b"a"]}, "piece b'a' has 1 bytes, but must have 2 to 16"),
        ({"pieces": [bytes(17)]}, "has 17 bytes"),
    ],
)
def test_impossible_tables_say_what_is_wrong(changes, message):
    table = vocabulary()
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(table, **changes)


def test_options_that_cannot_be(folder):
    with pytest.raises(ValueError, match="mode is 'fast'"):
        FSQTokenizer.from_pretrained(folder, mode="fast")
    with pytest.raises(ValueError, match="cache_size is -1"):
        FSQTokenizer.from_pretrained(folder, cache_size=-1)
    with pytest.raises(ValueError, match=AUTOENCODER_FILE):
        FSQTokenizer.from_pretrained(folder, mode="neural")


def test_the_byte_level_alphabet_is_that_of_tokenizers():
    from tokenizers.pre_tokenizers import ByteLevel

    assert sorted(byte_characters()) == sorted(ByteLevel.alphabet())
    data = bytes(range(256))
    assert from_characters(to_characters(data)) == data
    assert to_characters(" né".encode()) == "".join(ByteLevel(add_prefix_space=False).pre_tokenize_str(" né")[0][0])
    with pytest.raises(ValueError, match="byte-level alphabet"):
        from_characters("日")
