"""The original design implemented literally: a text is cut into chunks of one length, and each becomes one code of a
vocabulary of 32,768, and text again.

    python eval/experiments/fsq-tokenizer/fixed.py TRAIN.txt VALIDATION.txt [--steps 1500] [--runs FOLDER]

With the original levels the 32,768 most frequent codes of 300,000 training chunks are kept, and a chunk of the
validation text whose code is not among them is an error; with [8, 8, 8, 8, 8] every code has an id. Prints the table;
runs that are there are not trained again.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from latentlm import FSQAutoencoderModel
from latentlm.data import ChunkConfig, prepare_chunks
from latentlm.data.chunks import ChunkDataset

RECIPE = Path(__file__).parents[3] / "hub_configs/fsq-tokenizer-original/recipe-fixed-16.yaml"
LEVELS = {"original, top 32,768": [8, 8, 8, 8, 8, 5, 5, 5], "8⁵ = 32,768": [8, 8, 8, 8, 8]}
VOCABULARY = 32768
BATCH = 4096
COUNTED = 300_000  # training chunks whose codes are counted, spread over the text


def codes_of(model: FSQAutoencoderModel, rows: ChunkDataset) -> torch.Tensor:
    chunks, lengths = torch.from_numpy(rows.chunks.copy()), torch.from_numpy(rows.lengths.astype("int64"))
    parts = zip(chunks.split(BATCH), lengths.split(BATCH), strict=True)
    return torch.cat([model.encode(*part) for part in parts])


def measure(run: Path, train: ChunkDataset, validation: ChunkDataset) -> list[str]:
    model = FSQAutoencoderModel.from_pretrained(run).eval()
    every = max(len(train) // COUNTED, 1)
    counted = ChunkDataset(train.chunks[::every], train.lengths[::every], train.uses[::every])
    codes, counts = codes_of(model, counted).unique(return_counts=True)
    frequent = codes[counts.argsort(descending=True, stable=True)[:VOCABULARY]]
    if model.config.num_codes <= VOCABULARY:
        frequent = torch.arange(model.config.num_codes)
    codes = codes_of(model, validation)
    known = torch.isin(codes, frequent)
    spelled = model.decode(codes.long())[0]  # pyright: ignore[reportArgumentType]  # torch types no Tensor as a LongTensor
    chunks, lengths = torch.from_numpy(validation.chunks.copy()), torch.from_numpy(validation.lengths.astype("int64"))
    inside = torch.arange(chunks.shape[1]) < lengths[:, None]
    right = (spelled == chunks) & inside
    exact = (right == inside).all(-1)
    total = inside.sum()
    return [
        f"{right.sum() / total:.1%}",
        f"{(right & known[:, None]).sum() / total:.1%}",
        f"{(exact & known).double().mean():.1%}",
        f"{known.double().mean():.1%}",
        f"{len(codes.unique()):,} of {len(codes):,}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--sizes", type=int, nargs="*", default=[4, 5, 6, 8, 16])
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/fsq-fixed"))
    options = parser.parse_args()
    print("| bytes | levels | bytes right | and code kept | chunks exact, code kept | codes kept | distinct codes |")
    print("|--:|---|--:|--:|--:|--:|--:|")
    for size in options.sizes:
        text: dict[str, Any] = {"dataset": str(options.train), "validation_dataset": str(options.validation)}
        data = prepare_chunks(ChunkConfig(**text, chunks="fixed", chunk_bytes=size, max_validation_rows=8192))
        rows: Any = data.train, data.validation
        for name, levels in LEVELS.items():
            run = options.runs / f"{size}-bytes-{len(levels)}-levels"
            if not (run / "results.json").exists():
                fields = text | {"chunk_bytes": size, "levels": levels, "max_steps": options.steps, "output_dir": run}
                fields |= {"dataset_config": "null", "validation_split": "null", "learning_rate": 2e-3}
                fields |= {"lr_scheduler_type": "cosine", "warmup_steps": 100, "eval_steps": options.steps}
                command = [sys.executable, "-m", "latentlm.train", str(RECIPE)]
                for field, value in fields.items():
                    command += [f"--{field}", str(value)]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            cells = measure(run, rows[0], rows[1])
            print(f"| {size} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
