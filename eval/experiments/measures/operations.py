"""Floating-point operations per byte, counted: of a forward that gives the next token, and of a training step."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from latentlm.runs.run_folder import read_metrics

ROWS, LENGTH = 4, 512
BEGIN = 257


def measure(model: Any, tokenizer: Any, run: Path) -> dict[str, float]:
    """In millions, on rows of random tokens."""
    length = min(LENGTH, getattr(model.config, "max_position_embeddings", None) or LENGTH)
    ids = torch.randint(0, 256, (ROWS, length), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = BEGIN
    ids = ids.to(next(model.parameters()).device)
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        model.eval()(ids, use_cache=False)
    with FlopCounterMode(display=False) as training:
        model.train()(ids, labels=ids).loss.backward()
    model.eval().zero_grad()
    counts = {"mflop_a_byte_forward": forward, "in_training": training}
    speeds = [line for line in read_metrics(run) if "bytes_per_second" in line]
    token_bytes = speeds[-1]["bytes_per_second"] / speeds[-1]["tokens_per_second"] if speeds else 1.0
    return {name: counter.get_total_flops() / ids.numel() / token_bytes / 1e6 for name, counter in counts.items()}
