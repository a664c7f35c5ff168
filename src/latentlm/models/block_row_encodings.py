"""Words and characters of encodings, as `BatchEncoding` has them from fast tokenizers, for tokenizers in Python."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Encoding

Offset = tuple[int, int]
WHITE_SPACE = frozenset(" \t\n\v\f\r")


@dataclass(frozen=True)
class Part:
    """A run of ids: plain text, or one special or added token that was found in it.

    Attributes:
        ids: of its tokens.
        data: the bytes of plain text; None for an added token.
        start, end: its first and last + 1 character in the text or the word; None if there was no text, only ids.
        word: index of the word, where a text came in words; None in plain text.
        word_length: characters of the word, without white space that was put beside it.
    """

    ids: list[int]
    data: bytes | None = None
    start: int | None = None
    end: int | None = None
    word: int | None = None
    word_length: int | None = None

    def offsets(self, token_lengths: np.ndarray) -> list[Offset]:
        """Return the characters `(start, end)` of each id."""
        assert self.start is not None and self.end is not None  # asked of text alone
        if self.data is None:
            spans = [(self.start, self.end)]
        else:
            spans = character_spans(self.data, token_lengths[self.ids], self.start)
        if self.word_length is None:
            return list(spans)
        return [(min(max(start, 0), self.word_length), min(max(end, 0), self.word_length)) for start, end in spans]


@dataclass(frozen=True)
class Row:
    """One encoded text, or pair of texts, before padding.

    Attributes:
        sources: the parts of each text, and the slice of its ids that truncation left.
        framed: whether tokens are added around the texts.
    """

    sources: list[tuple[list[Part], slice]]
    framed: bool

    @property
    def has_text(self) -> bool:
        return all(part.start is not None for parts, _ in self.sources for part in parts)


def all_ids(parts: list[Part]) -> list[int]:
    """Return the ids of parts, concatenated."""
    return parts[0].ids if len(parts) == 1 else [index for part in parts for index in part.ids]


class Encodings(Sequence[Encoding]):
    """The encodings of a batch. Each is made when it is first asked for, since most never are. Pickled as a plain
    list."""

    def __init__(self, make: Iterable[Callable[[], Encoding]]) -> None:
        self._rows: list[Any] = list(make)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return list(self)[index]
        if not isinstance(self._rows[index], Encoding):
            self._rows[index] = self._rows[index]()
        return self._rows[index]

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


def build_encoding(**fields: Any) -> Encoding:
    """Make an encoding of the library `tokenizers` from the fields that it writes when it is pickled."""
    encoding = Encoding()
    encoding.__setstate__(json.dumps(fields).encode())
    return encoding


def character_spans(data: bytes, lengths: np.ndarray, start: int) -> Iterator[Offset]:
    """Return the span in characters of each token; `lengths` `(N,)` are the tokens' bytes, and `data` begins at
    character `start`."""
    opens_character = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80  # not a continuation byte
    character = np.cumsum(opens_character) - 1 + start  # of each byte
    ends = np.cumsum(lengths)
    return zip(character[ends - lengths].tolist(), (character[ends - 1] + 1).tolist(), strict=True)


def missing_spaces(words: Sequence[str]) -> list[bool]:
    """Return whether a space has to come before each word so that it stays apart from the words before it."""
    missing = []
    apart = True
    for word in words:
        missing.append(bool(word) and not apart and word[0] not in WHITE_SPACE)
        apart = word[-1] in WHITE_SPACE if word else apart
    return missing
