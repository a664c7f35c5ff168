"""What the benchmarks of the language models share: the GPT-2 they are compared with, a step, generation, the table."""

import argparse
from collections.abc import Callable, Iterator

import torch
from timing import machine, median_seconds
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

Row = tuple[str, float, str]  # metric, measured ratio, target


def gpt2(length: int) -> PreTrainedModel:
    """160 x 26 layers: 16.2 M parameters."""
    config = GPT2Config(n_embd=160, n_layer=26, n_head=10, n_positions=length)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    return GPT2LMHeadModel(config)


def step(model: PreTrainedModel, ids: torch.Tensor, dtype: torch.dtype | None = None) -> Callable[[], None]:
    """One forward and backward pass."""
    model.train()

    def call() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(ids.device.type, dtype=dtype, enabled=dtype is not None):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()

    return call


def timed_generation(
    ours: PreTrainedModel, peer: PreTrainedModel, repeats: int, device: torch.device, prompt: int = 512, new: int = 256
) -> Iterator[Row]:
    """Without the cache only `sample` tokens are generated, in the middle of the range, and scaled up."""
    sample = 8
    models = {"gpt2": peer, "ours": ours}
    for model in models.values():
        model.to(device).eval()
        model.generation_config.eos_token_id = None
    ids = torch.randint(0, 50256, (1, prompt + new // 2), device=device)

    def generate(model: PreTrainedModel, length: int, tokens: int, use_cache: bool) -> Callable[[], object]:
        inputs = {"input_ids": ids[:, :length], "attention_mask": torch.ones_like(ids[:, :length])}
        options = {"do_sample": False, "min_new_tokens": tokens, "max_new_tokens": tokens, "pad_token_id": 0}
        return lambda: model.generate(**inputs, use_cache=use_cache, **options)

    sides = {name: generate(model, prompt, new, True) for name, model in models.items()}
    sides["uncached"] = generate(models["ours"], prompt + new // 2 - sample // 2, sample, False)
    seconds = median_seconds(sides, repeats)
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
