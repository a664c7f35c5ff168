"""One comparison of all architectures, from records alone: docs/results/index.md, its figures and CSV files.

    latentlm compare                       # the page, from eval/records
    latentlm compare --check               # fails where the page is not what the records give
    latentlm compare --add NAME ...        # trains what has no record, then makes the page

NAME is an entry of eval/experiments/track/rows.yaml, or a recipe of yours: a file, or a folder with `recipe.yaml`. A
recipe reads the text of the track once and is scored as the entries are, with three seeds (`--seeds`) and its own
learning rate; its records are those of the entry `own.NAME`. What was stopped goes on, and nothing is trained twice.
"""

import argparse
import dataclasses
import re
import sys
from pathlib import Path

from entries import Entry, ExperimentList, ListError, read_list
from records import RecordError
from report import RESULTS, Report
from run import RunFailed, Runner, add_folders

from latentlm.architectures import architecture
from latentlm.runs import RecipeError, load_recipe

PAGE, TRACK = "compare", "track"
MEASURES = ["operations", "generation"]
# Half B is scored once, and chooses no checkpoint; a recipe that evaluates nothing is scored all the same.
AT_THE_END = {
    "eval_strategy": "steps",
    "eval_steps": 1_000_000,
    "eval_on_start": False,
    "load_best_model_at_end": False,
}


def own_entry(recipe: Path, seeds: int) -> Entry:
    """The entry of a recipe of one's own, named by its file, or by its folder where that is `recipe.yaml`."""
    path = recipe / "recipe.yaml" if recipe.is_dir() else recipe
    stem = path.resolve().parent.name if path.stem == "recipe" else path.stem
    name = re.sub(r"[^a-z0-9.+_-]+", "-", stem.lower())
    return Entry(f"own.{name}", stem, path.resolve(), overrides=AT_THE_END, seeds=list(range(seeds)), measures=MEASURES)


def add(experiments: ExperimentList, names: list[str], seeds: int) -> tuple[ExperimentList, list[str]]:
    """The track with recipes of one's own, and the names of the entries to train.

    Raises:
        ListError: for what is neither an entry nor a recipe, for two recipes of one name, and for a model that is no
            language model.
    """
    entries, chosen = dict(experiments.entries), []
    for name in names:
        if name not in experiments.entries:
            path = Path(name)
            if not (path / "recipe.yaml" if path.is_dir() else path).is_file():
                raise ListError(
                    f"--add {name}: neither an entry of {TRACK} ({', '.join(experiments.entries)}) nor a recipe"
                )
            entry = own_entry(path, seeds)
            model_type = load_recipe(entry.recipe).model_type
            if "AutoModelForCausalLM" not in architecture(model_type).heads:
                raise ListError(f"--add {name}: {model_type} is no language model, and has no bits per byte of a text")
            if entry.name in entries:
                raise ListError(f"--add {name}: there are two recipes called {entry.name}; rename one")
            entries[entry.name] = entry
            name = entry.name
        chosen.append(name)
    return dataclasses.replace(experiments, entries=entries), chosen


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="latentlm compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--add", nargs="+", metavar="NAME", default=[], help="train these entries or recipes")
    parser.add_argument("--check", action="store_true", help="fail where the page is not what the records give")
    parser.add_argument("--seeds", type=int, default=3, help="of a recipe of your own (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="of each run (default: 1)")
    add_folders(parser)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the page")
    options = parser.parse_args(arguments)
    try:
        if options.add:
            experiments, names = add(read_list(TRACK, options.lists.resolve()), options.add, options.seeds)
            folders = [folder.resolve() for folder in (options.runs, options.records, options.text)]
            Runner(experiments, *folders, options.threads, names).run_all()
        report = Report(PAGE, options.lists, options.records, options.results)
        problems = report.problems() if options.check else report.write()
    except (ListError, RecordError, RecipeError, RunFailed, ValueError) as error:
        sys.exit(f"latentlm compare: {error}")
    if problems:
        sys.exit("\n".join([*problems, "Run `latentlm compare`."]))


if __name__ == "__main__":
    main()
