"""Bytes per token of many languages: with pieces chosen from English alone, from all of them, and with a BPE of all.

    python eval/experiments/fsq-tokenizer/languages.py ENGLISH.txt UDHR.jsonl      # measures, writes records, draws
    python eval/experiments/fsq-tokenizer/languages.py                             # draws from the records

ENGLISH is cut after 2.05 MB. UDHR has a line for each article of each language (`lang`, `name`, `text`): vocabularies
of all languages are made from every second article, and everything is measured on the others.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
from records import MEASURED, RECORDS, REPOSITORY, Record, circumstances, read_record, write_record

from latentlm.data.pieces import choose_pieces
from latentlm.data.tokenizers import train_bpe
from latentlm.models.fsq_vocabulary import FSQVocabulary

PAGE = "fsq-tokenizer"
SIZE = 4096
ENGLISH_BYTES = 2_050_000
LABELS = {
    "languages-english": "FSQ pieces of English text",
    "languages-all": "FSQ pieces of all languages",
    "languages-bpe": "BPE of all languages",
}
FIGURE = REPOSITORY / "docs" / "results" / "figures" / "fsq-tokenizer-languages.png"


def counter(documents: list[str]) -> Callable[[str], int]:
    """How many tokens a text takes with pieces chosen from documents. No network: codes play no part in that."""
    pieces = choose_pieces(documents, SIZE)
    table = FSQVocabulary(pieces.boundary, [SIZE], pieces.pieces, np.arange(SIZE - 4), [], [])
    return lambda text: len(table.segmenter(text.encode()))


def measure(english: Path, udhr: Path) -> None:
    """Write a record for each vocabulary: bytes per token by language, and of all measured text together."""
    languages: dict[str, list[str]] = {}
    for line in udhr.read_text(encoding="utf-8").splitlines():
        article = json.loads(line)
        languages.setdefault(article["name"], []).append(article["text"])
    first = [article for articles in languages.values() for article in articles[::2]]
    bpe = train_bpe(first, SIZE)
    text = english.read_bytes()[:ENGLISH_BYTES].decode("utf-8", "ignore")
    counters = (
        counter([text]),
        counter(first),
        lambda text: len(bpe(text, add_special_tokens=False, verbose=False).input_ids),
    )
    known = circumstances()
    for (entry, label), count in zip(LABELS.items(), counters, strict=True):
        sizes = {name: sum(len(article.encode()) for article in rows[1::2]) for name, rows in languages.items()}
        tokens = {name: sum(map(count, rows[1::2])) for name, rows in languages.items()}
        metrics = {name: round(sizes[name] / tokens[name], 4) for name in languages}
        metrics["all"] = round(sum(sizes.values()) / sum(tokens.values()), 4)
        print(write_record(Record(PAGE, entry, label, MEASURED, metrics=metrics, **known), RECORDS))


def draw() -> None:
    """One row for each language, those that share most with English first."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = {entry: read_record(RECORDS / PAGE / f"{entry}-0.json") for entry in LABELS}
    english = records["languages-english"].metrics
    names = sorted((name for name in english if name != "all"), key=lambda name: english[name])
    figure, axis = plt.subplots(figsize=(8, 0.2 * len(names) + 1), layout="constrained")
    for entry, marker in zip(LABELS, ("o", "s", "x"), strict=True):
        values = [records[entry].metrics[name] for name in names]
        axis.plot(values, names, marker, markersize=4, label=LABELS[entry])
    axis.axvline(1, color="grey", linewidth=1, label="bytes")
    axis.set(xlabel="bytes per token", xlim=(0, None))
    axis.tick_params(axis="y", labelsize=7)
    axis.margins(y=0.01)
    axis.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    figure.savefig(FIGURE, dpi=100)
    print(FIGURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("english", type=Path, nargs="?")
    parser.add_argument("udhr", type=Path, nargs="?")
    options = parser.parse_args()
    if options.english is not None and options.udhr is None:
        parser.error("ENGLISH.txt needs UDHR.jsonl beside it")
    if options.udhr is not None:
        measure(options.english, options.udhr)
    draw()


if __name__ == "__main__":
    main()
