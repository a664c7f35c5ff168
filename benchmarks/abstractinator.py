"""Abstractinator: a training step against the BLT of transformers with as many parameters, and generating.

    python benchmarks/abstractinator.py [--config FOLDER] [--repeats 3] [--threads 2] [--only train matmul generate]
    python benchmarks/abstractinator.py --only evaluation --threads 1
    python benchmarks/abstractinator.py --only drafts --threads 1 --trained FOLDER

The text is the documentation inside Python, 4 rows of 512 bytes. Weights are random; `delta` is set so that segments
have about three bytes, as those of a trained model have. BLT's patcher is frozen and in its forward, as ours is where
it says so.
"""

import argparse
import resource
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pydoc_data.topics import topics
from typing import Any

import torch
from timing import lowest_cpu_seconds, machine, median_seconds, products
from transformers import AutoConfig, AutoModelForCausalLM, BltConfig, BltForCausalLM, CompileConfig

import latentlm

ROWS, LENGTH = 4, 512


def text(length: int) -> torch.Tensor:
    data = " ".join(" ".join(topics.values()).split()).encode()
    return torch.tensor([*data[:length]])


def build(path: str, **changes) -> latentlm.AbstractinatorForCausalLM:
    """The model of a folder; `delta` at the two thirds of what entropies rise by, for segments of three symbols."""
    config = AutoConfig.from_pretrained(path)
    config.max_position_embeddings = 8192
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = latentlm.AbstractinatorForCausalLM(config).eval()
    rows = text(ROWS * LENGTH).view(ROWS, LENGTH)
    for level in model.model.levels:
        with torch.no_grad():
            levels = model.model.compress_rows(rows, torch.full((ROWS,), LENGTH))
        entropies = levels[list(model.model.levels).index(level)].segments.entropies[:, 1:]
        level.level_config.delta = float((entropies[:, 1:] - entropies[:, :-1]).flatten().quantile(2 / 3))
    return model


def blt(parameters: int) -> BltForCausalLM:
    """Twelve layers of patcher, four of encoder, six of decoder and twelve global ones, 256 wide, window 64; hashed
    embeddings make up for what is missing."""
    sizes = {"hidden_size": 256, "num_attention_heads": 8, "intermediate_size": 704}

    def config(vocab: int) -> BltConfig:
        return BltConfig(
            patcher_config={**sizes, "num_hidden_layers": 12, "sliding_window": 64},
            encoder_config={**sizes, "num_hidden_layers": 4, "hidden_size_global": 256, "sliding_window": 64},
            decoder_config={**sizes, "num_hidden_layers": 6, "hidden_size_global": 256},
            global_config={**sizes, "num_hidden_layers": 12},
            cross_attn_k=2,
            encoder_hash_byte_group_size=[3],
            encoder_hash_byte_group_vocab=vocab,
            local_attention_window_len=64,
            patching_batch_size=ROWS,
        )

    with torch.device("meta"):
        base = BltForCausalLM(config(8)).num_parameters()
    torch.manual_seed(0)
    model = BltForCausalLM(config(max(8, (parameters - base) // 256)))
    model.model.patcher.requires_grad_(False)
    return model


def step(model: torch.nn.Module, ids: torch.Tensor, bf16: bool) -> Callable[[], None]:
    """One forward and backward pass."""
    model.train()

    def run() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    return run


def train(options: argparse.Namespace) -> None:
    ids = text(ROWS * LENGTH).view(ROWS, LENGTH)
    ours, frozen = build(options.config), build(options.config, freeze_entropy=True)
    other = blt(ours.num_parameters())
    print(f"{ours.num_parameters():,} parameters, BLT {other.num_parameters():,}")
    first = ours.model.compress_rows(ids, torch.full((ROWS,), LENGTH))[0]
    length, empty = LENGTH / first.segments.count.float().mean(), 1 - first.exists.float().mean()
    print(f"{length:.2f} bytes a segment; empty places among segments {empty:.1%}")
    sides = {
        "float32": step(ours, ids, False),
        "bf16": step(build(options.config), ids, True),
        "float32, entropy model frozen": step(frozen, ids, False),
        "BLT, float32, patcher frozen": step(other, ids, False),
    }
    seconds = median_seconds(sides, options.repeats)
    print("\n| forward and backward, 4 × 512 bytes | bytes/s | time / BLT |\n|---|--:|--:|")
    for name, value in seconds.items():
        print(f"| {name} | {ids.numel() / value:.0f} | {value / seconds['BLT, float32, patcher frozen']:.2f} |")


def matmul(options: argparse.Namespace) -> None:
    """What share of the machine's own rate of large matrix products a training step reaches."""
    from torch.utils.flop_counter import FlopCounterMode

    ids = text(ROWS * LENGTH).view(ROWS, LENGTH)
    run = step(build(options.config), ids, False)
    with FlopCounterMode(display=False) as counter:
        run()
    one = torch.randn(2048, 2048)
    sides = {"step": run, "products": products(run), "product": lambda: one @ one}
    seconds = median_seconds(sides, options.repeats)
    rate, peak = counter.get_total_flops() / seconds["step"], 2 * 2048**3 / seconds["product"]
    print(f"\nstep {rate / 1e9:.0f} GFLOP/s, large product {peak / 1e9:.0f} GFLOP/s: {rate / peak:.0%}")
    print(f"step / its matrix products: {seconds['step'] / seconds['products']:.2f} (target: ≤ 1.35)")
    print(f"{counter.get_total_flops() / ids.numel() / 1e6:.0f} MFLOP a byte, forward and backward")


@torch.no_grad()
def evaluation(options: argparse.Namespace) -> None:
    """What an evaluation takes, which finds beside the losses what codes are worth; in time of the process."""
    ids = text(ROWS * LENGTH).view(ROWS, LENGTH)
    model = build(options.config)
    batch: dict[str, Any] = {"input_ids": ids, "labels": ids, "use_cache": False}
    seconds = lowest_cpu_seconds(
        {
            "forward": lambda: model(**batch),
            "evaluation": lambda: model(**batch, **model.pack(ids), code_statistics=True),
        },
        options.repeats,
    )
    evaluated, forward = seconds["evaluation"], seconds["forward"]
    print(f"\nevaluation {evaluated:.2f} s, forward with labels {forward:.2f} s: {evaluated / forward:.2f} (≤ 1.5)")


class Clock(list):
    """A streamer that notes when the prompt and each new byte come: in time of the process with one thread, which says
    something on a machine that is not idle, too."""

    def put(self, value: torch.Tensor) -> None:
        self.append(time.process_time() if torch.get_num_threads() == 1 else time.perf_counter())

    def end(self) -> None:
        pass


def generate(options: argparse.Namespace) -> None:
    """Without the prompt and the first bytes, in which a cache lays out the weights of every part, or compiles."""
    model, short = build(options.config), build(options.config).bfloat16()
    compiled = {"compile_config": CompileConfig()}
    sides: list[tuple[Any, dict[str, Any]]] = [(model, {}), (model, compiled), (short, compiled)]
    first, new = 17, 48
    limits = {"max_new_tokens": first + new, "min_new_tokens": first + new, "do_sample": False, "eos_token_id": None}
    print("\n| bytes/s after | float32 | compiled | bfloat16, compiled | peak memory, MB |\n|---|--:|--:|--:|--:|")
    for length in (64, 512, 2048, 4096):
        ids = text(length)[None]
        seconds: list[list[float]] = [[] for _ in sides]
        for _ in range(options.repeats):
            for (one, arguments), times in zip(sides, seconds, strict=True):
                clock: Any = Clock()
                one.generate(ids, attention_mask=torch.ones_like(ids), streamer=clock, **limits, **arguments)
                times.append((clock[-1] - clock[first]) / new)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        speeds = " | ".join(f"{1 / min(times):.0f}" for times in seconds)
        print(f"| {length} bytes | {speeds} | {memory:.0f} |", flush=True)


@torch.no_grad()
def draft_counts(model: Any) -> tuple[float, float, float]:
    """Steps of the entropy model, passes of the expander, and segments, each a byte, where the entropy model drafts
    greedily to the end of a segment and one pass verifies. Text stands for what the model would write."""
    length = model.config.max_position_embeddings
    ids = text(40 * length).view(40, length)
    _, pyramid = model.model.read(ids)
    level, compressed = model.model.levels[0], pyramid.levels[0]
    drafted = level.entropy_model.head.digit_logits(compressed.entropy_states, None, 0).argmax(-1)
    accepted = (drafted == level.head.digit_logits(pyramid.states[0], None, 0).argmax(-1)).tolist()
    steps, passes = 0, 0
    for row, segments in zip(accepted, compressed.segments.index.tolist(), strict=True):
        t = 0
        while t < length:  # the segment of byte t is that of index t + 1 here: of what is predicted at t
            size = next((k for k in range(1, length - t) if segments[t + 1 + k] != segments[t + 1]), length - t)
            rejected = next((k for k in range(size) if not row[t + k]), size)
            steps, passes, t = (
                steps + size,
                passes + 1,
                t + min(rejected + 1, size),
            )  # the pass corrects what it rejects
    return steps / ids.numel(), passes / ids.numel(), compressed.segments.count.sum().item() / ids.numel()


@torch.no_grad()
def drafts(options: argparse.Namespace) -> None:
    """What drafts could save at most: a pass over several bytes at the price of a step of one."""
    trained: Any = AutoModelForCausalLM.from_pretrained(options.trained, dtype=torch.float32).eval()
    steps, passes, segments = draft_counts(trained)
    print(f"\na byte: {steps:.2f} steps of the entropy model, {passes:.2f} passes, {segments:.2f} segments")
    print("\n| CPU ms | entropy | compressor | expander | top | a byte | with drafts | ratio |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    models: dict[str, Any] = {"trained": trained, "configuration": build(options.config)}
    for name, model in models.items():
        cache, row = model(text(200)[None], use_cache=True).past_key_values, torch.ones(1, dtype=torch.bool)
        level, state = model.model.levels[0], cache.levels[0]
        stacks = {
            "entropy": (level.entropy_model.stack, state.entropy),
            "compressor": (level.compressor, state.compressor),
            "expander": (level.expander, state.expander),
            "top": (model.model.top.stack, cache.top),
        }
        states = torch.randn(1, model.config.hidden_size)
        sides = {part: partial(stack.step, kept, row, states) for part, (stack, kept) in stacks.items()}
        entropy, compressor, expander, top = (1e3 * value for value in lowest_cpu_seconds(sides, 50).values())
        now = entropy + compressor + expander + segments * top
        then = steps * entropy + passes * (compressor + expander) + segments * top
        print(f"| {name} | {entropy:.2f} | {compressor:.2f} | {expander:.2f} | {top:.2f} ", end="")
        print(f"| {now:.2f} | {then:.2f} | {then / now:.2f} |", flush=True)


PARTS = {
    "train": train,
    "matmul": matmul,
    "evaluation": evaluation,
    "generate": generate,
    "drafts": drafts,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="hub_configs/abstractinator-original")
    parser.add_argument("--trained", help="folder of a trained model, which `drafts` reads")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=["train", "matmul", "generate"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine(), flush=True)
    for name in options.only:
        PARTS[name](options)
