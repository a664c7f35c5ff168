"""Score runs of EncodZall: character error rates, STS-B, retrieval; beside copying and a dictionary speller.

    python eval/encodzall/score.py DATA RUN ... [--texts 200] [--out scores.json]

DATA is the folder with `noise/`, `stsb/` and `wikitext2/`. Prints two tables; every number is over the same texts.
"""

import argparse
import csv
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from baselines import BASELINES
from scipy.stats import spearmanr
from tqdm import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import latentlm  # noqa: F401  (registers the architecture)
from latentlm.training.noise import corrupt_text

BASELINE_CLASSES = {cls.__name__: cls for cls in BASELINES.values()}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
BATCH = 32
STRENGTH = 0.3  # of the noise in sentences


def edit_distance(one: str, other: str) -> int:
    """Levenshtein's distance in characters."""
    codes = np.array([*map(ord, other)])
    row = np.arange(len(other) + 1)
    for count, letter in enumerate(one, 1):
        best = np.minimum(row[1:] + 1, row[:-1] + (codes != ord(letter)))
        # What is left is to insert: a running minimum, less one for each step.
        row = np.minimum.accumulate(np.concatenate(([count], best)) - np.arange(len(other) + 1))
        row = row + np.arange(len(other) + 1)
    return int(row[-1])


def error_rate(found: list[str], clean: list[str]) -> float:
    """Edits per clean character."""
    return sum(map(edit_distance, found, clean)) / sum(map(len, clean))


class DictionarySpeller:
    """Each unknown word becomes the commonest word at one edit (Norvig 2007, "How to write a spelling corrector")."""

    def __init__(self, text: str):
        self.counts = Counter(re.findall(r"[a-z]+", text.lower()))

    def correct(self, word: str) -> str:
        lower = word.lower()
        if lower in self.counts or len(lower) < 3:
            return word
        splits = [(lower[:i], lower[i:]) for i in range(len(lower) + 1)]
        edits = {a + b[1:] for a, b in splits if b} | {a + b[1] + b[0] + b[2:] for a, b in splits if len(b) > 1}
        edits |= {a + c + b[1:] for a, b in splits if b for c in LETTERS} | {
            a + c + b for a, b in splits for c in LETTERS
        }
        best = max(edits & self.counts.keys(), key=lambda edit: (self.counts[edit], edit), default=None)
        if best is None:
            return word
        return best.capitalize() if word[0].isupper() else best

    def __call__(self, texts: list[str]) -> list[str]:
        return [re.sub(r"[A-Za-z]+", lambda match: self.correct(match[0]), text) for text in texts]


def read_pairs(data: Path, texts: int) -> dict[str, tuple[list[str], list[str]]]:
    """Noisy and clean texts by kind, spread over each file."""

    def rows(name: str, noisy: str, clean: str) -> tuple[list[str], list[str]]:
        lines = (data / "noise" / name).read_bytes().rstrip(b"\n").split(b"\n")
        chosen = [json.loads(lines[i * len(lines) // texts]) for i in range(texts)]
        first = [row[clean] if isinstance(row[clean], str) else row[clean][0] for row in chosen]
        return [row[noisy] for row in chosen], first

    sentences = read_sentences(data, texts)
    return {
        "misspelled words, by people": rows("misspellings_human.jsonl", "misspelling", "correction"),
        "misspelled words, codespell": rows("misspellings_codespell.jsonl", "misspelling", "corrections"),
        "OCR, English (ICDAR 2017)": rows("ocr_icdar2017_en.jsonl", "ocr", "gt"),
        "sentences with the noise of training": ([noisy_of(s, i) for i, s in enumerate(sentences)], sentences),
    }


def noisy_of(text: str, key: int) -> str:
    return corrupt_text(text, STRENGTH, key)[0]


def read_sentences(data: Path, count: int) -> list[str]:
    lines = (data / "wikitext2" / "wiki.valid.txt").read_text(encoding="utf-8").splitlines()
    sentences = [s.strip() + " ." for line in lines if not line.startswith(" =") for s in line.split(" . ")]
    long_enough = [s for s in sentences if 60 <= len(s.encode()) <= 250]
    return [long_enough[i * len(long_enough) // count] for i in range(count)]


def read_sts(data: Path) -> tuple[list[str], list[str], list[float]]:
    with open(data / "stsb" / "stsb-en-dev.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [r["sentence1"] for r in rows], [r["sentence2"] for r in rows], [float(r["similarity_score"]) for r in rows]


def score_embeddings(embed: Callable[[list[str]], torch.Tensor], data: Path, texts: int) -> dict[str, float]:
    """STS-B (development set), Spearman's correlation of the cosines, clean and with noise in both sentences; and how
    often the nearest clean sentence to a noisy one, of the strongest noise, is its own."""
    first, second, scores = read_sts(data)
    found = {}
    for name, change in (("STS-B", lambda s, i: s), ("STS-B, noisy", noisy_of)):
        one = embed([change(sentence, key) for key, sentence in enumerate(first)])
        other = embed([change(sentence, key + len(first)) for key, sentence in enumerate(second)])
        found[name] = float(spearmanr(torch.cosine_similarity(one, other).numpy(), scores).statistic)
    sentences = read_sentences(data, 10 * texts)
    clean = torch.nn.functional.normalize(embed(sentences))
    noisy = torch.nn.functional.normalize(embed([corrupt_text(s, 1.0, i)[0] for i, s in enumerate(sentences)]))
    nearest = (noisy @ clean.T).argmax(1)
    found[f"retrieval of 1 in {len(sentences)}"] = nearest.eq(torch.arange(len(clean))).double().mean().item()
    return found


def bag_of_trigrams(texts: list[str], size: int = 4096) -> torch.Tensor:
    """Counts of character trigrams, hashed: what needs no training."""
    vectors = torch.zeros(len(texts), size)
    for row, text in enumerate(texts):
        padded = f" {text.lower()} "
        for i in range(len(padded) - 2):
            vectors[row, sum(ord(c) * 31**k for k, c in enumerate(padded[i : i + 3])) % size] += 1
    return vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("runs/encodzall/scores.json"))
    options = parser.parse_args()
    pairs = read_pairs(options.data, options.texts)
    speller = DictionarySpeller((options.data / "wikitext2" / "wiki.train.txt").read_text(encoding="utf-8"))
    scores: dict[str, dict[str, float]] = json.loads(options.out.read_text()) if options.out.exists() else {}
    scores["copying"] = {kind: error_rate(noisy, clean) for kind, (noisy, clean) in pairs.items()}
    scores["dictionary speller"] = {kind: error_rate(speller(noisy), clean) for kind, (noisy, clean) in pairs.items()}
    scores["character trigrams"] = score_embeddings(bag_of_trigrams, options.data, options.texts)
    for run in options.runs:
        tokenizer = AutoTokenizer.from_pretrained(run)
        [saved] = json.loads((run / "config.json").read_text(encoding="utf-8"))["architectures"]
        model = BASELINE_CLASSES.get(saved, AutoModelForSeq2SeqLM).from_pretrained(run).eval()

        def denoise(texts: list[str], model=model, tokenizer=tokenizer) -> list[str]:
            parts = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
            return [text for part in tqdm(parts, desc="Repairing") for text in model.denoise(part, tokenizer)]

        @torch.no_grad()
        def embed(texts: list[str], model=model, tokenizer=tokenizer) -> torch.Tensor:
            parts = (texts[i : i + BATCH] for i in range(0, len(texts), BATCH))
            return torch.cat(
                [model.model(**tokenizer(p, padding=True, return_tensors="pt")).pooler_output for p in parts]
            )

        scores[run.name] = {kind: error_rate(denoise(noisy), clean) for kind, (noisy, clean) in pairs.items()}
        scores[run.name] |= score_embeddings(embed, options.data, options.texts)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    kinds = list(pairs)
    others = [name for name in next(iter(reversed(scores.values()))) if name not in kinds]
    for title, columns in (("character error rate", kinds), ("embeddings", others)):
        print(f"\n| {title} | {' | '.join(columns)} |\n|---|{'--:|' * len(columns)}")
        for name, values in scores.items():
            if columns[0] in values:
                cells = (f"{values[c]:.1%}" if title.startswith("char") else f"{values[c]:.3f}" for c in columns)
                print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
