"""CPU time against depth at equal parameters: decoder-only, auto-regressive and parallel encoder-decoder.

    OMP_NUM_THREADS=1 python benchmarks/depth.py [--parameters 3000000] [--depths 2 4 8 16] [--repeats 10]

A training step (4 rows of 256 bytes) and a decoded token (cached, 64 tokens after 64). Time is that of the process, the
lowest of several turns of all models, so that it can be measured on a machine that is not idle. Two minutes.
"""

import argparse
import bisect
from collections.abc import Callable

import torch
from peers import step
from subjects import VOCAB_SIZE, body_parameters
from timing import lowest_cpu_seconds, machine
from transformers import PreTrainedModel

from latentlm import (
    AREncoderDecoderConfig,
    AREncoderDecoderForCausalLM,
    DecoderOnlyConfig,
    DecoderOnlyForCausalLM,
    ParallelEncoderDecoderConfig,
    ParallelEncoderDecoderForCausalLM,
)

HEADS, CONTEXT, ROWS, NEW_TOKENS = 4, 256, 4, 64
KINDS = ("decoder-only", "auto-regressive", "parallel")


def make(kind: str, depth: int, width: int) -> PreTrainedModel:
    """A model of `depth` layers in all: half of them the encoder's where there is one."""
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": width, "max_position_embeddings": CONTEXT}
    if kind == "decoder-only":
        return DecoderOnlyForCausalLM(DecoderOnlyConfig(num_attention_heads=HEADS, num_hidden_layers=depth, **sizes))
    stacks = {"num_encoder_layers": depth // 2, "num_decoder_layers": depth // 2, "num_attention_heads": HEADS}
    if kind == "auto-regressive":
        return AREncoderDecoderForCausalLM(AREncoderDecoderConfig(**stacks, **sizes))
    return ParallelEncoderDecoderForCausalLM(ParallelEncoderDecoderConfig(**stacks, **sizes))


def width_of(kind: str, depth: int, parameters: int) -> int:
    """The width at which the body comes nearest to `parameters`, a multiple of twice the heads."""

    def body(width: int) -> int:
        with torch.device("meta"):
            return body_parameters(make(kind, depth, width))

    widths = range(2 * HEADS, 512 * HEADS, 2 * HEADS)
    first = min(bisect.bisect_left(widths, parameters, lo=1, key=body), len(widths) - 1)
    return min(widths[first - 1 : first + 1], key=lambda width: abs(body(width) - parameters))


def decoding(model: PreTrainedModel) -> Callable[[], object]:
    model.generation_config.eos_token_id = None  # so that as many tokens are written as are asked for
    ids = torch.randint(0, 256, (1, 64), generator=torch.Generator().manual_seed(0))

    def call() -> object:
        return model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)  # type: ignore[operator]

    return call


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=3_000_000, help="of the body of each model")
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 4, 8, 16], help="layers of both stacks together")
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args(arguments)
    odd = [depth for depth in options.depths if depth < 2 or depth % 2]
    if odd:
        parser.error(f"--depths {odd[0]}: must be even and at least 2, half of it for each stack")
    ids = torch.randint(0, 256, (ROWS, CONTEXT), generator=torch.Generator().manual_seed(0))
    widths = {(depth, kind): width_of(kind, depth, options.parameters) for depth in options.depths for kind in KINDS}
    models = {(depth, kind): make(kind, depth, width) for (depth, kind), width in widths.items()}
    steps = lowest_cpu_seconds({key: step(model, ids) for key, model in models.items()}, options.repeats)
    tokens = lowest_cpu_seconds({key: decoding(model.eval()) for key, model in models.items()}, options.repeats)
    print(machine(), "\n")
    print("| layers | model | width | body | training step, ms of CPU | decoded token, ms of CPU |")
    print("|--:|---|--:|--:|--:|--:|")
    for (depth, kind), model in models.items():
        key, body = (depth, kind), body_parameters(model) / 1e6
        times = f"{1e3 * steps[key]:.0f} | {1e3 * tokens[key] / NEW_TOKENS:.2f}"
        print(f"| {depth} | {kind} | {widths[key]} | {body:.2f} M | {times} |")


if __name__ == "__main__":
    main()
