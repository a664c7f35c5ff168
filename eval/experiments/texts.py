"""The text of a list: so many bytes of training text, and the two halves of the validation text."""

import glob
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from entries import ExperimentList, ListError

from latentlm.data.config import SourceConfig
from latentlm.data.prepare import open_sources
from latentlm.data.sources import FORMATS
from latentlm.data.splitting import split_by_hash

SOURCE_FIELDS = ("dataset_config", "text_column", "document_start", "validation_fraction", "drop_repeated_paragraphs")
PATHS = ("dataset", "validation_dataset", "tokenizer")


def locate_text(text: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The fields of `text` with paths, or patterns of them, that lie below `folder` written out.

    Raises:
        ListError: for a file that is neither there nor below the working folder.
    """
    located = dict(text)
    for name in PATHS:
        value = text.get(name)
        if value is None:
            continue
        if glob.glob(str(folder / value)):
            located[name] = str(folder / value)
        elif Path(value).suffix in FORMATS and not glob.glob(value):
            raise ListError(f"{name}: there is no {value} below {folder}; --text names the folder of the texts")
    return located


def prepare_text(
    experiments: ExperimentList, budget: int | None, folder: Path, cache: Path
) -> dict[str, dict[str, Any]]:
    """The data fields of trials (`tuning`) and of reported runs (`result`) that read `budget` bytes.

    With a budget, the first bytes of the training documents are written below `cache`, the last document cut at a line.
    With halves, half of the validation documents (by bytes) are in half A, the others in half B.

    Raises:
        ListError: if there is less training text than the budget, or a file is missing.
    """
    text = locate_text(experiments.text, folder)
    if budget is None and not experiments.halves:
        return {"tuning": text, "result": text}
    train, validation = open_parts(text)
    kept = {name: value for name, value in text.items() if name not in SOURCE_FIELDS}
    paths = {name: cache / f"{name}.jsonl" for name in ("train", "validation-a", "validation-b")}
    if budget is not None:
        paths["train"] = cache / f"train-{budget}.jsonl"
    held_out = list(validation)
    halves = split_in_halves(held_out) if experiments.halves else (held_out, held_out)
    parts = (train_part(train, budget, text), *halves)
    for path, documents in zip(paths.values(), parts, strict=True):
        write_documents(path, ["".join(documents)] if experiments.joined else documents)
    return {
        purpose: {**kept, "dataset": str(paths["train"]), "validation_dataset": str(paths[f"validation-{half}"])}
        for purpose, half in (("tuning", "a"), ("result", "b"))
    }


def open_parts(text: dict[str, Any]) -> tuple[Iterator[str], Iterator[str]]:
    """Training and validation documents."""
    options = {name: text[name] for name in ("dataset", "validation_dataset", *SOURCE_FIELDS) if name in text}
    config = SourceConfig(**options)
    source, held_out = open_sources(config)
    if held_out is not None:
        return source.documents(), held_out.documents()
    split = split_by_hash(source.documents(), config.validation_fraction)
    return split.train(source.documents()), split.validation(source.documents())


def train_part(documents: Iterable[str], budget: int | None, text: dict[str, Any]) -> Iterator[str]:
    """The documents of the budget, all of which must be there."""
    size = 0

    def counted() -> Iterator[str]:
        nonlocal size
        for document in documents:
            size += len(document.encode())
            yield document

    yield from first_bytes(counted(), budget)
    if budget is not None and size < budget:
        raise ListError(
            f"budget_bytes is {budget:,}, but the training text of {text.get('dataset')} has {size:,} bytes; "
            "give a longer text, or a smaller budget."
        )


def first_bytes(documents: Iterable[str], budget: int | None) -> Iterator[str]:
    """As many documents as have `budget` bytes of UTF-8; the last one is cut after a line where it has one."""
    left = budget if budget is not None else -1
    for text in documents:
        size = len(text.encode())
        if left < 0 or size <= left:
            yield text
            left -= size if left >= 0 else 0
            if left == 0:
                return
            continue
        part = text.encode()[:left].decode(errors="ignore")
        if part := part[: part.rfind("\n") + 1] or part:
            yield part
        return


def split_in_halves(documents: list[str]) -> tuple[list[str], list[str]]:
    """Each document in turn to the half that has fewer bytes; a single one is cut at a line near its middle."""
    if len(documents) == 1:
        [text] = documents
        middle = text.find("\n", len(text) // 2) + 1 or len(text) // 2
        return [text[:middle]], [text[middle:]]
    halves: tuple[list[str], list[str]] = ([], [])
    sizes = [0, 0]
    for text in documents:
        half = sizes.index(min(sizes))
        halves[half].append(text)
        sizes[half] += len(text.encode())
    return halves


def write_documents(path: Path, documents: Iterable[str]) -> None:
    """JSON lines, whole or not at all; a file with the same content keeps its time."""
    text = "".join(json.dumps({"text": document}, ensure_ascii=False) + "\n" for document in documents)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.stem}.{os.getpid()}.jsonl")
    staging.write_text(text, encoding="utf-8")
    os.replace(staging, path)


def read_documents(path: Path) -> list[str]:
    """The documents of a file that [`write_documents`] wrote."""
    with path.open(encoding="utf-8", newline="\n") as lines:  # not `splitlines`: a text may hold U+2028
        return [json.loads(line)["text"] for line in lines]
