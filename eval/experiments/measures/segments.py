"""Where an Abstractinator cuts: precision and recall against words, BPE pieces and punctuation, beside random cuts.

The recipe of the run names two text files: pieces are learned on `dataset`, `validation_dataset` is cut.
"""

import random
import re
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Split
from tokenizers.trainers import BpeTrainer

from latentlm.evaluation.segments import inspect

LENGTH, ROW = 4000, 500  # bytes of validation text; of its rows, at most, whose own beginnings do not count
PIECES, PIECES_TEXT = 4096, 2_000_000


def learn_pieces(text: str) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Split(Regex(r"\S+\s*|\s+"), "isolated")
    tokenizer.train_from_iterator(text.splitlines(keepends=True), BpeTrainer(vocab_size=PIECES, show_progress=False))
    return tokenizer


def agreement(cuts: set[int], wanted: set[int]) -> tuple[float, float]:
    """Precision and recall of places where something begins."""
    both = len(cuts & wanted)
    return both / max(len(cuts), 1), both / max(len(wanted), 1)


def random_cuts(count: int, length: int) -> set[int]:
    return set(random.Random(0).sample(range(1, length), count))


def cuts_of(model: Any, data: bytes, level: int, row: int) -> set[int]:
    """Places in the text, read in rows of `row` bytes, where segments of a level begin."""
    places: set[int] = set()
    for begin in range(0, len(data), row):
        segments = inspect(model, data[begin : begin + row]).segments[level]
        places |= {begin + i for i in range(1, len(segments)) if segments[i] != segments[i - 1]}
    return places


def units(text: str, pieces: Tokenizer) -> dict[str, set[int]]:
    """Where words, pieces, and what follows punctuation begin."""
    return {
        "words": {match.start() for match in re.finditer(r"(?<=\s)\S", text)},
        "pieces": {begin for begin, _ in pieces.encode(text).offsets},
        "after_punctuation": {match.end() for match in re.finditer(r"[.,;:!?] ", text)},
    }


def measure(model: Any, tokenizer: Any, run: Path) -> dict[str, float]:
    recipe: Any = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    data = recipe["data"]
    held_out = Path(data["validation_dataset"]).read_bytes()[:LENGTH]
    pieces = learn_pieces(Path(data["dataset"]).read_bytes()[:PIECES_TEXT].decode("latin-1"))
    row = min(ROW, model.config.max_position_embeddings - 1)  # and the begin token
    metrics: dict[str, float] = {}
    for level in range(len(model.model.levels)):
        cuts = cuts_of(model, held_out, level, row)
        chance = random_cuts(len(cuts), len(held_out))
        for name, places in units(held_out.decode("latin-1"), pieces).items():
            inside = {place for place in places if place % row}
            for kind, chosen in (("", cuts), ("random_", chance)):
                precision, recall = agreement(chosen, inside)
                prefix = f"level_{level + 1}_{name}_{kind}"
                metrics |= {f"{prefix}precision": precision, f"{prefix}recall": recall}
    return metrics
