"""Bytes per second that the entries of the track write; a record of each in eval/records/generation.

    python eval/experiments/generation_speed.py [ENTRY ...] [--runs FOLDER]

Takes the finished model of an entry where there is one, and fresh weights where the arithmetic does not depend on them.
"""

import argparse
import sys
from pathlib import Path

import torch
from entries import ListError, read_list
from measures.generation import measure
from records import MEASURED, REPOSITORY, Record, machine, revision, versions, write_record
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from latentlm import ByteTokenizer
from latentlm.runs import load_recipe

PAGE, TRACK = "generation", "track"
SAME_FOR_ALL_WEIGHTS = ("decoder_only", "ar_encoder_decoder", "parallel_encoder_decoder")
DEFAULT = ("decoder-only", "ar-encoder-decoder", "parallel-encoder-decoder", "abstractinator", "fsq")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entries", nargs="*", default=DEFAULT)
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "experiments" / TRACK)
    options = parser.parse_args()
    torch.set_num_threads(1)
    entries = read_list(TRACK).entries
    for name in options.entries:
        if name not in entries:
            raise ListError(f"{name}: no entry of the {TRACK}; there are {', '.join(entries)}")
        recipe, run = load_recipe(entries[name].recipe), options.runs / f"{name}-0"
        finished = (run / "config.json").exists()
        if finished:
            tokenizer = AutoTokenizer.from_pretrained(run, trust_remote_code=True)
            model = AutoModelForCausalLM.from_pretrained(run, trust_remote_code=True)
        elif recipe.model_type in SAME_FOR_ALL_WEIGHTS:
            torch.manual_seed(0)
            tokenizer = ByteTokenizer()
            ids = {field: getattr(tokenizer, field) for field in ("pad_token_id", "bos_token_id", "eos_token_id")}
            config = AutoConfig.for_model(recipe.model_type, **recipe.model, **ids, vocab_size=len(tokenizer))
            model = AutoModelForCausalLM.from_config(config)
        else:
            print(
                f"{name}: {run} holds no finished model, and how fast it writes depends on its weights", file=sys.stderr
            )
            continue
        commit, dirty = revision()
        record = Record(
            PAGE,
            name,
            entries[name].label,
            source=MEASURED,
            metrics=measure(model, tokenizer, run if finished else None),
            versions=versions(),
            revision=commit,
            dirty=dirty,
            machine=machine(),
        )
        print(write_record(record), record.metrics)


if __name__ == "__main__":
    main()
