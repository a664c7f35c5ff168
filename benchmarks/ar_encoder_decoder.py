"""Speed of the auto-regressive encoder-decoder against a GPT-2 of transformers with equal parameters (16 M).

    python benchmarks/ar_encoder_decoder.py [--only training generation mixed_precision] [--repeats 5]

Prints a table of ratios; all sides of a ratio run in turns. About 15 minutes on 2 cores.
"""

from collections.abc import Iterator

import torch
from peers import Row, gpt2, main, step, timed_generation
from timing import median_seconds, products
from transformers import PreTrainedModel

from latentlm import AREncoderDecoderConfig, AREncoderDecoderForCausalLM


def encoder_decoder(length: int, **fields) -> PreTrainedModel:
    """The original sizes with position subtraction."""
    config = AREncoderDecoderConfig(max_position_embeddings=length, position_subtraction="plain", **fields)
    return AREncoderDecoderForCausalLM(config)


def training(repeats: int, device: torch.device) -> Iterator[Row]:
    for batch, length in ((8, 200), (2, 1024)):
        ids = torch.randint(0, 50257, (batch, length), device=device)
        sides = {
            "GPT-2": step(gpt2(length).to(device), ids),
            "plain": step(encoder_decoder(length).to(device), ids),
            "loss": step(encoder_decoder(length, embedding_loss="mse").to(device), ids),
        }
        floors = {f"{name}'s products": products(sides[name]) for name in ("GPT-2", "plain")}
        seconds = median_seconds(sides | floors, repeats)
        size = f"B {batch}, T {length}"
        yield f"training step / GPT-2's, float32 eager, {size}", seconds["plain"] / seconds["GPT-2"], "≤ 0.85"
        yield f"training step / its matrix products, {size}", seconds["plain"] / seconds["plain's products"], "≤ 1.35"
        yield f"GPT-2's step / its matrix products, {size}", seconds["GPT-2"] / seconds["GPT-2's products"], "–"
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


def generation(repeats: int, device: torch.device) -> Iterator[Row]:
    length = 512 + 256
    yield from timed_generation(encoder_decoder(length), gpt2(length), repeats, device)


if __name__ == "__main__":
    main(__doc__, {"training": training, "generation": generation, "mixed_precision": mixed_precision})
