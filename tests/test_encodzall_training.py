"""Training of EncodZall: rows of whole words, noise when a batch is used, both phases, resuming, two processes."""

import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from encodzall_setup import build
from safetensors.torch import load_file
from torch import nn
from training_setup import metrics_of
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from latentlm import EncodzallTokenizer
from latentlm.data import TextConfig, TextDataset, prepare_texts
from latentlm.data.texts import SHORT, cut_rows
from latentlm.hub.card import make_card
from latentlm.models.encodzall_words import FRAME_IDS, PAD, find_words
from latentlm.runs import RecipeError, load_recipe
from latentlm.train import main
from latentlm.training import EncodzallTrainer, EncodzallTrainingArguments
from latentlm.training.callbacks import TIMINGS
from latentlm.training.masking import CorruptedBatch

TESTS = Path(__file__).parent
TWO_PROCESSES = TESTS.parent / "examples" / "accelerate" / "two_cpu_processes.yaml"
RECIPE = """
model:
  model_type: encodzall
  hidden_size: 32
  num_attention_heads: 2
  num_word_encoder_layers: 1
  num_context_encoder_layers: 1
  num_decoder_layers: 1
  intermediate_size: 48
  max_position_embeddings: 96
  hidden_dropout: 0.1
data:
  context_length: 64
  max_validation_rows: 6
training:
  noise_strength: 0.4
  noise_set_point: 5.0
  max_steps: 8
  learning_rate: 1e-3
  per_device_train_batch_size: 4
  per_device_eval_batch_size: 4
  logging_steps: 2
  eval_strategy: steps
  eval_steps: 4
  eval_on_start: true
  save_steps: 3
  sample_prompts: 1
  sample_new_tokens: 16
"""
REALISTIC = ["--noise", "realistic", "--word_decoder", "none", "--contrastive_loss_weight", "0.5"]
tokenizer = EncodzallTokenizer()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def rows_of(texts: list[str], length: int = 40) -> TextDataset:
    data = b"".join(text.encode() for text in texts)
    ends = np.cumsum([len(text.encode()) for text in texts])
    return TextDataset(np.frombuffer(data, np.uint8), np.column_stack((np.r_[0, ends[:-1]], ends)), length)


def make_trainer(folder: Path, model, texts: list[str], **arguments) -> EncodzallTrainer:
    defaults = {"sample_prompts": 0, "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1}
    return EncodzallTrainer(
        model=model,
        args=EncodzallTrainingArguments(output_dir=str(folder), **{**defaults, **arguments}),
        train_dataset=rows_of(texts),
        eval_dataset=rows_of(texts),
        processing_class=tokenizer,
    )


# ---- Rows ----


@pytest.mark.parametrize("short", [0.0, 0.5])
@pytest.mark.parametrize(("max_bytes", "max_words"), [(20, 100), (63, 4), (399, 319)])
def test_rows_are_whole_words_and_cover_every_byte(max_bytes, max_words, short):
    text = ("Some words of a text, " + "long" * 9 + " and 日本語 end.\n\n  ") * 9
    data = text.encode()
    rows = cut_rows(data, max_bytes, max_words, 16, short, np.random.default_rng(0))
    assert rows[0, 0] == 0 and rows[-1, 1] == len(data) and (rows[1:, 0] == rows[:-1, 1]).all()
    words = find_words(torch.tensor([[*data]]), 16)[0]
    starts = {0, *((words[1:] != words[:-1]).nonzero()[:, 0] + 1).tolist()}
    for row, (start, end) in enumerate(rows.tolist()):
        count = len(words[start:end].unique())
        assert start in starts and 0 < end - start <= max_bytes and count <= max_words
        if row + 1 < len(rows) and not (short and count <= SHORT):  # the next word would not have fitted
            following = end + int((words == words[end]).sum())
            assert following - start > max_bytes or count == max_words


def test_short_rows_are_as_many_as_asked_for():
    rows = cut_rows(b"word " * 20_000, 399, 319, 16, 0.25, np.random.default_rng(0))
    words = (rows[:, 1] - rows[:, 0]) // 5
    assert set(words[words <= SHORT]) == set(range(1, SHORT + 1))
    assert abs((words <= SHORT).mean() - 0.25) < 0.04


def test_rows_hold_the_text_and_its_end():
    rows = rows_of(["to be ", "or"], length=8)
    assert rows[0]["input_ids"].tolist() == [*b"to be ", 258, 256]
    assert rows[0]["labels"].tolist() == [*b"to be ", 258, -100]
    assert rows[1]["input_ids"].tolist() == [*b"or", 258, 256, 256, 256, 256, 256]


def test_a_corpus_becomes_rows_once(tmp_path):
    (tmp_path / "train.txt").write_text("Words of the training text. " * 40, encoding="utf-8")
    (tmp_path / "held-out.txt").write_text("Others, held out.", encoding="utf-8")
    config = TextConfig(
        dataset=str(tmp_path / "train.txt"),
        validation_dataset=str(tmp_path / "held-out.txt"),
        context_length=100,
        cache_dir=str(tmp_path / "cache"),
    )
    data, again = prepare_texts(config, 128), prepare_texts(config, 128)
    assert data.info == again.info and data.info["train"]["bytes"] == 1120
    ids = [data.train[row]["input_ids"] for row in range(len(data.train))]
    assert b"".join(bytes(row[row < 256].tolist()) for row in ids) == b"Words of the training text. " * 40
    travelled = pickle.loads(pickle.dumps(data.train))  # to a worker process, as the name of a file
    assert str(travelled.data.filename) == str(data.train.data.filename) and travelled[0]["input_ids"].equal(ids[0])
    assert data.token_bytes[:256].tolist() == [1] * 256 and not data.token_bytes[256:].any()
    with pytest.raises(ValueError, match="context_length: 100 is longer"):
        prepare_texts(config, 99)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_word_bytes": 4}, "max_word_bytes: 4"),
        ({"context_length": 16}, "context_length: 16"),
        ({"max_words": 1}, "max_words: 1"),
        ({"short_rows": 1.0}, "short_rows: 1.0"),
        ({"max_train_rows": 0}, "max_train_rows: 0"),
    ],
)
def test_bad_rows_say_what_is_wrong(fields, message):
    with pytest.raises(ValueError, match=message):
        TextConfig(**fields)


# ---- The trainer ----


def test_an_evaluation_counts_corrupted_and_untouched_bytes(tmp_path):
    texts = ["some words here", "and a few others", "x"]
    model = build(word_decoder="none")
    trainer = make_trainer(tmp_path, model, texts, noise_eval_strength=0.6, per_device_eval_batch_size=2)
    found = trainer.evaluate()
    again = trainer.evaluate()
    assert all(again[name] == found[name] for name in found if name not in TIMINGS)
    counts = dict.fromkeys(("loss", "hit", "hit_right", "free", "free_right", "words", "words_right", "all"), 0.0)
    for row in range(3):
        ids = trainer.eval_dataset[row]["input_ids"][None]
        batch = trainer.corrupt(ids, 0.6, 0)
        target = ids[0][: len(texts[row]) + 1]
        with torch.no_grad():
            logits = model(batch.input_ids, labels=target[None]).logits[0]
        losses = nn.functional.cross_entropy(logits, target, reduction="none")
        words = find_words(target[None], 16)[0]
        for word in range(int(words.max()) + 1):
            touched = right = False
            rights = []
            for place in (words == word).nonzero()[:, 0].tolist():
                kind = "hit" if batch.corrupted[0, place] else "free"
                right = logits[place].argmax() == target[place]
                rights.append(bool(right))
                counts[kind] += 1
                counts[f"{kind}_right"] += bool(right)
                counts["all"] += losses[place].item()
                if kind == "hit":
                    touched = True
                    counts["loss"] += losses[place].item()
            counts["words"] += touched
            counts["words_right"] += touched and all(rights)
    assert found["eval_corrupted_loss"] == pytest.approx(counts["loss"] / counts["hit"], rel=1e-4)
    assert found["eval_corrupted_accuracy"] == pytest.approx(counts["hit_right"] / counts["hit"])
    assert found["eval_untouched_accuracy"] == pytest.approx(counts["free_right"] / counts["free"])
    assert found["eval_exact_words"] == pytest.approx(counts["words_right"] / counts["words"])
    assert found["eval_loss"] == pytest.approx(counts["all"] / (counts["hit"] + counts["free"]), rel=1e-4)


def test_training_learns_to_repair(tmp_path):
    texts = ["some words here", "and a few others", "the third line", "numbers 123"]
    torch.manual_seed(0)
    model = build().train()
    for module in model.modules():
        model._init_weights(module)
    trainer = make_trainer(
        tmp_path, model, texts, max_steps=250, learning_rate=3e-3, per_device_train_batch_size=4, logging_steps=50,
        noise_strength=0.4,
    )  # fmt: skip
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_corrupted_accuracy"] > 0.9 > before["eval_corrupted_accuracy"]
    noisy = trainer.corrupt(rows_of(texts)[0]["input_ids"][None], 0.4, 0)
    assert noisy.corrupted.any()
    generated = model.eval().generate(noisy.input_ids, word_ids=noisy.word_ids, max_length=40)
    assert tokenizer.decode(generated[0], skip_special_tokens=True) == texts[0]


def test_the_loop_moves_the_strength_by_the_loss_on_corrupted_bytes(tmp_path):
    trainer = make_trainer(
        tmp_path, build(), ["some words here", "and others"], max_steps=3, noise_set_point=0.1, noise_strength=0.5
    )
    strengths, losses = [], []
    step, corrupt = trainer.pid.step, trainer.corrupt
    trainer.pid.step = lambda loss: losses.append(loss) or step(loss)
    trainer.corrupt = lambda ids, strength, number: (
        strengths.append((strength, number)) or corrupt(ids, strength, number)
    )
    trainer.train()
    assert [number for _, number in strengths] == [1, 2, 3]
    assert strengths[0][0] == 0.5 > strengths[1][0] > strengths[2][0]  # a large loss asks for less noise
    assert len(losses) == 3 and all(math.isfinite(loss) for loss in losses)
    entry = next(entry for entry in trainer.state.log_history if "noise_strength" in entry)
    assert {"noise_set_point", "noise_error", "noise_p", "noise_i", "noise_d", "noise_saturated"} <= entry.keys()


def test_every_evaluation_of_a_run_has_the_same_noise(tmp_path):
    options = {"max_steps": 2, "learning_rate": 0.0, "eval_strategy": "steps", "eval_steps": 1, "noise_strength": 0.5}
    trainer = make_trainer(tmp_path, build(), ["some words here", "and others"], **options)
    trainer.train()
    first, second = (entry for entry in trainer.state.log_history if "eval_loss" in entry)
    assert first["eval_corrupted_loss"] == second["eval_corrupted_loss"]
    assert first["eval_loss"] == second["eval_loss"]


def test_micro_batches_move_the_loop_as_one_batch_does(tmp_path):
    texts = ["some words here", "and others", "a third text", "x"]
    states = []
    for size in (4, 1):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size, "max_steps": 3}
        options |= {"noise_set_point": 5.0, "noise_strength": 0.5, "learning_rate": 0.0}
        trainer = make_trainer(tmp_path / str(size), build(), texts, **options)
        trainer.train()
        states.append(trainer.pid.state()["attributes"])
    whole, parts = states
    assert parts["strength"] == pytest.approx(whole["strength"], rel=1e-4) != 0.5
    assert parts["mean"] == pytest.approx(whole["mean"], rel=1e-4)
    assert parts["errors"] == pytest.approx(whole["errors"], rel=1e-4)


GATE = {"gate_loss_weight": 1.0, "sequence_loss_weight": 0.0, "edit_cost": 1.0}


def test_a_last_batch_of_one_row_trains_with_a_contrastive_loss(tmp_path):
    model, texts = build(word_decoder="none", contrastive_loss_weight=0.5), ["some words here", "and others", "third"]
    options = {"noise": "realistic", "max_steps": 2}
    trainer = make_trainer(tmp_path, model, texts, per_device_train_batch_size=2, **options)
    trainer.train()
    losses = [entry["contrastive_loss"] for entry in trainer.state.log_history if "contrastive_loss" in entry]
    assert losses[0] > 0 == losses[1]
    with pytest.raises(ValueError, match=r"per_device_train_batch_size is 1, but model.contrastive_loss_weight 0.5"):
        make_trainer(tmp_path, model, texts, per_device_train_batch_size=1, **options)


def test_what_needs_a_sequence_decoder_is_refused_without_one(tmp_path):
    with pytest.raises(ValueError, match=r"noise_set_point is 1.0, a loss of the sequence decoder"):
        make_trainer(tmp_path, build(**GATE), ["some words"], noise_set_point=1.0, noise_strength=0.5)
    trainer = make_trainer(tmp_path, build(**GATE), ["some words"])
    with pytest.raises(ValueError, match="no logits with its labels, so there are no predictions"):
        trainer.predict(trainer.eval_dataset)


def test_samples_end_where_the_context_ends(tmp_path):
    trainer = make_trainer(tmp_path, build(), ["some words"], sample_prompts=1, sample_new_tokens=500)
    with CaptureLogger(logging.get_logger("latentlm.models.block_positions")) as captured:
        trainer.evaluate()
    assert (tmp_path / "samples.jsonl").exists() and "stops" not in captured.out


@pytest.mark.parametrize("options", [[], REALISTIC], ids=["masks", "realistic"])
def test_a_resumed_run_is_the_uninterrupted_one(recipe, tmp_path, options):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    main([str(recipe), "--output_dir", str(whole), "--save_total_limit", "9", *options])
    entries = metrics_of(whole)
    names = set().union(*entries)
    terms = {"sequence_loss", "contrastive_loss"} if options else {"sequence_loss", "word_loss"}
    assert terms | {"eval_bits_per_byte", "eval_exact_words", "noise_strength"} <= names
    assert len({entry["noise_strength"] for entry in entries if "noise_strength" in entry}) > 2
    card = make_card(whole, "me/repairs", [], {})
    assert "model.denoise(" in str(card)
    assert card.data.tags == ["encodzall", "latentlm", "sentence-transformers"]
    assert card.data.pipeline_tag == "feature-extraction" and card.data.language == "en"
    main(["--resume_from_checkpoint", str(whole / "checkpoint-3"), "--output_dir", str(resumed)])
    assert metrics_of(resumed) == entries
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    lines = [(folder / "samples.jsonl").read_text().splitlines() for folder in (whole, resumed)]
    assert lines[1] and lines[0][-len(lines[1]) :] == lines[1]
    state = json.loads((whole / "checkpoint-3" / "trainer_state.json").read_text())
    assert 0 < state["stateful_callbacks"]["PIDCallback"]["attributes"]["strength"] < 1


def test_a_resumed_run_has_the_noise_of_its_arguments(recipe, tmp_path):
    main([str(recipe), "--output_dir", str(tmp_path / "old"), "--save_total_limit", "9"])
    start = ["--resume_from_checkpoint", str(tmp_path / "old" / "checkpoint-3")]
    main([*start, "--output_dir", str(tmp_path / "new"), "--noise_set_point", "2.5", "--noise_strength_max", "0.41"])
    logs = [entry for entry in metrics_of(tmp_path / "new") if entry["step"] > 3 and "noise_set_point" in entry]
    assert logs and {entry["noise_set_point"] for entry in logs} == {2.5}
    assert all(entry["noise_strength"] <= 0.41 for entry in logs)


def test_the_second_phase_goes_on_from_the_first(recipe, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    main([str(recipe), "--output_dir", str(first), "--max_steps", "3"])
    options = [*REALISTIC, "--from_pretrained", str(first), "--output_dir", str(second)]
    main([str(recipe), *options, "--max_steps", "1", "--learning_rate", "0.0"])
    before, after = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert before.keys() - after.keys() == {name for name in before if name.startswith("word_decoder.")}
    assert all(torch.equal(before[name], after[name]) for name in after)
    config = json.loads((second / "config.json").read_text())
    assert (config["word_decoder"], config["contrastive_loss_weight"]) == ("none", 0.5)


@pytest.mark.two_process
def test_two_processes_equal_one(recipe, tmp_path):
    """From the command line, with realistic noise; test_two_processes.py has masks and every variant."""
    options = [*REALISTIC, "--hidden_dropout", "0.0", "--max_steps", "4", "--sample_prompts", "0", "--output_dir"]
    main([str(recipe), *options, str(tmp_path / "one")])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(TWO_PROCESSES)]
    command += ["--main_process_port", "0", "-m", "latentlm.train", str(recipe), *options, str(tmp_path / "two")]
    command += ["--per_device_train_batch_size", "2", "--per_device_eval_batch_size", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["processes"] == 2
    for one, two in zip(metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two"), strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() - {"epoch"}:  # 6 rows do not fill the last round: none may count twice
            assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-7), name


def test_mixed_noise_gives_each_row_one_of_both_kinds(tmp_path):
    """Each row is what either kind makes of it by itself, words and their targets included."""
    words = ["function", "method", "module", "class", "value", "text"] * 2
    texts = [f"the {word} returns a new list of {word}s" * (1 + i % 2) for i, word in enumerate(words)]
    model = build(gate_loss_weight=1.0)
    rows = [torch.as_tensor(row["input_ids"]) for row in rows_of(texts, 96)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)

    def corrupt(name: str, ids: torch.Tensor, **options) -> CorruptedBatch:
        folder = tmp_path / f"{name}-{len(ids)}"
        return make_trainer(folder, model, texts, noise=name, **options).corrupt(ids, 0.4, 1)

    mixed, masked = corrupt("mixed", ids, noise_mask_share=0.5), []
    for b, row in enumerate(rows):
        masked.append(bool((mixed.input_ids[b] > FRAME_IDS[-1]).any()))
        alone = corrupt("mask" if masked[-1] else "realistic", row[None])
        for name in ("input_ids", "attention_mask", "word_ids", "corrupted", "target_word_ids"):
            one, many = getattr(alone, name)[0], getattr(mixed, name)[b]
            assert torch.equal(one, many[: len(one)]), (b, name)
        assert not mixed.attention_mask[b, alone.input_ids.shape[1] :].any()
        assert (mixed.target_word_ids[b, len(row) :] == -1).all()
    assert 0 < sum(masked) < len(rows)


def test_recipes_check_the_noise(recipe):
    for field, value, message in (
        ("noise", "typos", "noise is 'typos'"),
        ("noise_mask_share", "1.5", "noise_mask_share is 1.5"),
        ("noise_strength", "1.5", "strength is 1.5"),
        ("noise_eval_strength", "-1", "noise_eval_strength is -1"),
        ("noise_mixture", "{ocr: 0}", "noise_mixture"),
        ("noise_kp", "-1.0", "kp is -1.0"),
    ):
        with pytest.raises(RecipeError, match=message):
            load_recipe(recipe, {field: value})
