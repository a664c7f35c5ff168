"""Words of EncodZall against an obvious implementation, and their packing."""

import random

import pytest
import torch

from latentlm import EncodzallTokenizer
from latentlm.models.block_ragged import take
from latentlm.models.encodzall_packing import bucket, pack_spelling, pack_words
from latentlm.models.encodzall_words import character_starts, find_real_words, find_words, is_space

SPACES = {*b" \t\n\v\f\r"}
FRAME = (256, 257, 258)
PAD, EOS = 256, 258
MAX = 16


def words_slowly(ids: list[int], longest: int) -> list[list[int]]:
    """The definition, id by id."""
    words, word = [], []
    for id_, opens in zip(ids, opens_slowly(ids), strict=True):
        ended = word and word[-1][0] in SPACES and any(other not in SPACES for other, _ in word) and id_ not in SPACES
        if ended or id_ in FRAME or (word and word[-1][0] in FRAME):
            words.append(word)
            word = []
        word.append((id_, opens))
    return [part for word in [*words, word] if word for part in cut_slowly(word, longest)]


def opens_slowly(ids: list[int]) -> list[bool]:
    """Whether an id begins a character; three bytes at most continue one."""
    opens, since = [], 0
    for place, id_ in enumerate(ids):
        since = since + 1 if place and 0x80 <= id_ < 0xC0 else 0
        opens.append(since == 0 or since > 3)
    return opens


def cut_slowly(word: list[tuple[int, bool]], longest: int) -> list[list[int]]:
    """A long word before each character that holds a multiple of `longest - 3`."""
    if len(word) <= longest:
        return [[id_ for id_, _ in word]]
    characters: list[list[int]] = []
    for id_, opens in word:
        if opens or not characters:
            characters.append([])
        characters[-1].append(id_)
    parts, place = [[]], 0
    for character in characters:
        if place and any(k % (longest - 3) == 0 for k in range(place, place + len(character))):
            parts.append([])
        parts[-1] += character
        place += len(character)
    return parts


def texts(count: int = 300) -> list[list[int]]:
    """Ids of random texts: letters, spaces, characters of several bytes, any bytes, special ids, long words."""
    chance = random.Random(0)
    pieces = [
        b"a",
        b"bc",
        b" ",
        b"  ",
        b"\n",
        b"word",
        b"x" * 9,
        b"\x80",
        b"\xff",
        *map(str.encode, ("é", "日本", "😀")),
    ]
    found = [[EOS], [32], [32, 32, EOS], [*b"  a"], [*b"a" * 100, EOS], [0x80] * 40, [*("語" * 9).encode()]]
    for _ in range(count):
        ids = [id_ for piece in chance.choices(pieces, k=chance.randrange(1, 40)) for id_ in piece]
        if chance.random() < 0.3:
            ids.insert(chance.randrange(len(ids) + 1), chance.choice([257, 258, 259, 261]))
        found.append(ids + [EOS])
    return found


def split(ids: list[int], word_ids: list[int]) -> list[list[int]]:
    words: list[list[int]] = []
    for id_, word in zip(ids, word_ids, strict=True):
        while len(words) <= word:
            words.append([])
        words[word].append(id_)
    return words


@pytest.mark.parametrize("longest", [8, 16])
def test_words_are_those_of_the_definition(longest):
    for ids in texts():
        assert split(ids, find_words(torch.tensor([ids]), longest)[0].tolist()) == words_slowly(ids, longest), ids


def test_no_word_is_longer_than_allowed_and_no_character_is_cut():
    for ids in texts():
        text = torch.tensor([ids])
        word_ids = find_words(text, MAX)
        assert torch.bincount(word_ids[0]).max() <= MAX
        cut = (word_ids[0, 1:] != word_ids[0, :-1]) & ~is_space(text[0, :-1]) & (text[0, :-1] < 256)
        assert character_starts(text)[0, 1:][cut].all()


def test_padding_and_neighbours_change_no_word():
    rows = texts(40)
    length = max(map(len, rows)) + 5
    batch = torch.tensor([row + [PAD] * (length - len(row)) for row in rows])
    together = find_words(batch, MAX)
    for row, words in zip(rows, together, strict=True):
        assert torch.equal(words[: len(row)], find_words(torch.tensor([row]), MAX)[0])


def batch_of_words(seed: int = 0) -> torch.Tensor:
    """Word ids `(B, T)`, with padding on either side and a text without any token."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for left in (0, 3, 1, 0):
        lengths = torch.randint(1, 12, (20,), generator=generator)
        rows.append([-1] * left + torch.arange(20).repeat_interleave(lengths).tolist())
    rows.append([])
    length = max(map(len, rows))
    return torch.tensor([row + [-1] * (length - len(row)) for row in rows])


@pytest.mark.parametrize("bucketed", [False, True])
def test_a_packing_holds_every_id_once_and_no_word_crosses_an_edge(bucketed):
    word_ids = batch_of_words()
    packing = pack_words(word_ids, 32, bucketed)
    texts, longest = packing["lengths"].shape
    filled = packing["source"] < word_ids.numel()
    assert torch.equal(packing["source"][filled], (word_ids.flatten() >= 0).nonzero()[:, 0])
    assert torch.equal(filled, packing["word"] < texts * longest) and not packing["offset"][~filled].any()
    words = take(word_ids, packing["source"], -1)
    for place in range(texts * longest):
        text, word = divmod(place, longest)
        length = int((word_ids[text] == word).sum())
        rows, columns = (packing["word"] == place).nonzero().unbind(1)
        assert len(rows) == length == packing["lengths"][text, word] and len(rows.unique()) == min(length, 1)
        if length:
            assert (words[rows, columns] == word).all() and (columns.diff() == 1).all()
            assert torch.equal(packing["offset"][rows, columns], torch.arange(length))
            assert packing["vector"][text, word] == place
            assert packing["starts"][text, word] == (word_ids[text, word_ids[text] >= 0] < word).sum()
        else:
            assert packing["vector"][text, word] == texts * longest and not packing["starts"][text, word]


def test_buckets_are_few_and_hardly_larger():
    sizes = {bucket(size) for size in range(1, 4097)}
    assert all(size <= bucket(size) <= size * 17 / 16 for size in range(4097))
    assert len(sizes) == 16 + 16 * 8 and len({bucket(size) for size in range(513, 1025)}) == 16


def test_the_next_row_begins_only_where_a_word_does_not_fit():
    packing = pack_words(batch_of_words(), 32)
    used = (packing["source"] < batch_of_words().numel()).sum(1)
    first = packing["word"][:, 0]
    for row, next_word in enumerate(first[1:]):
        assert used[row] + packing["lengths"].flatten()[next_word] > 32


def test_rows_are_full_on_text(shared_data):
    text = (shared_data / "wikitext2" / "wiki.valid.txt").read_bytes()[:100_000]
    source = pack_words(find_words(torch.tensor([[*text]]), MAX), 128)["source"]
    assert len(text) / source.numel() >= 0.95
    assert source.numel() < 1.05 * len(text)  # memory follows the bytes


def test_a_word_longer_than_a_row_makes_the_rows_longer():
    assert pack_words(torch.tensor([[0] * 40 + [1] * 3]), 16)["source"].shape == (2, 40)


def test_of_equal_words_one_lies_in_the_rows():
    texts = ["the end of the end", "of the"]
    ids = EncodzallTokenizer()(texts, padding=True, return_tensors="pt")["input_ids"]
    words = find_real_words(ids, ids != PAD, MAX)
    packing = pack_words(words, 32, distinct_ids=ids)
    every = pack_words(words, 32)

    def spelled(packing):
        letters, words = take(ids, packing["source"]), packing["word"]
        vectors = packing["vector"][packing["lengths"] > 0].tolist()
        return [tuple(letters[words == place].tolist()) for place in vectors], len(set(vectors))

    found, count = spelled(packing)
    expected, every_count = spelled(every)
    assert found == expected and count == len(set(expected)) < every_count == len(expected)
    laid = packing["word"][packing["word"] < packing["lengths"].numel()]
    assert len(laid.unique()) == count


@pytest.mark.parametrize("bucketed", [False, True])
def test_words_are_spelled_with_their_ends(bucketed):
    ids = torch.tensor([[1, 2, 3, 9, 9], [4, 5, 5, 5, EOS]])
    word_ids = torch.tensor([[0, 0, 1, -1, -1], [0, 1, 1, 1, 2]])
    spelling = pack_spelling(ids, word_ids, 4, 4, bucketed)
    targets, words = (take(spelling[name], spelling["slot"], fill) for name, fill in (("target", 10), ("word", 8)))
    assert take(ids, targets, -1)[0].tolist() == [1, 2, -1, 3, -1, 4, -1, 5, 5, 5, -1, -1]
    assert words[0].tolist() == [0, 0, 0, 1, 1, 4, 4, 5, 5, 5, 5, 6]
    assert spelling["weight"][0].tolist() == pytest.approx([2 / 3] * 3 + [1 / 2] * 4 + [3 / 4] * 4 + [1])
    assert spelling["offset"].tolist() == [[0, 1, 2, 0], [0, 1, 0, 1], [0, 1, 2, 3], [0, 0, 0, 0]]


def test_an_empty_batch_packs():
    words = torch.full((2, 3), -1)
    packing, spelling = pack_words(words, 16), pack_spelling(words, words, 1, 16)
    assert packing["source"].tolist() == [[6] * 16] and packing["lengths"].tolist() == [[0], [0]]
    assert spelling["slot"].shape == (1, 0) and spelling["target"].tolist() == [[6] * 16]
