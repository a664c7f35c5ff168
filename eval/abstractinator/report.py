"""Tables and figures of docs/results/abstractinator.md.

    python eval/abstractinator/report.py DATA RUN ...

DATA is the folder with `wikitext2/`. For each run: bits per byte by both likelihoods, FLOPs per byte, bytes per
segment, use of the codes, what the codes say, and where the cuts are; curves and pictures go to docs/results/figures.
"""

import argparse
import json
import random
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from blt import BltPeer
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Split
from tokenizers.trainers import BpeTrainer
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

import latentlm  # noqa: F401  (registers the architectures)
from latentlm.evaluation.segments import draw, inspect

FIGURES = Path(__file__).parents[2] / "docs" / "results" / "figures"
LENGTH = 4000  # bytes of validation text whose cuts are compared; rows of 500
STEP = 4 * 512  # bytes of a step in all recipes


def read_metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def last_evaluation(run: Path) -> dict:
    return [entry for entry in read_metrics(run) if "eval_loss" in entry][-1]


def load(run: Path) -> torch.nn.Module:
    [saved] = json.loads((run / "config.json").read_text(encoding="utf-8"))["architectures"]
    return (BltPeer if saved == BltPeer.__name__ else AutoModelForCausalLM).from_pretrained(run).eval()


def flops_per_byte(model: torch.nn.Module, ids: torch.Tensor) -> tuple[float, float]:
    """Millions of floating-point operations: of a forward that gives the next byte, and of a training step."""
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        model(ids, use_cache=False)
    with FlopCounterMode(display=False) as training:
        model.train()(ids, labels=ids).loss.backward()
    model.eval().zero_grad()
    return forward.get_total_flops() / ids.numel() / 1e6, training.get_total_flops() / ids.numel() / 1e6


def learn_bpe(text: str) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Split(Regex(r"\S+\s*|\s+"), "isolated")
    tokenizer.train_from_iterator(text.splitlines(keepends=True), BpeTrainer(vocab_size=4096, show_progress=False))
    return tokenizer


def agreement(cuts: set[int], wanted: set[int]) -> tuple[float, float]:
    """Precision and recall of places where something begins."""
    both = len(cuts & wanted)
    return both / max(len(cuts), 1), both / max(len(wanted), 1)


def random_cuts(count: int, length: int) -> set[int]:
    return set(random.Random(0).sample(range(1, length), count))


def cuts_of(model, data: bytes, level: int) -> set[int]:
    """Places in the text where segments of a level begin; rows of 500 bytes, whose own beginnings do not count."""
    found = set()
    for begin in range(0, len(data), 500):
        segments = inspect(model, data[begin : begin + 500]).segments[level]
        found |= {begin + i for i in range(1, len(segments)) if segments[i] != segments[i - 1]}
    return found


def compare_cuts(model, data: bytes, pieces: set[int]) -> None:
    text = data.decode("latin-1")
    units = {
        "words": {match.start() for match in re.finditer(r"(?<=\s)\S", text)},
        "BPE pieces": pieces,
        "after punctuation": {match.end() for match in re.finditer(r"[.,;:!?] ", text)},
    }
    inside = {name: {place for place in places if place % 500} for name, places in units.items()}
    for level in range(len(model.model.levels)):
        cuts = cuts_of(model, data, level)
        chance = random_cuts(len(cuts), len(data))
        for name, places in inside.items():
            (p, r), (chance_p, chance_r) = agreement(cuts, places), agreement(chance, places)
            print(f"| level {level + 1}, {name} | {p:.0%} | {r:.0%} | {chance_p:.0%} | {chance_r:.0%} |")


def plot_curves(costs: dict[Path, float]) -> None:
    """Bits per byte over the bytes seen and over what they cost; how many codes are used.

    Args:
        costs: of each run, millions of operations a byte in training.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
    for run, cost in costs.items():
        entries = [entry for entry in read_metrics(run) if "eval_loss" in entry]
        steps = [entry["step"] for entry in entries]
        megabytes = [step * STEP / 1e6 for step in steps]
        bits = [entry["eval_bits_per_byte"] for entry in entries]
        left.plot(megabytes, bits, marker=".", label=run.name)
        middle.plot([cost * size for size in megabytes], bits, marker=".", label=run.name)
        for level in (1, 2):
            if f"eval_level_{level}_codes_used" in entries[0]:
                used = [entry[f"eval_level_{level}_codes_used"] for entry in entries]
                right.plot(steps, used, marker=".", label=f"{run.name}, level {level}")
    left.set(xlabel="MB seen", title="bits per byte, next byte")
    middle.set(xlabel="TFLOP in training", title="bits per byte, next byte")
    right.set(xlabel="step", title="share of codes used", ylim=(0, 1))
    for axis in (left, middle, right):
        axis.legend(fontsize=8)
    figure.savefig(FIGURES / "abstractinator-curves.png", dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    options = parser.parse_args()
    FIGURES.mkdir(parents=True, exist_ok=True)
    text = (options.data / "wikitext2" / "wiki.valid.txt").read_bytes()[:LENGTH]
    bpe = learn_bpe((options.data / "wikitext2" / "wiki.train.txt").read_bytes()[:2_000_000].decode("latin-1"))
    pieces = {begin for begin, _ in bpe.encode(text.decode("latin-1")).offsets}
    print(
        "| run | parameters | MFLOP a byte, forward | in training | next byte | two parts | "
        "own, zeroed, shuffled codes | symbols a segment | codes used |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    ids = torch.tensor([[257, *text[i : i + 511]] for i in range(0, 4 * 511, 511)])
    models, costs, pyramids = {}, {}, []
    for run in options.runs:
        models[run] = model = load(run)
        forward, costs[run] = flops_per_byte(model, ids)
        found = last_evaluation(run)
        cells = ["–"] * 4
        if "eval_two_part_bits_per_byte" in found:
            pyramids.append(run)
            levels = range(1, len(model.model.levels) + 1)
            cells = [
                f"{found['eval_two_part_bits_per_byte']:.3f}",
                ", ".join(f"{found[f'eval_reconstruction_{name}']:.2f}" for name in ("own", "zeroed", "shuffled")),
                ", ".join(f"{found[f'eval_level_{i}_length']:.2f}" for i in levels),
                ", ".join(f"{found[f'eval_level_{i}_codes_used']:.0%}" for i in levels),
            ]
        print(
            f"| {run.name} | {model.num_parameters():,} | {forward:.1f} | {costs[run]:.1f} | "
            f"{found['eval_bits_per_byte']:.3f} | " + " | ".join(cells) + " |"
        )
    print("\n| cuts against | precision | recall | random: precision | recall |\n|---|--:|--:|--:|--:|")
    for run in pyramids:
        print(f"| **{run.name}** | | | | |")
        compare_cuts(models[run], text, pieces)
        draw(inspect(models[run], text[400:688]), FIGURES / f"abstractinator-{run.name}.png")
    plot_curves(costs)


if __name__ == "__main__":
    main()
