"""Speed of the parallel encoder-decoder against a decoder-only model of equal parameters (15.7 M).

    python benchmarks/parallel_encoder_decoder.py [--only training generation] [--repeats 5]

Prints a table of ratios; all sides of a ratio run in turns. About 10 minutes on 2 cores.
"""

from collections.abc import Iterator
from typing import Any

import torch
from peers import Row, gpt2, main, step, timed_generation
from timing import measured_seconds, products

from latentlm import (
    DecoderOnlyConfig,
    DecoderOnlyForCausalLM,
    ParallelEncoderDecoderConfig,
    ParallelEncoderDecoderForCausalLM,
)

MASKED = {"learned_dropout": "bernoulli"}


def parallel(length: int, **fields) -> Any:
    """The published sizes, with the next position added: 15,697,600 parameters without the position table."""
    config = ParallelEncoderDecoderConfig(max_position_embeddings=length, add_next_position=True, **fields)
    return ParallelEncoderDecoderForCausalLM(config)


def decoder_only(length: int) -> Any:
    """The published peer: 15,850,380 parameters without the position table."""
    config = DecoderOnlyConfig(
        hidden_size=210, num_attention_heads=10, num_hidden_layers=10, max_position_embeddings=length
    )
    return DecoderOnlyForCausalLM(config)


def training(repeats: int, device: torch.device) -> Iterator[Row]:
    for batch, length in ((8, 200), (2, 1024)):
        ids = torch.randint(0, 50257, (batch, length), device=device)
        sides = {
            "decoder-only": decoder_only(length),
            "off": parallel(length),
            "embedding masks": parallel(length, learned_dropout_input="embedding", **MASKED),
            "hidden-state masks": parallel(length, **MASKED),
        }
        steps = {name: step(model.to(device), ids) for name, model in sides.items()}
        steps["GPT-2"] = step(gpt2(length).to(device), ids)
        floors = {f"{name}'s products": products(steps[name]) for name in ("decoder-only", "off")}
        seconds = measured_seconds(steps | floors, repeats)
        targets = {"off": "≤ 1.15", "embedding masks": "≤ 1.35", "hidden-state masks": "–"}
        for name, limit in targets.items():
            what = "LearnedDropout off" if name == "off" else f"LearnedDropout on, {name}"
            ratio = seconds[name] / seconds["decoder-only"]
            yield f"training step / decoder-only's, {what}, float32 eager, B {batch}, T {length}", ratio, limit
        size = f"B {batch}, T {length}"
        ratio = seconds["decoder-only"] / seconds["GPT-2"]
        yield f"decoder-only's training step / GPT-2's, float32 eager, {size}", ratio, "≤ 0.85"
        for name in ("decoder-only", "off"):
            what = "LearnedDropout off" if name == "off" else name
            ratio = seconds[name] / seconds[f"{name}'s products"]
            yield f"training step / its matrix products, {what}, {size}", ratio, "≤ 1.35"
        print(
            f"    B {batch}, T {length}: "
            + ", ".join(f"{k} {batch * length / v:,.0f} tokens/s" for k, v in seconds.items())
        )


def generation(repeats: int, device: torch.device) -> Iterator[Row]:
    """As for the auto-regressive model: against GPT-2, and against itself without the cache."""
    lengths = 512 + 256
    yield from timed_generation(parallel(lengths), gpt2(lengths), repeats, device)
    masked = parallel(lengths, **MASKED)
    for what, ratio, limit in timed_generation(masked, gpt2(lengths), repeats, device):
        yield f"{what}, LearnedDropout on", ratio, limit


if __name__ == "__main__":
    main(__doc__, {"training": training, "generation": generation})
