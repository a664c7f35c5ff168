"""Learn what noise does from pairs of noisy and clean text.

    python -m latentlm.noise OUT.json [--ocr FILE ...] [--misspelling FILE ...] [--min_count 3]

FILE holds JSON lines with a noisy text (`noisy`, `ocr` or `misspelling`) and its clean one (`clean`, `gt`, `correction`
or `corrections`, of which the first counts), and perhaps a `count`. A table that no file is given for is the
package's own. Used by `noise_tables: OUT.json` in a recipe of EncodZall.
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path

from tqdm import tqdm

from latentlm.training.noise import LONGEST_KEY, NoiseTables, Table, default_tables

NOISY, CLEAN = ("noisy", "ocr", "misspelling"), ("clean", "gt", "correction", "corrections")
MOST_REPLACEMENTS = 12  # of one string; the rest is chance


def read_pairs(path: Path) -> Iterator[tuple[str, str, float]]:
    """Noisy text, clean text and how often, of each line.

    Raises:
        ValueError: naming the line that holds no pair.
    """
    with open(path, "rb") as lines:  # they end at "\n" alone: other separators may stand in a text
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
    """The strings of `clean` that became others, of at most three characters; case counts as no change."""
    matcher = SequenceMatcher(None, clean, noisy, autojunk=False)
    for kind, start, end, noisy_start, noisy_end in matcher.get_opcodes():
        if kind == "insert":  # what is inserted belongs to the character before
            if not start:
                continue
            start -= 1
            noisy_start -= 1
        before, after = clean[start:end], noisy[noisy_start:noisy_end]
        if kind == "equal" or before.lower() == after.lower():
            continue
        if 1 <= len(before) <= LONGEST_KEY and len(after) <= LONGEST_KEY and not before[0].isspace():
            yield before, after


def learn(pairs: Iterator[tuple[str, str, float]], min_count: float) -> Table:
    """The replacements that came at least `min_count` times, the commonest of each string."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for noisy, clean, count in pairs:
        for before, after in replacements(noisy, clean):
            counts[before][after] += count
    table = {
        before: {after: count for after, count in targets.most_common(MOST_REPLACEMENTS) if count >= min_count}
        for before, targets in sorted(counts.items())
    }
    return {before: targets for before, targets in table.items() if targets}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for kind in ("ocr", "misspelling"):
        parser.add_argument(f"--{kind}", type=Path, nargs="+", default=[])
    parser.add_argument("--min_count", type=float, default=3)
    options = parser.parse_args(arguments)
    own = default_tables()
    tables = {"ocr": own.ocr, "keyboard": own.keyboard, "misspelling": own.misspelling}
    try:
        for kind in ("ocr", "misspelling"):
            files: list[Path] = getattr(options, kind)
            if files:
                pairs = (pair for path in files for pair in tqdm(read_pairs(path), desc=path.name, unit=" pairs"))
                tables[kind] = learn(pairs, options.min_count)
                print(f"{kind}: {len(tables[kind]):,} strings, {sum(map(len, tables[kind].values())):,} replacements")
        NoiseTables(**tables)
        options.out.write_text(json.dumps(tables, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        sys.exit(f"latentlm.noise: {error}")


if __name__ == "__main__":
    main()
