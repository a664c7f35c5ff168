"""Interleaved timing: what is compared runs in turns, so that a noisy machine hits every side alike. And the floor of
what is timed: its own matrix products."""

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
ATTENTION = {f"_scaled_dot_product_flash_attention_for_cpu{suffix}" for suffix in ("", "_backward")}
"""Fused kernels, whose products are inside of them."""


def median_seconds(sides: dict[str, Callable[[], object]], repeats: int, warmup: int = 1) -> dict[str, float]:
    """Median wall-clock seconds of each callable over `repeats` turns, after `warmup` turns."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warmup + repeats):
        for name, call in sides.items():
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def lowest_cpu_seconds(sides: dict[Any, Callable[[], object]], repeats: int) -> dict[Any, float]:
    """Lowest time of the process for each callable over `repeats` turns, after one that is not counted: on one thread
    this can be measured on a machine that is not idle."""
    lowest = dict.fromkeys(sides, float("inf"))
    for turn in range(repeats + 1):
        for name, call in sides.items():
            started = time.process_time()
            call()
            if turn:
                lowest[name] = min(lowest[name], time.process_time() - started)
    return lowest


def measured_seconds(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """[`lowest_cpu_seconds`] with one thread of a CPU, else [`median_seconds`]."""
    on_one_thread = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return (lowest_cpu_seconds if on_one_thread else median_seconds)(sides, repeats)


class Operations(TorchDispatchMode):
    """Remembers, while active, every call of the operations `names`: size and stride of its operands, other arguments
    as they are."""

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self.names = names
        self.calls: list[tuple[Any, list[Any], dict[str, Any]]] = []
        self.operands: dict[tuple, torch.Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.removesuffix("_")  # in place or not
        if name in self.names:
            operands = [self.operand(value) if isinstance(value, torch.Tensor) else value for value in args]
            options = {option: value for option, value in (kwargs or {}).items() if option != "out"}
            self.calls.append((getattr(torch.ops.aten, name), operands, options))
        return func(*args, **kwargs or {})

    def operand(self, like: torch.Tensor) -> torch.Tensor:
        """A tensor of random numbers in the same layout, the same one for all that are laid out alike."""
        layout = (like.shape, like.stride(), like.dtype, like.device)
        if layout not in self.operands:
            room = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, like.stride(), strict=True))
            values = torch.randn(room, dtype=like.dtype, device=like.device)
            self.operands[layout] = values.as_strided(like.shape, like.stride())
        return self.operands[layout]


def products(call: Callable[[], object], attention: bool = False) -> Callable[[], None]:
    """The matrix products of `call`, forward and backward, and nothing else: the floor of its time. Those inside of
    fused attention kernels are among them only with `attention`, and then with all that these kernels do."""
    with Operations(PRODUCTS | (ATTENTION if attention else set())) as record:
        call()

    def floor() -> None:
        for function, operands, options in record.calls:
            function(*operands, **options)

    return floor


def machine() -> str:
    """Hardware, versions and date, for the head of a table of measurements."""
    cpu = platform.processor() or "CPU"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), cpu)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{cpu}, {torch.get_num_threads()} threads"
    capability = torch.backends.cpu.get_cpu_capability()
    load = os.getloadavg()[0]
    return (
        f"{device} ({capability}, load {load:.1f}), torch {torch.__version__}, "
        f"transformers {transformers.__version__}, {datetime.date.today()}"
    )
