"""How fast a model writes: bytes per second of CPU time, one row, with its cache."""

import time
from pathlib import Path
from typing import Any

import torch

from latentlm.runs.run_folder import read_metrics

PROMPT = " = The river = \n The river flows to the sea , and the town lies on its eastern bank ."
NEW, REPEATS = 128, 3  # tokens; the fastest time counts


def measure(model: Any, tokenizer: Any, run: Path | None) -> dict[str, float]:
    """Nothing of a model that cannot generate. Where the prompt does not fit the context, half a context of it is read.
    A token of several bytes counts as many as those of the training text have on average; without a run, one."""
    if not getattr(model, "can_generate", bool)():
        return {}
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids.to(next(model.parameters()).device)
    context = getattr(model.config, "max_position_embeddings", None) or ids.shape[1] + NEW
    if ids.shape[1] >= context:
        ids = ids[:, : context // 2]
    new = min(NEW, context - ids.shape[1])
    limits = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
    seconds = []
    for _ in range(REPEATS):
        started = time.process_time()
        written = model.eval().generate(ids, attention_mask=torch.ones_like(ids), **limits)
        seconds.append(time.process_time() - started)
    speeds = [line for line in (read_metrics(run) if run else []) if "bytes_per_second" in line]
    token_bytes = speeds[-1]["bytes_per_second"] / speeds[-1]["tokens_per_second"] if speeds else 1.0
    return {"generation_bytes_per_second": (written.shape[1] - ids.shape[1]) * token_bytes / min(seconds)}
