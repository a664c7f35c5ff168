"""Bytes per second that entries of the track and of other lists write; a record of each in eval/records/generation.

    python eval/experiments/generation_speed.py [ENTRY ...] [PAGE/ENTRY ...] [--runs FOLDER]

Takes a finished model of an entry where there is one, and fresh weights where the arithmetic does not depend on them.
"""

import argparse
import sys
from pathlib import Path

import torch
from entries import ListError, read_list
from measures.generation import measure
from peers.gpt2 import GPT2Peer
from records import MEASURED, REPOSITORY, Record, circumstances, write_record
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from latentlm import ByteTokenizer
from latentlm.runs import load_recipe

PAGE, TRACK = "generation", "track"
SAME_FOR_ALL_WEIGHTS = ("decoder_only", "ar_encoder_decoder", "parallel_encoder_decoder")
DEFAULT = (
    "decoder-only",
    "ar-encoder-decoder",
    "parallel-encoder-decoder",
    "abstractinator",
    "pyramid/shared-trunk",
    "fsq",
    "bpe",
    "gpt2",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entries", nargs="*", default=DEFAULT)
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "experiments")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for place in options.entries:
        page, _, name = place.rpartition("/")
        page = page or TRACK
        entries = read_list(page).entries
        if name not in entries:
            raise ListError(f"{name}: no entry of {page}; there are {', '.join(entries)}")
        recipe = load_recipe(entries[name].recipe)
        finished = sorted((options.runs / page).glob(f"{name}-[0-9]/config.json"))
        run = finished[0].parent if finished else None
        if entries[name].peer:
            if run is None or entries[name].peer != "gpt2":
                print(
                    f"{name}: only GPT-2 writes as itself among the peers, and needs a finished model", file=sys.stderr
                )
                continue
            tokenizer = AutoTokenizer.from_pretrained(run)
            model = GPT2Peer.from_pretrained(run).network
        elif run:
            tokenizer = AutoTokenizer.from_pretrained(run)
            model = AutoModelForCausalLM.from_pretrained(run)  # by the code of here, not that of the run
        elif recipe.model_type in SAME_FOR_ALL_WEIGHTS:
            torch.manual_seed(0)
            tokenizer = ByteTokenizer()
            ids = {field: getattr(tokenizer, field) for field in ("pad_token_id", "bos_token_id", "eos_token_id")}
            config = AutoConfig.for_model(recipe.model_type, **recipe.model, **ids, vocab_size=len(tokenizer))
            model = AutoModelForCausalLM.from_config(config)
        else:
            print(
                f"{name}: {options.runs / page} holds no finished model, and how fast it writes depends on its weights",
                file=sys.stderr,
            )
            continue
        record = Record(
            PAGE,
            name,
            entries[name].label,
            source=MEASURED,
            metrics=measure(model, tokenizer, run),
            **circumstances(),
        )
        print(write_record(record), record.metrics)


if __name__ == "__main__":
    main()
