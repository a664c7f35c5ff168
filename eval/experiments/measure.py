"""Add a measure to the records of runs that have finished: python eval/experiments/measure.py PAGE MEASURE

Every run of PAGE that has a record, and whose folder is still there, is loaded and measured by a file of `measures/`.
"""

import argparse
import dataclasses
import importlib
from pathlib import Path
from typing import Any

import torch
from records import RECORDS, REPOSITORY, RESULT, RUN, read_page, write_record
from transformers import AutoModelForCausalLM, AutoTokenizer

import latentlm  # noqa: F401  registers the architectures


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
    for record in read_page(options.page, options.records):
        run = options.runs.resolve() / options.page / f"{record.entry}-{record.seed}"
        chosen = options.only is None or record.entry in options.only
        if not chosen or (record.source, record.purpose) != (RUN, RESULT) or not (run / "config.json").exists():
            continue
        model: Any = AutoModelForCausalLM.from_pretrained(run, dtype=torch.float32).eval()
        measured = measure(model, AutoTokenizer.from_pretrained(run), run)
        metrics = {**record.metrics, **measured}
        print(write_record(dataclasses.replace(record, metrics=metrics), options.records), flush=True)


if __name__ == "__main__":
    main()
