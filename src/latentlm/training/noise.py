"""The noise of phase 2 of EncodZall, which is realistic: typing, spelling and OCR errors.

Its tables are those of `noise_tables.json` in this folder, or are learned from pairs of texts (`latentlm noise`).
"""

import json
import random
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..models.encodzall_words import FRAME_IDS, NUM_BYTES, WHITE_SPACE, find_words
from .masking import CorruptedBatch
from .randomness import uniforms

TABLES_FILE = Path(__file__).with_name("noise_tables.json")
CHARACTER_SHARE = 0.3  # probability that a character is hit, at strength 1
KINDS = ("ocr", "keyboard", "misspelling", "drop", "double", "swap", "case", "space")
MIXTURE = {kind: 1.0 for kind in KINDS}
WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
LONGEST_KEY = 3  # largest number of characters that a table entry replaces
SPACE = frozenset(map(chr, WHITE_SPACE))

# The replacements of each string with their weights, such as {"rn": {"m": 3.0}, ...}.
Table = dict[str, dict[str, float]]


@dataclass
class NoiseTables:
    """The tables of the kinds of noise that replace strings.

    Attributes:
        ocr, keyboard, misspelling: replacements of strings of up to three characters, with positive weights.
        words: replacements of whole words in lower case, with positive weights. A word may replace itself.

    Raises:
        ValueError: if an entry has no replacement, a weight that is not positive, or a string that is not allowed.
    """

    ocr: Table
    keyboard: Table
    misspelling: Table
    words: Table = field(default_factory=dict)
    # The replacements and their weights as lists, for random.choices.
    choices: dict[str, dict[str, tuple[list[str], list[float]]]] = field(init=False)

    def __post_init__(self) -> None:
        self.choices = {}
        for kind in ("ocr", "keyboard", "misspelling", "words"):
            if not isinstance(table := getattr(self, kind), dict):
                raise ValueError(f"{kind} is {table!r:.80}, but must map strings to their replacements.")
        for kind in ("ocr", "keyboard", "misspelling"):
            table = getattr(self, kind)
            for key, targets in table.items():
                if not 1 <= len(key) <= LONGEST_KEY or not has_weights(targets) or key in targets:
                    raise ValueError(
                        f"{kind}: the entry {key!r}: {targets!r} must replace 1 to {LONGEST_KEY} characters by other "
                        "strings with positive weights."
                    )
            self.choices[kind] = {key: (list(targets), list(targets.values())) for key, targets in table.items()}
        for word, targets in self.words.items():
            if not WORD.fullmatch(word) or word != word.lower() or not has_weights(targets):
                raise ValueError(
                    f"words: the entry {word!r}: {targets!r} must replace letters in lower case by other strings with "
                    "positive weights."
                )

    @classmethod
    def load(cls, path: Path) -> "NoiseTables":
        """Read the tables from a JSON file, in which `words` is optional.

        Raises:
            ValueError: if the file cannot be read, or has no valid tables.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(**content)
        except (OSError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} holds no noise tables (ocr, keyboard, misspelling): {error}") from error


def has_weights(targets: Any) -> bool:
    """Return whether the replacements of a string are a dictionary with positive weights, and not empty."""
    if not isinstance(targets, dict) or not targets:
        return False
    return all(isinstance(weight, int | float) and weight > 0 for weight in targets.values())


@cache
def default_tables() -> NoiseTables:
    """Return the tables of `noise_tables.json`."""
    return NoiseTables.load(TABLES_FILE)


def check_mixture(mixture: dict[str, float]) -> None:
    """Raise ValueError unless the mixture has known kinds of noise, and weights of at least 0 with a positive sum."""
    unknown = set(mixture) - set(KINDS)
    if unknown or not mixture or min(mixture.values()) < 0 or not sum(mixture.values()):
        raise ValueError(
            f"noise_mixture is {mixture!r}, but must give weights of at least 0, not all of them 0, to kinds among "
            f"{', '.join(KINDS)}."
        )


def corrupt_text(
    text: str, strength: float, key: int, mixture: dict[str, float] = MIXTURE, tables: NoiseTables | None = None
) -> tuple[str, list[int]]:
    """Return a text with noise, and the indices of its characters that were replaced. The arguments are those of
    [`draw_noise`]."""
    pieces: list[str] = []
    changed: list[int] = []
    position = 0  # all characters before it are written
    for start, end, new in draw_noise(text, strength, key, mixture, tables):
        pieces += text[position:start], new
        changed.extend(range(start, end))
        position = end
    pieces.append(text[position:])
    return "".join(pieces), changed


def draw_noise(
    text: str, strength: float, key: int, mixture: dict[str, float] = MIXTURE, tables: NoiseTables | None = None
) -> list[tuple[int, int, str]]:
    """Draw the edits of a text: for each, the first and last + 1 character that it replaces, and the new string.

    With probability `strength`, a word that the table of words has is replaced as a whole. Each other character except
    white space is hit with probability 0.3 * `strength`, and the kind of noise is drawn from `mixture`. If that kind
    cannot change the character (for example, if its table has no entry), nothing happens.

    Args:
        text: the clean text.
        strength: in [0, 1].
        key: key of the random numbers, 64 bits.
        mixture: weight of each kind of noise.
        tables: tables of replacements, by default those of `noise_tables.json`.

    Returns:
        Edits in the order of the text, which do not overlap.
    """
    tables = tables or default_tables()
    draws = uniforms(np.array([key], np.uint64), len(text), 0)[0]
    hits = np.flatnonzero(draws < CHARACTER_SHARE * strength).tolist()
    chance = random.Random(key)
    kinds = dict(zip(hits, chance.choices(list(mixture), list(mixture.values()), k=len(hits)), strict=True))
    words = draw_words(text, strength, key, tables) if tables.words else {}
    edits: list[tuple[int, int, str]] = []
    position = 0  # all characters before it have their edits
    for start in sorted({*kinds, *words}):
        if start < position or text[start] in SPACE:
            continue
        edit = words.get(start) or replacement(text, start, kinds[start], tables.choices, chance)
        if edit is not None:
            length, new = edit
            position = start + length
            edits.append((start, position, new))
    return edits


def draw_words(text: str, strength: float, key: int, tables: NoiseTables) -> dict[int, tuple[int, str]]:
    """Return the words that are replaced as a whole: for the index of the first character of each, its length and the
    new word."""
    draws = uniforms(np.array([key], np.uint64), len(text), 1)[0]
    chance = random.Random(key + 1)
    words: dict[int, tuple[int, str]] = {}
    for match in WORD.finditer(text):
        word = match[0]
        targets = tables.words.get(word.lower()) if draws[match.start()] < strength else None
        if targets is not None:
            new = chance.choices(list(targets), list(targets.values()))[0]
            if new != word.lower():
                capital = word[0].isupper()
                words[match.start()] = (len(word), new[:1].upper() + new[1:] if capital else new)
    return words


def replacement(
    text: str, hit: int, kind: str, choices: dict[str, dict[str, tuple[list[str], list[float]]]], chance: random.Random
) -> tuple[int, str] | None:
    """Return how many characters from `hit` on are replaced and the new string, or None if this kind of noise cannot
    change them."""
    letter = text[hit]
    following = text[hit + 1] if hit + 1 < len(text) else ""
    if kind in choices:
        for length in range(min(LONGEST_KEY, len(text) - hit), 0, -1):
            entry = choices[kind].get(text[hit : hit + length])
            if entry is not None:
                return length, chance.choices(*entry)[0]
        return None
    if kind == "drop":
        return 1, ""
    if kind == "double":
        return 1, letter + letter
    if kind == "swap":
        return None if following in ("", letter, *SPACE) else (2, following + letter)
    if kind == "case":
        return None if letter.swapcase() == letter else (1, letter.swapcase())
    # The kind "space" deletes the following space, or inserts one.
    return (2, letter) if following == " " else (1, letter + " ") if following not in ("", *SPACE) else None


def corrupt_texts(
    ids: torch.Tensor,
    real: torch.Tensor,
    strength: float,
    keys: np.ndarray,
    max_word_bytes: int,
    mixture: dict[str, float] = MIXTURE,
    tables: NoiseTables | None = None,
    aligned: bool = False,
) -> CorruptedBatch:
    """Return a batch of clean texts with noise. The words are those of the noisy texts. A noisy text that has become
    too long is cut. The other arguments are those of [`mask_texts`] and [`draw_noise`].

    Args:
        aligned: whether `target_word_ids` are returned. The noisy word of a clean byte is the one in which its
            replacement begins. A noisy text that is too long is then cut before a word.
    """
    pad, _, eos = FRAME_IDS
    rows: list[list[int]] = []
    corrupted = torch.zeros(ids.shape, dtype=torch.bool)
    targets = torch.full(ids.shape, -1) if aligned else None
    for b, (row, count) in enumerate(zip(ids, real.sum(1).tolist(), strict=True)):
        text_ids = row[:count]
        data = bytes(text_ids[text_ids < NUM_BYTES].tolist())
        text = data.decode("utf-8", "surrogateescape")
        edits = draw_noise(text, strength, int(keys[b]), mixture, tables)
        noisy, places, flags = align(text, edits)
        corrupted[b, : len(data)] = torch.from_numpy(flags)
        noisy_ids = [*noisy[: None if aligned else ids.shape[1] - 1], eos]
        if targets is not None:
            words = find_words(torch.tensor([noisy_ids]), max_word_bytes)[0]
            if len(noisy_ids) > ids.shape[1]:
                first = int((words == words[ids.shape[1] - 1]).nonzero()[0])
                noisy_ids, words = [*noisy_ids[:first], eos], torch.cat((words[:first], words[first : first + 1]))
            last = len(noisy_ids) - 1
            place_of_byte = torch.from_numpy(places).clamp(max=max(len(noisy) - 1, 0))
            targets[b, : len(data)] = torch.where(place_of_byte < last, words[place_of_byte.clamp(max=last)], -1)
            targets[b, len(data) : count] = words[last]  # the end of the text, if the row has it
        rows.append(noisy_ids)
    longest = max(map(len, rows))
    input_ids = torch.full((len(rows), longest), pad)
    for b, row in enumerate(rows):
        input_ids[b, : len(row)] = torch.tensor(row)
    attention_mask = (input_ids != pad).long()
    word_ids = torch.where(attention_mask.bool(), find_words(input_ids, max_word_bytes), -1)
    return CorruptedBatch(input_ids, attention_mask, word_ids, corrupted, targets)


def align(text: str, edits: list[tuple[int, int, str]]) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Apply edits to a text of N bytes, and align both texts.

    Returns:
        The bytes of the edited text.
        For each byte of `text`, its index in the edited text, or that of the first byte of its replacement, `(N,)`,
        int64.
        Whether each byte of `text` was replaced, `(N,)`, bool.
    """
    pieces: list[bytes] = []
    places: list[np.ndarray] = []
    flags: list[np.ndarray] = []
    position = size = 0
    for start, end, new in [*edits, (len(text), len(text), "")]:
        for old, piece, is_new in ((text[position:start],) * 2 + (False,), (text[start:end], new, True)):
            count = len(old.encode("utf-8", "surrogateescape"))
            pieces.append(piece.encode("utf-8", "surrogateescape"))
            places.append(np.full(count, size) if is_new else size + np.arange(count))
            flags.append(np.full(count, is_new))
            size += len(pieces[-1])
        position = end
    return b"".join(pieces), np.concatenate(places), np.concatenate(flags)
