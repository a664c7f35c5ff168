"""`latentlm compare`: all architectures in one table, from the records of a clone of the repository."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path("eval") / "experiments"
USAGE = """usage: latentlm compare [--check] [--add NAME ...] [--seeds N] [--threads N] [--text FOLDER]

Make docs/results/index.md, its figures and CSV files from eval/records. Run it in a clone of the repository.

  --check         change nothing; fail where the page is not what the records give
  --add NAME ...  train what has no record first: entries of the track, or recipes of yours by its rules
  --seeds N       of a recipe of yours (default: 3)
  --threads N     of each run (default: 1)
  --text FOLDER   folder with wikitext2/wiki.train.txt and wiki.valid.txt"""


def experiments_folder() -> Path:
    """`eval/experiments` of the clone that the command is called in, or that latentlm is installed from.

    Raises:
        SystemExit: if there is none.
    """
    here = Path.cwd()
    for root in (here, *here.parents, Path(__file__).resolve().parents[3]):
        if (root / FOLDER / "compare.py").is_file():
            return root / FOLDER
    raise SystemExit(
        "latentlm compare needs a clone of the repository: its records and recipes (eval/) are not part of the "
        "installed package. Clone it, see the first lines of README.md, and run the command in its folder."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `arguments` (default: the command line) by `eval/experiments/compare.py`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return
    sys.path.insert(0, str(experiments_folder()))
    importlib.import_module("compare").main(list(arguments))
