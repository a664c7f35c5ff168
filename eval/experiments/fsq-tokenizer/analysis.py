"""How a text uses the vocabulary and the codes of FSQ tokenizers: the page docs/results/fsq-analysis.md.

    python eval/experiments/fsq-tokenizer/analysis.py ENTRY TOKENIZER TEXT.txt   # measures, writes the record, the page
    python eval/experiments/fsq-tokenizer/analysis.py                            # the page from the records
    python eval/experiments/fsq-tokenizer/analysis.py --check                    # fails where it is not theirs

ENTRY is a name of `LABELS`, TOKENIZER a folder of `latentlm tokenizer build`.
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from records import MEASURED, RECORDS, REPOSITORY, Record, circumstances, read_record, write_record

from latentlm.evaluation.tokenizers import Analysis, analyse, load_pair, plot_digits, plot_use

PAGE = "fsq-tokenizer"
LABELS = {"analysis": "the tokenizer of the track", "analysis-residual": "residual codes"}
RESULTS = REPOSITORY / "docs" / "results"
BLOCK = re.compile(r"(<!-- analysis ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def to_record(entry: str, analysis: Analysis) -> Record:
    """Numbers as metrics, what figures show as curves."""
    curve: dict[str, list[list[float | int]]] = {"use": [[*point] for point in analysis.use]}
    for name, dimensions in analysis.digits.items():
        for i, shares in enumerate(dimensions, 1):
            curve[f"digits_{name}_{i}"] = [[digit, share] for digit, share in enumerate(shares)]
    return Record(
        PAGE,
        entry,
        LABELS[entry],
        MEASURED,
        configuration={"neighbours": analysis.neighbours, "families": analysis.families},
        curve=curve,
        metrics=analysis.numbers,
        **circumstances(),
    )


def from_record(record: Record) -> Analysis:
    lists: dict[str, dict[str, list[str]]] = record.configuration or {}
    digits: dict[str, list[list[float]]] = {}
    for name, points in record.curve.items():
        if name.startswith("digits_"):
            digits.setdefault(name.split("_")[1], []).append([share for _, share in points])
    return Analysis(
        record.metrics,
        [[int(rank), int(times)] for rank, times in record.curve["use"]],
        digits,
        lists["neighbours"],
        lists["families"],
    )


def analysis_of(entry: str, records: Path = RECORDS) -> Analysis:
    return from_record(read_record(records / PAGE / f"{entry}-0.json"))


def block(entry: str) -> str:
    """What the page says of an entry; of residual codes, whose pieces are those of the first, codes alone."""
    analysis, figures = analysis_of(entry), f"figures/fsq-{entry}"
    use = f"{analysis.use_table}\n\n![Times used by rank of the piece]({figures}-use.png)\n\n"
    return (
        f"{'' if analysis.families else use}{analysis.code_table}\n\n"
        f"![Share of each digit in each dimension of the code]({figures}-digits.png)\n"
    )


def page(old: str) -> str:
    """The text of the page with every block as the records give it."""
    return BLOCK.sub(lambda match: f"{match[1]}{block(match[2])}{match[4]}", old)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entry", choices=LABELS, nargs="?")
    parser.add_argument("tokenizer", type=Path, nargs="?")
    parser.add_argument("text", type=Path, nargs="?")
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the page is not the records'")
    options = parser.parse_args()
    if (options.entry is None) != (options.text is None):
        parser.error("ENTRY needs TOKENIZER and TEXT.txt")
    path = RESULTS / "fsq-analysis.md"
    if options.entry is not None:
        analysis = analyse(*load_pair(options.tokenizer), options.text.read_text(encoding="utf-8"))
        print(write_record(to_record(options.entry, analysis)))
    old = path.read_text(encoding="utf-8")
    new = page(old)
    if options.check:
        sys.exit(f"{path} is not what the records give" if new != old else 0)
    path.write_text(new, encoding="utf-8")
    for _, entry, _, _ in BLOCK.findall(new):
        analysis, figure = analysis_of(entry), RESULTS / "figures" / f"fsq-{entry}"
        plot_digits(analysis.digits, Path(f"{figure}-digits.png"))
        if not analysis.families:
            plot_use(analysis.use, analysis.numbers["tokens"], Path(f"{figure}-use.png"))
    print(path)


if __name__ == "__main__":
    main()
