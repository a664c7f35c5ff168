"""Training of the autoencoder and of the language model on codes: rows, measures, guard, resuming, two processes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_fsq import CHUNKS, small
from training_setup import metrics_of

from latentlm.data import ChunkConfig, prepare_chunks
from latentlm.data.chunks import DRAWS, ChunkDataset
from latentlm.hub.card import make_card
from latentlm.models.fsq_vocabulary import spelling_table
from latentlm.runs import LatentTrainingArguments
from latentlm.train import main
from latentlm.training import FSQAutoencoderTrainer

TESTS = Path(__file__).parent
TWO_PROCESSES = TESTS.parent / "examples" / "accelerate" / "two_cpu_processes.yaml"
RECIPE = """
model:
  model_type: fsq_autoencoder
  embedding_size: 8
  hidden_size: 16
  conv_channels: [12, 16]
  conv_strides: [1, 2]
  deconv_channels: [16, 8]
  deconv_strides: [2, 2]
  levels: [8, 8, 8]
  margin_loss_weight: 0.1
data:
  dataset: TEXT
  tokenizer_vocab_size: 400
training:
  max_steps: 10
  learning_rate: 3e-3
  per_device_train_batch_size: 16
  per_device_eval_batch_size: 64
  gradient_accumulation_steps: 2
  logging_steps: 2
  eval_strategy: steps
  eval_steps: 4
  eval_on_start: true
  save_steps: 3
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """120 kB of the documentation inside Python, as a file."""
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("text") / "docs.txt"
    path.write_text("".join(text for _, text in sorted(topics.items()))[:120_000], encoding="utf-8")
    return path


@pytest.fixture
def recipe(tmp_path: Path, text: Path) -> Path:
    path = tmp_path / "autoencoder.yaml"
    path.write_text(RECIPE.replace("TEXT", str(text)), encoding="utf-8")
    return path


# --- rows -----------------------------------------------------------------------------------------------------------


def test_rows_are_the_bytes_and_one_end():
    rows = ChunkDataset(*spelling_table([b"to", bytes(16)]), np.array([7, 1]))
    assert rows[0]["input_ids"].tolist() == [116, 111] + [256] * 14
    assert rows[0]["labels"].tolist() == [116, 111, 256] + [-100] * 13
    assert rows[0]["use"] == 7
    assert rows[1]["input_ids"].tolist() == rows[1]["labels"].tolist() == [0] * 16  # a full chunk has no end


def test_training_draws_pieces_by_their_use_and_some_random_strings(text, tmp_path):
    config = ChunkConfig(dataset=str(text), tokenizer_vocab_size=400, cache_dir=str(tmp_path), random_share=0.25)
    data = prepare_chunks(config)
    assert len(data.train) == DRAWS and len(data.validation) == 256 + 140
    drawn = np.bincount(data.train.order, minlength=len(data.train.chunks))
    assert 0.24 < drawn[396:].sum() / DRAWS < 0.26
    expected = np.maximum(data.validation.uses, 1) ** 0.5
    expected = expected / expected.sum() * 0.75 * DRAWS
    often = expected > 2000
    assert often.sum() > 50
    np.testing.assert_allclose(drawn[:396][often], expected[often], rtol=0.15)
    again = prepare_chunks(config)
    assert again.info == data.info and np.array_equal(again.train.order, data.train.order)


def test_fixed_chunks_cover_the_text_in_order(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "naïve text"}) + "\n" + json.dumps({"text": "b" * 9}) + "\n")
    (tmp_path / "b.txt").write_text("held out")
    config = ChunkConfig(
        dataset=str(tmp_path / "a.jsonl"),
        validation_dataset=str(tmp_path / "b.txt"),
        chunks="fixed",
        chunk_bytes=4,
        cache_dir=str(tmp_path / "cache"),
    )
    data = prepare_chunks(config)

    def chunks(rows: ChunkDataset) -> list[bytes]:
        ids = [rows[i]["input_ids"] for i in range(len(rows))]
        return [bytes(row[row < 256].tolist()) for row in ids]

    assert chunks(data.train) == ["naïve".encode()[:4], "naïve text".encode()[4:8], b"ext", b"bbbb", b"bbbb", b"b"]
    assert chunks(data.validation) == [b"held", b" out"]
    assert data.files == {}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"chunks": "words"}, ["chunks: 'words'", "'pieces' or 'fixed'"]),
        ({"boundary": "letters"}, ["boundary: 'letters'", "words, lines"]),
        ({"tokenizer_vocab_size": 259}, ["tokenizer_vocab_size: 259", "at least 260"]),
        ({"sampling_exponent": 2}, ["sampling_exponent: 2"]),
        ({"random_share": 1.0}, ["random_share: 1.0"]),
        ({"chunk_bytes": 17}, ["chunk_bytes: 17", "16"]),
    ],
)
def test_bad_chunk_configurations_say_what_is_wrong(fields, words):
    with pytest.raises(ValueError) as error:
        ChunkConfig(**fields)
    assert all(word in str(error.value) for word in words), error.value


# --- the autoencoder's trainer ------------------------------------------------------------------------------------


def rows_of(chunks: list[bytes], uses: list[int]) -> ChunkDataset:
    table, lengths = spelling_table(chunks)
    return ChunkDataset(table[:, :8].copy(), lengths, np.array(uses))


def test_an_evaluation_counts_chunks_bytes_and_codes_one_by_one(tmp_path):
    model = small()
    uses = [5, 1, 9, 2, 3]
    trainer = FSQAutoencoderTrainer(
        model=model,
        args=LatentTrainingArguments(output_dir=str(tmp_path), per_device_eval_batch_size=2, sample_prompts=0),
        eval_dataset=rows_of(CHUNKS, uses),
    )
    # Make the model right about some bytes: the labels of two chunks become what it says.
    said = model(torch.stack([trainer.eval_dataset[i]["input_ids"] for i in range(5)])).logits.argmax(-1)
    found = trainer.evaluate()
    nats = right_bytes = num_bytes = exact = by_use = symbols = 0
    for row, (chunk, use) in enumerate(zip(CHUNKS, uses, strict=True)):
        labels = ([*chunk, 256])[:8]
        logits = model(trainer.eval_dataset[row]["input_ids"][None]).logits[0].log_softmax(-1)
        nats -= sum(logits[t, symbol].item() for t, symbol in enumerate(labels))
        symbols += len(labels)
        right_bytes += sum(said[row, t].item() == symbol for t, symbol in enumerate(chunk))
        num_bytes += len(chunk)
        is_exact = all(said[row, t].item() == symbol for t, symbol in enumerate(labels))
        exact += is_exact
        by_use += use * is_exact
    assert found["eval_loss"] == pytest.approx(nats / symbols, rel=1e-5)
    assert found["eval_perplexity"] == pytest.approx(math.exp(nats / symbols), rel=1e-5)
    assert found["eval_byte_accuracy"] == pytest.approx(right_bytes / num_bytes)
    assert found["eval_exact"] == exact / 5 and found["eval_exact_by_use"] == by_use / 20
    codes = model(torch.stack([trainer.eval_dataset[i]["input_ids"] for i in range(5)])).code_index
    assert found["eval_distinct_codes"] == len(codes.unique()) / 5


def test_an_overfitted_autoencoder_spells_everything(tmp_path):
    trainer = FSQAutoencoderTrainer(
        model=small(levels=[8, 8, 8]),
        args=LatentTrainingArguments(
            output_dir=str(tmp_path),
            max_steps=400,
            learning_rate=1e-2,
            per_device_train_batch_size=5,
            logging_steps=400,
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=rows_of(CHUNKS, [1] * 5),
        eval_dataset=rows_of(CHUNKS, [1] * 5),
    )
    trainer.train()
    found = trainer.evaluate()
    assert found["eval_byte_accuracy"] == found["eval_exact"] == found["eval_exact_by_use"] == 1.0
    assert found["eval_distinct_codes"] == 1.0


def test_the_command_line_trains_resumes_and_keeps_the_pieces(recipe, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    main([str(recipe), "--output_dir", str(whole), "--save_total_limit", "9"])
    entries = metrics_of(whole)
    first, last = (entries[i] for i in (0, -1))
    assert {"eval_loss", "eval_byte_accuracy", "eval_exact_by_use", "eval_distinct_codes"} <= last.keys()
    assert last["eval_loss"] < first["eval_loss"]
    assert {"reconstruction_loss", "margin_loss"} <= next(entry for entry in entries if "loss" in entry).keys()
    pieces = json.loads((whole / "pieces.json").read_text())
    assert len(pieces["pieces"]) == 140
    assert json.loads((whole / "config.json").read_text())["auto_map"].keys() == {"AutoConfig", "AutoModel"}
    card = str(make_card(whole, "me/codes", [], {}))
    assert "AutoModel.from_pretrained" in card and "rows of 16 tokens" in card
    main(["--resume_from_checkpoint", str(whole / "checkpoint-6"), "--output_dir", str(resumed)])
    assert metrics_of(resumed) == metrics_of(whole)
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.two_process
def test_two_processes_equal_one(recipe, tmp_path):
    options = ["--max_steps", "4", "--output_dir"]
    main([str(recipe), *options, str(tmp_path / "one")])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(TWO_PROCESSES)]
    command += ["--main_process_port", "0", "-m", "latentlm.train", str(recipe), *options, str(tmp_path / "two")]
    done = subprocess.run([*command, "--gradient_accumulation_steps", "1"], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["processes"] == 2
    for one, two in zip(metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two"), strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() - {"epoch"}:  # 396 chunks do not fill the last round: none may count twice
            assert two[name] == pytest.approx(one[name], rel=1e-5), name
