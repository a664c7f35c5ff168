"""`prepare_data`: packing against a slow, obvious implementation; splits; the cache; streams; bad input."""

import itertools
import json
import multiprocessing
import pickle
import random
import shutil
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from latentlm.data import (
    ChunkConfig,
    DataConfig,
    PackedDataset,
    PackedStream,
    TextConfig,
    packing,
    prepare,
    prepare_chunks,
    prepare_data,
    prepare_texts,
    tokenizers,
)
from latentlm.data.cache import build_once
from latentlm.data.packing import pack_row, stack_rows
from latentlm.data.splitting import split_by_hash
from latentlm.models.tokenization_byte import ByteTokenizer

BOS, EOS, PAD = 257, 258, 256


@pytest.fixture
def make_config(tmp_path):
    def make(**fields):
        return DataConfig(**({"cache_dir": str(tmp_path / "cache"), "context_length": 16} | fields))

    return make


@pytest.fixture
def corpus(tmp_path):
    """Rows of random length in a .jsonl file, some of them twice; the file and its texts."""
    rng = random.Random(0)
    texts = ["".join(rng.choices("aé日 \n", k=rng.randint(1, 60))) for _ in range(200)]
    texts += texts[:40]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path, texts


def pack_slowly(documents, length, pad=None):
    """What `latentlm.data.packing` promises, token by token."""
    stream = [(token, position) for document in documents for position, token in enumerate(document)]
    rows = []
    for begin in range(0, len(stream) - 1, length - 1):
        row = {"input_ids": [], "position_ids": [], "labels": []}
        position = 0
        for index in range(begin, begin + length):
            token, position_in_document = stream[index] if index < len(stream) else (pad, index - len(stream))
            if index == begin or position_in_document == 0:
                position = 0
            row["input_ids"].append(token)
            row["position_ids"].append(position)
            row["labels"].append(-100 if position == 0 or index >= len(stream) else token)
            position += 1
        if begin + length <= len(stream) or pad is not None:
            rows.append(row)
    return rows


def as_lists(rows):
    return [{name: value.tolist() for name, value in row.items()} for row in rows]


def as_documents(texts):
    return [[BOS, *text.encode(), EOS] for text in texts]


@pytest.mark.parametrize("length", [2, 3, 16, 1000])
@pytest.mark.parametrize("pad", [None, PAD])
def test_packing_equals_the_obvious_implementation(corpus, length, pad):
    documents = as_documents(corpus[1][:50])
    starts = np.cumsum([0] + [len(document) for document in documents[:-1]])
    dataset = PackedDataset(np.concatenate(documents), starts, length, pad)
    assert as_lists(dataset) == pack_slowly(documents, length, pad)


@pytest.mark.parametrize("batch_characters", [1, 100, 1 << 20])
def test_stream_packs_the_same_rows(corpus, batch_characters, monkeypatch):
    monkeypatch.setattr(tokenizers, "BATCH_CHARACTERS", batch_characters)
    _, texts = corpus
    stream = PackedStream(lambda: iter(texts), ByteTokenizer(), 16)
    expected = pack_slowly(as_documents(texts), 16)
    assert as_lists(stream) == as_lists(stream) == expected


def test_rows_are_padded_only_where_the_corpus_ends():
    documents = as_documents(["abcdefg"])  # 9 tokens: 8 predictions
    for length, rows in [(5, 2), (9, 1), (10, 1), (8, 2)]:
        dataset = PackedDataset(np.concatenate(documents), np.array([0]), length, PAD)
        assert len(dataset) == rows
        assert sum(int((row["labels"] >= 0).sum()) for row in dataset) == 8
    with pytest.raises(IndexError):
        dataset[2]
    assert dataset[-1]["input_ids"].equal(dataset[1]["input_ids"])


def test_every_token_is_predicted_once_and_bytes_add_up(make_config, corpus):
    path, texts = corpus
    for fields in ({"tokenizer": "bytes"}, {"tokenizer": "bpe", "tokenizer_vocab_size": 300}):
        data = prepare_data(make_config(dataset=str(path), validation_fraction=0.3, **fields))
        labels = torch.cat([row["labels"] for row in data.validation])
        labels = labels[labels >= 0]
        info = data.info["validation"]
        assert len(labels) == info["tokens"] - info["documents"]  # all but <bos>
        assert data.token_bytes[labels.numpy()].sum() == info["bytes"]
        total = {name: data.info["train"][name] + info[name] for name in ("documents", "bytes")}
        assert total == {"documents": len(texts), "bytes": sum(len(text.encode()) for text in texts)}
        assert info["rows"] == len(data.validation) and data.info["train"]["rows"] == len(data.train)
        assert data.token_bytes.shape == (len(data.tokenizer),) == (data.info["vocab_size"],)
        assert data.token_bytes.dtype == np.float32
        row = data.train[0]
        assert all(value.dtype == torch.int64 and value.shape == (16,) for value in row.values())
        batch = stack_rows([data.train[0], data.train[1]])
        assert {"input_ids", "labels"} <= batch.keys() and batch["labels"].shape == (2, 16)
        json.dumps(data.info)


def test_batches_have_positions_where_a_row_has_several_documents():
    one, several, later = (pack_row(np.arange(8), np.array(starts), 8) for starts in ([0], [0, 5], [3]))
    for rows, kept in (([one, one], False), ([one, several], True), ([later, later], True)):
        batch = stack_rows(rows)
        assert ("position_ids" in batch) == kept and {"input_ids", "labels"} <= batch.keys()
        if kept:
            assert torch.equal(batch["position_ids"], torch.stack([row["position_ids"] for row in rows]))


def documents_of(dataset, tokenizer):
    """The documents of a dataset, back from its tokens."""
    ids = dataset.tokens.tolist()
    bounds = [*dataset.starts.tolist(), len(ids)]
    return [tokenizer.decode(ids[a + 1 : b - 1]) for a, b in itertools.pairwise(bounds)]


def test_splits_do_not_overlap_and_do_not_depend_on_the_tokenizer(make_config, corpus):
    path, texts = corpus
    splits = []
    for fields in ({"tokenizer": "bytes"}, {"tokenizer": "bpe", "tokenizer_vocab_size": 300}):
        data = prepare_data(make_config(dataset=str(path), validation_fraction=0.2, **fields))
        train, validation = (documents_of(split, data.tokenizer) for split in (data.train, data.validation))
        assert not set(train) & set(validation)
        assert sorted(train + validation) == sorted(texts)
        assert 0.1 < data.info["validation"]["bytes"] / sum(len(text.encode()) for text in texts) <= 0.2
        splits.append((train, validation))
    assert splits[0] == splits[1]


def test_validation_documents_of_another_file_are_not_trained_on(make_config, corpus, tmp_path):
    path, texts = corpus
    validation = tmp_path / "validation.jsonl"
    validation.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts[:5], "new"]))
    data = prepare_data(make_config(dataset=str(path), validation_dataset=str(validation)))
    assert documents_of(data.validation, data.tokenizer) == [*texts[:5], "new"]
    assert documents_of(data.train, data.tokenizer) == [text for text in texts if text not in texts[:5]]
    with pytest.raises(ValueError, match="train split is empty"):
        prepare_data(make_config(dataset=str(validation), validation_dataset=str(validation)))


def test_a_split_of_the_dataset_validates(make_config, tmp_path):
    folder = tmp_path / "dataset"
    folder.mkdir()
    for name, count in [("train", 20), ("validation", 3)]:
        rows = [json.dumps({"text": f"{name} {i}"}) + "\n" for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(rows))
    for options in ({}, {"streaming": True}):
        data = prepare_data(make_config(dataset=str(folder), validation_split="validation", **options))
        assert documents_of(data.validation, data.tokenizer) == [f"validation {i}" for i in range(3)]
        assert data.tokenizer.decode(next(iter(data.train))["input_ids"]).startswith("<bos>train 0<eos>")
    with pytest.raises(ValueError, match=r"has no split 'validation'; name its files in validation_dataset"):
        prepare_data(make_config(dataset=str(folder / "train.jsonl"), validation_split="validation"))


def test_a_single_document_is_cut_at_a_line(make_config, tmp_path):
    lines = [f"line {i}\n" for i in range(100)]
    path = tmp_path / "one.txt"
    path.write_text("".join(lines))
    data = prepare_data(make_config(dataset=str(path), validation_fraction=0.1))
    [train], [validation] = (documents_of(split, data.tokenizer) for split in (data.train, data.validation))
    assert train + validation == "".join(lines) and train.endswith("\n")
    assert 0.08 < len(validation) / len(train + validation) < 0.12
    path.write_text("no line boundary at all\n")
    with pytest.raises(ValueError, match=r"validation_fraction: .*no line boundary"):
        prepare_data(make_config(dataset=str(path)))


def test_documents_larger_than_the_share_do_not_end_the_choice():
    documents = [f"{i}" * 1000 for i in range(5)] + [f"small {i}" for i in range(100)]
    held_out = sum(map(len, split_by_hash(documents, 0.05).validation(documents)))
    assert 0.9 < held_out / (0.05 * sum(map(len, documents))) <= 1


def test_few_large_documents_are_cut_too():
    large, small = "x\n" * 100, "y\n" * 80
    split = split_by_hash([large, small, large], 0.05)
    train, validation = list(split.train([large, small, large])), list(split.validation([large, small, large]))
    assert train == ["x\n" * 95, small, "x\n" * 95] and validation == ["x\n" * 5] * 2


@pytest.mark.parametrize("tiny", ["tiny\n", "y\n" * 4])
def test_a_tiny_document_alone_is_no_validation_text(tiny):
    large = ["x\n" * 1000, "z\n" * 900]
    split = split_by_hash([*large, tiny], 0.05)
    assert list(split.validation([*large, tiny])) == ["x\n" * 50]
    one_line = ["x" * 2000, tiny]  # which cannot be cut
    assert list(split_by_hash(one_line, 0.05).validation(one_line)) == [tiny]


def test_context_length_and_rows_are_chosen_without_tokenizing_again(make_config, corpus, monkeypatch):
    path, _ = corpus
    first = prepare_data(make_config(dataset=str(path), tokenizer="bpe", tokenizer_vocab_size=300))
    for name in ("encode_documents", "train_bpe", "split_by_hash"):
        monkeypatch.setattr(prepare, name, lambda *_: pytest.fail("the cache was not used"))
    config = make_config(
        dataset=str(path), tokenizer="bpe", tokenizer_vocab_size=300, context_length=32, max_validation_rows=2
    )
    second = prepare_data(config)
    assert second.info["train"]["sha256"] == first.info["train"]["sha256"]
    assert len(second.train) < len(first.train) and len(second.validation) == 2
    assert second.tokenizer.get_vocab() == first.tokenizer.get_vocab()
    assert (first.tokenizer.model_max_length, second.tokenizer.model_max_length) == (16, 32)
    third = prepare_data(make_config(dataset=str(path), tokenizer="bpe", tokenizer_vocab_size=300, max_train_rows=3))
    assert len(third.train) == 3 and len(third.validation) == len(first.validation)
    for row, whole in zip(third.train, first.train, strict=False):
        assert (row["input_ids"] == whole["input_ids"]).all()


def test_changed_content_or_fields_are_noticed(make_config, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("= A\naaaaaaaaaaaaaaaaaaaaa\n" * 20)
    fields = {"dataset": str(path), "validation_fraction": 0.3}
    first = prepare_data(make_config(**fields))
    by_line = prepare_data(make_config(document_start="^= ", **fields))
    path.write_text("= A\nbbbbbbbbbbbbbbbbbbbbb\n" * 20)
    second = prepare_data(make_config(**fields))
    hashes = {data.info["train"]["sha256"] for data in (first, by_line, second)}
    assert len(hashes) == 3


def test_ids_are_stored_in_16_or_32_bits(make_config, corpus, monkeypatch):
    config = make_config(dataset=str(corpus[0]))
    data = prepare_data(config)
    assert data.train.tokens.dtype == np.uint16 and isinstance(data.train.tokens, np.memmap)

    class WideTokenizer(ByteTokenizer):
        def __len__(self):
            return (1 << 16) + 1

    monkeypatch.setattr(prepare, "load_tokenizer", lambda _: WideTokenizer())
    wide = prepare_data(config)
    assert wide.train.tokens.dtype == np.uint32
    assert wide.train.tokens.tolist() == data.train.tokens.tolist()


def test_datasets_travel_to_worker_processes(make_config, corpus):
    data = prepare_data(make_config(dataset=str(corpus[0])))
    pickled = pickle.dumps(data.train)
    assert len(pickled) < data.train.tokens.nbytes  # the file's name, not its content
    assert as_lists(pickle.loads(pickled)) == as_lists(data.train)
    loaded = [batch["input_ids"] for batch in DataLoader(data.train, batch_size=4, num_workers=2)]
    assert torch.cat(loaded).equal(torch.stack([row["input_ids"] for row in data.train]))


def build_slowly(folder):
    (folder / "one").write_text("1")
    with open(folder.parent / "builds", "a") as log:
        log.write("x")
    (folder / "two").write_text("2")


def test_one_process_builds_and_the_others_wait(tmp_path):
    folder = tmp_path / "cache" / "entry"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=build_once, args=(folder, build_slowly)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert (folder.parent / "builds").read_text() == "x"
    assert sorted(path.name for path in folder.iterdir()) == ["one", "two"]


def test_a_failed_or_killed_build_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "entry"
    (tmp_path / "entry.tmp").mkdir()  # as left by SIGKILL
    (tmp_path / "entry.tmp" / "half").write_text("")

    def disk_full(unfinished):
        assert not any(unfinished.iterdir())
        (unfinished / "half").write_text("")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        build_once(folder, disk_full)
    assert not folder.exists() and not (tmp_path / "entry.tmp").exists()
    build_once(folder, lambda unfinished: (unfinished / "whole").write_text(""))
    assert (folder / "whole").exists()


# --- streaming ------------------------------------------------------------------------------------------------------


def test_stream_holds_out_its_first_documents(make_config, corpus, monkeypatch):
    path, texts = corpus
    config = make_config(dataset=str(path), streaming=True, max_validation_rows=4)
    data = prepare_data(config)
    held_out = documents_of(data.validation, data.tokenizer)
    assert held_out == texts[: len(held_out)] and len(data.validation) == 4
    assert sum(len(text.encode()) + 2 for text in held_out[:-1]) < 4 * 15 + 1  # no more than needed
    rest = [text for text in texts if text not in held_out]
    assert len(rest) < len(texts) - len(held_out)  # later copies are left out of training, too
    expected = pack_slowly(as_documents(rest), 16)
    assert as_lists(data.train) == expected
    again = pickle.loads(pickle.dumps(data.train))  # a worker process, or another run
    assert as_lists(DataLoader(again, batch_size=None, num_workers=1)) == expected
    assert data.info["train"]["rows"] is None and data.info["cache"] is None
    monkeypatch.setattr(packing, "get_worker_info", lambda: SimpleNamespace(num_workers=2))
    with pytest.raises(ValueError, match="dataloader_num_workers: 2"):
        next(iter(again))


def test_stream_with_a_validation_source_and_bpe(make_config, corpus, tmp_path):
    path, texts = corpus
    validation = tmp_path / "validation.txt"
    validation.write_text("a é 日\n" * 10)
    fields = {"validation_dataset": str(validation), "tokenizer": "bpe", "tokenizer_vocab_size": 300}
    data = prepare_data(make_config(dataset=str(path), streaming=True, **fields))
    assert documents_of(data.validation, data.tokenizer) == ["a é 日\n" * 10]
    rows = as_lists(data.train)
    kept = prepare_data(make_config(dataset=str(path), **fields))
    assert rows == as_lists(kept.train) and kept.info["train"]["documents"] == len(texts)


def test_stream_that_is_too_short(make_config, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("short\n")
    with pytest.raises(ValueError, match="stream ended before one row of 16 tokens; documents that are held out"):
        prepare_data(make_config(dataset=str(path), streaming=True, max_validation_rows=1))


def test_the_bpe_of_a_stream_follows_its_content(make_config, tmp_path):
    """A dataset of `datasets` is streamed by name, and may have changed since its BPE was cached."""
    (tmp_path / "validation.txt").write_text("abcd")
    vocabularies = []
    for letters in ("ab", "cd", "ab"):
        texts = [f"{letters * 20} {i}" for i in range(20)]
        shutil.rmtree(tmp_path / "dataset", ignore_errors=True)
        datasets.Dataset.from_dict({"text": texts}).save_to_disk(tmp_path / "dataset")
        config = make_config(
            dataset=str(tmp_path / "dataset"),
            validation_dataset=str(tmp_path / "validation.txt"),
            streaming=True,
            tokenizer="bpe",
            tokenizer_vocab_size=300,
        )
        vocabularies.append(prepare_data(config).tokenizer.get_vocab())
    assert "abab" in vocabularies[0] and "cdcd" in vocabularies[1] and vocabularies[2] == vocabularies[0]


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"context_length": 1}, "context_length: 1 must be at least 2"),
        ({"context_length": "256"}, "context_length: '256' is a str, but must be int"),
        ({"streaming": 1}, "streaming: 1 is a int, but must be bool"),
        ({"max_validation_rows": 0}, "max_validation_rows: 0"),
        ({"max_validation_rows": True}, "max_validation_rows: True is a bool, but must be int or null"),
        ({"max_train_rows": 0}, "max_train_rows: 0"),
        (
            {"streaming": True, "max_validation_rows": 1, "max_train_rows": 5},
            "max_train_rows: 5 does not go with streaming",
        ),
        ({"validation_fraction": 1}, "validation_fraction: 1 must lie between 0 and 1"),
        ({"document_start": "("}, r"document_start: '\(' is not a regular expression"),
        ({"tokenizer": "bpe", "tokenizer_vocab_size": 258}, "tokenizer_vocab_size: 258 must be at least 259"),
        ({"streaming": True}, "streaming: True needs validation_split"),
        ({"streaming": True, "max_validation_rows": 9, "tokenizer": "bpe"}, "tokenizer: 'bpe' would be trained on"),
        ({"dataset": ""}, "dataset: '' must not be empty"),
        ({"dataset": None}, "dataset: None is a NoneType, but must be str"),
    ],
)
def test_unusable_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**fields)


def test_a_context_longer_than_the_model(make_config):
    with pytest.raises(ValueError, match=r"context_length: 16 is longer than .*max_position_embeddings \(8\)"):
        prepare_data(make_config(), max_position_embeddings=8)


def test_a_corpus_smaller_than_one_context(make_config, tmp_path):
    path = tmp_path / "small.txt"
    path.write_text("one\ntwo\n")
    with pytest.raises(ValueError, match="has 6 tokens, fewer than one context"):
        prepare_data(make_config(dataset=str(path), validation_fraction=0.5))


def test_the_default_corpus(make_config):
    data = prepare_data(make_config(context_length=256))
    assert data.info["dataset"] == "python_docs" and data.info["train"]["bytes"] > 300_000
    assert 0.02 < data.info["validation"]["bytes"] / data.info["train"]["bytes"] < 0.06
    assert "assert" in data.tokenizer.decode(torch.cat([row["input_ids"] for row in data.train]))


# --- repeated paragraphs --------------------------------------------------------------------------------------------


def drop_slowly(texts, seen=()):
    """What `drop_repeated_paragraphs` promises, line by line: documents, and how many paragraphs and bytes are gone."""
    seen, documents, paragraphs, size = set(seen), [], 0, 0
    for text in texts:
        blocks = []  # [lines of a paragraph, blank lines after it]
        for line in text.splitlines(keepends=True):
            if line.strip() and (not blocks or blocks[-1][1]):
                blocks.append(["", ""])
            elif not blocks:
                blocks.append(["", line])
                continue
            blocks[-1][not line.strip()] += line
        remaining = ""
        for paragraph, blank in blocks:
            if paragraph.rstrip() in seen:
                paragraphs, size = paragraphs + 1, size + len((paragraph + blank).encode())
                continue
            remaining += paragraph + blank
            if paragraph:
                seen.add(paragraph.rstrip())
        if remaining.strip() or remaining == text:
            documents.append(remaining)
    return documents, {"paragraphs": paragraphs, "bytes": size}


@pytest.fixture
def repetitive(tmp_path):
    """A file of documents whose paragraphs recur; and its texts."""
    rng = random.Random(1)
    paragraphs = ["one\n", "é two\n  lines\n", "日 three  \n", " \n", "four", "one ", "\ttab\n", " one\n"]
    texts = [
        "\n".join(rng.choice(paragraphs) + rng.choice(["", "\n", " \n"]) + f"{i}\n" * (i % 3) for _ in range(5))
        for i in range(30)
    ]
    texts.append(texts[0])  # nothing is left of it
    path = tmp_path / "repetitive.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path, texts


def test_repeated_paragraphs_are_taken_once(make_config, repetitive):
    path, texts = repetitive
    expected, counts = drop_slowly(texts)
    assert counts["paragraphs"] > 50 and len(expected) < len(texts)
    config = make_config(dataset=str(path), validation_fraction=0.3, drop_repeated_paragraphs=True)
    for data in (prepare_data(config), prepare_data(config)):  # made, and from the cache
        train, held_out = (documents_of(split, data.tokenizer) for split in (data.train, data.validation))
        assert sorted(train + held_out) == sorted(expected) and held_out
        assert data.info["repeated_paragraphs"] == counts
    # Without the option the cache holds another corpus, every document of it.
    data = prepare_data(make_config(dataset=str(path), validation_fraction=0.3))
    assert data.info["repeated_paragraphs"] is None
    assert data.info["train"]["documents"] + data.info["validation"]["documents"] == len(texts)
    stream = make_config(dataset=str(path), streaming=True, max_validation_rows=2, drop_repeated_paragraphs=True)
    data = prepare_data(stream)
    first = documents_of(data.validation, data.tokenizer)
    assert first == expected[: len(first)] and list(data.train.documents()) == expected[len(first) :]


def test_held_out_paragraphs_of_another_file_are_not_trained_on(make_config, repetitive, tmp_path):
    path, texts = repetitive
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("one\n\nfour\n\none\n")
    fields = {"dataset": str(path), "validation_dataset": str(held_out), "drop_repeated_paragraphs": True}
    data = prepare_data(make_config(**fields))
    assert documents_of(data.validation, data.tokenizer) == [held_out.read_text()]  # as it is
    expected, counts = drop_slowly(texts, ("one", "four"))
    assert documents_of(data.train, data.tokenizer) == expected and data.info["repeated_paragraphs"] == counts


def test_all_data_sections_drop_them(repetitive, tmp_path):
    path, texts = repetitive
    counts = drop_slowly(texts)[1]
    fields = {"dataset": str(path), "cache_dir": str(tmp_path), "validation_fraction": 0.3}
    for prepare_, config_class in ((prepare_texts, TextConfig), (prepare_chunks, ChunkConfig)):
        options = {"chunks": "fixed"} if config_class is ChunkConfig else {}
        sizes = []
        for drop in (None, True):
            data = prepare_(config_class(**fields, **options, drop_repeated_paragraphs=drop))
            assert data.info["repeated_paragraphs"] == (counts if drop else None)
            sizes.append(len(data.train))
        assert sizes[1] < sizes[0]


def test_they_are_dropped_by_default_from_the_default_text_only():
    assert DataConfig().drops_repeats and not DataConfig(dataset="other").drops_repeats
    assert not DataConfig(drop_repeated_paragraphs=False).drops_repeats
