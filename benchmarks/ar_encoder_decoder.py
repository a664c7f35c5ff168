"""Speed of the auto-regressive encoder-decoder against a GPT-2 of transformers with equal parameters (16 M).

    python benchmarks/ar_encoder_decoder.py [--only training generation mixed_precision] [--repeats 5]

Prints a table of ratios; all sides of a ratio run in turns. About 15 minutes on 2 cores.
"""

import argparse
from collections.abc import Callable, Iterator

import torch
from timing import machine, median_seconds
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from latentlm import AREncoderDecoderConfig, AREncoderDecoderForCausalLM

Row = tuple[str, float, str]  # what, measured ratio, what the specification asks


def gpt2(length: int) -> PreTrainedModel:
    config = GPT2Config(n_embd=160, n_layer=26, n_head=10, n_positions=length)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    return GPT2LMHeadModel(config)


def encoder_decoder(length: int, **fields) -> PreTrainedModel:
    """The seed's sizes with position subtraction."""
    config = AREncoderDecoderConfig(max_position_embeddings=length, position_subtraction="plain", **fields)
    return AREncoderDecoderForCausalLM(config)


def step(model: PreTrainedModel, ids: torch.Tensor, dtype: torch.dtype | None = None) -> Callable[[], None]:
    """One forward and backward pass."""
    model.train()

    def call() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(ids.device.type, dtype=dtype, enabled=dtype is not None):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()

    return call


def training(repeats: int, device: torch.device) -> Iterator[Row]:
    for batch, length, limit in ((8, 200, 0.8), (2, 1024, 1.0)):
        ids = torch.randint(0, 50257, (batch, length), device=device)
        seconds = median_seconds(
            {
                "gpt2": step(gpt2(length).to(device), ids),
                "plain": step(encoder_decoder(length).to(device), ids),
                "loss": step(encoder_decoder(length, embedding_loss="mse").to(device), ids),
            },
            repeats,
        )
        size = f"B {batch}, T {length}"
        yield f"training step / GPT-2's, float32 eager, {size}", seconds["plain"] / seconds["gpt2"], f"≤ {limit}"
        yield f"with the embedding loss / without, {size}", seconds["loss"] / seconds["plain"], "≤ 1.03"
        print(f"    {size}: " + ", ".join(f"{k} {batch * length / v:,.0f} tokens/s" for k, v in seconds.items()))


def mixed_precision(repeats: int, device: torch.device) -> Iterator[Row]:
    ids = torch.randint(0, 50257, (8, 200), device=device)
    model = encoder_decoder(200).to(device)
    compiled = torch.compile(model)
    sides = {"float32": step(model, ids), "bf16 + compile": step(compiled, ids, torch.bfloat16)}
    sides["float32 + compile"] = step(compiled, ids)
    seconds = median_seconds(sides, repeats)
    for name in ("bf16 + compile", "float32 + compile"):
        limit = "≥ 2" if name.startswith("bf16") else "–"
        yield f"speed-up of {name} over float32 eager, B 8, T 200", seconds["float32"] / seconds[name], limit


def generation(repeats: int, device: torch.device, prompt: int = 512, new: int = 256) -> Iterator[Row]:
    """Without the cache only `sample` tokens are generated, in the middle of the range, and scaled up."""
    sample = 8
    models = {"gpt2": gpt2(prompt + new), "ours": encoder_decoder(prompt + new)}
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
    yield f"cached generation / GPT-2's, {what}", seconds["ours"] / seconds["gpt2"], "≤ 1.3"
    uncached = seconds["uncached"] * new / sample
    yield f"speed-up of the cache, {what} (uncached: {sample} tokens, scaled)", uncached / seconds["ours"], "≥ 10"
    print(f"    cached: ours {new / seconds['ours']:.0f} tokens/s, GPT-2 {new / seconds['gpt2']:.0f} tokens/s")


PARTS = {"training": training, "generation": generation, "mixed_precision": mixed_precision}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    print(machine(), flush=True)
    rows: list[Row] = []
    for part in options.only:
        for row in PARTS[part](options.repeats, device):
            rows.append(row)
            print(f"    {row[0]}: {row[1]:.2f} (asked: {row[2]})", flush=True)
    print("\n| what | measured | asked |\n|---|--:|--:|")
    for what, ratio, limit in rows:
        print(f"| {what} | {ratio:.2f} | {limit} |")


if __name__ == "__main__":
    main()
