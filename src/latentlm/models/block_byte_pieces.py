"""The pre-tokenization rule, which cuts a text into stretches before each stretch is segmented into pieces. A piece is
the byte string of one token, and no piece crosses a cut."""

import re

MAX_PIECE_BYTES = 16
NUM_SPECIAL_TOKENS = 4
"""The tokens `<pad>`, `<bos>`, `<eos>` and `<mask>`."""

# The rule distinguishes only ASCII characters, and every other character counts as a letter. Therefore it does not
# depend on the version of Unicode, and is the same for a text and for its UTF-8 bytes. The alternatives of a pattern
# together cover all bytes. Bytes that the alphabet below writes as another character are in brackets.
_SPACE = r"[\t-\r ]"
_LETTERS = r"[^\x00-@\[-`{-\x7f]+"
_OTHERS = r"[^\t-\r 0-9A-Za-z\x80-\xff]+"
_PATTERNS = {
    # Stretches are a word with the space before it, a number, a run of punctuation, or a run of white space.
    "words": rf"[ ]?'?{_LETTERS}|[ ]?[0-9]+|[ ]?{_OTHERS}|{_SPACE}+(?![^\t-\r ])|{_SPACE}+",
    # A stretch is a line with the line ends after it, so pieces may contain spaces.
    "lines": r"[^\n]*[\n]+|[^\n]+",
}
BOUNDARIES = tuple(_PATTERNS)


def bytes_pattern(boundary: str) -> re.Pattern[bytes]:
    """Compile the regular expression whose successive matches are the stretches of a text in UTF-8. The matches cover
    every byte string without gaps, also invalid UTF-8."""
    return re.compile(_PATTERNS[boundary].encode("latin-1"))


def byte_characters() -> list[str]:
    """Return a printable character for each of the 256 bytes. This is the alphabet of GPT-2, which the library
    `tokenizers` calls ByteLevel."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # these bytes map to themselves
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte if byte in shown else 256 + hidden.index(byte)) for byte in range(256)]


_TO_CHARACTERS = dict(enumerate(byte_characters()))
_FROM_CHARACTERS = {character: byte for byte, character in _TO_CHARACTERS.items()}


def characters_pattern(boundary: str) -> str:
    """Return the pattern of [`bytes_pattern`] for bytes in the ByteLevel alphabet, in the syntax of regular expressions
    of the library `tokenizers`."""

    def show(match: re.Match[str]) -> str:
        one = re.compile(match[0].encode("latin-1"))
        members = filter(one.match, (bytes([byte]) for byte in range(256)))
        return f"[{''.join(re.escape(to_characters(member)) for member in members)}]"

    return re.sub(r"\[(?:\\.|[^\]\\])+\]", show, _PATTERNS[boundary])


def to_characters(data: bytes) -> str:
    """Return bytes as text in the ByteLevel alphabet."""
    return data.decode("latin-1").translate(_TO_CHARACTERS)


def from_characters(text: str) -> bytes:
    """Return the bytes of a text in the ByteLevel alphabet, the inverse of [`to_characters`].

    Raises:
        ValueError: if a character is not in the alphabet.
    """
    try:
        return bytes(_FROM_CHARACTERS[character] for character in text)
    except KeyError as error:
        raise ValueError(f"{text!r} is not in the byte-level alphabet: {error}") from None
