"""Words of EncodZall against an obvious implementation, and their packing."""

import random

import pytest
import torch

from latentlm.models.encodzall_words import character_starts, find_words, is_space, pack_words, spell_words

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


def test_a_packing_holds_every_token_once_and_no_word_crosses_an_edge():
    word_ids = batch_of_words()
    packing = pack_words(word_ids, 32)
    assert torch.equal(packing.token, (word_ids.flatten() >= 0).nonzero()[:, 0])
    assert len(packing.slot.unique()) == len(packing.slot)
    rows = packing.slot // packing.row_length
    for word in range(packing.num_words):
        mine = packing.word == word
        assert len(rows[mine].unique()) == 1
        assert torch.equal(packing.offset[mine], torch.arange(int(packing.lengths[word])))
        assert torch.equal(packing.slot[mine] - packing.slot[mine][0], packing.offset[mine])
        first = packing.token[mine][0]
        assert packing.text[word] == first // word_ids.shape[1] and packing.index[word] == word_ids.flatten()[first]
    values = torch.randn(len(packing.token), 3)
    assert torch.equal(packing.from_rows(packing.to_rows(values)), values)
    assert (packing.word_of_slot >= 0).sum() == len(packing.token)


def test_the_next_row_begins_only_where_a_word_does_not_fit():
    packing = pack_words(batch_of_words(), 32)
    used = (packing.word_of_slot >= 0).sum(1)
    first = [int(row[0]) for row in packing.word_of_slot]
    for row, next_word in enumerate(first[1:]):
        assert used[row] + packing.lengths[next_word] > packing.row_length


def test_rows_are_full_on_text(shared_data):
    text = (shared_data / "wikitext2" / "wiki.valid.txt").read_bytes()[:100_000]
    packing = pack_words(find_words(torch.tensor([[*text]]), MAX), 128)
    assert len(packing.token) / (packing.num_rows * packing.row_length) >= 0.95
    assert packing.num_rows * packing.row_length < 1.05 * len(text)  # memory follows the bytes


def test_a_word_longer_than_a_row_makes_the_rows_longer():
    packing = pack_words(torch.tensor([[0] * 40 + [1] * 3]), 16)
    assert packing.row_length == 40 and packing.num_rows == 2


def test_words_are_spelled_and_padded():
    ids = torch.tensor([[1, 2, 3, 9, 9], [4, 5, 5, 5, 6]])
    word_ids = torch.tensor([[0, 0, 1, -1, -1], [0, 1, 1, 1, 2]])
    packing = pack_words(word_ids, 4)
    spelled = spell_words(ids.flatten()[packing.token], packing)
    assert spelled.tolist() == [[1, 2, -1], [3, -1, -1], [4, -1, -1], [5, 5, 5], [6, -1, -1]]
    padded, mask = packing.pad_words(torch.arange(1.0, 6.0)[:, None], 2)
    assert padded[..., 0].tolist() == [[1, 2, 0], [3, 4, 5]] and mask.tolist() == [[True, True, False], [True] * 3]


def test_an_empty_batch_packs():
    packing = pack_words(torch.full((2, 3), -1), 16)
    assert packing.num_words == packing.num_rows == 0 and len(packing.token) == 0
