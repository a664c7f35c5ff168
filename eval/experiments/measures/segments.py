"""Where an Abstractinator cuts: precision, recall and F1 against words, BPE pieces and what follows punctuation.

On half of the validation text of the run, `held_out`, and on `raw` text, five books as they were printed, since spaces
around punctuation make cutting easy. Beside the cuts of a level stand as many after white space and by SpaceByte's
rule, and what as many random ones would reach. `enrichment` is how many times likelier than at random a cut lies where
a unit begins; `surprise` how many times more nats than the mean byte the first byte of a segment costs, which is our
reading of the boundary enrichment of 2601.22805. `LATENTLM_TEXT` names the folder with `books/`, by default the corpora
beside the repository.
"""

import itertools
import random
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
import yaml
from records import corpora
from texts import read_documents
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Split
from tokenizers.trainers import BpeTrainer

from latentlm.evaluation.segments import inspect

LENGTH = 20_000  # characters of each text
PIECES, PIECES_TEXT = 4096, 2_000_000


def learn_pieces(text: str) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Split(Regex(r"\S+\s*|\s+"), "isolated")
    tokenizer.train_from_iterator(text.splitlines(keepends=True), BpeTrainer(vocab_size=PIECES, show_progress=False))
    return tokenizer


def units(text: str, pieces: Tokenizer) -> dict[str, set[int]]:
    """Bytes at which words, pieces, and what follows punctuation begin."""
    begins = {
        "words": {match.start() for match in re.finditer(r"\w+(?:['’]\w+)*", text)},
        "pieces": {begin for begin, _ in pieces.encode(text).offsets},
        "after_punctuation": {match.end() for match in re.finditer(r"[.,;:!?]['\"’”)]*\s+(?=\S)", text)},
    }
    sizes = itertools.accumulate((len(character.encode()) for character in text), initial=0)
    places = dict(enumerate(sizes))
    return {name: {places[begin] for begin in ones} for name, ones in begins.items()}


def after_spaces(data: bytes) -> set[int]:
    """Where something follows white space."""
    return {match.end() for match in re.finditer(rb"\s(?=\S)", data)}


def by_spacebyte(data: bytes) -> set[int]:
    """Where SpaceByte (2404.14408) would begin a segment: after a byte that is neither letter nor digit, and that
    follows one which is. Bytes of characters that have several count as letters."""
    inside = [byte >= 128 or chr(byte).isalnum() for byte in data]
    return {i + 1 for i in range(1, len(data)) if inside[i - 1] and not inside[i]}


def to_count(cuts: set[int], count: int, places: set[int]) -> set[int]:
    """As many cuts as `count`: some are left out, or some added at other places, by chance."""
    draw = random.Random(0)
    if count <= len(cuts):
        return set(draw.sample(sorted(cuts), count))
    return cuts | set(draw.sample(sorted(places - cuts), count - len(cuts)))


def scores(cuts: set[int], begins: set[int]) -> dict[str, float]:
    """Precision, recall and F1 of places where something begins."""
    precision, recall = (len(cuts & begins) / max(len(ones), 1) for ones in (cuts, begins))
    return {"precision": precision, "recall": recall, "f1": 2 * len(cuts & begins) / (len(cuts) + len(begins))}


def by_chance(num_cuts: int, num_begins: int, num_places: int) -> dict[str, float]:
    """What `scores` expects of so many cuts at random places."""
    both = num_cuts * num_begins / num_places
    return {"precision": both / num_cuts, "recall": both / num_begins, "f1": 2 * both / (num_cuts + num_begins)}


@torch.no_grad()
def read(model: Any, data: bytes, row: int) -> tuple[list[set[int]], list[float]]:
    """Of each level, the bytes at which segments begin, and the nats of every byte. The text is read in rows of `row`
    bytes; their own beginnings are no cuts."""
    cuts: list[set[int]] = [set() for _ in model.model.levels]
    nats: list[float] = []
    for begin in range(0, len(data), row):
        part = data[begin : begin + row]
        for places, segments in zip(cuts, inspect(model, part).segments, strict=True):
            places |= {begin + i for i in range(1, len(part)) if segments[i] != segments[i - 1]}
        ids = torch.tensor([[model.config.bos_token_id, *part]], device=model.device)
        logits = model(ids, use_cache=False).logits[0, :-1].float()
        nats += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").tolist()
    return cuts, nats


def measure_text(model: Any, text: str, pieces: Tokenizer) -> dict[str, float]:
    """Of each level, `level_<n>_<unit>_<what>`, with `spaces_`, `spacebyte_` or `random_` before <what> for the cuts
    beside."""
    data = text.encode()
    row = model.config.max_position_embeddings - 1  # and the begin token
    levels, nats = read(model, data, row)
    places = {place for place in range(len(data)) if place % row}
    mean_nats = sum(nats[place] for place in places) / len(places)
    metrics: dict[str, float] = {}
    for level, cuts in enumerate(levels, 1):
        rules = {"spaces_": after_spaces(data), "spacebyte_": by_spacebyte(data)}
        kinds = {"": cuts} | {kind: to_count(ones & places, len(cuts), places) for kind, ones in rules.items()}
        metrics[f"level_{level}_length"] = len(places) / len(cuts)
        for kind, ones in kinds.items():
            metrics[f"level_{level}_{kind}surprise"] = sum(nats[place] for place in ones) / len(ones) / mean_nats
        for name, every in units(text, pieces).items():
            begins = every & places
            chance = by_chance(len(cuts), len(begins), len(places))
            prefix = f"level_{level}_{name}"
            metrics |= {f"{prefix}_random_{what}": value for what, value in chance.items()}
            for kind, ones in kinds.items():
                values = scores(ones, begins)
                values["enrichment"] = values["precision"] / chance["precision"]
                metrics |= {f"{prefix}_{kind}{what}": value for what, value in values.items()}
    return metrics


def read_text(path: Path, run: Path) -> str:
    """JSON lines with a `text` each, or plain text; where runs were moved, from the folder of texts beside them."""
    path = path if path.exists() else run.parent / "text" / path.name
    return "".join(read_documents(path)) if path.suffix == ".jsonl" else path.read_text(encoding="utf-8")


def raw_text() -> str:
    """As much from the middle of each book of the validation file."""
    books = pyarrow.parquet.read_table(corpora() / "books" / "validation.parquet")["text"].to_pylist()
    share = LENGTH // len(books)
    return "\n\n".join(book[len(book) // 2 : len(book) // 2 + share] for book in books)


def measure(model: Any, tokenizer: Any, run: Path) -> dict[str, float]:
    recipe: Any = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    train, held_out = (read_text(Path(recipe["data"][name]), run) for name in ("dataset", "validation_dataset"))
    pieces = learn_pieces(train[:PIECES_TEXT])
    metrics: dict[str, float] = {}
    for name, text in (("held_out", held_out[:LENGTH]), ("raw", raw_text())):
        metrics |= {f"{name}_{what}": value for what, value in measure_text(model, text, pieces).items()}
    return metrics
