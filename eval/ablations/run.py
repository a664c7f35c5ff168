"""Train the rows of an ablation, one process after the other, each through `python -m latentlm.train`.

    python eval/ablations/run.py ar-encoder-decoder [--runs runs/ablations] [--rows plain sub] [--text FOLDER]

Killed and started again, it continues where it stopped: finished runs are skipped, the others resume. Several of these
can run side by side, each row is taken by one of them.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
RESOURCES_FILE = "resources.json"


@dataclass
class Row:
    """One line of the results table."""

    name: str
    label: str
    group: str
    seeds: int
    recipe: str
    tuning: str
    fields: dict[str, Any]
    picture: bool  # whether its masks are shown for one sentence


def read_rows(ablation: str) -> tuple[list[Row], dict[str, list[str]]]:
    """Rows of an ablation in running order, and the learning rates to try by name of the tuning."""
    content = yaml.safe_load((HERE / ablation / "rows.yaml").read_text(encoding="utf-8"))
    rows = [
        Row(
            name,
            row["label"],
            row.get("group", "tokens"),
            row.get("seeds", 1),
            row.get("recipe", "encoder-decoder"),
            row.get("tuning") or row.get("recipe", "encoder-decoder"),
            row.get("fields", {}),
            row.get("picture", False),
        )
        for name, row in content["rows"].items()
    ]
    return rows, {name: list(map(str, values)) for name, values in content["tuning"].items()}


def lowest_bits_per_byte(run: Path) -> float | None:
    """Bits per byte of a finished run's best evaluation."""
    if not (run / RESOURCES_FILE).exists():
        return None
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return min(entry["eval_bits_per_byte"] for entry in entries if "eval_bits_per_byte" in entry)


def best_learning_rate(runs: Path, row: Row, values: list[str]) -> str | None:
    """The value whose run came lowest; None until all of them have ended."""
    scores = {value: lowest_bits_per_byte(runs / run_name(row.name, value, 0)) for value in values}
    return None if None in scores.values() else min(scores, key=scores.__getitem__)


def run_name(row: str, learning_rate: str, seed: int) -> str:
    return f"{row}--lr{learning_rate}--seed{seed}"


def train(ablation: str, row: Row, learning_rate: str, seed: int, runs: Path, text: Path) -> None:
    """One run in a process of its own, with its minutes and peak memory written beside its metrics."""
    folder = runs / run_name(row.name, learning_rate, seed)
    if (folder / RESOURCES_FILE).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = runs / f".{folder.name}.pid"
    try:
        with open(lock, "x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        owner = int(lock.read_text() or 0)
        if owner and Path(f"/proc/{owner}").exists():
            return  # another process works on it
        lock.write_text(str(os.getpid()))
    overrides = {
        "dataset": text / "wiki.train.txt",
        "validation_dataset": text / "wiki.valid.txt",
        "output_dir": folder,
        "learning_rate": learning_rate,
        "seed": seed,
        **row.fields,
    }
    command = [sys.executable, "-m", "latentlm.train", str(HERE / ablation / f"{row.recipe}.yaml")]
    for name, value in overrides.items():
        command += [f"--{name}", str(value)]
    print(f"{time.strftime('%H:%M:%S')} {folder.name}", flush=True)
    started = time.perf_counter()
    with open(runs / f"{folder.name}.log", "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    lock.unlink()
    if status:
        sys.exit(f"{folder.name} failed, see {runs / (folder.name + '.log')}")
    resources = {
        "minutes": (time.perf_counter() - started) / 60,
        "cpu_minutes": (usage.ru_utime + usage.ru_stime) / 60,
        "peak_memory_mib": usage.ru_maxrss / 1024,
    }
    (folder / RESOURCES_FILE).write_text(json.dumps(resources, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ablation", help="folder beside this file")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--text", type=Path, default=HERE.parents[2] / "shared/data/wikitext2")
    parser.add_argument("--rows", nargs="*", help="only these rows")
    options = parser.parse_args()
    runs = options.runs / options.ablation
    runs.mkdir(parents=True, exist_ok=True)
    rows, tuning = read_rows(options.ablation)
    first = {name: next(row for row in rows if row.tuning == name) for name in tuning}
    for row in rows:  # in this order, so that what matters most is complete first
        if options.rows and row.name not in options.rows:
            continue
        tried, values = first[row.tuning], tuning[row.tuning]
        for value in values:
            train(options.ablation, tried, value, 0, runs, options.text)
        while (rate := best_learning_rate(runs, tried, values)) is None:
            time.sleep(5)  # a process beside this one still works on it
        for seed in range(row.seeds):
            train(options.ablation, row, rate, seed, runs, options.text)


if __name__ == "__main__":
    main()
