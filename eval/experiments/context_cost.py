"""What a byte costs after so many others: arithmetic, CPU time and memory of scoring a row and of a cached step.

    OMP_NUM_THREADS=1 python eval/experiments/context_cost.py [ENTRY ...] [--contexts 512 2048 8192] [--runs FOLDER]

Takes the finished model of the first seed, since where an Abstractinator and BLT cut depends on weights, and the text
that it was scored on, in longer rows than it was trained with: costs do not depend on how well it predicts there. A
record of each in eval/records/context. The transformers' BLT has no cache here, so that it has no cached step.
"""

import argparse
import importlib
import time
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from entries import read_list
from measures.segments import read_text
from records import MEASURED, REPOSITORY, Record, circumstances, count_parameters, write_record
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import latentlm  # noqa: F401  registers the architectures
from latentlm.runs import load_recipe

PAGE = "context"
LISTS = {"shared-trunk": "pyramid", "decoder-only-start": "pyramid", "blt": "track"}  # of each entry
STEPS = 32  # of cached decoding: segments end at some of them


def attention_flops(query: Any, key: Any, value: Any, dropout: float = 0.0, causal: bool = False, **kwargs: Any) -> int:
    """Of torch's fused kernel on the CPU, which `FlopCounterMode` leaves out: where it is causal, of the pairs that it
    reads; with a mask, or without one, of all."""
    pairs = sdpa_flop_count(query, key, value)
    return pairs * (query[2] + 1) // (2 * query[2]) if causal and query[2] == key[2] else pairs


def count_operations() -> FlopCounterMode:
    """A counter of floating-point operations that knows attention on the CPU."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={kernel: attention_flops})


class LiveBytes(TorchDispatchMode):
    """Counts, while active, the bytes of the tensors that operations make and that are still in use."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in inputs:  # no view, and nothing that was written in place
                    self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.live = {key: one for key, one in self.live.items() if not one[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


def cache_bytes(cache: Any) -> int:
    """Bytes of the tensors of a cache, wherever they are in it."""
    storages: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, dict):
            visit(list(value.values()))
        elif isinstance(value, list | tuple):
            for one in value:
                visit(one)
        elif is_dataclass(value):
            visit([getattr(value, field.name) for field in fields(value)])
        elif hasattr(value, "__dict__") and not isinstance(value, torch.nn.Module):
            visit(vars(value))

    visit(cache)
    return sum(storages.values())


def cpu_seconds(call: Callable[[], Any], repeats: int) -> float:
    """The lowest time of the process, over `repeats` calls."""
    lowest = float("inf")
    for _ in range(repeats):
        started = time.process_time()
        call()
        lowest = min(lowest, time.process_time() - started)
    return lowest


@torch.no_grad()
def measure_context(model: Any, ids: torch.Tensor, repeats: int, steps: bool) -> dict[str, float]:
    """Costs a byte of a row `(1, T + STEPS)`: of scoring its first T bytes, and of cached steps after them.

    Args:
        steps: whether the model has a cache.
    """
    row, length = ids[:, :-STEPS], ids.shape[1] - STEPS

    def score() -> None:
        model(row, use_cache=False)

    with LiveBytes() as memory, count_operations() as operations:
        score()
    metrics = {
        "mflop": operations.get_total_flops() / length / 1e6,
        "ms": 1e3 * cpu_seconds(score, repeats) / length,
        "peak_mb": memory.peak / 1e6,
    }
    if not steps:
        return metrics
    cache = model(row, use_cache=True).past_key_values
    metrics["cache_mb"] = cache_bytes(cache) / 1e6

    def step(i: int) -> None:
        nonlocal cache
        cache = model(ids[:, length + i : length + i + 1], past_key_values=cache, use_cache=True).past_key_values

    with count_operations() as operations:
        for i in range(STEPS // 2):
            step(i)
    seconds = cpu_seconds(lambda: [step(i) for i in range(STEPS // 2, STEPS)], 1)
    return metrics | {
        "step_mflop": operations.get_total_flops() / (STEPS // 2) / 1e6,
        "step_ms": 1e3 * seconds / (STEPS // 2),
    }


def read_row(model: Any, tokenizer: Any, run: Path, length: int) -> torch.Tensor:
    """The first bytes of the text that the run was scored on, `(1, length)`."""
    recipe: Any = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    data = read_text(Path(recipe["data"]["validation_dataset"]), run).encode()[: length - 1]
    return torch.tensor([[tokenizer.bos_token_id, *data]], device=next(model.parameters()).device)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entries", nargs="*", default=list(LISTS), help=f"of {', '.join(LISTS)}")
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048, 8192], help="bytes")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "experiments")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.entries if name not in LISTS]:
        parser.error(f"{unknown[0]}: must be one of {', '.join(LISTS)}")
    torch.set_num_threads(1)
    for name in (name for name in LISTS if name in options.entries):  # the peer, which takes the place of a class, last
        page = LISTS[name]
        entry, run = read_list(page).entries[name], options.runs.resolve() / page / f"{name}-0"
        if entry.peer:
            importlib.import_module(f"peers.{entry.peer}").prepare(load_recipe(entry.recipe))
        config = AutoConfig.from_pretrained(run, max_position_embeddings=max(options.contexts) + STEPS)
        model: Any = AutoModelForCausalLM.from_pretrained(run, config=config, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(run)
        costs = {
            length: measure_context(
                model, read_row(model, tokenizer, run, length + STEPS), options.repeats, steps=not entry.peer
            )
            for length in options.contexts
        }
        record = Record(
            PAGE,
            f"context-{name}",
            entry.label,
            source=MEASURED,
            curve={what: [[length, one[what]] for length, one in costs.items()] for what in costs[options.contexts[0]]},
            metrics={f"{length}_{what}": value for length, one in costs.items() for what, value in one.items()},
            parameters=count_parameters(model),
            **circumstances(),
        )
        print(write_record(record), record.metrics, flush=True)


if __name__ == "__main__":
    main()
