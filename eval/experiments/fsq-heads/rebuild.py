"""Compare the tokenizer of a jointly trained model with the one that `latentlm tokenizer rebuild` makes of it.

    python eval/experiments/fsq-heads/rebuild.py [--run FOLDER]

Both read half B of the validation text, by their tables and, the first 20 kB, with the network. Leaves a record.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from records import MEASURED, REPOSITORY, Record, circumstances, write_record
from texts import read_documents

from latentlm import FSQTokenizer
from latentlm.training.fsq_tokenizer import rebuild

NEURAL_BYTES = 20_000


def compare(before: Path, after: Path, text: str) -> dict[str, float]:
    old, new = (FSQTokenizer.from_pretrained(folder) for folder in (before, after))
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for tokenizer in (old, new)]
    found: dict[str, float] = {
        "codes": len(old.vocabulary.codes),
        "codes_changed": int((old.vocabulary.codes != new.vocabulary.codes).sum()),
        "tokens": len(ids[0]),
        "tokens_that_differ": int(np.not_equal(*map(np.array, ids)).sum()),
        "bytes_per_token": len(text.encode()) / len(ids[0]),
    }
    part = text.encode()[:NEURAL_BYTES].decode(errors="ignore")
    for name, tokenizer, folder in (("old", old, before), ("new", new, after)):
        neural = FSQTokenizer.from_pretrained(folder, mode="neural")
        tokens = neural(part, add_special_tokens=False)["input_ids"]
        assert neural.decode(tokens) == part  # lossless in this mode too
        found[f"{name}_moved"] = len(tokenizer.vocabulary.moved)
        found[f"{name}_exact"] = len(tokenizer.vocabulary.codes) - len(tokenizer.vocabulary.inexact)
        found[f"{name}_neural_bytes_per_token"] = len(part.encode()) / len(tokens)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = REPOSITORY / "runs" / "experiments" / "fsq-heads" / "joint-0"
    parser.add_argument("--run", type=Path, default=folder, help="of joint training")
    run = parser.parse_args().run
    text = "".join(read_documents(run.parent / "text" / "validation-b.jsonl"))
    with TemporaryDirectory() as out:
        rebuild(run, Path(out))
        metrics = compare(run, Path(out), text)
    record = Record(
        page="fsq-heads",
        entry="rebuilt",
        label="table after joint training",
        source=MEASURED,
        metrics=metrics,
        **circumstances(),
    )
    print(json.dumps(metrics, indent=1))
    print(write_record(record))


if __name__ == "__main__":
    main()
