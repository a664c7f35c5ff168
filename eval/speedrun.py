"""Enter an idea: ten minutes of training, one number, and whether it beats what is in the table.

    python eval/speedrun.py                                        # decoder-only; or `make speedrun`
    python eval/speedrun.py --architecture abstractinator --seed 1
    python eval/speedrun.py --override hidden_size=320 --override num_hidden_layers=3 [--name wider]

An architecture is an entry of eval/experiments/track/rows.yaml. It reads as much of all 10.8 MB of the track's text as
the time allows, with one thread, so that as many seeds as a machine has cores can run at once, and is scored on half A
of the held-out articles in bits per byte; half B stays unseen for the track. Without WikiText-2 below `--text` it reads
the documentation inside Python. The learning rate rises and falls by the clock. A run leaves a record in
eval/records/speedrun and a line in docs/results/speedrun.md. Runs of one name and text that differ in their seeds are
compared with all others of the same minutes and machine by Welch's t-test.
"""

import argparse
import dataclasses
import importlib
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent / "experiments"))
from entries import Entry, ExperimentList, ListError, nearest, read_list
from one_run import train_one
from records import (
    RECORDS,
    REPOSITORY,
    Record,
    RecordError,
    circumstances,
    corpora,
    portable,
    read_page,
    record_name,
    write_record,
)
from report import RESULTS, Report
from significance import welch
from texts import prepare_text

from latentlm.runs import Recipe, RecipeError, load_recipe
from latentlm.runs.recipe import RecipeLoader
from latentlm.training.time_limit import TimeLimit

PAGE = "speedrun"
SCORE = "eval_bits_per_byte"
WARMUP = 0.05  # of the time
YARDSTICKS = {"ngram": "n-grams (counts)", "xz": "xz"}
PYTHON_DOCS = {"dataset": "python_docs", "validation_fraction": 0.15}
NEVER = 10**6  # steps; the clock ends a run


class TimedSchedule(TimeLimit):
    """A [`TimeLimit`] by which learning rates rise over `WARMUP` of the time and fall to zero at its end, whatever the
    machine. What goes by the number of steps sees an estimate of it."""

    def share(self) -> float:
        """Of the time, what is over."""
        return min((time.monotonic() - self.started) / (self.seconds - self.longest_pause), 1.0)

    def factor(self, step: int = 0) -> float:
        """Of all learning rates, for the step that comes."""
        share = self.share()
        return max(min(share / WARMUP, (1 - share) / (1 - WARMUP)), 1e-3)

    def keep_time(self, passed, state, optimizer):
        """The schedule goes by the clock already."""

    def on_train_begin(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        assert optimizer is not None and lr_scheduler is not None  # Trainer gives them
        lr_scheduler.lr_lambdas = [self.factor] * len(lr_scheduler.lr_lambdas)
        for group in optimizer.param_groups:
            group["lr"] *= self.factor()

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        share = self.share()
        state.max_steps = state.global_step + 2 + round(state.global_step * (1 - share) / share)


def pick_text(experiments: ExperimentList, folder: Path) -> tuple[ExperimentList, str]:
    """The track with a text that is there, and its name."""
    if (folder / str(experiments.text["dataset"])).exists():
        return dataclasses.replace(experiments, budget_bytes=None), "wikitext2"
    return dataclasses.replace(experiments, text=PYTHON_DOCS, budget_bytes=None), "python-docs"


def make_recipe(entry: Entry, data: dict[str, Any], overrides: dict[str, Any], seed: int, run: Path) -> Recipe:
    timed = {"max_steps": NEVER, "lr_scheduler_type": "constant", "warmup_steps": 0}
    quiet = {
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_steps": 25,
        "report_to": "none",
        "sample_prompts": 0,
    }
    fields = {**data, **entry.overrides, **timed, **quiet, **overrides, "seed": seed, "output_dir": str(run)}
    return load_recipe(entry.recipe, fields)


def parse_overrides(given: list[str]) -> dict[str, Any]:
    """
    Raises:
        ListError: for one that is no `field=value`.
    """
    for one in given:
        if "=" not in one:
            raise ListError(f"--override {one!r}: write field=value, as hidden_size=320")
    return {name: yaml.load(value, RecipeLoader) for name, value in (one.split("=", 1) for one in given)}


def own_fields(configuration: dict[str, Any]) -> dict[str, Any]:
    """What runs of one name have in common: the configuration but for seed and folders."""
    return {
        f"{section}.{name}": value
        for section in ("model", "data", "training")
        for name, value in configuration[section].items()
        if name not in ("seed", "output_dir", "run_name", "logging_dir", "dataset", "validation_dataset", "cache_dir")
    } | {"peer": configuration["peer"]}


def differing_fields(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What sets two configurations apart; a field that one of them does not name is one."""
    fields = own_fields(one), own_fields(other)
    return sorted(name for name in fields[0].keys() | fields[1].keys() if fields[0].get(name) != fields[1].get(name))


def comparable(record: Record, other: Record) -> bool:
    """Whether two runs had the same time on the same kind of machine."""
    places = [
        {name: (one.machine or {}).get(name) for name in ("cpu", "threads", "accelerator")} for one in (record, other)
    ]
    return places[0] == places[1] and record.metrics.get("minutes") == other.metrics.get("minutes")


def comparison_lines(record: Record, mine: list[Record], others: dict[str, list[Record]]) -> list[str]:
    """What a test says of the entry against each other one.

    Args:
        record: the run that has ended; those that are not [`comparable`] with it are left out.
        mine: the runs of its entry.
        others: those of all others of the same text, by name.
    """
    lines = []
    values = [one.metrics[SCORE] for one in mine if comparable(record, one)]
    for name, records in others.items():
        records = [one for one in records if comparable(record, one)]
        result = welch(values, [one.metrics[SCORE] for one in records]) if records else None
        if not records:
            lines.append(f"{name}: no run of as many minutes on such a machine")
        elif result is None:
            seeds = f"{len(values)} and {len(records)} seeds"
            lines.append(f"{name}: {records[0].metrics[SCORE]:.4f}; {seeds}, and a test needs two of each (--seed)")
        else:
            lines.append(
                f"{name}: difference {result.difference:+.4f}, p = {result.p:.2g}; with these spreads and "
                f"{len(values)} and {len(records)} seeds, {result.detectable:.4f} would have been seen"
            )
    return lines


class Speedrun:
    """One entry with one seed, from its text to the table."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        experiments, self.text = pick_text(read_list("track"), options.text.resolve())
        models = {name: one for name, one in experiments.entries.items() if one.peer not in YARDSTICKS}
        if options.architecture not in models:
            close = nearest(options.architecture, models)
            raise ListError(f"--architecture {options.architecture!r}: there are {', '.join(models)}{close}")
        if not options.minutes > 0:
            raise ListError(f"--minutes is {options.minutes}, but must be above 0")
        overrides = parse_overrides(options.override)
        plain = "+".join(
            [options.architecture, *(re.sub(r"[^a-z0-9._-]+", "-", one.lower()) for one in options.override)]
        )
        self.label = options.name or plain
        self.name = f"{self.label}.{self.text}"
        self.entry = models[options.architecture]
        path = options.records / PAGE / record_name(self.name, options.seed)
        if path.exists():
            raise ListError(f"{path} is there: give another --seed, or another --name")
        self.run = options.runs.resolve() / PAGE / f"{self.name}-{options.seed}"
        parts = prepare_text(experiments, None, options.text.resolve(), self.run.parent / self.text)
        self.recipe = make_recipe(self.entry, parts["tuning"], overrides, options.seed, self.run)
        self.configuration = portable(self.recipe.to_dict() | {"peer": self.entry.peer})
        for one in read_page(PAGE, options.records):
            if one.entry != self.name or one.configuration is None:
                continue
            if changed := differing_fields(one.configuration, self.configuration):
                raise ListError(f"runs of {self.name} differ from this one in {', '.join(changed)}: --name it")

    def record(self, entry: str, label: str, seed: int, fields: dict[str, Any], started: float) -> Record:
        return Record(
            page=PAGE,
            entry=entry,
            label=label,
            seed=seed,
            **fields,
            configuration=self.configuration,
            wall_seconds=time.perf_counter() - started,
            **circumstances(),
        )

    def measure_yardsticks(self) -> None:
        """Records of what no network is needed for, once for each text."""
        for name, label in YARDSTICKS.items():
            entry, started = f"{name}.{self.text}", time.perf_counter()
            if not (self.options.records / PAGE / record_name(entry, 0)).exists():
                fields = importlib.import_module(f"peers.{name}").fit(self.recipe)
                write_record(self.record(entry, label, 0, fields, started), self.options.records)

    def train(self) -> Record:
        started = time.perf_counter()
        limit = TimedSchedule(self.options.minutes)
        fields = train_one(self.recipe, self.entry.peer, [], [], [limit])
        rate = float(self.recipe.training.learning_rate)
        fields["metrics"]["minutes"] = float(self.options.minutes)
        return self.record(self.name, self.label, self.options.seed, {**fields, "learning_rate": rate}, started)

    def report(self, record: Record) -> None:
        """One number, its yardsticks, and the comparisons."""
        by_name: dict[str, list[Record]] = {}
        for one in read_page(PAGE, self.options.records):
            if one.entry.endswith(f".{self.text}"):
                by_name.setdefault(one.entry, []).append(one)
        mine = by_name.pop(self.name)
        print(f"\n{self.name}, seed {record.seed}: {record.metrics[SCORE]:.4f} bits per byte of half A")
        for name, label in YARDSTICKS.items():
            print(f"{label}, of the same text: {by_name.pop(f'{name}.{self.text}')[0].metrics[SCORE]:.4f}")
        print("\n".join(comparison_lines(record, mine, by_name)))
        Report(PAGE, records=self.options.records, results=self.options.results).write()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="decoder-only", help="an entry of the track (default: decoder-only)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--override", action="append", default=[], metavar="FIELD=VALUE", help="may be repeated")
    parser.add_argument("--name", help="in the table (default: architecture and overrides)")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--text", type=Path, default=corpora())
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "experiments")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of speedrun.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        speedrun = Speedrun(options)
        speedrun.measure_yardsticks()
        record = speedrun.train()
        write_record(record, options.records)
        speedrun.report(record)
    except (ListError, RecipeError, RecordError, ValueError) as error:
        sys.exit(f"speedrun.py: {error}")


if __name__ == "__main__":
    main()
