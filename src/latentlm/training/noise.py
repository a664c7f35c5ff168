"""Phase 2 of EncodZall: noise as people, keyboards and scanners make it.

The tables are `noise_tables.json` beside this file, or learned from pairs (`latentlm noise`).
"""

import json
import random
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch

from ..models.encodzall_words import FRAME_IDS, NUM_BYTES, WHITE_SPACE, find_words
from .masking import CorruptedBatch
from .randomness import uniforms

TABLES_FILE = Path(__file__).with_name("noise_tables.json")
CHARACTER_SHARE = 0.3  # of the strength
KINDS = ("ocr", "keyboard", "misspelling", "drop", "double", "swap", "case", "space")
MIXTURE = {kind: 1.0 for kind in KINDS}
LONGEST_KEY = 3  # characters that a table entry replaces
SPACE = frozenset(map(chr, WHITE_SPACE))

# What replaces a string: other strings and how often, {"rn": {"m": 3.0}, ...}.
Table = dict[str, dict[str, float]]


@dataclass
class NoiseTables:
    """What the kinds of noise that follow a table do.

    Attributes:
        ocr, keyboard, misspelling: strings of up to three characters, and what they become.
    """

    ocr: Table
    keyboard: Table
    misspelling: Table
    # The same as lists, which random.choices takes.
    choices: dict[str, dict[str, tuple[list[str], list[float]]]] = field(init=False)

    def __post_init__(self) -> None:
        self.choices = {}
        for kind in ("ocr", "keyboard", "misspelling"):
            table = getattr(self, kind)
            for key, targets in table.items():
                valid = isinstance(targets, dict) and targets and all(weight > 0 for weight in targets.values())
                if not 1 <= len(key) <= LONGEST_KEY or not valid or key in targets:
                    raise ValueError(
                        f"{kind}: the entry {key!r}: {targets!r} must replace 1 to {LONGEST_KEY} characters by other "
                        "strings with positive weights."
                    )
            self.choices[kind] = {key: (list(targets), list(targets.values())) for key, targets in table.items()}

    @classmethod
    def load(cls, path: Path) -> "NoiseTables":
        """Read a JSON file of the three tables.

        Raises:
            ValueError: if it is none.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(**content)
        except (OSError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} holds no noise tables (ocr, keyboard, misspelling): {error}") from error


@cache
def default_tables() -> NoiseTables:
    return NoiseTables.load(TABLES_FILE)


def check_mixture(mixture: dict[str, float]) -> None:
    """Raise a ValueError unless the mixture gives kinds of noise weights that can be drawn from."""
    unknown = set(mixture) - set(KINDS)
    if unknown or not mixture or min(mixture.values()) < 0 or not sum(mixture.values()):
        raise ValueError(
            f"noise_mixture is {mixture!r}, but must give weights of at least 0, not all of them 0, to kinds among "
            f"{', '.join(KINDS)}."
        )


def corrupt_text(
    text: str, strength: float, key: int, mixture: dict[str, float] = MIXTURE, tables: NoiseTables | None = None
) -> tuple[str, list[int]]:
    """The text with noise, and the places of the characters that changed (before which something was inserted).

    Each character that is not white space is hit with probability 0.3 `strength`; the kind is drawn from `mixture`. A
    kind that does not know the character (a scanner that confuses no "q") leaves it as it is.

    Args:
        strength: in [0, 1].
        key: of the random numbers, 64 bits.
    """
    draws = uniforms(np.array([key], np.uint64), len(text), 0)[0]
    hits = np.flatnonzero(draws < CHARACTER_SHARE * strength).tolist()
    chance = random.Random(key)
    kinds = chance.choices(list(mixture), list(mixture.values()), k=len(hits))
    choices = (tables or default_tables()).choices
    pieces: list[str] = []
    changed: list[int] = []
    position = 0  # what lies before is written
    for hit, kind in zip(hits, kinds, strict=True):
        if hit < position or text[hit] in SPACE:
            continue
        replaced = replacement(text, hit, kind, choices, chance)
        if replaced is None:
            continue
        length, new = replaced
        pieces += text[position:hit], new
        changed.extend(range(hit, hit + length))
        position = hit + length
    pieces.append(text[position:])
    return "".join(pieces), changed


def replacement(
    text: str, hit: int, kind: str, choices: dict[str, dict[str, tuple[list[str], list[float]]]], chance: random.Random
) -> tuple[int, str] | None:
    """How many characters from `hit` on become what; None where this kind of noise does nothing."""
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
    # A lost or an invented space.
    return (2, letter) if following == " " else (1, letter + " ") if following not in ("", *SPACE) else None


def corrupt_texts(
    ids: torch.Tensor,
    real: torch.Tensor,
    strength: float,
    keys: np.ndarray,
    max_word_bytes: int,
    mixture: dict[str, float] = MIXTURE,
    tables: NoiseTables | None = None,
) -> CorruptedBatch:
    """Noise in a batch of clean texts; arguments as [`mask_texts`]. Words are found anew in what came out."""
    pad, _, eos = FRAME_IDS
    rows: list[list[int]] = []
    corrupted = torch.zeros(ids.shape, dtype=torch.bool)
    for b, (row, count) in enumerate(zip(ids, real.sum(1).tolist(), strict=True)):
        text_ids = row[:count]
        data = bytes(text_ids[text_ids < NUM_BYTES].tolist())
        text = data.decode("utf-8", "surrogateescape")
        noisy, changed = corrupt_text(text, strength, int(keys[b]), mixture, tables)
        rows.append([*noisy.encode("utf-8", "surrogateescape")][: ids.shape[1] - 1] + [eos])
        if changed:
            sizes = np.fromiter((len(c.encode("utf-8", "surrogateescape")) for c in text), np.int64, len(text))
            flags = np.zeros(len(text), bool)
            flags[changed] = True
            corrupted[b, : len(data)] = torch.from_numpy(np.repeat(flags, sizes))
    longest = max(map(len, rows))
    input_ids = torch.full((len(rows), longest), pad)
    for b, row in enumerate(rows):
        input_ids[b, : len(row)] = torch.tensor(row)
    attention_mask = (input_ids != pad).long()
    word_ids = torch.where(attention_mask.bool(), find_words(input_ids, max_word_bytes), -1)
    return CorruptedBatch(input_ids, attention_mask, word_ids, corrupted)
