"""transformers' own `Trainer`, with no setting of ours, on checkpoints where latentlm cannot be imported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, Architecture, Case, each_architecture, each_case, token_ids
from safetensors.torch import load_file
from transformers.utils.generic import find_labels

TRAIN = """
import gc, json, numpy, torch, transformers
from pathlib import Path
from transformers import Trainer, TrainingArguments

gc.freeze()  # every training collects garbage several times: not among what is imported

def rows(batch):
    return [{name: values[i] for name, values in batch.items()} for i in range(len(batch["labels"]))]

def train(folder, out, **options):
    data = torch.load(folder / "rows.pt")
    model = getattr(transformers, data["auto_class"]).from_pretrained(folder, trust_remote_code=True)
    shift = data["shift"]  # whether a position predicts the next one
    seen = []

    def compute_metrics(prediction):
        seen.append([type(prediction.predictions) is numpy.ndarray, *numpy.shape(prediction.predictions)])
        labels = prediction.label_ids[:, shift:]
        right = prediction.predictions[:, : labels.shape[1]].argmax(-1) == labels
        return {"accuracy": right[labels != -100].mean().item()}

    def look(logits, labels):
        seen.append([type(logits) is torch.Tensor, *logits.shape])
        return logits

    arguments = TrainingArguments(
        out, report_to="none", use_cpu=True, disable_tqdm=True, optim="sgd", lr_scheduler_type="constant", **options
    )
    trainer = Trainer(
        model, arguments, compute_metrics=compute_metrics,
        train_dataset=rows(data["train"]), eval_dataset=rows(data["eval"]),
    )
    trainer.train()
    trainer.preprocess_logits_for_metrics = look
    last = trainer.evaluate()
    model.save_pretrained(f"{out}/final")
    best = trainer.state.best_model_checkpoint
    return {"logs": trainer.state.log_history, "seen": seen, "best": best and Path(best).name, "last": last}

runs = {}
for folder in map(Path, sys.argv[1:]):
    runs[folder.name] = train(
        folder, f"{folder}-run", max_steps=3, learning_rate=5.0, per_device_train_batch_size=2,
        per_device_eval_batch_size=2, eval_strategy="steps", eval_steps=1, save_steps=1, load_best_model_at_end=True,
    )
    for batch, steps in ((4, 1), (1, 4)):
        train(folder, f"{folder}-{batch}", max_steps=1, learning_rate=0.5, save_strategy="no",
              per_device_train_batch_size=batch, gradient_accumulation_steps=steps)
print(json.dumps(runs))
"""
LENGTH = 12


def batch(count: int, seed: int) -> dict[str, torch.Tensor]:
    """Rows with 11, 6, 2, 11, 6, … predicted tokens, each after one that is not: a mean of means is not the mean."""
    ids = token_ids(count, LENGTH, seed=seed)
    first = torch.tensor([1, 6, 10]).repeat(count)[:count]
    return {"input_ids": ids, "labels": ids.masked_fill(torch.arange(LENGTH) < first.unsqueeze(1), -100)}


def examples(architecture: Architecture) -> dict[str, dict[str, torch.Tensor]]:
    """Rows of one length to train on and to evaluate."""
    if architecture.causal:
        return {"train": batch(4, seed=1), "eval": batch(5, seed=2)}
    whole = architecture.batch(9, 1)
    whole.pop("clean_input_ids", None)
    return {"train": {k: v[:4] for k, v in whole.items()}, "eval": {k: v[4:] for k, v in whole.items()}}


def plain_case(architecture: Architecture) -> tuple[Case, dict[str, Any]]:
    """The architecture's typical model, without random masks, which micro-batches would draw anew."""
    case = Case(architecture, architecture.typical)
    random = getattr(case.config(), "learned_dropout", "none") == "bernoulli"
    return case, {"learned_dropout": "sigmoid"} if random else {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("plain")


@pytest.fixture(scope="module")
def trained(folder: Path, run_without_latentlm_once) -> dict[str, dict[str, Any]]:
    """What each run wrote down; one process trains all architectures."""
    for architecture in ARCHITECTURES:
        case, changes = plain_case(architecture)
        case.model(**changes).save_pretrained(folder / architecture.name)
        data = {"auto_class": architecture.auto_class.__name__, "shift": int(architecture.causal)}
        torch.save(data | examples(architecture), folder / architecture.name / "rows.pt")
    folders = [folder / architecture.name for architecture in ARCHITECTURES]
    return json.loads(run_without_latentlm_once(TRAIN, *folders).splitlines()[-1])


@torch.no_grad()
def eval_loss(model, rows: dict[str, torch.Tensor], shift: int) -> float:
    """As Trainer says it: the mean over rows of the loss of their batch, here made from the logits."""
    total = 0.0
    for start in (0, 2, 4):
        part = {name: values[start : start + 2] for name, values in rows.items()}
        labels = part["labels"][:, shift:]
        logits = model(**part).logits[:, : labels.shape[1]].flatten(0, 1)
        total += len(labels) * torch.nn.functional.cross_entropy(logits, labels.flatten()).item()
    return total / len(rows["labels"])


@each_architecture
def test_it_evaluates_and_keeps_the_best_model(architecture, trained, folder):
    told = trained[architecture.name]
    losses = [entry["eval_loss"] for entry in told["logs"] if "eval_loss" in entry]
    run = folder / f"{architecture.name}-run"
    models = [architecture.head_class.from_pretrained(run / f"checkpoint-{step}") for step in (1, 2, 3)]
    rows, shift = examples(architecture)["eval"], int(architecture.causal)
    assert losses[:3] == pytest.approx([eval_loss(model, rows, shift) for model in models], rel=1e-4)
    best = losses.index(min(losses[:3])) + 1
    assert best < 3, "the last step would be kept by itself"
    assert told["best"] == f"checkpoint-{best}"
    assert told["last"]["eval_loss"] == pytest.approx(losses[best - 1], rel=1e-5)
    weights, final = (load_file(path / "model.safetensors") for path in (run / told["best"], run / "final"))
    assert weights.keys() == final.keys() and all(torch.equal(weights[name], final[name]) for name in weights)


@each_architecture
def test_compute_metrics_is_given_the_logits_alone(architecture, trained):
    """One array `(rows, T, V)`; `preprocess_logits_for_metrics` one tensor of each batch."""
    told = trained[architecture.name]
    shape = list(examples(architecture)["eval"]["labels"].shape[1:])
    shape.append(architecture.config_class(**architecture.sizes).vocab_size)
    whole = [True, 5, *shape]
    assert told["seen"] == [whole] * 3 + [[True, rows, *shape] for rows in (2, 2, 1)] + [whole]
    assert 0 <= told["last"]["eval_accuracy"] <= 1


@each_case
def test_trainer_finds_the_labels_and_the_logits(case: Case):
    """Without training: in every variant, the labels are one column and the logits all that is predicted."""
    model = case.model()
    assert find_labels(type(model)) == ["labels"]
    output = model(**case.batch())
    assert set(output) - set(model.config.keys_to_ignore_at_inference) == {"loss", "logits"}


@each_architecture
def test_four_micro_batches_are_one_batch_of_four(architecture, trained, folder):
    start, whole, accumulated = (
        load_file(folder / f"{architecture.name}{end}" / "model.safetensors") for end in ("", "-4/final", "-1/final")
    )
    assert any(not torch.equal(start[name], whole[name]) for name in start)
    for name, values in whole.items():
        torch.testing.assert_close(accumulated[name], values, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
