"""The dictionary for repairs, which tests whether a word is known and lists the known words with similar spellings."""

import re
import zlib
from collections.abc import Iterable
from functools import lru_cache
from itertools import takewhile

import torch
from torch import nn
from transformers import initialization as init

LETTERS = re.compile(r"[^\W\d_]+")
SHORTEST = 3  # letters of a run that is looked up; shorter runs are often initials or units
BUCKETS = 32  # number of buckets of letters, of which a to z have one each
PREFIX = 31  # largest number of letters that a packed word shares with the word before it


def count_edits(one: str, other: str) -> int:
    """Return the optimal string alignment distance: the number of characters that are inserted, deleted, substituted,
    or transposed with the next one."""
    before, row = [0] * (len(other) + 1), [*range(len(other) + 1)]
    for i, letter in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, goal in enumerate(other, 1):
            costs = [before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != goal)]
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == goal:
                costs.append(last[j - 2] + 1)
            row.append(min(costs))
    return row[-1]


def count_letters(word: str) -> list[float]:
    """Return the number of letters of a word in each of the 32 buckets."""
    counts = [0.0] * BUCKETS
    for letter in word:
        counts[ord(letter) % BUCKETS] += 1
    return counts


def pack_words(words: Iterable[str]) -> bytes:
    """Return words in sorted order, compressed. Each word is stored as the number of letters that it shares with the
    word before it, and the remaining letters (front coding).

    Raises:
        ValueError: if there are no words, or a word has other characters than letters in lower case.
    """
    before, parts = "", []
    for word in sorted({*words}):
        if not LETTERS.fullmatch(word) or word != word.lower():
            raise ValueError(f"`words` have {word!r}, but a word of a dictionary is letters alone, in lower case.")
        shared = takewhile(lambda pair: pair[0] == pair[1], zip(before[:PREFIX], word, strict=False))
        length = len([*shared])
        parts.append(chr(length) + word[length:])
        before = word
    if not parts:
        raise ValueError("`words` are none, but a dictionary needs some: leave it out instead.")
    return zlib.compress("".join(parts).encode(), 9)


class Words:
    """The words that [`pack_words`] has packed, with methods to look them up."""

    def __init__(self, packed: bytes):
        word, self.words = "", []
        for shared, rest in re.findall(r"([\0-\x1f])([^\0-\x1f]*)", zlib.decompress(packed).decode()):
            word = word[: ord(shared)] + rest
            self.words.append(word)
        self.known = frozenset(self.words)
        self.lengths = torch.tensor([float(len(word)) for word in self.words], device="cpu")
        self.letters = torch.tensor([count_letters(word) for word in self.words], device="cpu")

    def knows(self, text: str) -> bool:
        """Return whether all runs of at least three letters in a text are known words, in upper or lower case. A text
        without such a run counts as known."""
        return all(len(run) < SHORTEST or run in self.known for run in LETTERS.findall(text.lower()))

    def near(self, word: str, most: int) -> list[str]:
        """Return the known words, sorted, that are at most `most` edits from a word in lower case."""
        # Let a and b be the numbers of letters that only one and only the other word has. An edit removes at most one
        # letter of each kind, so there are at least max(a, b) edits, and 2 max(a, b) = (a + b) + |a - b|.
        differing = torch.cdist(torch.tensor([count_letters(word)], device="cpu"), self.letters, p=1)[0]
        possible = differing + (self.lengths - len(word)).abs() <= 2 * most
        candidates = (self.words[index] for index in possible.nonzero()[:, 0].tolist())
        return [candidate for candidate in candidates if count_edits(word, candidate) <= most]

    def respell(self, text: str) -> list[str]:
        """Return a text with its run of letters replaced, in turn, by each known word near it, in the same case. The
        words are one edit away, or up to two edits from a run of at least five letters, because most short words are
        two edits from hundreds of others. A text that does not have exactly one run has no respellings."""
        runs = LETTERS.findall(text)
        if len(runs) != 1:
            return []
        [run] = runs
        spelled = str.upper if len(run) > 1 and run.isupper() else str.capitalize if run[0].isupper() else str
        return [text.replace(run, spelled(word)) for word in self.near(run.lower(), 1 + (len(run) >= 5))]


read_words = lru_cache(maxsize=4)(Words)


class Dictionary(nn.Module):
    """The packed words as a buffer `(N,)`, uint8, which is a part of the checkpoint. It is 0 until words are set."""

    packed: torch.Tensor

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("packed", torch.zeros(size, dtype=torch.uint8))

    def initialize_parameters(self) -> None:
        init.zeros_(self.packed)

    def read(self) -> Words:
        """Return the words.

        Raises:
            ValueError: if no words were set.
        """
        if not self.packed.any():
            raise ValueError("The dictionary of `dictionary_bytes` has no words: `set_dictionary` sets them.")
        return read_words(bytes(self.packed.cpu().numpy()))
