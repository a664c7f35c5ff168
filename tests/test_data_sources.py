"""Reading documents: formats, document borders, and what is said about text that cannot be read."""

import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from latentlm.data.sources import open_source

WIKITEXT_START = "^ = [^=].* = $"


def read(dataset, **options):
    return list(open_source(str(dataset), **options).documents())


def write_jsonl(path, texts, column="text"):
    path.write_text("".join(json.dumps({column: text, "other": 1}) + "\n" for text in texts), encoding="utf-8")
    return path


def test_text_files_come_back_byte_for_byte(tmp_path):
    contents = ["é\r\n\r\nb\n", "no end of line", "\ufeff日\x0c\x85\u2028x\n"]
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.txt").write_bytes(content.encode())
    assert read(tmp_path / "*.txt") == contents
    assert read(tmp_path / "1.txt") == contents[1:2]


def test_a_line_opens_a_document(tmp_path):
    path = tmp_path / "wiki.txt"
    articles = [" \n = A = \n \n text = x = \n = = B = = \n", " = C = \nmore\n \n"]
    path.write_text("".join(articles))
    assert read(path, document_start=WIKITEXT_START) == articles
    assert read(path, document_start="^nothing") == ["".join(articles)]


def test_a_row_opens_a_document(tmp_path):
    path = write_jsonl(tmp_path / "lines.jsonl", ["", " = A = \n", "one", "", " = B = ", "two\n"])
    assert read(path, document_start=WIKITEXT_START) == ["\n = A = \none\n\n", " = B = \ntwo\n"]


def test_shared_wikitext(shared_data):
    path = shared_data / "wikitext2" / "wiki.valid.txt"
    documents = read(path, document_start=WIKITEXT_START)
    assert len(documents) == 60 and "".join(documents) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_rows_are_documents(tmp_path, suffix):
    texts = ["one\n", "", None, "zwei é 日"]
    path = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"body": texts, "other": [1, 2, 3, 4]}), path)
    elif suffix == ".json":
        path.write_text(json.dumps([{"body": text, "other": 1} for text in texts]))
    else:
        write_jsonl(path, texts, "body")
    assert read(path, text_column="body") == ["one\n", "zwei é 日"]
    with pytest.raises(ValueError, match=r"text_column: there is no 'text'; the columns are \['body', 'other'\]"):
        read(path)
    with pytest.raises(ValueError, match="text_column: 'other' holds int, not text"):
        read(path, text_column="other")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_folder_goes_to_datasets(tmp_path, streaming):
    folder = tmp_path / "dataset"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", ["a", "b"])
    write_jsonl(folder / "validation.jsonl", ["c"])
    source = open_source(str(folder), streaming=streaming)
    assert list(source.documents()) == list(source.documents()) == ["a", "b"]
    other = open_source(str(folder), split="validation", streaming=streaming)
    assert list(other.documents()) == ["c"]
    assert source.fingerprint() == open_source(str(folder), streaming=streaming).fingerprint() != other.fingerprint()
    with pytest.raises(ValueError, match="split 'test'"):
        read(folder, split="test", streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_text_files_is_what_the_files_are(tmp_path, streaming, monkeypatch):
    """`datasets` would make a document of every line."""
    contents = {"a.txt": "one\r\n\ntwo\n", "b.txt": "three\n= C =\nfour"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content.encode())
    assert read(tmp_path, streaming=streaming) == read(tmp_path / "*.txt") == list(contents.values())
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert read(f"~/{tmp_path.name}", streaming=streaming) == list(contents.values())
    assert read(tmp_path, document_start="^= ") == read(tmp_path / "*.txt", document_start="^= ")
    with pytest.raises(ValueError, match="split 'test'"):
        read(tmp_path, split="test", streaming=streaming)


def test_splits_of_a_folder_of_text_files(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.txt").write_text(f"one\n{split}\n", encoding="utf-8")
    assert read(tmp_path) == ["one\ntrain\n"]
    assert read(tmp_path, split="validation") == ["one\nvalidation\n"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_saved_to_disk(tmp_path, streaming):
    rows = datasets.Dataset.from_dict({"text": ["a\n", "b"]})
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=rows, validation=rows.select([1])).save_to_disk(tmp_path / "splits")
    for name in ("one", "splits"):
        assert read(tmp_path / name, streaming=streaming) == ["a\n", "b"]
    assert read(tmp_path / "splits", split="validation", streaming=streaming) == ["b"]
    with pytest.raises(ValueError, match=r"split 'test'.*: its splits are train, validation"):
        read(tmp_path / "splits", split="test", streaming=streaming)
    with pytest.raises(ValueError, match=r"split 'validation'.*: its splits are train"):
        read(tmp_path / "one", split="validation", streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("name", "content"), [("a.txt", b"one\xff"), ("a.jsonl", b'{"text": "a"}\n{"text": \n')])
def test_a_damaged_file_of_a_folder_says_so(tmp_path, streaming, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"invalid byte at offset 3|cannot be read: .*JSON parse error"):
        read(tmp_path, streaming=streaming)


def test_fingerprints_follow_the_content(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = open_source(str(path)).fingerprint()
    assert open_source(str(path)).fingerprint() == first
    path.write_text("two")
    assert open_source(str(path)).fingerprint() != first
    assert open_source("python_docs").fingerprint() == open_source("python_docs").fingerprint()


def test_the_same_bytes_in_another_format_have_another_fingerprint(tmp_path):
    for name in ("a.txt", "a.jsonl"):
        write_jsonl(tmp_path / name, ["some", "rows"])
    prints = {open_source(str(tmp_path / name)).fingerprint() for name in ("a.txt", "a.jsonl")}
    assert len(prints) == 2


@pytest.mark.parametrize("name", ["let[1].jsonl", "a?b.jsonl", "a*b.jsonl"])
def test_a_file_named_like_a_pattern_is_that_file(tmp_path, name):
    assert read(write_jsonl(tmp_path / name, ["some", "rows"])) == ["some", "rows"]


def test_empty_files_of_a_folder_are_no_documents(tmp_path):
    for name, content in (("a.txt", "some text\n"), ("b.txt", "")):
        (tmp_path / name).write_text(content)
    assert read(tmp_path) == ["some text\n"]


def test_python_docs():
    documents = read("python_docs")
    assert len(documents) > 50 and all(documents)


@pytest.mark.parametrize("size_before", [0, 3, (1 << 20) - 1, (1 << 20) + 5])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_text_that_is_not_utf8(tmp_path, suffix, size_before):
    path = tmp_path / f"latin1{suffix}"
    path.write_bytes(b"\n" * size_before + "日".encode() + b"caf\xe9\n")
    with pytest.raises(ValueError, match=rf"latin1{suffix}' is not UTF-8 .* offset {size_before + 6} "):
        read(path)
    path.write_bytes(b"x" * size_before + "日".encode()[:2])  # a character that is cut short
    with pytest.raises(ValueError, match=f"offset {size_before} "):
        read(path)


@pytest.mark.parametrize("missing", ["nowhere.txt", "nowhere/*.jsonl", "./nowhere", "~/nowhere-at-all"])
def test_missing_files(missing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="there is no file"):
        open_source(missing)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"'python_doc' is neither 'python_docs' nor a local .* cannot load it"):
        open_source("python_doc")


def test_empty_files_and_formats(tmp_path):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match=r"empty\.txt' is empty"):
        open_source(str(tmp_path / "empty.txt"))
    (tmp_path / "table.csv").write_text("text\na\n")
    with pytest.raises(ValueError, match=r"\['\.csv'\], but must have one of \['\.txt', '\.jsonl'"):
        open_source(str(tmp_path / "table.csv"))
    write_jsonl(tmp_path / "rows.jsonl", ["a"])
    with pytest.raises(ValueError, match="has the formats"):
        open_source(str(tmp_path / "*"))


@pytest.mark.parametrize("content", [b'{"text": "a"}\n{"text": \n', b"not json\n"])
def test_broken_json(tmp_path, content):
    path = tmp_path / "broken.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.jsonl' cannot be read"):
        read(path)


def test_python_docs_are_cut_at_titles():
    pages = read("python_docs")
    sections = read("python_docs", document_start=r"^.+\n([*=~-])\1{2,}$")
    assert "".join(sections) == "".join(pages) and len(sections) > 2 * len(pages)
    for section in sections:
        title, line, *_ = section.split("\n")
        assert title and len(set(line)) == 1
