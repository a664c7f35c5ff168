"""The rule by which a text is cut before it is segmented into pieces: no piece, which one token stands for, crosses a
cut."""

import re

MAX_PIECE_BYTES = 16
NUM_SPECIAL_TOKENS = 4
"""The tokens `<pad>`, `<bos>`, `<eos>` and `<mask>`."""

# Only ASCII is told apart: every other character counts as a letter, so that the rule does not change with the version
# of Unicode, and says the same of text and of its UTF-8 bytes. Together the alternatives of a pattern cover all bytes;
# what the alphabet below shows as another character stands in brackets.
_SPACE = r"[\t-\r ]"
_LETTERS = r"[^\x00-@\[-`{-\x7f]+"
_OTHERS = r"[^\t-\r 0-9A-Za-z\x80-\xff]+"
_PATTERNS = {
    # Inside words: a word with the space before it, a number, a run of punctuation, a run of white space.
    "words": rf"[ ]?'?{_LETTERS}|[ ]?[0-9]+|[ ]?{_OTHERS}|{_SPACE}+(?![^\t-\r ])|{_SPACE}+",
    # Across spaces: a line with the line ends after it.
    "lines": r"[^\n]*[\n]+|[^\n]+",
}
BOUNDARIES = tuple(_PATTERNS)


def bytes_pattern(boundary: str) -> re.Pattern[bytes]:
    """Compile the regular expression that finds one stretch of a text's UTF-8 bytes after the other. It also cuts bytes
    that are no text, and loses none."""
    return re.compile(_PATTERNS[boundary].encode("latin-1"))


def byte_characters() -> list[str]:
    """Return a printable character for each byte: the alphabet of GPT-2, which `tokenizers` calls ByteLevel."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # these stand for themselves
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte if byte in shown else 256 + hidden.index(byte)) for byte in range(256)]


_TO_CHARACTERS = dict(enumerate(byte_characters()))
_FROM_CHARACTERS = {character: byte for byte, character in _TO_CHARACTERS.items()}


def characters_pattern(boundary: str) -> str:
    """Return the pattern of [`bytes_pattern`] for bytes in this alphabet, in the regular expressions of
    `tokenizers`."""

    def show(match: re.Match[str]) -> str:
        one = re.compile(match[0].encode("latin-1"))
        members = filter(one.match, (bytes([byte]) for byte in range(256)))
        return f"[{''.join(re.escape(to_characters(member)) for member in members)}]"

    return re.sub(r"\[(?:\\.|[^\]\\])+\]", show, _PATTERNS[boundary])


def to_characters(data: bytes) -> str:
    """Write bytes in that alphabet."""
    return data.decode("latin-1").translate(_TO_CHARACTERS)


def from_characters(text: str) -> bytes:
    """Return the bytes that `to_characters` wrote.

    Raises:
        ValueError: for a character outside of the alphabet.
    """
    try:
        return bytes(_FROM_CHARACTERS[character] for character in text)
    except KeyError as error:
        raise ValueError(f"{text!r} is not in the byte-level alphabet: {error}") from None
