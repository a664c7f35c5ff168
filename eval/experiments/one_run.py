"""One run of an experiment, in a process of its own: train, measure, leave a record.

python eval/experiments/one_run.py JOB.json          # written by run.py
"""

import dataclasses
import importlib
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from records import Record, circumstances, count_parameters, curves, portable, write_record
from transformers import TrainerCallback

from latentlm.data.config import DataConfig
from latentlm.runs import Recipe, load_recipe
from latentlm.runs.run_folder import best_step, peak_memory, read_metrics
from latentlm.training.run import load_data, train
from latentlm.training.trainer import LatentTrainer

CURVES = ("loss", "lm_loss", "eval_bits_per_byte")
FLOPS_METHOD = "6 N D: N parameters of the body (no embedding tables), D predicted tokens; attention is left out"


def prepare_peer(name: str | None, recipe: Recipe) -> list[TrainerCallback]:
    """Let a peer take the place of the recipe's model; callbacks that its training needs."""
    return [] if name is None else importlib.import_module(f"peers.{name}").prepare(recipe)


def seen(metrics: list[dict[str, Any]], unit: str) -> int:
    """Tokens or bytes that were predicted in training, from the speeds between two logs."""
    total = before = 0.0
    for line in metrics:
        if f"{unit}_per_second" in line:
            total += line[f"{unit}_per_second"] * (line["training_seconds"] - before)
            before = line["training_seconds"]
    return round(total)


def last_evaluation(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """The finite values of the last evaluation, the lowest bits per byte of all, and whether the run has diverged."""
    evaluations = [line for line in metrics if "eval_loss" in line]
    numbers = {
        name: value
        for name, value in evaluations[-1].items()
        if name.startswith("eval_") and isinstance(value, int | float) and math.isfinite(value)
    }
    timing = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
    bits = [line.get("eval_bits_per_byte", math.nan) for line in evaluations]
    bits = [value for value in bits if math.isfinite(value)]
    lowest = {"lowest_bits_per_byte": min(bits)} if bits else {}
    diverged = {} if math.isfinite(evaluations[-1]["eval_loss"]) else {"diverged": 1.0}
    return {name: float(value) for name, value in numbers.items() if name not in timing} | lowest | diverged


def last_logged(metrics: list[dict[str, Any]], names: list[str]) -> dict[str, float]:
    """The training loss of the last log, or that the run has diverged, and the last values of the curves that an entry
    names."""
    losses = [float(line.get("lm_loss", line["loss"])) for line in metrics if "loss" in line]
    train_loss = {"train_loss": losses[-1]} if losses else {}
    if losses and not math.isfinite(losses[-1]):
        train_loss = {"diverged": 1.0}
    return train_loss | {name: float(points[-1][1]) for name, points in curves(metrics, names).items()}


def score_best(trainer: LatentTrainer, recipe: Recipe, text: str) -> dict[str, float]:
    """The results of the best checkpoint, which the trainer has loaded, on another text; and its step."""
    step = best_step(trainer)
    assert isinstance(recipe.data, DataConfig) and step is not None
    data = load_data(dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, validation_dataset=text)))
    scores = trainer.evaluate(data.validation, metric_key_prefix="held_out")  # in the log apart from the run's own
    results = last_evaluation([{name.replace("held_out_", "eval_", 1): value for name, value in scores.items()}])
    results.pop("lowest_bits_per_byte", None)  # that of the run is of the text that chose the checkpoint
    return results | {"best_step": float(step)}


def train_one(
    recipe: Recipe,
    peer: str | None,
    measures: list[str],
    curve_names: list[str],
    callbacks: Sequence[TrainerCallback] = (),
    held_out: str | None = None,
) -> dict[str, Any]:
    """Train a recipe to its end, from its last checkpoint on; fields of the record. `held_out` is a text that takes the
    place of the recipe's in the last evaluation."""
    run = Path(str(recipe.training.output_dir))
    trainer = train(recipe, [*prepare_peer(peer, recipe), *callbacks])
    metrics = read_metrics(run)
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    parameters = count_parameters(model)
    tokens = seen(metrics, "tokens")
    training = [line for line in metrics if "training_seconds" in line]
    measured = score_best(trainer, recipe, held_out) if held_out else {}
    for name in measures:
        measured |= importlib.import_module(f"measures.{name}").measure(model.eval(), trainer.processing_class, run)
    return {
        "curve": curves(metrics, [*CURVES, *curve_names]),
        "metrics": {**last_logged(metrics, curve_names), **last_evaluation(metrics), **measured},
        "steps": trainer.state.global_step,
        "seconds": training[-1]["training_seconds"] if training else 0.0,
        "peak_memory_bytes": peak_memory(recipe.training.device),
        "flops": 6.0 * parameters["body"] * tokens,
        "flops_method": FLOPS_METHOD,
        "parameters": parameters,
        "tokens_seen": tokens,
        "bytes_seen": seen(metrics, "bytes"),
    }


def main() -> None:
    started = time.perf_counter()
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    where = circumstances()  # before training: a run of hours has the code that it began with
    recipe = load_recipe(Path(job["recipe"]), job["overrides"])
    configuration = portable(recipe.to_dict() | {"peer": job["peer"]})
    peer = importlib.import_module(f"peers.{job['peer']}") if job["peer"] else None
    if hasattr(peer, "fit"):  # counts: nothing is trained
        assert isinstance(recipe.data, DataConfig) and peer is not None
        fields = peer.fit(recipe)
    else:
        fields = train_one(recipe, job["peer"], job["measures"], job["curves"], held_out=job["held_out"])
    record = Record(
        **job["record"],
        **fields,
        configuration=configuration,
        wall_seconds=time.perf_counter() - started,
        **where,
    )
    print(write_record(record, Path(job["records"])))


if __name__ == "__main__":
    main()
