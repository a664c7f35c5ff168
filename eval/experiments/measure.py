"""Add a measure to the records of runs that have finished: python eval/experiments/measure.py PAGE MEASURE

Every run of PAGE that has a record, and whose folder is still there, is loaded and measured by a file of `measures/`.
"""

import argparse
import dataclasses
import importlib
from pathlib import Path
from typing import Any

import torch
from records import RECORDS, REPOSITORY, RESULT, RUN, Record, read_page, write_record
from transformers import AutoConfig, AutoTokenizer

from latentlm.architectures import architecture
from latentlm.runs import load_recipe


def peer_of(record: Record) -> str:
    """The peer that took the place of the recipe's model, or nothing."""
    return (record.configuration or {}).get("peer") or ""


def load(record: Record, run: Path) -> Any:
    """The finished model of a run, with the class that it was trained with.

    Raises:
        ValueError: if that class has weights that the run has not.
    """
    if peer := peer_of(record):
        importlib.import_module(f"peers.{peer}").prepare(load_recipe(run / "recipe.yaml"))
    auto_class = architecture(AutoConfig.from_pretrained(run).model_type).trainer_class.auto_class
    model, found = auto_class.from_pretrained(run, dtype=torch.float32, output_loading_info=True)
    if found["missing_keys"]:
        raise ValueError(f"{run}: no weights for {', '.join(sorted(found['missing_keys']))} of {type(model).__name__}")
    return model.eval()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", help="folder with a rows.yaml, beside this file")
    parser.add_argument("measure", help="a file of measures/")
    parser.add_argument("--only", nargs="+", metavar="ENTRY", help="runs of these entries alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "experiments")
    parser.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    measure = importlib.import_module(f"measures.{options.measure}").measure
    # A peer takes the place of a class for good: those without come first.
    for record in sorted(read_page(options.page, options.records), key=peer_of):
        run = options.runs.resolve() / options.page / f"{record.entry}-{record.seed}"
        chosen = options.only is None or record.entry in options.only
        if not chosen or (record.source, record.purpose) != (RUN, RESULT) or not (run / "config.json").exists():
            continue
        measured = measure(load(record, run), AutoTokenizer.from_pretrained(run), run)
        metrics = {**record.metrics, **measured}
        print(write_record(dataclasses.replace(record, metrics=metrics), options.records), flush=True)


if __name__ == "__main__":
    main()
