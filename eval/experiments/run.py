"""Run the experiments of a page, one process after the other; each finished run leaves a record.

    python eval/experiments/run.py PAGE [--only ENTRY ...] [--seeds 0 ...] [--dry_run] [--threads 1] [--text FOLDER]

PAGE is a folder beside this file with a `rows.yaml`. Killed and started again, it goes on: runs with a record are
skipped, the others continue from their last checkpoint. Several of these may work on one list, each run is taken by
one of them.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from entries import HERE, Entry, ExperimentList, ListError, at_edge, extend_grid, read_list
from huggingface_hub.errors import StrictDataclassError
from records import (
    RECORDS,
    REPOSITORY,
    RESULT,
    RUN,
    TUNING,
    Record,
    corpora,
    count_parameters,
    read_page,
    read_record,
    record_name,
)
from texts import prepare_text
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from latentlm.runs import RecipeError, load_recipe

SCORE = "eval_bits_per_byte"  # what a learning rate is chosen by
BEST_SCORE = "lowest_bits_per_byte"  # where the best checkpoint counts, not the last
START_SECONDS = 12.0  # of a process before it trains; for estimates
BUSY_SECONDS = 5.0  # between two looks at what another process is running
COUNTING_PEERS = ("ngram", "xz")  # without arithmetic
GUESSED_EFFICIENCY = 0.3  # of a matrix product's speed; for estimates before the first record


class RunFailed(RuntimeError):
    """A run that ended with an error; the message names its log."""


@dataclass(frozen=True)
class Job:
    """One run: an entry with a seed and, where it is tuned, a learning rate."""

    entry: Entry
    seed: int
    purpose: str
    learning_rate: float | None

    @property
    def name(self) -> str:
        rate = self.learning_rate if self.purpose == TUNING else None
        return record_name(self.entry.name, self.seed, rate).removesuffix(".json").replace("/", "-")


class Runner:
    """Works through a list.

    Args:
        experiments: what to run.
        runs: folder of runs, logs and locks.
        records: folder of records.
        text: where the paths of the list's text begin.
        threads: of each run.
        only: names of the entries to run, None for all; what they are tuned with and start from is run as well.
        seeds: to run of those that an entry names, None for all of them.
    """

    def __init__(
        self,
        experiments: ExperimentList,
        runs: Path,
        records: Path,
        text: Path,
        threads: int = 1,
        only: list[str] | None = None,
        seeds: list[int] | None = None,
    ):
        self.experiments, self.records, self.threads, self.seeds = experiments, records, threads, seeds
        unknown = set(only or ()) - set(experiments.entries)
        if unknown:
            raise ListError(
                f"--only: no entry {', '.join(sorted(unknown))}; there are {', '.join(experiments.entries)}"
            )
        for name in only or ():
            if experiments.entries[name].revision is not None:
                raise ListError(
                    f"--only: {name} has options that the code no longer has; revision "
                    f"{experiments.entries[name].revision} runs it"
                )
        runnable = [entry for entry in experiments.entries.values() if entry.revision is None]
        self.entries = [entry for entry in runnable if only is None or entry.name in only]
        self.runs = runs / experiments.page
        self.runs.mkdir(parents=True, exist_ok=True)
        self.data: dict[int | None, dict[str, dict[str, Any]]] = {}  # of each budget
        with locked(self.runs / "text.lock"):
            entries = [one for entry in self.entries for one in self.chain(entry)]
            needed = [*entries, *filter(None, map(self.tuned, entries))]
            for budget in dict.fromkeys(map(experiments.budget, needed)):
                self.data[budget] = prepare_text(experiments, budget, text, self.runs / "text")

    # ---- What there is to do ----

    def record_path(self, job: Job) -> Path:
        rate = job.learning_rate if job.purpose == TUNING else None
        return self.records / self.experiments.page / record_name(job.entry.name, job.seed, rate)

    def trials(self, entry: Entry) -> list[Job]:
        """Of the learning rates: those of the list, and those that extend its grid so far."""
        seed = entry.seeds[0] if entry.seeds else 0
        rates = list(entry.learning_rates)
        while True:
            jobs = [Job(entry, seed, TUNING, rate) for rate in rates]
            if not all(self.record_path(job).exists() for job in jobs):
                return jobs
            added = extend_grid(rates, self.best_rate(jobs))
            if added is None:
                return jobs
            rates.append(added)

    def best_rate(self, jobs: list[Job]) -> float:
        """The learning rate whose trial ended lowest, or came lowest where the best checkpoint counts; not one that
        diverged.

        Raises:
            RunFailed: if all of them did.
        """
        score = BEST_SCORE if jobs[0].entry.best_checkpoint else SCORE
        scores: dict[float, float] = {}
        for job in jobs:
            metrics = read_record(self.record_path(job)).metrics
            if job.learning_rate is not None and "diverged" not in metrics:
                scores[job.learning_rate] = metrics[score]
        if not scores:
            raise RunFailed(f"{jobs[0].entry.name}: all trials diverged; list lower learning rates")
        return min(scores, key=lambda rate: scores[rate])

    def tuned(self, entry: Entry) -> Entry | None:
        """The entry whose trials decide the learning rate."""
        return (
            self.experiments.entries[entry.tuned_with]
            if entry.tuned_with
            else (entry if entry.learning_rates else None)
        )

    def chain(self, entry: Entry) -> list[Entry]:
        """The entry, the one whose models it starts from, the one that this starts from, and so on."""
        entries = [entry]
        while (base := entries[-1].start_from) is not None:
            entries.append(self.experiments.entries[base])
        return entries

    def base(self, job: Job, rate: float | None = None) -> Job | None:
        """The run whose finished model a run starts from."""
        name = job.entry.start_from
        return None if name is None else Job(self.experiments.entries[name], job.seed, RESULT, rate)

    def results(self, entry: Entry, rate: float | None) -> list[Job]:
        return [Job(entry, seed, RESULT, rate) for seed in entry.seeds if self.seeds is None or seed in self.seeds]

    def open_jobs(self) -> list[Job]:
        """Everything without a record, as far as it is known: extensions of a grid are not, before its trials ran."""
        jobs: dict[Path, Job] = {}

        def add(entry: Entry, results: list[Job]) -> None:
            source = self.tuned(entry)
            for job in [*(self.trials(source) if source else []), *results]:
                path = self.record_path(job)
                if not path.exists() and path not in jobs:
                    if base := self.base(job):
                        add(base.entry, [base])
                    jobs[path] = job

        for entry in self.entries:
            add(entry, self.results(entry, None))
        return list(jobs.values())

    def overrides(self, job: Job) -> dict[str, Any]:
        """Everything that the run changes of its recipe."""
        entry = job.entry
        budget = self.experiments.budget(entry)
        data = self.data[budget][TUNING if entry.best_checkpoint else job.purpose]
        changed: dict[str, Any] = {**data, **entry.overrides}
        if entry.best_checkpoint and job.purpose == RESULT:
            best = {"load_best_model_at_end": True, "metric_for_best_model": SCORE, "greater_is_better": False}
            changed = {**best, **changed}
        if budget is not None:
            changed = {"num_train_epochs": 1, "max_steps": -1, **changed}  # the text is as long as the budget says
        if job.purpose == TUNING:
            changed |= entry.tuning_overrides
        if job.learning_rate is not None:
            changed[(self.tuned(entry) or entry).tuned_field] = job.learning_rate
        if base := self.base(job):
            changed["from_pretrained"] = str(self.runs / base.name)
        return {
            "report_to": "none",
            "sample_prompts": 0,
            **changed,
            "seed": job.seed,
            "output_dir": str(self.runs / job.name),
        }

    def held_out(self, job: Job) -> str | None:
        """The text that the best checkpoint is scored on when its run has ended."""
        if not job.entry.best_checkpoint or job.purpose == TUNING:
            return None
        return self.data[self.experiments.budget(job.entry)][RESULT]["validation_dataset"]

    # ---- Doing it ----

    def run_all(self) -> None:
        """Run the list in its order: an entry's trials, then its seeds; before each what it starts from."""
        for entry in self.entries:
            rate, edge = self.rate(entry)
            for job in self.results(entry, rate):
                self.run(job, edge)

    def rate(self, entry: Entry) -> tuple[float | None, bool | None]:
        """The learning rate that an entry's trials choose, which are run; None where it is the recipe's own."""
        source = self.tuned(entry)
        return self.tune(source) if source else (None, None)

    def tune(self, entry: Entry) -> tuple[float, bool]:
        """Run the trials of an entry; the best learning rate, and whether it lies at the edge of the grid."""
        while True:
            jobs = self.trials(entry)
            waiting = [job for job in jobs if not self.record_path(job).exists()]
            if not waiting:
                rates = [job.learning_rate for job in jobs if job.learning_rate is not None]
                best = self.best_rate(jobs)
                return best, at_edge(rates, best)
            if not any([self.run(job, None) for job in waiting]):
                time.sleep(BUSY_SECONDS)  # another process is running all of them

    def run(self, job: Job, edge: bool | None) -> bool:
        """Run a job unless it has a record or another process has taken it; whether it is finished.

        Raises:
            RunFailed: if it ended with an error.
        """
        record = self.record_path(job)
        if record.exists():
            return True
        self.finish_base(job)
        lock = self.runs / f"{job.name}.lock"
        with locked(lock, wait=False) as file:
            if file is None:
                print(f"{job.name}: another process runs it", flush=True)
                return False
            if record.exists():
                return True
            self.report_progress(job)
            self.start(job, edge, file)
        return True

    def finish_base(self, job: Job) -> None:
        """Run what a run starts from, or wait until another process has."""
        if job.entry.start_from is None:
            return
        rate, edge = self.rate(self.experiments.entries[job.entry.start_from])
        base = self.base(job, rate)
        assert base is not None
        while not self.run(base, edge):
            time.sleep(BUSY_SECONDS)

    def start(self, job: Job, edge: bool | None, lock: int) -> None:
        """Train in a process of its own, which holds the lock as long as it lives, also if this one is killed."""
        entry, page = job.entry, self.experiments.page
        content = {
            "recipe": str(entry.recipe),
            "overrides": self.overrides(job),
            "peer": entry.peer,
            "measures": entry.measures if job.purpose == RESULT else [],
            "held_out": self.held_out(job),
            "curves": entry.curves,
            "threads": self.threads,
            "records": str(self.records),
            "record": {
                "page": page,
                "entry": entry.name,
                "label": entry.label,
                "source": RUN,
                "seed": job.seed,
                "purpose": job.purpose,
                "learning_rate": job.learning_rate,
                "at_edge": edge,
            },
        }
        path = self.runs / f"{job.name}.json"
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        log_path = self.runs / f"{job.name}.log"
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, str(HERE / "one_run.py"), str(path)]
        status = run_process(command, log_path, environment, lock)
        if status:
            tail = log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
            raise RunFailed(f"{job.name} ended with status {status}, see {log_path}:\n    " + "\n    ".join(tail))

    # ---- How long it takes ----

    def flops(self, job: Job) -> float | None:
        """6 N D of a run; None where the model cannot be counted before its data are read."""
        if job.entry.peer in COUNTING_PEERS:
            return 0.0
        try:
            recipe = load_recipe(job.entry.recipe, self.overrides(job))
            config = AutoConfig.for_model(recipe.model_type, **recipe.model)  # its vocabulary is no part of the body
            with torch.device("meta"):
                model: torch.nn.Module = build_on_meta(config)
        except (StrictDataclassError, ValueError, TypeError, KeyError, OSError):
            return None
        body = count_parameters(model)["body"]
        training = recipe.training
        tokens: float = self.experiments.budget(job.entry) or 0
        if training.max_steps > 0:
            rows = training.per_device_train_batch_size * training.gradient_accumulation_steps
            tokens = training.max_steps * rows * getattr(recipe.data, "context_length", 1)
        return 6.0 * body * tokens if tokens else None

    def seconds(self, jobs: list[Job]) -> list[float | None]:
        """What each of the jobs is expected to take: as long, for its arithmetic, as the records of this page took; a
        guess from the speed of a matrix product before there are any."""
        speed = measured_speed(read_page(self.experiments.page, self.records)) or guessed_speed(self.threads)
        costs = [self.flops(job) for job in jobs]
        return [None if cost is None else START_SECONDS + cost / speed for cost in costs]

    def report_progress(self, job: Job) -> None:
        jobs = self.open_jobs()
        expected = self.seconds([job, *jobs])
        left = sum(second for second in expected[1:] if second is not None)
        known = "" if None not in expected else ", without what cannot be estimated"
        this = "?" if expected[0] is None else minutes(expected[0])
        print(
            f"{time.strftime('%H:%M:%S')} {job.name}: about {this}; {len(jobs)} to go, about {minutes(left)}{known}",
            flush=True,
        )

    def print_plan(self) -> None:
        """What would run, and how long that is expected to take."""
        jobs = self.open_jobs()
        expected = self.seconds(jobs)
        for job, second in zip(jobs, expected, strict=True):
            rate = f", learning rate {job.learning_rate:g}" if job.purpose == TUNING else ""
            print(
                f"{job.entry.name}, seed {job.seed}, {job.purpose}{rate}: {'?' if second is None else minutes(second)}"
            )
        total = sum(second for second in expected if second is not None)
        more = "" if None not in expected else ", without what cannot be estimated"
        print(f"{len(jobs)} runs, about {minutes(total)}{more}; a grid whose optimum is at its edge adds more.")


def run_process(command: list[str], log_path: Path, environment: dict[str, str], lock: int) -> int:
    """Run a command to its end with its output in a log; it inherits the lock. Its exit status."""
    with open(log_path, "ab") as log:
        return subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, pass_fds=[lock], check=False
        ).returncode


def build_on_meta(config: Any) -> torch.nn.Module:
    """The causal model of a configuration, or the plain one where it has none."""
    try:
        return AutoModelForCausalLM.from_config(config)
    except ValueError:
        return AutoModel.from_config(config)


def measured_speed(records: list[Record]) -> float | None:
    """FLOP/s of the runs that are there, start-up included."""
    runs = [one for one in records if one.source == RUN and one.flops and one.wall_seconds]
    total = sum(max((one.wall_seconds or 0.0) - START_SECONDS, 1.0) for one in runs)
    return sum(one.flops or 0.0 for one in runs) / total if runs else None


def guessed_speed(threads: int) -> float:
    """FLOP/s that training may reach here with nothing beside it, from one matrix product."""
    torch.set_num_threads(threads)
    matrix = torch.randn(512, 512)
    matrix @ matrix
    started = time.process_time()
    for _ in range(5):
        matrix @ matrix
    return GUESSED_EFFICIENCY * 5 * 2 * 512**3 * threads / (time.process_time() - started)


def minutes(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[int | None]:
    """Hold a lock file; its descriptor, or None if another process holds it. The system takes the lock of a process
    that died away, so that none is ever stale."""
    try:
        import fcntl
    except ImportError as error:
        raise ListError(
            "runs hold locks that their processes inherit, which Windows has not: use Linux or macOS"
        ) from error
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
            return
        yield descriptor
    finally:
        os.close(descriptor)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", help="folder with a rows.yaml, beside this file")
    parser.add_argument("--only", nargs="+", metavar="ENTRY", help="run these entries alone")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="run these seeds alone")
    parser.add_argument("--dry_run", action="store_true", help="print what would run and how long it takes")
    parser.add_argument("--threads", type=int, default=1, help="of each run (default: 1)")
    add_folders(parser)
    return parser.parse_args(arguments)


def add_folders(parser: argparse.ArgumentParser) -> None:
    """Where runs find and leave things."""
    parser.add_argument("--text", type=Path, default=corpora(), help="folder of the corpora")
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "experiments")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--lists", type=Path, default=HERE, help="folder of the pages (default: beside this file)")


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    try:
        experiments = read_list(options.page, options.lists.resolve())
        runner = Runner(
            experiments,
            options.runs.resolve(),
            options.records.resolve(),
            options.text.resolve(),
            options.threads,
            options.only,
            options.seeds,
        )
        runner.print_plan() if options.dry_run else runner.run_all()
    except (ListError, RecipeError, RunFailed, ValueError) as error:
        sys.exit(f"run.py: {error}")


if __name__ == "__main__":
    main()
