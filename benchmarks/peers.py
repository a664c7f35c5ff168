"""What the benchmarks of the language models share: the GPT-2 they are compared with, a step, generation, the table."""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timing import machine, measured_seconds, products
from transformers import CompileConfig, GPT2Config, GPT2LMHeadModel

Row = tuple[str, float, str]  # metric, measured ratio, target


def gpt2(length: int) -> Any:  # a PreTrainedModel, as all models here
    """160 x 26 layers: 16.2 M parameters."""
    config = GPT2Config(n_embd=160, n_layer=26, n_head=10, n_positions=length)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    return GPT2LMHeadModel(config)


def step(model: Any, ids: torch.Tensor, dtype: torch.dtype | None = None) -> Callable[[], None]:
    """One forward and backward pass."""
    model.train()

    def call() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(ids.device.type, dtype=dtype, enabled=dtype is not None):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()

    return call


def generate(model: Any, ids: torch.Tensor, tokens: int, **options: Any) -> Callable[[], object]:
    """Continues `ids` greedily with so many tokens."""
    model.eval().generation_config.eos_token_id = None
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    return lambda: model.generate(**inputs, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens, **options)


def timed_static_generation(
    model: Any, what: str, repeats: int, device: torch.device, prompt: int = 512, new: int = 256
) -> Iterator[Row]:
    """Generation with a static cache, compiled, against the same model's with its usual cache. The first calls compile:
    a few minutes on CPU. And against its matrix products alone, which no compiler saves."""
    compiled: Any = CompileConfig()
    compiled._compile_all_devices = True  # transformers leaves CPUs out unless told
    ids = torch.randint(0, model.config.vocab_size - 1, (1, prompt), device=device)
    sides = {"eager": generate(model.to(device), ids, new)}
    sides["compiled"] = generate(model, ids, new, cache_implementation="static", compile_config=compiled)
    sides["products"] = products(sides["eager"])
    seconds = measured_seconds(sides, repeats)
    ratio = seconds["eager"] / seconds["compiled"]
    yield f"speed-up of static cache and compile over eager, {what}, {new} tokens after {prompt}", ratio, "≥ 2"
    yield f"eager generation / its matrix products, {what}", seconds["eager"] / seconds["products"], "–"
    print(f"    {what}: " + ", ".join(f"{name} {new / value:.0f} tokens/s" for name, value in seconds.items()))


def timed_generation(
    ours: Any, peer: Any, repeats: int, device: torch.device, prompt: int = 512, new: int = 256
) -> Iterator[Row]:
    """Without the cache only `sample` tokens are generated, in the middle of the range, and scaled up."""
    sample = 8
    for model in (ours, peer):
        model.to(device)
    ids = torch.randint(0, peer.config.vocab_size - 1, (1, prompt + new // 2), device=device)
    sides = {name: generate(model, ids[:, :prompt], new) for name, model in (("gpt2", peer), ("ours", ours))}
    sides["uncached"] = generate(ours, ids[:, : prompt + new // 2 - sample // 2], sample, use_cache=False)
    seconds = measured_seconds(sides, repeats)
    what = f"{new} tokens after {prompt}"
    yield f"cached generation / GPT-2's, {what}", seconds["ours"] / seconds["gpt2"], "≤ 1.0"
    uncached = seconds["uncached"] * new / sample
    yield f"speed-up of the cache, {what} (uncached: {sample} tokens, scaled)", uncached / seconds["ours"], "≥ 10"
    print(f"    cached: ours {new / seconds['ours']:.0f} tokens/s, GPT-2 {new / seconds['gpt2']:.0f} tokens/s")


def main(description: str, parts: dict[str, Callable[[int, torch.device], Iterator[Row]]]) -> None:
    """Run the parts that the command line asks for, and print their rows as a table."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=parts, default=list(parts))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    print(machine(), flush=True)
    rows: list[Row] = []
    for part in options.only:
        for row in parts[part](options.repeats, device):
            rows.append(row)
            print(f"    {row[0]}: {row[1]:.2f} (target: {row[2]})", flush=True)
    print("\n| metric | measured | target |\n|---|--:|--:|")
    for what, ratio, limit in rows:
        print(f"| {what} | {ratio:.2f} | {limit} |")
