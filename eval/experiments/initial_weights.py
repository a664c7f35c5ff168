"""How weights start: of each published tiny configuration the first loss against that of a uniform guess, and the
standard deviation of the residual stream before and after every layer. Prints the table of docs/results/learning.md.

    python eval/experiments/initial_weights.py [--set initializer_range=0.05 ...]
"""

import argparse
import json
import math
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from latentlm import EncodzallTokenizer
from latentlm.models.block_layers import PreNormLayer

ROOT = Path(__file__).parents[2]
FOLDERS = ["decoder-only", "ar-encoder-decoder", "parallel-encoder-decoder", "fsq", "abstractinator", "encodzall"]
ROWS, LENGTH, SEEDS = 16, 128, 3


def batch_of(config: Any) -> dict[str, torch.Tensor]:
    """Bytes of the README with their labels; random pieces where a model reads those."""
    text = (ROOT / "README.md").read_bytes()[: ROWS * LENGTH]
    ids = torch.tensor(list(text)).view(ROWS, LENGTH)
    if config.model_type == "fsq":
        ids = torch.randint(config.vocab_size, ids.shape, generator=torch.Generator().manual_seed(0))
    if config.model_type != "encodzall":
        return {"input_ids": ids, "labels": ids}
    texts = [bytes(row).decode(errors="ignore") for row in ids.tolist()]
    batch = dict(EncodzallTokenizer()(texts, padding=True, return_tensors="pt"))
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


@torch.no_grad()
def measure(config: Any, seed: int) -> tuple[float, dict[str, list[float]]]:
    """The first loss in nats, and the stream's standard deviations by the name of a stack."""
    torch.manual_seed(seed)
    seq2seq = "AutoModelForSeq2SeqLM" in config.auto_map
    model = (AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM).from_config(config)
    stream = defaultdict(list)

    def record(stack: str):
        def hook(_: Any, inputs: tuple, output: tuple) -> None:
            if not stream[stack]:
                stream[stack].append(inputs[0].float().std().item())
            stream[stack].append(output[0].float().std().item())

        return hook

    for name, module in model.named_modules():
        if isinstance(module, PreNormLayer):
            stack = re.sub(r"(^|\.)(model|levels\.0|stack|layers|\d+)(?=\.|$)", "", name).strip(".")
            module.register_forward_hook(record(stack or "layers"))
    output = model.eval()(**batch_of(config))
    return output["sequence_loss" if seq2seq else "lm_loss"].item(), stream


def main() -> None:
    parser = argparse.ArgumentParser(description="How weights start.")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE")
    fields = dict(item.split("=", 1) for item in parser.parse_args().set)
    print("| model | ln V | first loss | stack: standard deviation before and after each layer |")
    print("| --- | --: | --: | --- |")
    for folder in FOLDERS:
        path = ROOT / "hub_configs" / f"{folder}-tiny"
        config = AutoConfig.from_pretrained(path, **{name: json.loads(value) for name, value in fields.items()})
        losses, streams = zip(*(measure(config, seed) for seed in range(SEEDS)), strict=True)
        stacks = [
            f"{stack}: " + ", ".join(f"{mean(values):.3f}" for values in zip(*(s[stack] for s in streams), strict=True))
            for stack in streams[0]
        ]
        print(f"| {folder} | {math.log(config.vocab_size):.3f} | {mean(losses):.3f} | {'; '.join(stacks)} |")


if __name__ == "__main__":
    main()
