"""Make the control for code embeddings: tokenizers with the same pieces, whose codes are dealt out at random.

    python eval/experiments/fsq-codes/shuffle.py [--runs FOLDER]

Reads track-tokenizer and track-large-tokenizer, which track/prepare.py makes with and without `--large`, and writes
track-random-tokenizer and track-large-random-tokenizer beside them. Every code has an owner still, another one.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from records import REPOSITORY

from latentlm import FSQTokenizerFast
from latentlm.models.fsq_vocabulary import FSQVocabulary

NAMES = ("track", "track-large")


def shuffle(vocabulary: FSQVocabulary, seed: int = 0) -> FSQVocabulary:
    """The vocabulary with its codes in random order, and without the network, which gives other ones."""
    codes = np.random.default_rng(seed).permutation(vocabulary.codes)
    return replace(vocabulary, codes=codes, moved=[], inexact=[], autoencoder=None, weights=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "experiments")
    options = parser.parse_args()
    for name in NAMES:
        tokenizer = FSQTokenizerFast.from_pretrained(options.runs / f"{name}-tokenizer")
        out = options.runs / f"{name}-random-tokenizer"
        FSQTokenizerFast.from_vocabulary(shuffle(tokenizer.vocabulary)).save_pretrained(out)
        print(out)


if __name__ == "__main__":
    main()
