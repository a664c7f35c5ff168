"""How well EncodZall repairs texts and how good its embeddings are: character error rates, STS-B, retrieval.

`LATENTLM_TEXT` names the folder with `noise/`, `stsb/` and `wikitext2/`, by default the corpora beside the repository.
Copying, a dictionary speller and hashed trigrams are the yardsticks: `yardsticks(data)`.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from records import corpora
from scipy.stats import spearmanr

from latentlm.training.noise import corrupt_text

LETTERS = "abcdefghijklmnopqrstuvwxyz"
BATCH = 32
TEXTS = 200  # of each kind
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


def error_rate(repaired: list[str], clean: list[str]) -> float:
    """Edits per clean character."""
    return sum(map(edit_distance, repaired, clean)) / sum(map(len, clean))


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


def read_rows(data: Path, name: str, noisy: str, clean: str, texts: int) -> tuple[list[str], list[str]]:
    """Noisy and clean texts, spread over a file of `noise/`."""
    lines = (data / "noise" / name).read_bytes().rstrip(b"\n").split(b"\n")
    chosen = [json.loads(lines[i * len(lines) // texts]) for i in range(texts)]
    first = [row[clean] if isinstance(row[clean], str) else row[clean][0] for row in chosen]
    return [row[noisy] for row in chosen], first


def read_pairs(data: Path, texts: int) -> dict[str, tuple[list[str], list[str]]]:
    """Noisy and clean texts by kind, spread over each file."""
    sentences = read_sentences(data, texts)
    return {
        "cer_misspelled_words_by_people": read_rows(
            data, "misspellings_human.jsonl", "misspelling", "correction", texts
        ),
        "cer_misspelled_words_codespell": read_rows(
            data, "misspellings_codespell.jsonl", "misspelling", "corrections", texts
        ),
        "cer_ocr_english_icdar_2017": read_rows(data, "ocr_icdar2017_en.jsonl", "ocr", "gt", texts),
        "cer_sentences_with_the_noise_of_training": ([noisy_of(s, i) for i, s in enumerate(sentences)], sentences),
    }


def noisy_of(text: str, key: int) -> str:
    return corrupt_text(text, STRENGTH, key)[0]


def read_sentences(data: Path, count: int) -> list[str]:
    lines = (data / "wikitext2" / "wiki.valid.txt").read_text(encoding="utf-8").splitlines()
    sentences = [s.strip() + " ." for line in lines if not line.startswith(" =") for s in line.split(" . ")]
    long_enough = [s for s in sentences if 60 <= len(s.encode()) <= 250]
    return [long_enough[i * len(long_enough) // count] for i in range(count)]


def read_sts(data: Path, part: str = "dev") -> tuple[list[str], list[str], list[float]]:
    with open(data / "stsb" / f"stsb-en-{part}.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [r["sentence1"] for r in rows], [r["sentence2"] for r in rows], [float(r["similarity_score"]) for r in rows]


def correlation(cosines: torch.Tensor, scores: list[float]) -> float:
    """Spearman's, of the cosines of pairs with their scores."""
    result: Any = spearmanr(cosines.numpy(), scores)
    return float(result.statistic)


def score_embeddings(embed: Callable[[list[str]], torch.Tensor], data: Path, texts: int) -> dict[str, float]:
    """STS-B (development set), Spearman's correlation of the cosines, clean and with noise in both sentences; and how
    often the nearest clean sentence to a noisy one, of the strongest noise, is its own."""
    first, second, scores = read_sts(data)
    metrics: dict[str, float] = {}
    for name, change in (("sts_b", lambda s, i: s), ("with_noise_in_both_sentences", noisy_of)):
        one = embed([change(sentence, key) for key, sentence in enumerate(first)])
        other = embed([change(sentence, key + len(first)) for key, sentence in enumerate(second)])
        metrics[name] = correlation(torch.cosine_similarity(one, other), scores)
    sentences = read_sentences(data, 10 * texts)
    clean = torch.nn.functional.normalize(embed(sentences))
    noisy = torch.nn.functional.normalize(embed([corrupt_text(s, 1.0, i)[0] for i, s in enumerate(sentences)]))
    nearest = (noisy @ clean.T).argmax(1)
    metrics[f"retrieval_of_1_in_{len(sentences) // 1000}_{len(sentences) % 1000:03d}"] = (
        nearest.eq(torch.arange(len(clean))).double().mean().item()
    )
    return metrics


def bag_of_trigrams(texts: list[str], size: int = 4096) -> torch.Tensor:
    """Counts of character trigrams, hashed: what needs no training."""
    vectors = torch.zeros(len(texts), size)
    for row, text in enumerate(texts):
        padded = f" {text.lower()} "
        for i in range(len(padded) - 2):
            vectors[row, sum(ord(c) * 31**k for k, c in enumerate(padded[i : i + 3])) % size] += 1
    return vectors


def score(
    repair: Callable[[list[str]], list[str]], embed: Callable[[list[str]], torch.Tensor] | None, data: Path
) -> dict[str, float]:
    pairs = read_pairs(data, TEXTS)
    rates = {kind: error_rate(repair(noisy), clean) for kind, (noisy, clean) in pairs.items()}
    return rates | (score_embeddings(embed, data, TEXTS) if embed else {})


def yardsticks(data: Path) -> dict[str, dict[str, float]]:
    """What needs no training: copying, a dictionary speller, hashed trigrams."""
    speller = DictionarySpeller((data / "wikitext2" / "wiki.train.txt").read_text(encoding="utf-8"))
    return {
        "copying": score(lambda texts: texts, None, data),
        "dictionary-speller": score(speller, None, data),
        "character-trigrams": score_embeddings(bag_of_trigrams, data, TEXTS),
    }


def measure(model: Any, tokenizer: Any, run: Path) -> dict[str, float]:
    def parts(texts: list[str]) -> list[list[str]]:
        return [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]

    def repair(texts: list[str]) -> list[str]:
        return [text for part in parts(texts) for text in model.denoise(part, tokenizer)]

    @torch.no_grad()
    def embed(texts: list[str]) -> torch.Tensor:
        inputs = (tokenizer(part, padding=True, return_tensors="pt") for part in parts(texts))
        return torch.cat([model.model(**one).pooler_output for one in inputs])

    return score(repair, embed, corpora())
