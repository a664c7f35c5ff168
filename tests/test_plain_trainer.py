"""transformers' own `Trainer`, with no setting of ours, on checkpoints where latentlm cannot be imported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import CAUSAL, Architecture, Case, each_causal_architecture, each_causal_case, token_ids
from safetensors.torch import load_file
from transformers.utils.generic import find_labels

TRAIN = """
import json, numpy, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

ROWS = torch.load(sys.argv[1])

def rows(part):
    return [{name: values[i] for name, values in ROWS[part].items()} for i in range(len(ROWS[part]["labels"]))]

def train(folder, out, **options):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    seen = []

    def compute_metrics(prediction):
        seen.append([type(prediction.predictions) is numpy.ndarray, *numpy.shape(prediction.predictions)])
        right = prediction.predictions[:, :-1].argmax(-1) == prediction.label_ids[:, 1:]
        return {"accuracy": right[prediction.label_ids[:, 1:] != -100].mean().item()}

    def look(logits, labels):
        seen.append([type(logits) is torch.Tensor, *logits.shape])
        return logits

    arguments = TrainingArguments(
        out, report_to="none", use_cpu=True, disable_tqdm=True, optim="sgd", lr_scheduler_type="constant", **options
    )
    trainer = Trainer(
        model, arguments, train_dataset=rows("train"), eval_dataset=rows("eval"), compute_metrics=compute_metrics
    )
    trainer.train()
    trainer.preprocess_logits_for_metrics = look
    last = trainer.evaluate()
    model.save_pretrained(f"{out}/final")
    best = trainer.state.best_model_checkpoint
    return {"logs": trainer.state.log_history, "seen": seen, "best": best and Path(best).name, "last": last}

found = {}
for folder in map(Path, sys.argv[2:]):
    found[folder.name] = train(
        folder, f"{folder}-run", max_steps=3, learning_rate=5.0, per_device_train_batch_size=2,
        per_device_eval_batch_size=2, eval_strategy="steps", eval_steps=1, save_steps=1, load_best_model_at_end=True,
    )
    for batch, steps in ((4, 1), (1, 4)):
        train(folder, f"{folder}-{batch}", max_steps=1, learning_rate=0.5, save_strategy="no",
              per_device_train_batch_size=batch, gradient_accumulation_steps=steps)
print(json.dumps(found))
"""
LENGTH = 12


def batch(count: int, seed: int) -> dict[str, torch.Tensor]:
    """Rows with 11, 6, 2, 11, 6, … predicted tokens, each after one that is not: a mean of means is not the mean."""
    ids = token_ids(count, LENGTH, seed=seed)
    first = torch.tensor([1, 6, 10]).repeat(count)[:count]
    return {"input_ids": ids, "labels": ids.masked_fill(torch.arange(LENGTH) < first.unsqueeze(1), -100)}


ROWS = {"train": batch(4, seed=1), "eval": batch(5, seed=2)}


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
    torch.save(ROWS, folder / "rows.pt")
    for architecture in CAUSAL:
        case, changes = plain_case(architecture)
        case.model(**changes).save_pretrained(folder / architecture.name)
    folders = [folder / architecture.name for architecture in CAUSAL]
    return json.loads(run_without_latentlm_once(TRAIN, folder / "rows.pt", *folders).splitlines()[-1])


def eval_loss(model) -> float:
    """As Trainer says it: the mean over rows of the loss of their batch."""
    total = 0.0
    for ids, labels in zip(ROWS["eval"]["input_ids"].split(2), ROWS["eval"]["labels"].split(2), strict=True):
        with torch.no_grad():
            logits = model(ids).logits[:, :-1].flatten(0, 1)
        total += len(ids) * torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten()).item()
    return total / len(ROWS["eval"]["labels"])


@each_causal_architecture
def test_it_evaluates_and_keeps_the_best_model(architecture, trained, folder):
    found = trained[architecture.name]
    losses = [entry["eval_loss"] for entry in found["logs"] if "eval_loss" in entry]
    run = folder / f"{architecture.name}-run"
    load = architecture.head_class.from_pretrained
    assert losses[:3] == pytest.approx([eval_loss(load(run / f"checkpoint-{step}")) for step in (1, 2, 3)], rel=1e-4)
    best = losses.index(min(losses[:3])) + 1
    assert best < 3, "the last step would be kept by itself"
    assert found["best"] == f"checkpoint-{best}"
    assert found["last"]["eval_loss"] == pytest.approx(losses[best - 1], rel=1e-5)
    kept, final = (load_file(path / "model.safetensors") for path in (run / found["best"], run / "final"))
    assert kept.keys() == final.keys() and all(torch.equal(kept[name], final[name]) for name in kept)


@each_causal_architecture
def test_compute_metrics_is_given_the_logits_alone(architecture, trained):
    """One array `(rows, T, V)`; `preprocess_logits_for_metrics` one tensor of each batch."""
    found = trained[architecture.name]
    whole = [True, 5, LENGTH, 64]
    assert found["seen"] == [whole] * 3 + [[True, rows, LENGTH, 64] for rows in (2, 2, 1)] + [whole]
    assert 0 <= found["last"]["eval_accuracy"] <= 1


@each_causal_case
def test_trainer_finds_the_labels_and_the_logits(case: Case):
    """Without training: in every variant, the labels are one column and the logits all that is predicted."""
    model = case.model()
    assert find_labels(type(model)) == ["labels"]
    ids = token_ids(2, 7)
    output = model(ids, labels=ids)
    assert set(output) - set(model.config.keys_to_ignore_at_inference) == {"loss", "logits"}


@each_causal_architecture
def test_four_micro_batches_are_one_batch_of_four(architecture, trained, folder):
    start, whole, accumulated = (
        load_file(folder / f"{architecture.name}{end}" / "model.safetensors") for end in ("", "-4/final", "-1/final")
    )
    assert any(not torch.equal(start[name], whole[name]) for name in start)
    for name, values in whole.items():
        torch.testing.assert_close(accumulated[name], values, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
