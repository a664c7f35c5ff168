"""`encode_stream`: the ids of the whole text, whatever its chunks, from a few undecided bytes."""

import random
from itertools import product

import numpy as np
import pytest
from test_fsq_tokenizer import TEXTS, Network, folder, neural_folder, slow, vocabulary  # noqa: F401  # fixtures

from latentlm import FSQTokenizer, FSQTokenizerFast
from latentlm.models.fsq_stream import LONG_STRETCH, Stream

PARTS = [
    *(" ", "  ", "'", "''", " '", ".'", ".", "a", "the", " the", "1", "\n", "\t", "\x00", "é", "日", "👩‍👧"),
    *("x" * 20, " " * 300, "ab" * 400, "." * 300, "7" * 300, "\n" * 290, "é" * 200, "documentation" * 30),
]


def cut(generator: random.Random, data, longest: int) -> list:
    """`data` in chunks of 0 to `longest` symbols."""
    chunks, position = [], 0
    while position < len(data):
        size = generator.randrange(longest + 1)
        chunks.append(data[position : position + size])
        position += size
    return chunks


def test_chunks_of_any_size_give_the_ids_of_the_whole(slow):  # noqa: F811
    generator = random.Random(0)
    for _ in range(200):
        text = "".join(generator.choices(PARTS, k=generator.randrange(30)))
        whole = slow.encode_bytes(text.encode())
        for data in (text, text.encode()):
            longest = generator.choice([1, 2, 3, 10, 400, 2000])
            assert list(slow.encode_stream(cut(generator, data, longest))) == whole


@pytest.mark.parametrize("boundary", ["words", "lines"])
def test_a_long_stretch_ends_where_the_whole_says(boundary):
    symbols = " '.a1\n"
    pieces = ["".join(pair).encode() for pair in product(symbols, repeat=2)]  # each would show a stretch too long
    table = vocabulary(boundary, pieces=pieces, codes=np.arange(256 + len(pieces)))
    tokenizer = FSQTokenizer.from_vocabulary(table)
    for run, tail in product(symbols, product(symbols, repeat=3)):
        text = (run * 300 + "".join(tail)).encode()
        whole = tokenizer.encode_bytes(text)
        for place in range(299, 304):
            assert list(tokenizer.encode_stream([text[:place], text[place:]])) == whole


def test_odd_texts_and_scalars_stream(slow, folder):  # noqa: F811
    fast = FSQTokenizerFast.from_pretrained(folder)
    scalars = [chr(code) for code in range(0, 0x110000, 37) if not 0xD800 <= code < 0xE000]
    texts = [*TEXTS, "".join(scalars), "\n".join(scalars[:3000]), "\ud800 lone \udfff"]
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        chunks = [data[start : start + 7] for start in range(0, len(data), 7)]
        ids = list(slow.encode_stream(chunks))
        assert ids == list(fast.encode_stream(chunks)) == list(slow.encode_stream(text))
        if text.isprintable():
            assert ids == fast(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert slow.decode_bytes(ids) == data
    assert list(slow.encode_stream([])) == []
    mixed = ["na", "ï".encode(), memoryview(b"ve"), " 日本"]
    assert list(slow.encode_stream(mixed)) == slow.encode_bytes("naïve 日本".encode())


@pytest.mark.slow
def test_every_scalar_streams(slow):  # noqa: F811
    data = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000).encode()
    assert list(slow.encode_stream(cut(random.Random(0), data, 1000))) == slow.encode_bytes(data)


def test_a_long_word_is_decided_before_its_end(slow):  # noqa: F811
    stream, kept, count = Stream(slow.segmenter), 0, 0
    for _ in range(200):
        count += len(stream.feed(b"thedocumentationinsidepython" * 4))
        kept = max(kept, len(stream.open.data) + len(stream.held))
    assert kept < 3 * LONG_STRETCH and count > 1000
    assert slow.decode_bytes(stream.finish())


def test_ids_come_before_the_end_of_the_stream(slow):  # noqa: F811
    seen = []

    def chunks():
        for index in range(40):
            seen.append(index)
            yield "a line of text\n" * 5

    next(slow.encode_stream(chunks()))
    assert len(seen) < 5


def test_neural_mode_streams(neural_folder):  # noqa: F811
    neural = FSQTokenizer.from_pretrained(neural_folder, mode="neural")
    neural.segmenter.autoencoder = Network(neural.vocabulary)
    text = "the documentation inside " + "ofthepieces" * 60 + " " * 300 + "x"
    ids = list(neural.encode_stream(text))
    assert ids == neural.encode_bytes(text.encode())


@pytest.mark.parametrize("chunks", [["é".encode()[:1]], [b"a", "👩".encode()[:3]], ["a", "日".encode()[:2]]])
def test_a_stream_that_ends_inside_a_character(chunks):
    tokenizer = FSQTokenizer.from_vocabulary(vocabulary())
    with pytest.raises(ValueError, match=r"stream ends inside a character.*encode_bytes"):
        list(tokenizer.encode_stream(chunks))


def test_what_is_no_text():
    tokenizer = FSQTokenizer.from_vocabulary(vocabulary())
    with pytest.raises(ValueError, match=r"byte 3 of the stream is not UTF-8.*encode_bytes"):
        list(tokenizer.encode_stream([b"abc", b"\xff"]))
    with pytest.raises(ValueError, match=r"byte 2 of the stream is not UTF-8"):
        list(tokenizer.encode_stream(["ab", "é".encode()[:1], "text"]))
    with pytest.raises(TypeError, match="a chunk of the stream is int, but must be str or bytes"):
        list(tokenizer.encode_stream(b"ab"))  # pyright: ignore[reportArgumentType]  # bytes are no chunks
