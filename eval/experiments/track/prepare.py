"""Make the tokenizer of the track's entry `fsq`: pieces of its training text, with the codes of an autoencoder.

    python eval/experiments/track/prepare.py [--text FOLDER] [--residual | --large]

The autoencoder is that of hub_configs/fsq-tokenizer-tiny, for 4,096 tokens, on the first 2.05 MB: some minutes of one
thread. Writes runs/experiments/track-tokenizer, which fsq.yaml reads; with `--residual` track-residual-tokenizer, whose
codes are two of 625, one after the other, for the hierarchical head of fsq-heads; with `--large` track-large-tokenizer,
of 32,768 tokens and with the original's levels, for fsq-codes.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from entries import read_list
from records import REPOSITORY, corpora
from texts import prepare_text

from latentlm.runs import load_recipe
from latentlm.training.fsq_tokenizer import build
from latentlm.training.run import train

# The folders' names and what differs, fields of the recipe.
KINDS = {
    "track": {},
    "track-residual": {"levels": [5, 5, 5, 5], "num_quantizers": 2},
    "track-large": {"levels": [8, 8, 8, 8, 8, 5, 5, 5], "tokenizer_vocab_size": 32768},
}
SIZE = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=corpora())
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "experiments")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--residual", dest="name", action="store_const", const="track-residual", help="coarse, fine codes"
    )
    kind.add_argument("--large", dest="name", action="store_const", const="track-large", help="of 32,768 tokens")
    parser.set_defaults(name="track")
    parser.add_argument("--max_steps", type=int, default=4000, help="of the autoencoder")
    options = parser.parse_args()
    experiments, run = read_list("track"), options.runs / f"{options.name}-autoencoder"
    text = prepare_text(experiments, experiments.budget_bytes, options.text.resolve(), options.runs / "track" / "text")
    recipe = REPOSITORY / "hub_configs" / "fsq-tokenizer-tiny" / "recipe.yaml"
    fields = {**text["tuning"], "tokenizer_vocab_size": SIZE, "output_dir": str(run)}
    fields |= {"max_steps": options.max_steps, "eval_steps": options.max_steps}
    train(load_recipe(recipe, fields | KINDS[options.name]))
    build(run, options.runs / f"{options.name}-tokenizer")


if __name__ == "__main__":
    main()
