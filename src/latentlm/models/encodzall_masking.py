"""The words that a masked word of EncodZall may be: a pattern of bytes and masks, and the bytes that can follow a
beginning."""

from collections.abc import Callable, Iterable

from .encodzall_words import WHITE_SPACE

VOWELS = frozenset(b"aeiouAEIOU")
LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
CONSONANTS = LETTERS - VOWELS
VISIBLE = frozenset(range(128)) - WHITE_SPACE
LEADS = frozenset(range(0xC2, 0xF5))  # first bytes of characters of several bytes
CONTINUATIONS = frozenset(range(0x80, 0xC0))
WORD_MASK, VOWEL, CONSONANT, NONSPACE, ANY = range(259, 264)
MORE = -1  # any further characters, or none
FIRST_BYTES = {
    VOWEL: VOWELS,
    CONSONANT: CONSONANTS,
    NONSPACE: (VISIBLE - LETTERS) | LEADS,
    ANY: VISIBLE | LEADS,
    MORE: VISIBLE | LEADS,
}
MASKS = frozenset(range(WORD_MASK, ANY + 1))

# Where a beginning has come to: (next element of the pattern, bytes that its current character still needs).
States = frozenset[tuple[int, int]]


class WordPattern:
    """The pattern of a word, given by its ids. Bytes stand for themselves; `<vowel>`, `<consonant>`, `<nonspace>` and
    `<any>` stand for one character, and `<mask>` for one or more. White space at the word's end is no part of the
    pattern."""

    def __init__(self, ids: Iterable[int]):
        self.elements: list[int] = []
        for id_ in ids:
            self.elements += [ANY, MORE] if id_ == WORD_MASK else [id_]

    @property
    def start(self) -> States:
        return self._skip({(0, 0)})

    def _skip(self, states: Iterable[tuple[int, int]]) -> States:
        """Add the states that follow without a byte, those of a mask of which nothing more comes."""
        reached = set(states)
        for element, pending in states:
            while not pending and element < len(self.elements) and self.elements[element] == MORE:
                element += 1
                reached.add((element, 0))
        return frozenset(reached)

    def is_complete(self, states: States) -> bool:
        return (len(self.elements), 0) in states

    def following(self, states: States) -> set[int]:
        """Return the bytes that can come next."""
        following: set[int] = set()
        for element, pending in states:
            if pending:
                following |= CONTINUATIONS
            elif element < len(self.elements):
                following |= FIRST_BYTES.get(self.elements[element], {self.elements[element]})
        return following

    def advance(self, states: States, byte: int) -> States:
        """Return the states after one more byte; none if it cannot come."""
        states_after: set[tuple[int, int]] = set()
        for element, pending in states:
            if pending:
                if byte in CONTINUATIONS:
                    states_after.add((element, pending - 1))
            elif element < len(self.elements):
                kind = self.elements[element]
                if byte in FIRST_BYTES.get(kind, {kind}):
                    more = (byte >= 0xE0) + (byte >= 0xF0) + 1 if kind in FIRST_BYTES and byte in LEADS else 0
                    states_after.add((element if kind == MORE else element + 1, more))
        return self._skip(states_after)


def search_words(
    pattern: WordPattern,
    closing: int,
    score: Callable[[list[bytes]], list[list[float]]],
    top_k: int,
    num_beams: int,
    max_bytes: int,
) -> list[tuple[bytes, float]]:
    """Search with a beam for the likeliest words that fit a pattern. Return them best first, each with its
    log-probability in nats.

    Args:
        closing: the id that ends the word: the white space after it, or the end.
        score: log-probabilities of each id to come next, for each of some beginnings.
    """
    beams = [(b"", 0.0, pattern.start)]
    finished: list[tuple[bytes, float]] = []
    for _ in range(max_bytes + 1):
        candidates = []
        for (beam, total, states), following in zip(beams, score([beam for beam, _, _ in beams]), strict=True):
            if pattern.is_complete(states):
                finished.append((beam, total + following[closing]))
            for byte in pattern.following(states):
                candidates.append((beam + bytes([byte]), total + following[byte], states, byte))
        finished = sorted(finished, key=lambda word: -word[1])[:top_k]
        candidates = sorted(candidates, key=lambda candidate: -candidate[1])[:num_beams]
        if not candidates or (len(finished) == top_k and finished[-1][1] >= candidates[0][1]):
            break
        beams = [(beam, total, pattern.advance(states, byte)) for beam, total, states, byte in candidates]
    return finished
