"""Learn tables of realistic noise from pairs of noisy and clean text.

    latentlm noise OUT.json [--ocr FILE ...] [--misspelling FILE ...] [--min_count 3]

FILE holds JSON lines with a noisy text (`noisy`, `ocr` or `misspelling`) and its clean one (`clean`, `gt`, `correction`
or `corrections`, of which the first counts), and optionally a `count`. A table for which no file is given is the
package's own. A recipe of EncodZall uses the tables by `noise_tables: OUT.json`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

KINDS = ("ocr", "misspelling")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "latentlm noise", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="file of the tables to write")
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=Path, nargs="+", default=[], help=f"pairs for the {kind} table")
    parser.add_argument("--min_count", type=float, default=3, help="leave rarer replacements out (default: 3)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; mistakes in the input end with a message and exit status 1, not with a traceback."""
    options = build_parser().parse_args(arguments)
    from tqdm import tqdm

    from latentlm.training.noise import NoiseTables, default_tables
    from latentlm.training.noise_tables import learn, read_pairs

    own = default_tables()
    tables = {"ocr": own.ocr, "keyboard": own.keyboard, "misspelling": own.misspelling}
    try:
        for kind in KINDS:
            files: list[Path] = getattr(options, kind)
            if files:
                pairs = (pair for path in files for pair in tqdm(read_pairs(path), desc=path.name, unit=" pairs"))
                tables[kind] = learn(pairs, options.min_count)
                print(f"{kind}: {len(tables[kind]):,} strings, {sum(map(len, tables[kind].values())):,} replacements")
        NoiseTables(**tables)
        options.out.write_text(json.dumps(tables, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        sys.exit(f"latentlm noise: {error}")
