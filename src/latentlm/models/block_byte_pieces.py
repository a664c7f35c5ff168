"""Where a piece of text that one token stands for may lie: the rule by which a text is cut before it is segmented."""

import re

MAX_PIECE_BYTES = 16
NUM_SPECIAL_TOKENS = 4
"""<pad>, <bos>, <eos> and <mask>."""

# Only ASCII is told apart: every other character counts as a letter, so that the rule does not change with the version
# of Unicode, and says the same of text and of its UTF-8 bytes. The patterns are valid for `re` (str and bytes) and for
# the regular expressions of `tokenizers`; together their alternatives cover every text.
_SPACE = r"[\t-\r ]"
_LETTERS = r"[^\x00-@\[-`{-\x7f]+"
_OTHERS = r"[^\t-\r 0-9A-Za-z\x80-{last}]+"
_PATTERNS = {
    # Inside words: a word with the space before it, a number, a run of punctuation, a run of white space.
    "words": rf" ?'?{_LETTERS}| ?[0-9]+| ?{_OTHERS}|{_SPACE}+(?![^\t-\r ])|{_SPACE}+",
    # Across spaces: a line with the line ends after it.
    "lines": r"[^\n]*\n+|[^\n]+",
}
BOUNDARIES = tuple(_PATTERNS)


def text_pattern(boundary: str) -> str:
    """Regular expression that finds one stretch of a text after the other, for `tokenizers` and for `re`."""
    return _PATTERNS[boundary].replace("{last}", "\U0010ffff")


def bytes_pattern(boundary: str) -> re.Pattern[bytes]:
    """The same for UTF-8 bytes; also cuts bytes that are no text, without losing any."""
    return re.compile(_PATTERNS[boundary].replace("{last}", "\xff").encode("latin-1"))


def byte_characters() -> list[str]:
    """A printable character for each byte: the alphabet of GPT-2, which `tokenizers` calls ByteLevel."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # these stand for themselves
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte if byte in shown else 256 + hidden.index(byte)) for byte in range(256)]


_TO_CHARACTERS = dict(enumerate(byte_characters()))
_FROM_CHARACTERS = {character: byte for byte, character in _TO_CHARACTERS.items()}


def to_characters(data: bytes) -> str:
    """Bytes in that alphabet."""
    return data.decode("latin-1").translate(_TO_CHARACTERS)


def from_characters(text: str) -> bytes:
    """Bytes that `to_characters` wrote.

    Raises:
        ValueError: for a character outside of the alphabet.
    """
    try:
        return bytes(_FROM_CHARACTERS[character] for character in text)
    except KeyError as error:
        raise ValueError(f"{text!r} is not in the byte-level alphabet: {error}") from None
