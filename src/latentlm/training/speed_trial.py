"""Timing of a few steps before a run, which determines the faster dtype on this machine and the number of steps for a
time budget."""

import time
from contextlib import nullcontext
from itertools import cycle
from statistics import median
from typing import Any

import torch

from latentlm.data import PreparedData
from latentlm.data.packing import stack_rows
from latentlm.runs import Recipe

from .run import build_trainer

FASTER = 0.95  # bfloat16 is chosen if it takes less than this share of the time of float32
EVALUATIONS = 6
SHARE = 0.75  # share of the time that is planned for steps; the rest is for evaluations and a slower machine


def time_steps(recipe: Recipe, data: PreparedData, seconds: float) -> dict[str, float]:
    """Return the median seconds of an optimizer step of one micro-batch in `float32` and in `bfloat16`.

    Steps of both alternate for `seconds`, with at least three of each. The first of each is not counted. The model of
    these steps is discarded.
    """
    trainer = build_trainer(recipe, data)
    assert trainer.model is not None
    model: Any = trainer.model.train()
    optimizer = trainer.create_optimizer()
    device, size = trainer.args.device, trainer.args.per_device_train_batch_size
    rows: Any = data.train
    batch = {name: value.to(device) for name, value in stack_rows([rows[i % len(rows)] for i in range(size)]).items()}
    contexts = {"float32": nullcontext(), "bfloat16": torch.autocast(device.type, torch.bfloat16)}
    times: dict[str, list[float]] = {kind: [] for kind in contexts}
    end = time.perf_counter() + seconds
    for kind in cycle(contexts):
        if time.perf_counter() >= end and all(len(one) >= 3 for one in times.values()):
            break
        started = time.perf_counter()
        with contexts[kind]:
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        next(model.parameters()).flatten()[0].item()  # synchronizes with an accelerator
        times[kind].append(time.perf_counter() - started)
    return {kind: median(one[1:]) for kind, one in times.items()}


def plan(recipe: Recipe, times: dict[str, float], minutes: float) -> dict[str, Any]:
    """Return the training fields of a run of `minutes`: the faster dtype, the number of steps that fit, at most that of
    the recipe, and evaluations and checkpoints after each sixth of the steps. `times` are those of [`time_steps`]."""
    bf16 = times["bfloat16"] < FASTER * times["float32"]
    step = times["bfloat16" if bf16 else "float32"] * recipe.training.gradient_accumulation_steps
    steps = int(SHARE * 60 * minutes / step)
    wanted = recipe.training.max_steps
    steps = max(steps if wanted < 0 else min(steps, wanted), 1)
    interval = -(-steps // EVALUATIONS)
    return {"bf16": bf16, "max_steps": steps, "eval_steps": interval, "save_steps": interval}
