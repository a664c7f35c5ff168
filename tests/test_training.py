"""LatentTrainer in one process: named losses, exact evaluation, files of a run, checkpoints, exact resuming."""

import errno
import json
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_setup import LENGTH, Rows, Stream, make_model, make_trainer, metrics_of, weights_of
from transformers import AutoModelForCausalLM, TrainerCallback
from transformers.trainer_callback import ExportableState

import latentlm
from latentlm import ByteTokenizer
from latentlm.hub.files import published_files
from latentlm.runs import CheckpointError, LatentTrainingArguments, RecipeError, load_recipe
from latentlm.runs.checkpoints import find_damage, last_complete_checkpoint, list_checkpoints
from latentlm.runs.run_folder import (
    differences,
    find_start,
    first_and_last,
    git_revision,
    only_process_of,
    open_run_folder,
    plot_curves,
)
from latentlm.training.run import train
from latentlm.training.trainer import LatentTrainer


def sums_over(model: torch.nn.Module, rows: Rows) -> dict[str, float]:
    """Each term summed over all tokens of `rows`, and the number of tokens, row by row without any batching."""
    model.eval()
    sums = {"lm_loss": 0.0, "embedding_loss": 0.0, "tokens": 0}
    for row in rows:
        with torch.no_grad():
            output = model(**{name: value[None] for name, value in row.items()}, num_items_in_batch=1)
        sums["lm_loss"] += output.lm_loss.item()
        sums["embedding_loss"] += output.embedding_loss.item()
        sums["tokens"] += int((row["labels"][1:] != -100).sum())
    return sums


# ---- Named losses ----


def test_accumulated_micro_batches_equal_one_big_batch(tmp_path):
    runs = []
    for name, batch, accumulation in (("one", 8, 1), ("four", 2, 4)):
        trainer = make_trainer(
            tmp_path / name,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_grad_norm=0.0,
            optim="sgd",
        )
        trainer.train()
        runs.append((metrics_of(tmp_path / name), weights_of(trainer)))
    (big, big_weights), (small, small_weights) = runs
    for one, four in zip(big, small, strict=True):
        assert {"loss", "lm_loss", "embedding_loss", "grad_norm"} <= one.keys()
        for name in ("loss", "lm_loss", "embedding_loss", "grad_norm"):
            assert four[name] == pytest.approx(one[name], rel=2e-6)
    for name, weight in big_weights.items():
        torch.testing.assert_close(small_weights[name], weight, rtol=1e-5, atol=1e-7)


def test_logged_terms_are_means_over_tokens_and_steps(tmp_path):
    rows = Rows(8)
    model = make_model(embedding_loss_weight=3.0)
    expected = sums_over(model, rows)
    trainer = make_trainer(tmp_path, model, rows, learning_rate=0.0, max_steps=6, logging_steps=3,
                           per_device_train_batch_size=2, gradient_accumulation_steps=4)  # fmt: skip
    trainer.train()
    logs = metrics_of(tmp_path)
    assert [entry["step"] for entry in logs] == [3, 6]
    for entry in logs:
        assert entry["lm_loss"] == pytest.approx(expected["lm_loss"] / expected["tokens"], rel=1e-6)
        assert entry["embedding_loss"] == pytest.approx(expected["embedding_loss"] / expected["tokens"], rel=1e-6)
        assert entry["loss"] == pytest.approx(entry["lm_loss"] + 3 * entry["embedding_loss"], rel=1e-6)
        assert entry["embedding_loss_output_norm_gain"] == 1.0  # the model's own statistics


def test_speed_counts_predicted_tokens_and_their_bytes(tmp_path):
    rows = Rows(8)
    for row in rows.rows:
        row["labels"][5] = 258  # a special token stands for no bytes
    trainer = make_trainer(tmp_path, train=rows, max_steps=2, per_device_train_batch_size=8)
    trainer.train()
    entry = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    tokens = sum(int((row["labels"][1:] != -100).sum()) for row in rows)
    assert entry["bytes_per_second"] / entry["tokens_per_second"] == pytest.approx((tokens - 8) / tokens)
    assert entry["training_seconds"] > 0


# ---- Evaluation ----


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_evaluation_is_exact_whatever_the_batch(tmp_path, batch):
    rows, model = Rows(11, seed=1), make_model()
    expected = sums_over(model, rows)
    metrics = make_trainer(tmp_path, model, per_device_eval_batch_size=batch).evaluate()
    assert metrics["eval_loss"] == metrics["eval_lm_loss"]  # the task loss alone
    assert metrics["eval_loss"] == pytest.approx(expected["lm_loss"] / expected["tokens"], rel=1e-6)
    assert metrics["eval_embedding_loss"] == pytest.approx(expected["embedding_loss"] / expected["tokens"], rel=1e-6)
    # Each label is one byte here, and nothing special is among them.
    assert metrics["eval_bits_per_byte"] == pytest.approx(metrics["eval_loss"] / math.log(2), rel=1e-9)
    streamed = make_trainer(tmp_path, model, evaluation=Stream(rows), per_device_eval_batch_size=batch).evaluate()
    assert streamed["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-6)


def test_bits_per_byte_divides_nats_by_the_bytes_of_the_text(tmp_path):
    rows, model = Rows(6, seed=1), make_model()
    for row in rows.rows:
        row["labels"][7] = 258  # counts in nats, not in bytes
    expected = sums_over(model, rows)
    metrics = make_trainer(tmp_path, model, evaluation=rows).evaluate()
    num_bytes = expected["tokens"] - 6
    assert metrics["eval_bits_per_byte"] == pytest.approx(expected["lm_loss"] / math.log(2) / num_bytes, rel=1e-6)


def test_evaluations_write_samples_and_leave_the_run_as_it_was(tmp_path):
    runs = {}
    for prompts in (0, 2):
        folder = tmp_path / str(prompts)
        trainer = make_trainer(folder, make_model(dropout=0.2), eval_strategy="steps", eval_steps=2,
                               sample_prompts=prompts, sample_prompt_tokens=5, sample_new_tokens=8)  # fmt: skip
        trainer.train()
        runs[prompts] = metrics_of(folder)
    assert runs[0] == runs[2]
    samples = [json.loads(line) for line in (tmp_path / "2" / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [2, 2, 4, 4]
    first = trainer.processing_class.decode(Rows(11, seed=1)[0]["input_ids"][:5])
    assert samples[0]["prompt"] == first and samples[0]["greedy"] and samples[0]["sampled"]
    assert not (tmp_path / "0" / "samples.jsonl").exists()


def test_mlflow_gets_metrics_and_samples(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs the tracking extra: pip install 'latentlm[tracking]'")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    samples = {"sample_prompts": 1, "sample_prompt_tokens": 5, "sample_new_tokens": 8}
    trainer = make_trainer(tmp_path / "run", report_to="mlflow", eval_strategy="steps", eval_steps=2, **samples)
    trainer.train()
    mlflow.flush_async_logging()
    client = mlflow.MlflowClient()
    [run] = client.search_runs([client.get_experiment_by_name("Default").experiment_id])
    assert run.info.status == "FINISHED"
    logged = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "eval_lm_loss")}
    lines = metrics_of(tmp_path / "run")
    assert logged == {line["step"]: line["eval_lm_loss"] for line in lines if "eval_lm_loss" in line}
    written = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="samples.jsonl")
    assert Path(written).read_bytes() == (tmp_path / "run" / "samples.jsonl").read_bytes()


# ---- Optimizer ----


def test_weight_decay_is_for_matrices_only(tmp_path):
    trainer = make_trainer(tmp_path, make_model(use_bias=True), weight_decay=0.1, adam_beta2=0.95,
                           lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr_rate": 0.1},
                           max_steps=10)  # fmt: skip
    optimizer = trainer.create_optimizer()
    decayed, rest = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1 and all(p.ndim >= 2 for p in decayed["params"]) and decayed["params"]
    assert rest["weight_decay"] == 0.0 and all(p.ndim < 2 for p in rest["params"]) and rest["params"]
    assert decayed["betas"] == (0.9, 0.95)
    trainer.train()
    rates = [entry["learning_rate"] for entry in metrics_of(tmp_path)]
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(1e-3) and min(rates) >= 1e-3 and rates[0] == 1e-2


@pytest.mark.parametrize("options", [{"bf16": True}, {"activation_checkpointing": True}])
def test_precision_and_checkpointing_pass_through(tmp_path, options):
    plain, special = make_trainer(tmp_path / "a"), make_trainer(tmp_path / "b", **options)
    plain.train(), special.train()
    tolerance = 2e-2 if "bf16" in options else 1e-6
    for one, other in zip(metrics_of(tmp_path / "a"), metrics_of(tmp_path / "b"), strict=True):
        assert other["lm_loss"] == pytest.approx(one["lm_loss"], rel=tolerance)


# ---- Files of a run ----


def test_same_seed_same_losses_other_seed_others(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_trainer(tmp_path / name, make_model(dropout=0.1), seed=seed).train()
    assert metrics_of(tmp_path / "a") == metrics_of(tmp_path / "b") != metrics_of(tmp_path / "c")


def test_checkpoint_and_model_hold_everything_and_no_pickled_arguments(tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: {}\n")
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.save_model()
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    model_files = {"model.safetensors", "config.json", "generation_config.json", "tokenizer_config.json",
                   "modeling_ar_encoder_decoder.py", "tokenization_byte.py", "training_args.json"}  # fmt: skip
    for folder in (tmp_path, tmp_path / "checkpoint-4"):
        names = {path.name for path in folder.iterdir()}
        assert model_files <= names
        assert not {name for name in names if name.startswith(".") or name == "training_args.bin"}
        assert json.loads((folder / "config.json").read_text())["use_cache"] is True  # off in training only
    checkpoint = {path.name for path in (tmp_path / "checkpoint-4").iterdir()}
    assert {"recipe.yaml", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= checkpoint
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, weight in weights_of(trainer).items():
        assert torch.equal(loaded.get_parameter(name), weight)
    assert latentlm.ByteTokenizer.from_pretrained(tmp_path).decode([104, 105]) == "hi"


def test_curves_are_drawn(tmp_path):
    make_trainer(tmp_path, eval_strategy="steps", eval_steps=2).train()
    assert plot_curves(tmp_path).read_bytes().startswith(b"\x89PNG")


# ---- Resuming ----


@pytest.mark.parametrize("streaming", [False, True])
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, streaming):
    def run(folder: Path, checkpoint: Path | None = None) -> LatentTrainer:
        rows = Rows(24)  # 6 optimizer steps an epoch
        trainer = make_trainer(
            folder,
            make_model(dropout=0.1),
            Stream(rows) if streaming else rows,
            max_steps=11,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            logging_steps=4,
            eval_strategy="steps",
            eval_steps=5,
            eval_on_start=True,
            sample_prompts=1,
            sample_new_tokens=4,
            save_strategy="steps",
            save_steps=3,
            save_total_limit=None,
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    whole = run(tmp_path / "whole")
    assert [entry["step"] for entry in metrics_of(tmp_path / "whole")] == [0, 3, 4, 5, 5, 6, 8, 9, 10, 10, 11, 11]
    for stop in (3, 6, 9):  # inside the first epoch, at its end, inside the second
        resumed = run(tmp_path / str(stop), tmp_path / "whole" / f"checkpoint-{stop}")
        assert metrics_of(tmp_path / str(stop)) == metrics_of(tmp_path / "whole")
        for name, weight in weights_of(whole).items():
            assert torch.equal(weights_of(resumed)[name], weight)


@pytest.mark.parametrize("optim", ["adamw_torch", "muon"])
def test_a_resumed_run_has_the_settings_of_its_arguments(tmp_path, optim):
    shared: dict[str, Any] = {"optim": optim, "lr_scheduler_type": "linear", "max_steps": 8, "eval_strategy": "steps"}
    shared |= {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
    make_trainer(tmp_path / "old", **shared, eval_steps=2).train()
    new = {**shared, "learning_rate": 4e-3, "weight_decay": 0.7, "eval_steps": 3, "save_steps": 3}
    if optim == "muon":
        new |= {"muon_learning_rate": 2e-2, "muon_momentum": 0.5}
    trainer = make_trainer(tmp_path / "new", **new)
    trainer.train(resume_from_checkpoint=tmp_path / "old" / "checkpoint-2")
    logs = {entry["step"]: entry for entry in metrics_of(tmp_path / "new") if "loss" in entry}
    # The first of the new steps has the rate of the new schedule after two of eight steps.
    assert logs[3]["learning_rate"] == pytest.approx(4e-3 * 6 / 8) and logs[8]["learning_rate"] == pytest.approx(5e-4)
    groups = trainer.optimizer.param_groups
    assert {group["weight_decay"] for group in groups} == {0.0, 0.7}
    if optim == "muon":
        assert {(group["momentum"], group["initial_lr"]) for group in groups if group["muon"]} == {(0.5, 2e-2)}
    evaluated = [entry["step"] for entry in metrics_of(tmp_path / "new") if "eval_loss" in entry]
    assert evaluated == [2, 3, 6, 8] and (tmp_path / "new" / "checkpoint-3").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optim": "muon"}, "states of optim adamw_torch, not muon"),
        ({"per_device_train_batch_size": 2}, "has read 4 rows in a step, and this run would read 2"),
        ({"gradient_accumulation_steps": 2}, "has read 4 rows in a step, and this run would read 8"),
    ],
)
def test_states_that_do_not_fit_the_settings_are_refused(tmp_path, changed, message):
    arguments: dict[str, Any] = {"optim": "adamw_torch", "save_strategy": "steps", "save_steps": 2}
    arguments |= {"save_total_limit": None}
    make_trainer(tmp_path, **arguments).train()
    before = weights_of(other := make_trainer(tmp_path, **{**arguments, **changed}))
    with pytest.raises(CheckpointError, match=message):
        other.train(resume_from_checkpoint=tmp_path / "checkpoint-2")
    assert all(torch.equal(weight, weights_of(other)[name]) for name, weight in before.items())
    same = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    make_trainer(tmp_path, **arguments, **same).train(resume_from_checkpoint=tmp_path / "checkpoint-2")


def test_finished_run_trains_no_further(tmp_path):
    arguments = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    first = make_trainer(tmp_path, **arguments)
    first.train()
    again = make_trainer(tmp_path, **arguments)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    for name, weight in weights_of(first).items():
        assert torch.equal(weights_of(again)[name], weight)


class Counter(TrainerCallback, ExportableState):
    def __init__(self):
        self.count = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.count += 1

    def state(self) -> dict:
        return {"args": {}, "attributes": {"count": self.count}}


def test_callback_state_is_part_of_a_checkpoint(tmp_path):
    counts = []
    for resume in (None, tmp_path / "checkpoint-2"):
        trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=2, save_total_limit=None)
        trainer.add_callback(Counter)
        trainer.train(resume_from_checkpoint=resume)
        counts += [callback.count for callback in trainer.callback_handler.callbacks if isinstance(callback, Counter)]
    assert counts == [4, 4]


def test_checkpoint_of_another_model_is_an_error(tmp_path):
    make_trainer(tmp_path, save_strategy="steps", save_steps=2).train()
    with pytest.raises(
        CheckpointError, match=r"checkpoint-4 does not fit the model \(model.use_bias: False there, True"
    ):
        make_trainer(tmp_path / "b", make_model(use_bias=True)).train(resume_from_checkpoint=tmp_path / "checkpoint-4")


# ---- Damage ----


def damage_truncate(folder: Path) -> str:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 100)
    return "model.safetensors has"


def damage_optimizer(folder: Path) -> str:
    (folder / "optimizer.pt").unlink()
    return "optimizer.pt is missing"


def damage_rng(folder: Path) -> str:
    (folder / "rng_state.pth").unlink()
    return "rng_state.pth is missing"


def damage_manifest(folder: Path) -> str:
    (folder / "checkpoint.json").unlink()
    return "no checkpoint.json"


@pytest.mark.parametrize("damage", [damage_truncate, damage_optimizer, damage_rng, damage_manifest])
def test_checkpoint_cut_short(tmp_path, damage, caplog, monkeypatch):
    from latentlm.runs import checkpoints

    warnings = []
    monkeypatch.setattr(checkpoints.logger, "warning", warnings.append)
    arguments = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    make_trainer(tmp_path, **arguments).train()
    message = damage(tmp_path / "checkpoint-4")
    with pytest.raises(
        CheckpointError, match=rf"checkpoint-4 cannot be resumed: .*{message}.*Complete: .*checkpoint-2"
    ):
        make_trainer(tmp_path, **arguments).train(resume_from_checkpoint=tmp_path / "checkpoint-4")
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert len(warnings) == 1 and message in warnings[0]
    make_trainer(tmp_path, **arguments).train(resume_from_checkpoint=True)
    assert find_damage(tmp_path / "checkpoint-4") is None  # written anew


def test_missing_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no folder"):
        make_trainer(tmp_path).train(resume_from_checkpoint=tmp_path / "checkpoint-9")
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        make_trainer(tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("victim", ["torch.save", "safetensors", "rename"])
def test_disk_full_while_saving_harms_nothing(tmp_path, monkeypatch, victim):
    arguments = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "logging_steps": 2}
    make_trainer(tmp_path / "whole", **arguments).train()

    trainer = make_trainer(tmp_path / "run", **arguments)

    def full(*args, **kwargs):
        if trainer.state.global_step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*args, **kwargs)

    target, name = {
        "torch.save": (torch, "save"),
        "safetensors": (type(trainer.model), "save_pretrained"),
        "rename": (os, "fsync"),
    }[victim]
    original = getattr(target, name)
    monkeypatch.setattr(target, name, full)
    with pytest.raises(CheckpointError, match=r"checkpoint-4 could not be saved: .*No space left.*checkpoint-2"):
        trainer.train()
    assert [path.name for path in (tmp_path / "run").iterdir() if path.is_dir()] == ["checkpoint-2"]
    assert find_damage(tmp_path / "run" / "checkpoint-2") is None
    monkeypatch.undo()
    make_trainer(tmp_path / "run", **arguments).train(resume_from_checkpoint=True)
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")


def test_rotation_keeps_complete_checkpoints_and_the_best(tmp_path):
    shutil.copytree(Path(__file__).parent, tmp_path / ".saving-checkpoint-99")
    (tmp_path / "checkpoint-1").mkdir()  # incomplete: not counted, not resumed
    make_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=8, save_total_limit=2).train()
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-6", "checkpoint-8"]
    best = make_trainer(tmp_path / "best", save_strategy="steps", save_steps=1, max_steps=4, eval_strategy="steps",
                        eval_steps=1, load_best_model_at_end=True, greater_is_better=True,
                        save_total_limit=2)  # fmt: skip
    best.train()  # the worst loss is the "best" here: step 1
    assert best.state.best_model_checkpoint == str(tmp_path / "best" / "checkpoint-1")
    assert [folder.name for folder in list_checkpoints(tmp_path / "best")] == ["checkpoint-1", "checkpoint-4"]
    state = json.loads((tmp_path / "best" / "checkpoint-1" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == best.state.best_model_checkpoint


def test_the_best_checkpoint_is_the_best_of_those_that_were_saved(tmp_path):
    """Evaluated twice as often as saved, the best step may have no checkpoint. In transformers the one that was best
    when it was saved remains the best; a run folder may have been moved before a resume."""
    scores = {1: 9.0, 2: 5.0, 3: 4.0, 4: 6.0, 5: 7.0, 6: 8.0, 7: 8.0, 8: 8.0}

    def train(folder, start=None, **arguments):
        arguments |= {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 2}
        trainer = make_trainer(folder, load_best_model_at_end=True, save_total_limit=2, **arguments)
        evaluate = trainer.evaluate
        trainer.evaluate = lambda **kw: evaluate(**kw) | {"eval_loss": scores[trainer.state.global_step]}
        trainer.train(resume_from_checkpoint=start)
        return trainer

    trainer = train(tmp_path / "run", max_steps=6)
    assert trainer.state.best_global_step == 3
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / "checkpoint-2")
    assert [folder.name for folder in list_checkpoints(tmp_path / "run")] == ["checkpoint-2", "checkpoint-6"]
    best = load_file(tmp_path / "run" / "checkpoint-2" / "model.safetensors")
    assert all(torch.equal(weight, best[name]) for name, weight in weights_of(trainer).items())

    scores[3] = scores[2]  # so that step 2 is the best one
    train(tmp_path / "first", max_steps=6)
    (tmp_path / "first").rename(tmp_path / "moved")
    trainer = train(tmp_path / "moved", tmp_path / "moved" / "checkpoint-6", max_steps=8)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "moved" / "checkpoint-2")


# ---- The run folder ----


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(
        "model: {model_type: decoder_only, hidden_size: 16, num_attention_heads: 2, num_hidden_layers: 1}\n"
        f"training: {{output_dir: {tmp_path / 'run'}, max_steps: 4}}\n"
    )
    return path


def test_differing_recipes_name_the_places_that_differ():
    stored = {"model": {"levels": [{"delta": 0.5, "depth": 1}, {"delta": 0.25}], "sizes": [1, 2]}, "training": {}}
    recipe = {"model": {"levels": [{"delta": 0.5, "depth": 2}, {"delta": 0.5}], "sizes": [1, 2, 3]}, "training": {}}
    assert differences(stored, recipe) == [
        "model.levels.0.depth: 1 there, 2 here",
        "model.levels.1.delta: 0.25 there, 0.5 here",
        "model.sizes: [1, 2] there, [1, 2, 3] here",
    ]
    assert differences(recipe, recipe) == []


def test_run_folder_of_another_run_is_refused(recipe_file, tmp_path):
    run = tmp_path / "run"
    recipe = load_recipe(recipe_file)
    assert find_start(recipe) is None
    open_run_folder(recipe, {"rows": 3}, 1, torch.device("cpu"))
    environment = json.loads((run / "environment.json").read_text())
    assert environment["seed"] == 42 and environment["versions"]["latentlm"] == latentlm.__version__
    assert find_start(load_recipe(recipe_file, {"report_to": "tensorboard"})) is None  # the same run
    make_trainer(run, save_strategy="steps", save_steps=2).train()
    assert find_start(recipe) == run / "checkpoint-4"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    other = load_recipe(recipe_file, {"learning_rate": "1", "hidden_size": "32"})
    with pytest.raises(
        RecipeError, match=r"holds another run \(model.hidden_size: 16 there, 32 here; training.learning"
    ):
        find_start(other)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    # Asked for by name, new settings are fine; their checkpoints are then told apart from the old ones.
    other.training.resume_from_checkpoint = str(run / "checkpoint-2")
    assert find_start(other) == run / "checkpoint-2"
    open_run_folder(other, {"rows": 3}, 1, torch.device("cpu"))
    other.training.resume_from_checkpoint = None
    assert find_start(other) is None


def test_a_start_that_does_not_fit_leaves_the_run_folder_as_it_is(recipe_file, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("A line of a text that is long enough.\n" * 200)
    fields = {"dataset": str(text), "tokenizer": "bytes", "context_length": 32, "save_steps": 2, "use_cpu": True}
    fields |= {"cache_dir": str(tmp_path / "cache"), "eval_strategy": "no", "sample_prompts": 0}
    train(load_recipe(recipe_file, fields))
    run = tmp_path / "run"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for changed, message in (
        ({"hidden_size": 32}, "model.hidden_size: 16 there, 32 here"),
        ({"optim": "muon"}, "states of optim adamw_torch"),
    ):
        other = load_recipe(recipe_file, fields | changed | {"resume_from_checkpoint": str(run / "checkpoint-2")})
        with pytest.raises(CheckpointError, match=message):
            train(other)
        assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_folder_in_which_another_process_trains_is_refused(tmp_path):
    refused = pytest.raises(RecipeError, match="run: another process is training there")
    with only_process_of(tmp_path / "run"), refused, only_process_of(tmp_path / "run"):
        pass
    with only_process_of(tmp_path / "run"):
        pass


def test_a_checkout_around_the_package_is_not_its_own(tmp_path, monkeypatch):
    package = tmp_path / ".venv" / "latentlm" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.touch()
    (tmp_path / "mine.txt").touch()
    for command in (["init", "-q"], ["add", "mine.txt"], ["commit", "-qm", "mine"]):
        identity = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *command], check=True)
    monkeypatch.setattr(latentlm, "__file__", str(package))
    assert git_revision() is None
    subprocess.run(["git", "-C", str(tmp_path), "add", str(package)], check=True)
    assert str(git_revision()).endswith("+")


def test_a_loss_that_a_resumed_run_adds_begins_where_it_is_first_logged():
    losses = ({"loss": 3.0, "lm_loss": 3.0}, {"loss": 2.5, "lm_loss": 2.0, "embedding_loss": 0.5})
    evaluations = ({"eval_loss": 2.0}, {"eval_loss": 1.0, "eval_lm_loss": 1.0, "eval_bits_per_byte": 1.5})
    log = [{"step": i, **one} for ones in (losses, evaluations) for i, one in enumerate(ones)]
    rows = [tuple(row.values()) for row in first_and_last([*log, {"step": 1, "eval_runtime": 1.0}])]
    assert rows == [
        ("training", "embedding_loss", 1, 0.5, 1, 0.5),
        ("training", "lm_loss", 0, 3.0, 1, 2.0),
        ("training", "loss", 0, 3.0, 1, 2.5),
        ("held-out text", "bits_per_byte", 1, 1.5, 1, 1.5),
        ("held-out text", "lm_loss", 1, 1.0, 1, 1.0),
    ]


def test_a_model_is_saved_twice_with_folders_beside_it(tmp_path):
    """Several chat templates are files in a folder."""
    trainer = make_trainer(tmp_path)
    trainer.processing_class = ByteTokenizer()
    trainer.processing_class.chat_template = {"default": "one", "tool_use": "two"}
    for template in ("two", "three"):
        trainer.processing_class.chat_template["tool_use"] = template
        trainer.save_model()
    assert (tmp_path / "additional_chat_templates" / "tool_use.jinja").read_text() == "three"
    assert "additional_chat_templates/tool_use.jinja" in published_files(tmp_path)


def test_settings_that_a_machine_or_another_one_overrules(tmp_path, monkeypatch):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps", "save_total_limit": 1}
    # With one, Trainer deletes the last checkpoint at its end, and the same command would not know that it is done.
    assert LatentTrainingArguments(str(tmp_path), **best).save_total_limit == 2
    assert LatentTrainingArguments(str(tmp_path), save_total_limit=1).save_total_limit == 1
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert LatentTrainingArguments(str(tmp_path)).device.type == "cpu"


def test_folder_with_something_else_is_refused(recipe_file, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    with pytest.raises(RecipeError, match="holds something else"):
        find_start(load_recipe(recipe_file))
    (run / "config.json").unlink()
    run.rmdir()
    run.write_text("a file")
    with pytest.raises(RecipeError, match="is a file"):
        find_start(load_recipe(recipe_file))


def test_arguments_that_change_the_losses_are_refused():
    assert LatentTrainingArguments().restore_callback_states_from_checkpoint
    with pytest.raises(ValueError, match="hub_strategy"):
        LatentTrainingArguments(push_to_hub=True, hub_strategy="every_save")
    with pytest.raises(ValueError, match="sample_prompts is -1"):
        LatentTrainingArguments(sample_prompts=-1)
    assert LENGTH > 15  # every row keeps predicted tokens
