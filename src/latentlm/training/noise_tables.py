"""Tables of noise, learned from pairs of noisy and clean text."""

import json
from collections import defaultdict
from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path

from .noise import LONGEST_KEY, Table

NOISY, CLEAN = ("noisy", "ocr", "misspelling"), ("clean", "gt", "correction", "corrections")
MOST_REPLACEMENTS = 12  # largest number of replacements of one string; rarer ones are mostly chance


def read_pairs(path: Path) -> Iterator[tuple[str, str, float]]:
    """Yield the noisy text, the clean text and the count of each line of a file of JSON lines.

    Raises:
        ValueError: if a line has no pair, with its number.
    """
    with open(path, "rb") as lines:  # in bytes, so that lines end at "\n" alone
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line.decode("utf-8"))
                noisy = next(row[name] for name in NOISY if name in row)
                clean = next(row[name] for name in CLEAN if name in row)
                yield noisy, clean if isinstance(clean, str) else clean[0], float(row.get("count", 1))
            except (ValueError, TypeError, StopIteration, IndexError) as error:
                shown = line[:80].decode("utf-8", "replace")
                raise ValueError(
                    f"{path}, line {number}: no pair of {', '.join(NOISY)} and {', '.join(CLEAN)} in {shown!r}."
                ) from error


def replacements(noisy: str, clean: str) -> Iterator[tuple[str, str]]:
    """Yield the strings of `clean` that are replaced in `noisy`, with their replacements, if both have at most three
    characters. A change of case alone does not count."""
    matcher = SequenceMatcher(None, clean, noisy, autojunk=False)
    for kind, start, end, noisy_start, noisy_end in matcher.get_opcodes():
        if kind == "insert":  # an insertion is a replacement of the character before it
            if not start:
                continue
            start -= 1
            noisy_start -= 1
        before, after = clean[start:end], noisy[noisy_start:noisy_end]
        if kind == "equal" or before.lower() == after.lower():
            continue
        if 1 <= len(before) <= LONGEST_KEY and len(after) <= LONGEST_KEY and not before[0].isspace():
            yield before, after


def commonest(targets: dict[str, float]) -> list[tuple[str, float]]:
    """Return the most frequent replacements of one string, with their counts."""
    return sorted(targets.items(), key=lambda item: item[1], reverse=True)[:MOST_REPLACEMENTS]


def learn(pairs: Iterator[tuple[str, str, float]], min_count: float) -> Table:
    """Return the table of the most frequent replacements of each string that occur at least `min_count` times."""
    counts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for noisy, clean, count in pairs:
        for before, after in replacements(noisy, clean):
            counts[before][after] += count
    table = {
        before: {after: count for after, count in commonest(targets) if count >= min_count}
        for before, targets in sorted(counts.items())
    }
    return {before: targets for before, targets in table.items() if targets}
