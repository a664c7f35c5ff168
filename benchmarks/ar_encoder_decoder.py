"""Speed of the auto-regressive encoder-decoder against a GPT-2 of transformers with equal parameters (16 M).

    python benchmarks/ar_encoder_decoder.py [--only training generation compiled_generation mixed_precision]
        [--repeats 5]

Prints a table of ratios; all sides of a ratio run in turns. About 20 minutes on 2 cores. With OMP_NUM_THREADS=1 what
is compared is CPU time, so that the machine need not be idle.
"""

from collections.abc import Iterator
from typing import Any

import torch
from peers import Row, gpt2, main, step, timed_generation, timed_static_generation
from timing import measured_seconds, products

from latentlm import AREncoderDecoderConfig, AREncoderDecoderForCausalLM, DecoderOnlyConfig, DecoderOnlyForCausalLM

FILLED = {"hidden_size": 160, "num_encoder_layers": 11, "num_decoder_layers": 11}
"""As many parameters (15.96 M without positions) in sizes that fill the vectors of processors, as 150 does not."""


def encoder_decoder(length: int, **fields) -> Any:
    """The original sizes with position subtraction."""
    config = AREncoderDecoderConfig(max_position_embeddings=length, position_subtraction="plain", **fields)
    return AREncoderDecoderForCausalLM(config)


def training(repeats: int, device: torch.device) -> Iterator[Row]:
    for batch, length in ((8, 200), (2, 1024)):
        ids = torch.randint(0, 50257, (batch, length), device=device)
        sides = {
            "GPT-2": step(gpt2(length).to(device), ids),
            "plain": step(encoder_decoder(length).to(device), ids),
            "filled": step(encoder_decoder(length, **FILLED).to(device), ids),
            "loss": step(encoder_decoder(length, embedding_loss="mse").to(device), ids),
        }
        floors = {f"{name}'s products": products(sides[name]) for name in ("GPT-2", "plain", "filled")}
        floors["plain's products and attention"] = products(sides["plain"], attention=True)
        seconds = measured_seconds(sides | floors, repeats)
        size = f"B {batch}, T {length}"
        for name, what in (("plain", "training step"), ("filled", "training step, 160 × 11 + 11 layers,")):
            yield f"{what} / GPT-2's, float32 eager, {size}", seconds[name] / seconds["GPT-2"], "≤ 0.85"
            yield f"{what} / its matrix products, {size}", seconds[name] / seconds[f"{name}'s products"], "≤ 1.35"
        ratio = seconds["plain"] / seconds["plain's products and attention"]
        yield f"training step / its matrix products and attention kernels, {size}", ratio, "–"
        yield f"GPT-2's step / its matrix products, {size}", seconds["GPT-2"] / seconds["GPT-2's products"], "–"
        yield f"with the embedding loss / without, {size}", seconds["loss"] / seconds["plain"], "≤ 1.03"
        print(f"    {size}: " + ", ".join(f"{k} {batch * length / v:,.0f} tokens/s" for k, v in seconds.items()))


def mixed_precision(repeats: int, device: torch.device) -> Iterator[Row]:
    ids = torch.randint(0, 50257, (8, 200), device=device)
    model = encoder_decoder(200).to(device)
    compiled = torch.compile(model)
    sides = {"float32": step(model, ids), "bf16 + compile": step(compiled, ids, torch.bfloat16)}
    sides["float32 + compile"] = step(compiled, ids)
    seconds = measured_seconds(sides, repeats)
    for name in ("bf16 + compile", "float32 + compile"):
        limit = "≥ 2" if name.startswith("bf16") else "–"
        yield f"speed-up of {name} over float32 eager, B 8, T 200", seconds["float32"] / seconds[name], limit


def generation(repeats: int, device: torch.device) -> Iterator[Row]:
    length = 512 + 256
    yield from timed_generation(encoder_decoder(length), gpt2(length), repeats, device)


def compiled_generation(repeats: int, device: torch.device) -> Iterator[Row]:
    length = 512 + 256
    yield from timed_static_generation(encoder_decoder(length), "auto-regressive", repeats, device)
    config = DecoderOnlyConfig(
        hidden_size=160, num_attention_heads=10, num_hidden_layers=26, max_position_embeddings=length
    )
    yield from timed_static_generation(DecoderOnlyForCausalLM(config), "decoder-only", repeats, device)


if __name__ == "__main__":
    parts = {"training": training, "generation": generation, "compiled_generation": compiled_generation}
    main(__doc__, parts | {"mixed_precision": mixed_precision})
