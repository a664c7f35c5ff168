"""Speed of the parallel encoder-decoder against a decoder-only model of equal parameters (15.7 M); of masked groups.

    python benchmarks/parallel_encoder_decoder.py [--only training generation groups] [--repeats 5]

Prints a table of ratios; all sides of a ratio run in turns. About 10 minutes on 2 cores.
"""

from collections.abc import Callable, Iterator

import torch
from peers import Row, gpt2, main, step, timed_generation
from timing import median_seconds, products
from transformers import PreTrainedModel

from latentlm import (
    DecoderOnlyConfig,
    DecoderOnlyForCausalLM,
    ParallelEncoderDecoderConfig,
    ParallelEncoderDecoderForCausalLM,
)
from latentlm.models.block_layers import FeedForward
from latentlm.models.block_learned_dropout import LearnedDropout

MASKED = {"learned_dropout": "bernoulli"}


def parallel(length: int, **fields) -> PreTrainedModel:
    """The published sizes, with the next position added: 15,697,600 parameters without the position table."""
    config = ParallelEncoderDecoderConfig(max_position_embeddings=length, add_next_position=True, **fields)
    return ParallelEncoderDecoderForCausalLM(config)


def decoder_only(length: int) -> PreTrainedModel:
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
        seconds = median_seconds(steps | floors, repeats)
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


def forward(block: FeedForward, states: torch.Tensor) -> Callable[[], None]:
    """Twenty times, since once is too short to time."""

    def call() -> None:
        with torch.no_grad():
            for _ in range(20):
                block(states)

    return call


def groups(repeats: int, device: torch.device) -> Iterator[Row]:
    """Time of one feed-forward block with 16 groups in evaluation, decision included, over that of the plain block."""
    for width, tokens in ((200, 512), (768, 512), (768, 1)):
        config = DecoderOnlyConfig(
            hidden_size=width, num_attention_heads=4, learned_dropout_groups=16, attn_implementation="sdpa", **MASKED
        )
        plain = FeedForward(config).to(device).eval()
        states = torch.randn(1, tokens, width, device=device)
        for density in (0.0, 0.25, 0.5, 0.75, 1.0):
            block = FeedForward(config, LearnedDropout(config, 0)).to(device).eval()
            for parameter in block.parameters():
                torch.nn.init.normal_(parameter, std=0.02)
            with torch.no_grad():  # a mask of the given density, the same in every run
                generator = torch.Generator().manual_seed(0)
                mask = (torch.rand(1, tokens, 16, generator=generator) < density).to(device, states.dtype)
            block.learned_dropout.round = lambda probability, mask=mask: mask

            sides = {"plain": forward(plain, states), "masked": forward(block, states)}
            seconds = median_seconds(sides, repeats * 3)
            what = (
                f"feed-forward with 16 groups / plain, D {width}, {tokens} token{'s' * (tokens > 1)}, density {density}"
            )
            yield what, seconds["masked"] / seconds["plain"], "–"


if __name__ == "__main__":
    main(__doc__, {"training": training, "generation": generation, "groups": groups})
