"""Choosing pieces: what a round counts, where pieces may lie, that they are the same every time and pay."""

import random
from collections import Counter
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from latentlm.data import pieces as module
from latentlm.data.pieces import Pieces, choose_pieces, load_pieces, save_pieces, segment
from latentlm.models.block_byte_pieces import BOUNDARIES, bytes_pattern, to_characters

SIZE = 600


@cache
def documents() -> tuple[str, ...]:
    """Documentation inside Python, with characters of two to four bytes among it."""
    from pydoc_data.topics import topics

    texts = [text for _, text in sorted(topics.items())[:4]]
    return *texts, "naïve Ελληνικά и日本語, 👩‍👩‍👧 𐎠𐎠\n" * 30


@cache
def chosen(boundary: str) -> Pieces:
    return choose_pieces(documents(), SIZE, boundary)


def stretches(boundary: str, texts: tuple[str, ...] | None = None) -> Counter[bytes]:
    data = [text.encode() for text in texts or documents()]
    return Counter(stretch for text in data for stretch in bytes_pattern(boundary).findall(text))


def slowly(stretch: bytes, pieces: set[bytes]) -> list[bytes]:
    """The fewest tokens; of several such segmentations the one whose last piece is longest, and so on to the front."""
    best = [(0, 0)]  # for each end: tokens up to there, start of the last one
    for end in range(1, len(stretch) + 1):
        starts = [s for s in range(max(0, end - 16), end) if end - s == 1 or stretch[s:end] in pieces]
        best.append(min((best[s][0] + 1, s) for s in starts))
    tokens = []
    end = len(stretch)
    while end:
        start = best[end][1]
        tokens.insert(0, stretch[start:end])
        end = start
    return tokens


def count_slowly(counted: Counter[bytes], pieces: list[bytes]) -> tuple[Counter[bytes], Counter[bytes]]:
    """Uses of tokens, and of the strings that two neighbouring tokens spell."""
    uses, joins = Counter(), Counter()
    known = set(pieces)
    for stretch, number in counted.items():
        tokens = slowly(stretch, known)
        for token in tokens:
            uses[token] += number
        for left, right in pairwise(tokens):
            joins[left + right] += number
    return uses, joins


def is_whole(piece: bytes) -> bool:
    return piece.decode(errors="replace").encode() == piece


def number_of_tokens(pieces: Pieces) -> int:
    return int(pieces.counts.sum() + pieces.byte_counts.sum())


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_round_counts_what_the_slow_program_counts(boundary):
    counted = stretches(boundary)
    pieces = chosen(boundary).pieces[::2]
    uses, joins = segment(pieces, list(map(to_characters, counted)), np.array(list(counted.values()), dtype=float))
    expected, together = count_slowly(counted, pieces)
    assert {token: expected[token] for token in pieces} == dict(zip(pieces, uses[256:].tolist(), strict=True))
    assert [expected[bytes([byte])] for byte in range(256)] == uses[:256].tolist()
    possible = {joined: number for joined, number in together.items() if len(joined) <= 16 and is_whole(joined)}
    assert len(possible) < len(together)  # some are too long or no whole characters
    assert joins == possible


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_the_counts_are_those_of_the_final_vocabulary(boundary):
    result = chosen(boundary)
    uses, _ = count_slowly(stretches(boundary), result.pieces)
    assert result.counts.tolist() == [uses[piece] for piece in result.pieces]
    assert result.byte_counts.tolist() == [uses[bytes([byte])] for byte in range(256)]
    assert result.counts.dtype == result.byte_counts.dtype == np.int64


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_size_order_and_lengths(boundary):
    result = chosen(boundary)
    assert result.boundary == boundary
    assert len(result.pieces) == len(set(result.pieces)) == len(result.counts) == SIZE - 260
    assert {len(piece) for piece in result.pieces} <= set(range(2, 17))
    order = list(zip((-result.counts).tolist(), result.pieces, strict=True))
    assert order == sorted(order)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_pieces_are_whole_characters_inside_one_stretch(boundary):
    counted = stretches(boundary)
    pieces = chosen(boundary).pieces
    assert all(map(is_whole, pieces))
    assert all(any(piece in stretch for stretch in counted) for piece in pieces)
    across = [piece for piece in pieces if b" " in piece.strip(b" ")]
    assert bool(across) == (boundary == "lines")


def test_the_order_of_documents_does_not_matter():
    """Where strings are equally frequent, only the order of their bytes is left to choose by."""
    characters = list("éèêëìíîïðñòóôõ") * 2
    joined = [f" {a}{b} {c}" for a in "abcdef" for b in "ghijk" for c in characters]
    for texts, size in ((characters, 266), (joined, 300)):
        for boundary in BOUNDARIES:
            first = choose_pieces(texts, size, boundary)
            for seed in range(3):
                again = choose_pieces(iter(random.Random(seed).sample(texts, len(texts))), size, boundary)
                assert again.pieces == first.pieces
                assert again.counts.tolist() == first.counts.tolist()


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_fewer_tokens_than_with_the_most_frequent_strings(boundary):
    counted = stretches(boundary)
    found: Counter[bytes] = Counter()
    for stretch, number in counted.items():
        for length in range(2, 17):
            for start in range(len(stretch) - length + 1):
                found[stretch[start : start + length]] += number
    best = min(
        sum(count_slowly(counted, sorted(found, key=key)[: SIZE - 260])[0].values())
        for key in (lambda s: (-found[s], s), lambda s: (-found[s] * (len(s) - 1), s))
    )
    assert number_of_tokens(chosen(boundary)) < 0.95 * best


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_exchanging_pieces_saves_tokens(boundary, monkeypatch):
    monkeypatch.setattr(module, "EXCHANGED", [0.0] * len(module.EXCHANGED))
    assert number_of_tokens(chosen(boundary)) < 0.97 * number_of_tokens(choose_pieces(documents(), SIZE, boundary))


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_forbidden_strings_do_not_become_pieces(boundary):
    forbidden = set(chosen(boundary).pieces[:20])
    result = choose_pieces(documents(), SIZE, boundary, forbidden)
    assert len(result.pieces) == SIZE - 260
    assert not forbidden & set(result.pieces)
    character = "ï".encode()
    assert character in choose_pieces(["naïve"] * 2, 261, boundary).pieces
    assert character not in choose_pieces(["naïve"] * 2, 261, boundary, [character]).pieces


def test_no_piece_at_all_is_a_vocabulary_too():
    result = choose_pieces(["ab", "b"], 260)
    assert result.pieces == [] and result.counts.shape == (0,)
    assert result.byte_counts[[97, 98]].tolist() == [1, 2] and result.byte_counts.sum() == 3
    assert choose_pieces([], 260).byte_counts.sum() == 0


def test_errors_name_the_field_the_value_and_what_would_be_right():
    with pytest.raises(ValueError, match=r"vocab_size: 259 .*260"):
        choose_pieces(["text"], 259)
    with pytest.raises(ValueError, match=r"boundary: 'word' .*words, lines"):
        choose_pieces(["text"], 300, "word")
    for boundary in BOUNDARIES:
        with pytest.raises(ValueError, match=r"vocab_size: 290 .*at most \d+, ") as error:
            choose_pieces(["abc abc"], 290, boundary)
        most = int(str(error.value).split("at most ")[1].split(",")[0])
        assert len(choose_pieces(["abc abc"], most, boundary).pieces) == most - 260
        with pytest.raises(ValueError, match=f"at most {most},"):
            choose_pieces(["abc abc"], most + 1, boundary)


def test_saved_and_loaded(tmp_path):
    path = tmp_path / "pieces.json"
    save_pieces(chosen("lines"), path)
    loaded = load_pieces(path)
    assert (loaded.boundary, loaded.pieces) == ("lines", chosen("lines").pieces)
    for name in ("counts", "byte_counts"):
        mine, other = getattr(chosen("lines"), name), getattr(loaded, name)
        assert mine.dtype == other.dtype and mine.tolist() == other.tolist()
    text = path.read_text(encoding="utf-8")
    for damage in (
        "",
        text[:100],
        text.replace('"counts": [', '"counts": [1, '),
        text.replace('"pieces": ["', '"pieces": [" '),
    ):
        path.write_text(damage, encoding="utf-8")
        with pytest.raises(ValueError, match=r"pieces\.json .*choose them anew"):
            load_pieces(path)
