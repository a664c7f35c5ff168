"""Tables and figures of docs/results/abstractinator.md.

    python eval/abstractinator/report.py DATA RUN ... [--flat RUN]

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
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Split
from tokenizers.trainers import BpeTrainer
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

import latentlm  # noqa: F401  (registers the architectures)
from latentlm.inspect import draw, inspect

FIGURES = Path(__file__).parents[2] / "docs" / "results" / "figures"
LENGTH = 4000  # bytes of validation text whose cuts are compared; rows of 500


def read_metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def last_evaluation(run: Path) -> dict:
    return [entry for entry in read_metrics(run) if "eval_loss" in entry][-1]


def flops_per_byte(model: torch.nn.Module) -> float:
    """Of a forward that gives the next byte, in millions."""
    ids = torch.randint(97, 123, (1, 512), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(ids, use_cache=False)
    return counter.get_total_flops() / 512 / 1e6


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


def plot_curves(runs: list[Path]) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for run in runs:
        entries = [entry for entry in read_metrics(run) if "eval_loss" in entry]
        steps = [entry["step"] for entry in entries]
        left.plot(steps, [entry["eval_bits_per_byte"] for entry in entries], marker=".", label=run.name)
        for level in (1, 2):
            if f"eval_level_{level}_codes_used" in entries[0]:
                used = [entry[f"eval_level_{level}_codes_used"] for entry in entries]
                right.plot(steps, used, marker=".", label=f"{run.name}, level {level}")
    left.set(xlabel="step", title="bits per byte, next byte")
    right.set(xlabel="step", title="share of codes used", ylim=(0, 1))
    for axis in (left, right):
        axis.legend(fontsize=8)
    figure.savefig(FIGURES / "abstractinator-curves.png", dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--flat", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    FIGURES.mkdir(parents=True, exist_ok=True)
    text = (options.data / "wikitext2" / "wiki.valid.txt").read_bytes()[:LENGTH]
    bpe = learn_bpe((options.data / "wikitext2" / "wiki.train.txt").read_bytes()[:2_000_000].decode("latin-1"))
    pieces = {begin for begin, _ in bpe.encode(text.decode("latin-1")).offsets}
    print(
        "| run | parameters | MFLOP a byte | next byte | two parts | own, zeroed, shuffled codes | bytes a segment | "
        "codes used |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    models = {}
    for run in (*options.runs, *options.flat):
        models[run] = model = AutoModelForCausalLM.from_pretrained(run).eval()
        found = last_evaluation(run)
        cells = ["–"] * 4
        if run in options.runs:
            levels = range(1, len(model.model.levels) + 1)
            cells = [
                f"{found['eval_two_part_bits_per_byte']:.3f}",
                ", ".join(f"{found[f'eval_reconstruction_{name}']:.2f}" for name in ("own", "zeroed", "shuffled")),
                ", ".join(f"{found[f'eval_level_{i}_length']:.2f}" for i in levels),
                ", ".join(f"{found[f'eval_level_{i}_codes_used']:.0%}" for i in levels),
            ]
        print(
            f"| {run.name} | {model.num_parameters():,} | {flops_per_byte(model):.1f} | "
            f"{found['eval_bits_per_byte']:.3f} | " + " | ".join(cells) + " |"
        )
    print("\n| cuts against | precision | recall | random: precision | recall |\n|---|--:|--:|--:|--:|")
    for run in options.runs:
        print(f"| **{run.name}** | | | | |")
        compare_cuts(models[run], text, pieces)
        draw(inspect(models[run], text[400:690]), FIGURES / f"abstractinator-{run.name}.png")
    plot_curves([*options.runs, *options.flat])


if __name__ == "__main__":
    main()
