"""Sources of text: the Python documentation, local files, or datasets of the library `datasets`."""

import codecs
import glob
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
from datasets.config import DATASET_STATE_JSON_FILENAME, DATASETDICT_JSON_FILENAME
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.text.text import Text

PYTHON_DOCS = "python_docs"
SAVED = (DATASET_STATE_JSON_FILENAME, DATASETDICT_JSON_FILENAME)  # by `save_to_disk`
FORMATS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}  # builders of `datasets`


@dataclass
class Repeats:
    """The numbers of paragraphs and bytes that were dropped when the documents were last read to their end."""

    paragraphs: int = 0
    bytes: int = 0  # number of UTF-8 bytes, including the blank lines after each paragraph


@dataclass(frozen=True)
class Source:
    """Documents that can be read several times, in the same order."""

    name: str
    documents: Callable[[], Iterator[str]]  # yields no empty document
    fingerprint: Callable[[], str]  # changes with the content
    repeats: Repeats | None = None  # paragraphs that `without_repeats` has dropped


def open_source(
    dataset: str,
    *,
    split: str = "train",
    dataset_config: str | None = None,
    text_column: str = "text",
    document_start: str | None = None,
    streaming: bool = False,
) -> Source:
    """Return the source of a dataset. Its documents are read during iteration, except for a Hub dataset without
    streaming, which is loaded now. The arguments are fields of [`latentlm.data.DataConfig`].

    Raises:
        ValueError: if the dataset does not exist, or, during iteration, if it cannot be read.
    """
    pattern = re.compile(document_start, re.MULTILINE) if document_start is not None else None
    paths = None if dataset == PYTHON_DOCS else _local_files(dataset)
    if split != "train" and (paths or dataset == PYTHON_DOCS):
        raise ValueError(f"dataset: {dataset!r} has no split {split!r}; name its files in validation_dataset instead")
    if dataset == PYTHON_DOCS:
        return Source(PYTHON_DOCS, partial(_python_docs, pattern), lambda: _digest(_python_docs(pattern)))
    folder = Path(dataset).expanduser()
    location = str(folder) if folder.is_dir() else dataset
    paths = paths or _text_files(location, dataset_config, split)
    if paths is None:
        rows = _load_dataset(location, dataset_config, split, streaming)
        documents = partial(_row_documents, rows, dataset, text_column, pattern)
        identity = (dataset, str(dataset_config), split, getattr(rows, "_fingerprint", ""))
        return Source(dataset, documents, lambda: _digest(identity))
    kind = FORMATS[paths[0].suffix]
    if kind == "text":
        documents = partial(_text_documents, paths, pattern)
    else:
        documents = partial(_file_row_documents, paths, dataset, text_column, pattern)
    return Source(dataset, documents, lambda: _digest([kind, *map(_file_digest, paths)]))


def _python_docs(pattern: re.Pattern[str] | None = None) -> Iterator[str]:
    """Yield the reference pages of Python's `help("topics")`, which are 79 documents with 466 kB in Python 3.11. A page
    is cut before each line in which a match of the pattern begins. A match may extend over several lines."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ValueError(f"dataset: this Python comes without its documentation ({error}); name another") from error
    for _, text in sorted(topics.items()):
        begins = {text.rfind("\n", 0, match.start()) + 1 for match in pattern.finditer(text)} if pattern else set()
        cuts = [0, *sorted(begins - {0}), len(text)]
        yield from filter(None, (text[begin:end] for begin, end in pairwise(cuts)))


def _local_files(dataset: str) -> list[Path] | None:
    """Return the files of a path or glob, or None if `dataset` is a name or folder for `datasets.load_dataset`."""
    path = Path(dataset).expanduser()
    if path.is_dir():
        return None
    names_files = path.suffix in FORMATS or path.is_file() or glob.has_magic(dataset) or dataset.startswith(("/", "."))
    if not names_files and not dataset.startswith("~"):
        return None
    if path.is_file():
        paths = [path]
    else:
        paths = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
    if not paths:
        raise ValueError(f"dataset: there is no file {dataset!r} (looked for from {Path.cwd()})")
    suffixes = sorted({p.suffix for p in paths})
    if len(suffixes) > 1 or suffixes[0] not in FORMATS:
        raise ValueError(f"dataset: {dataset!r} has the formats {suffixes}, but must have one of {list(FORMATS)}")
    for p in paths:
        if p.stat().st_size == 0:
            raise ValueError(f"dataset: the file {str(p)!r} is empty")
    return paths


def _text_files(dataset: str, dataset_config: str | None, split: str) -> list[Path] | None:
    """Return the .txt files of a split of a local folder, or None for anything else. `datasets` itself would make every
    line a document, without its line end."""
    if not Path(dataset).is_dir():
        return None
    try:
        builder = datasets.load_dataset_builder(dataset, dataset_config)
    except (OSError, ValueError):  # of which `_load_dataset` makes a message
        return None
    files = (builder.config.data_files or {}).get(split)
    return list(map(Path, files)) if files and isinstance(builder, Text) else None


def _load_dataset(
    dataset: str, dataset_config: str | None, split: str, streaming: bool
) -> datasets.Dataset | datasets.IterableDataset:
    folder = Path(dataset)
    try:
        if any((folder / name).is_file() for name in SAVED):
            rows = datasets.load_from_disk(dataset)
            splits = {"train": rows} if isinstance(rows, datasets.Dataset) else {str(k): v for k, v in rows.items()}
            if split not in splits:
                raise ValueError(f"its splits are {', '.join(splits)}")
            return splits[split].to_iterable_dataset() if streaming else splits[split]
        return datasets.load_dataset(dataset, dataset_config, split=split, streaming=streaming)
    except DatasetGenerationError as error:  # a damaged file
        raise ValueError(f"dataset: {dataset!r} cannot be read: {error.__cause__ or error}") from error
    except (OSError, ValueError) as error:  # not found, no connection; unknown configuration or split
        raise ValueError(
            f"dataset: {dataset!r} is neither {PYTHON_DOCS!r} nor a local {', '.join(FORMATS)} file, and `datasets`"
            f" cannot load it (configuration {dataset_config!r}, split {split!r}): {error}"
        ) from error


def _text_documents(paths: list[Path], pattern: re.Pattern[str] | None) -> Iterator[str]:
    for path in paths:
        texts = _group_lines(_lines(path), pattern) if pattern else ["".join(_lines(path))]
        yield from filter(None, texts)


def _lines(path: Path) -> Iterator[str]:
    """Yield lines with their line ends. They are decoded one by one, so that an error has its offset in the file."""
    offset = 0
    with open(path, "rb") as file:
        for line in file:
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset + error.start) from error
            offset += len(line)


def _not_utf8(path: Path, offset: int) -> ValueError:
    return ValueError(
        f"dataset: {str(path)!r} is not UTF-8 text: invalid byte at offset {offset}"
        " (convert it first, for example with `iconv -f LATIN1 -t UTF-8`)"
    )


def _group_lines(lines: Iterable[str], pattern: re.Pattern[str]) -> Iterator[str]:
    """Yield documents, each of which ends before the next line that matches. Blank lines at the beginning of a file
    belong to the first document."""
    document: list[str] = []
    has_text = False
    for line in lines:
        if has_text and pattern.search(line.rstrip("\r\n")):
            yield "".join(document)
            document, has_text = [], False
        document.append(line)
        has_text = has_text or not line.isspace()
    if document:
        yield "".join(document)


def _file_row_documents(paths: list[Path], name: str, column: str, pattern: re.Pattern[str] | None) -> Iterator[str]:
    builder = FORMATS[paths[0].suffix]
    if builder == "json":
        for path in paths:
            _check_utf8(path)  # the error of `datasets` names neither the file nor the offset
    # Streaming reads the files themselves, instead of first copying them into the cache of `datasets`.
    files = [glob.escape(str(path)) for path in paths]  # which `datasets` takes for patterns
    rows = datasets.load_dataset(builder, data_files=files, split="train", streaming=True)
    yield from _row_documents(rows, name, column, pattern)


def _check_utf8(path: Path) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with open(path, "rb") as file:
        while True:
            chunk = file.read(1 << 20)
            waiting = len(decoder.getstate()[0])  # bytes of an incomplete character at the end of the previous chunk
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset - waiting + error.start) from error
            if not chunk:
                return
            offset += len(chunk)


def _row_documents(
    rows: datasets.Dataset | datasets.IterableDataset, name: str, column: str, pattern: re.Pattern[str] | None
) -> Iterator[str]:
    texts = _row_texts(rows, name, column)
    if pattern is not None:
        texts = _group_lines((text if text.endswith("\n") else text + "\n" for text in texts), pattern)
    return (text for text in texts if text)


def _row_texts(rows: datasets.Dataset | datasets.IterableDataset, name: str, column: str) -> Iterator[str]:
    """Yield the text of each row. Rows whose text is null are skipped."""
    try:
        columns = rows.column_names or list(next(iter(rows), {}))
        if columns and column not in columns:
            raise ValueError(f"text_column: there is no {column!r}; the columns are {columns}")
        batch: Any  # a dictionary of columns
        for batch in rows.select_columns([column]).iter(batch_size=1000) if columns else ():
            for text in batch[column]:
                if text is None:
                    continue
                if not isinstance(text, str):
                    raise ValueError(f"text_column: {column!r} holds {type(text).__name__}, not text")
                yield text
    except (ValueError, DatasetGenerationError) as error:  # the errors above, and those of damaged files
        raise ValueError(f"dataset: {name!r} cannot be read: {error}") from error


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(parts: Iterable[str]) -> str:
    """Return one hash of several texts. The length of each is hashed too, so that their boundaries matter."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
