"""The words of a language, for repairs: which words it knows, and which of them are spelled much like another."""

import re
import zlib
from collections.abc import Iterable
from functools import lru_cache
from itertools import takewhile

import torch
from torch import nn
from transformers import initialization as init

LETTERS = re.compile(r"[^\W\d_]+")
SHORTEST = 3  # letters of a run that has to be known: shorter ones are initials and units as often as words
BUCKETS = 32  # of letters: a to z have one each
PREFIX = 31  # letters at most that a packed word takes from the one before it


def count_edits(one: str, other: str) -> int:
    """The optimal string alignment distance: characters inserted, left out, replaced, or swapped with the next."""
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
    counts = [0.0] * BUCKETS
    for letter in word:
        counts[ord(letter) % BUCKETS] += 1
    return counts


def pack_words(words: Iterable[str]) -> bytes:
    """Words, sorted and compressed: of each how many letters it has in common with the one before it, and the rest.

    Raises:
        ValueError: if there are none, or one is not of letters in lower case.
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
    """What [`pack_words`] has packed, to look words up."""

    def __init__(self, packed: bytes):
        word, self.words = "", []
        for shared, rest in re.findall(r"([\0-\x1f])([^\0-\x1f]*)", zlib.decompress(packed).decode()):
            word = word[: ord(shared)] + rest
            self.words.append(word)
        self.known = frozenset(self.words)
        self.lengths = torch.tensor([float(len(word)) for word in self.words])
        self.letters = torch.tensor([count_letters(word) for word in self.words])

    def knows(self, text: str) -> bool:
        """Whether all runs of at least three letters are words here, in any case; so is what has no such run."""
        return all(len(run) < SHORTEST or run in self.known for run in LETTERS.findall(text.lower()))

    def near(self, word: str, most: int) -> list[str]:
        """The words, sorted, at most `most` edits from a word in lower case."""
        # Letters that one has more of than the other must be inserted, or replace others: the larger of both numbers
        # is no more than the edits, and twice that is the sum of both and their difference.
        differing = torch.cdist(torch.tensor([count_letters(word)]), self.letters, p=1)[0]
        possible = differing + (self.lengths - len(word)).abs() <= 2 * most
        candidates = (self.words[index] for index in possible.nonzero()[:, 0].tolist())
        return [candidate for candidate in candidates if count_edits(word, candidate) <= most]

    def respell(self, text: str) -> list[str]:
        """A text of one run of letters with each word near that in its place, in its case: at one edit, or at two of
        five letters and more, since most short words are two edits from hundreds."""
        runs = LETTERS.findall(text)
        if len(runs) != 1:
            return []
        [run] = runs
        spelled = str.upper if len(run) > 1 and run.isupper() else str.capitalize if run[0].isupper() else str
        return [text.replace(run, spelled(word)) for word in self.near(run.lower(), 1 + (len(run) >= 5))]


read_words = lru_cache(maxsize=4)(Words)


class Dictionary(nn.Module):
    """Words `(N,)`, uint8, packed in a buffer, which the checkpoint carries. 0 until they are set."""

    packed: torch.Tensor

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("packed", torch.zeros(size, dtype=torch.uint8))

    def initialize_parameters(self) -> None:
        init.zeros_(self.packed)

    def read(self) -> Words:
        """
        Raises:
            ValueError: if no words were set.
        """
        if not self.packed.any():
            raise ValueError("The dictionary of `dictionary_bytes` has no words: `set_dictionary` sets them.")
        return read_words(bytes(self.packed.cpu().numpy()))
