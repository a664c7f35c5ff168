"""CPU time against depth at equal parameters: decoder-only, auto-regressive and parallel encoder-decoder.

    OMP_NUM_THREADS=1 python benchmarks/depth.py [--parameters 3000000] [--depths 2 4 8 16] [--repeats 10]
    python benchmarks/depth.py --streams [...]

A training step (4 rows of 256 bytes) and a decoded token (cached, 64 tokens after 64). Time is that of the process, the
lowest of several turns of all models, so that it can be measured on a machine that is not idle. Two minutes.

With `--streams` the two streams of the parallel model run at once, each in a thread on a core of its own, beside the
same model and decoder-only with both cores to every operation: wall-clock time of scoring, on an idle machine.
"""

import argparse
import bisect
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from peers import step
from subjects import VOCAB_SIZE, body_parameters
from timing import lowest_cpu_seconds, machine, median_seconds
from transformers import PreTrainedModel

from latentlm import (
    AREncoderDecoderConfig,
    AREncoderDecoderForCausalLM,
    DecoderOnlyConfig,
    DecoderOnlyForCausalLM,
    ParallelEncoderDecoderConfig,
    ParallelEncoderDecoderForCausalLM,
)
from latentlm.models.modeling_parallel_encoder_decoder import ParallelEncoderDecoderModel

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


class TwoThreads(ParallelEncoderDecoderModel):
    """The parallel model with its decoder stream in a thread of its own: a decoder layer runs beside the encoder layers
    that come after the one it reads. For scoring alone: autograd goes back in one thread."""

    def run_stacks(self, embeddings, positions, shared_attention, memory_rotary, **shared):
        options = {"memory_rotary": memory_rotary, **shared}

        @torch.no_grad()  # a thread does not inherit it
        def run(layer: Any, before: Future, encoder_states: torch.Tensor) -> torch.Tensor:
            return layer(before.result(), encoder_states, shared_attention, **options)[0]

        with ThreadPoolExecutor(1, initializer=partial(torch.set_num_threads, 1)) as side:
            encoder_states, hidden_states = embeddings, side.submit(self.cross_bridge, embeddings, positions)
            for encoder_layer, decoder_layer in zip(self.encoder_layers, self.decoder_layers, strict=True):
                encoder_states, _ = encoder_layer(encoder_states, None, shared_attention, **shared)
                hidden_states = side.submit(run, decoder_layer, hidden_states, encoder_states)
            return encoder_states, hidden_states.result(), []


@torch.no_grad()
def score(model: PreTrainedModel, ids: torch.Tensor, threads: int, at_once: bool = False) -> torch.Tensor:
    """The states of a text, with so many threads to an operation; with both streams of the parallel model at once or
    one after the other."""
    torch.set_num_threads(threads)
    if isinstance(model.base_model, ParallelEncoderDecoderModel):
        model.base_model.__class__ = TwoThreads if at_once else ParallelEncoderDecoderModel
    return model.base_model(input_ids=ids, use_cache=False).last_hidden_state


def streams(models: dict[tuple[int, str], PreTrainedModel], repeats: int) -> None:
    """Print what scoring a text takes, by depth and by length of the text."""
    threads = torch.get_num_threads()
    print("| layers | bytes | decoder-only, 2 threads (ms) | parallel, 1 thread | 2 threads | two streams at once |")
    print("|--:|--:|--:|--:|--:|--:|")
    for depth in sorted({depth for depth, _ in models}):
        plain, parallel = models[depth, "decoder-only"].eval(), models[depth, "parallel"].eval()
        for length in (16, CONTEXT):
            ids = torch.randint(0, 256, (1, length), generator=torch.Generator().manual_seed(0))
            torch.testing.assert_close(score(parallel, ids, 1, at_once=True), score(parallel, ids, 1))
            sides = {
                "plain": partial(score, plain, ids, 2),
                "one": partial(score, parallel, ids, 1),
                "two": partial(score, parallel, ids, 2),
                "at once": partial(score, parallel, ids, 1, at_once=True),
            }
            times = " | ".join(f"{1e3 * value:.2f}" for value in median_seconds(sides, repeats).values())
            print(f"| {depth} | {length} | {times} |", flush=True)
    torch.set_num_threads(threads)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=3_000_000, help="of the body of each model")
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 4, 8, 16], help="layers of both stacks together")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--streams", action="store_true", help="both streams of the parallel model at once")
    options = parser.parse_args(arguments)
    odd = [depth for depth in options.depths if depth < 2 or depth % 2]
    if odd:
        parser.error(f"--depths {odd[0]}: must be even and at least 2, half of it for each stack")
    ids = torch.randint(0, 256, (ROWS, CONTEXT), generator=torch.Generator().manual_seed(0))
    widths = {(depth, kind): width_of(kind, depth, options.parameters) for depth in options.depths for kind in KINDS}
    models = {(depth, kind): make(kind, depth, width) for (depth, kind), width in widths.items()}
    if options.streams:
        print(machine(), "\n")
        streams(models, options.repeats)
        return
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
