"""Fits `text_embeds` of a run of `hub_configs/encodzall-wikitext2`, and measures them beside counts that need no model.

python eval/experiments/encodzall/embed.py runs/encodzall-wikitext2 runs/encodzall-embed [--records FOLDER]

What is fitted (frequencies, mean, covariance) is fitted to sentences of WikiText-2's training text. Prefixes, smoothing
and the share of the context are chosen on training pairs of STS-B, clean and with noise; the development set is only
scored. The second folder gets the model with its embeddings; `eval/records/encodzall` a record
of each configuration.
"""

import argparse
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from measures.repair import TEXTS, bag_of_trigrams, correlation, noisy_of, read_sts, score_embeddings
from records import RECORDS, Record, circumstances, corpora, count_parameters, write_record

from latentlm import EncodzallForMaskedDenoising, EncodzallTokenizer
from latentlm.models.encodzall_embedding import TextEmbedding
from latentlm.models.encodzall_words import text_ids

NGRAMS = [2, 3]
FITTED = 6000  # sentences
PAIRS = 5749  # of the training set of STS-B, all of it: to choose by
PREFIXES = (None, [3, 4], [3, 4, 5])
SMOOTHING = (5e-4, 1e-3, 2e-3, 4e-3)
SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
COMPONENTS = 256  # that whitening keeps of counts
WORD_BUCKETS = 16_384
BATCH = 32
TIMED = 128  # texts

Embed = Callable[[list[str]], torch.Tensor]
Pairs = tuple[list[str], list[str]]


def read_training_sentences(data: Path, count: int) -> list[str]:
    """Sentences of WikiText-2's training text, spread over it."""
    lines = (data / "wikitext2" / "wiki.train.txt").read_text(encoding="utf-8").splitlines()
    sentences = [s.strip() + " ." for line in lines if not line.startswith(" =") for s in line.split(" . ")]
    sentences = [s for s in sentences if 20 <= len(s.encode()) <= 250]
    return [sentences[i * len(sentences) // count] for i in range(count)]


def count_words(texts: list[str]) -> torch.Tensor:
    """Counts of words, lower case, hashed to so many buckets that few share one."""
    counts = torch.zeros(len(texts), WORD_BUCKETS)
    for row, text in enumerate(texts):
        for word in re.findall(r"[a-z0-9]+", text.lower()):
            counts[row, hash_of(word) % WORD_BUCKETS] += 1
    return counts


def hash_of(word: str) -> int:
    value = 0
    for byte in word.encode():
        value = (value * 1_000_003 + byte + 1) % (2**31 - 1)
    return value


def weighted(count: Embed, texts: list[str], smoothing: float = 1e-3) -> Embed:
    """Counts, each divided by `smoothing` + its frequency in some texts."""
    totals = count(texts).sum(0)
    weights = 1 / (smoothing + totals / totals.sum())
    return lambda batch: count(batch) * weights


def whitened(embed: Embed, texts: list[str]) -> Embed:
    """The first principal components of what some texts have, each divided by its standard deviation."""
    torch.manual_seed(0)
    values = torch.nn.functional.normalize(embed(texts))
    mean = values.mean(0)
    _, scales, directions = torch.pca_lowrank(values, COMPONENTS)
    return lambda batch: (torch.nn.functional.normalize(embed(batch)) - mean) @ (directions / scales)


def seconds(embed: Embed, texts: list[str]) -> float:
    """Of the CPU, in batches, the lesser of two."""
    times = []
    for _ in range(2):
        start = time.process_time()
        for begin in range(0, len(texts), BATCH):
            embed(texts[begin : begin + BATCH])
        times.append(time.process_time() - start)
    return min(times)


class Encoded:
    """The encoders' `text_embeds` under several fits. What the encoders themselves give is kept."""

    def __init__(self, model: Any):
        self.model, self.pooled = model, {}

    @torch.no_grad()
    def means(self, texts: list[str]) -> torch.Tensor:
        """`pooler_output`; texts of like length go through together."""
        order = sorted({text for text in texts if text not in self.pooled}, key=len)
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            self.pooled |= dict(zip(part, self.model(text_ids(part)).pooler_output, strict=True))
        return torch.stack([self.pooled[text] for text in texts])

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> torch.Tensor:
        embedding, ids = self.model.text_embedding, text_ids(texts)
        return embedding(self.means(texts), ids, ids < 256)

    def cosines(self, pairs: Pairs) -> torch.Tensor:
        return torch.cosine_similarity(self(pairs[0]), self(pairs[1]))

    def fit(self, texts: list[str], smoothing: float, prefixes: list[int] | None, share: float) -> None:
        """As `fit_text_embedding`, with other fields of the configuration."""
        config = self.model.config
        config.text_prefixes, config.text_context_share = prefixes, share
        self.model.text_embedding = embedding = TextEmbedding(config)
        ids = text_ids(texts)
        embedding.fit(self.means(texts), embedding.count(ids, ids < 256).sum(0), smoothing)

    def choose(self, texts: list[str], data: Path) -> dict[str, float]:
        """Sets prefixes, smoothing and share by pairs of the training set, clean and noisy: by the mean of Spearman's
        two correlations, all of which come back."""
        first, second, scores = (side[:: len(side) // PAIRS] for side in read_sts(data, "train"))
        sides = enumerate((first, second))
        noisy = [[noisy_of(s, key + 10_000 * side) for key, s in enumerate(one)] for side, one in sides]
        both: list[Pairs] = [(first, second), (noisy[0], noisy[1])]
        self.fit(texts, 1.0, None, 1.0)
        contexts = [self.cosines(pairs) for pairs in both]
        tried: dict[tuple[int, float, float], float] = {}
        for choice, prefixes in enumerate(PREFIXES):
            for smoothing in SMOOTHING:
                self.fit(texts, smoothing, prefixes, 0.0)
                ngrams = [self.cosines(pairs) for pairs in both]
                for share in SHARES:
                    mixed = (share * one + (1 - share) * other for one, other in zip(contexts, ngrams, strict=True))
                    tried[choice, smoothing, share] = sum(correlation(one, scores) for one in mixed) / 2
        choice, smoothing, share = best = max(tried, key=lambda one: tried[one])
        self.fit(texts, smoothing, PREFIXES[choice], share)
        chosen = {"smoothing": smoothing, "context_share": share, "longest_prefix": max(PREFIXES[choice] or [0])}
        named = {f"tried_{max(PREFIXES[p] or [0])}_{a:g}_{s:g}": round(x, 4) for (p, a, s), x in tried.items()}
        print(best, named, flush=True)
        return chosen | named


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder with a trained model")
    parser.add_argument("folder", help="where the model with its embeddings goes")
    parser.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data = corpora()
    fitted = read_training_sentences(data, FITTED)
    timed = fitted[:: FITTED // TIMED]
    size = sum(len(text.encode()) for text in timed)
    about = circumstances()

    def leave(entry: str, label: str, embed: Embed, timing: Embed | None, **known: Any) -> None:
        further = known.pop("metrics", {})
        metrics = score_embeddings(embed, data, TEXTS)
        if timing:
            metrics["kb_per_second"] = size / 1e3 / seconds(timing, timed)
        record = Record("encodzall", entry, label, "benchmark", metrics=metrics | further, **known, **about)
        print(label, metrics, write_record(record, options.records), flush=True)

    full: Any = EncodzallForMaskedDenoising.from_pretrained(options.run, text_ngrams=NGRAMS).eval()
    model = full.model
    known = {"parameters": count_parameters(model)}
    encoded = Encoded(model)
    chosen = encoded.choose(fitted, data)
    full.save_pretrained(options.folder)
    EncodzallTokenizer.from_pretrained(options.run).save_pretrained(options.folder)

    @torch.no_grad()
    def run_model(texts: list[str]) -> torch.Tensor:
        return model(text_ids(texts)).text_embeds

    leave(
        "text-embedding",
        "weighted n-grams and whitened context, one model",
        encoded,
        run_model,
        metrics=chosen,
        **known,
    )
    for share, entry, label in (
        (0.0, "text-embedding-counts", "its n-grams alone"),
        (1.0, "text-embedding-context", "its context alone, whitened"),
    ):
        model.text_embedding.share = share
        leave(entry, label, encoded, None, **known)
    leave("text-embedding-mean", "mean of the same model's word vectors", encoded.means, None, **known)

    trigrams = weighted(bag_of_trigrams, fitted)
    words = weighted(count_words, fitted)
    for entry, label, embed in (
        ("trigrams", "character trigrams, hashed", bag_of_trigrams),
        ("trigrams-weighted", "character trigrams, weighted", trigrams),
        ("trigrams-whitened", "character trigrams, weighted and whitened", whitened(trigrams, fitted)),
        ("words", "words", count_words),
        ("words-weighted", "words, weighted", words),
    ):
        leave(entry, label, embed, embed)


if __name__ == "__main__":
    main()
