"""Muon: its update, which parameters it gets, exact resume, sharded and accumulated gradients, errors."""

import math
import re
from pathlib import Path

import pytest
import torch
from architectures import Case, each_case
from torch import nn
from training_setup import Rows, make_model, make_trainer, weights_of

from latentlm.models.block_attention import merged_linear
from latentlm.training import muon
from latentlm.training.muon import COEFFICIENTS, Muon, hidden_matrices

MUON = {"optim": "muon", "muon_learning_rate": 1e-2}


@pytest.fixture
def float64(monkeypatch):
    monkeypatch.setattr(muon, "iteration_dtype", lambda device: torch.float64)


def slow_update(momentum: torch.Tensor) -> torch.Tensor:
    """The polynomial of the iteration, applied to the singular values one by one."""
    u, values, v = torch.linalg.svd(momentum, full_matrices=False)
    values = values / values.square().sum().sqrt()
    a, b, c = COEFFICIENTS
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    return u @ values.diag() @ v * 0.2 * math.sqrt(max(momentum.shape))


def test_steps_are_those_of_the_definition(float64):
    """Of matrices in several shapes, wide and tall, alone and merged, and of AdamW's parameters, over three steps."""
    torch.manual_seed(0)
    lone = [nn.Parameter(torch.randn(shape).double()) for shape in ((6, 4), (4, 6), (4, 4), (4, 6), (3, 9))]
    merged, other, unused = (nn.Parameter(torch.randn(size, 4).double()) for size in (10, 5, 4))
    twin = nn.Parameter(other.detach().clone())
    parts = {"parts": (4, 4, 2)}
    shared = {"muon": True, "lr": 0.1, "weight_decay": 0.3}
    groups = [{"params": [other], "muon": False}, {"params": [*lone, unused], **shared}]
    optimizer = Muon([*groups, {"params": [merged], **shared, **parts}], lr=0.2, momentum=0.9, weight_decay=0.1)
    adamw = torch.optim.AdamW([twin], lr=0.2, weight_decay=0.1)
    expected = [p.detach().clone() for p in (*lone, *merged.split((4, 4, 2)))]
    momenta = [torch.zeros_like(p) for p in expected]
    before = unused.detach().clone()
    for _ in range(3):
        gradients = [torch.randn_like(parameter) for parameter in (*lone, merged, other)]
        for parameter, gradient in zip((*lone, merged, other), gradients, strict=True):
            parameter.grad = gradient
        twin.grad = other.grad
        gradients = [*gradients[:-2], *gradients[-2].split((4, 4, 2))]
        for value, momentum, gradient in zip(expected, momenta, gradients, strict=True):
            momentum.mul_(0.9).add_(gradient, alpha=0.1)
            value.mul_(1 - 0.1 * 0.3).sub_(0.1 * slow_update(0.9 * momentum + 0.1 * gradient))
        optimizer.step()
        adamw.step()
    for value, parameter in zip(expected, (*lone, *merged.split((4, 4, 2))), strict=True):
        torch.testing.assert_close(parameter.detach(), value)
    torch.testing.assert_close(other, twin)
    assert torch.equal(unused, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_updates_are_as_large_as_those_of_adamw(dtype):
    matrices = torch.randn(3, 16, 64).to(dtype)
    values = torch.linalg.svdvals(muon.orthogonalise(matrices).float())
    assert values.min() > 0.6 and values.max() < 1.3
    assert not muon.orthogonalise(torch.zeros(1, 4, 8)).any()


# ---- What it gets ----

OTHERS = re.compile(
    # embeddings and heads
    r"embed_(?!ngrams\.up)|table|queries|begin|unknown|lm_head|\.head\.(out|digits)\.|gaussian|to_bytes"
    r"|columns|aggregation|word_pooling\.query|pool_scores"  # parameters of no linear layer, and vectors
)


@each_case
def test_it_gets_the_matrices_of_linear_layers(case: Case):
    model = case.model()
    matrices = {id(parameter) for parameter, _ in hidden_matrices(model)}
    for name, parameter in model.named_parameters():
        hidden = parameter.ndim == 2 and parameter.requires_grad and not OTHERS.search(name)
        assert (id(parameter) in matrices) == hidden, name
    for parameter, parts in hidden_matrices(model):
        assert sum(parts) in (0, len(parameter))


def test_merged_maps_are_matrices_of_their_own():
    attention = make_model().model.encoder_layers[0].self_attn
    assert attention.qkv_proj.parts == (16, 16, 16)
    layer = nn.Sequential(merged_linear(4, (4, 2), bias=True), nn.Linear(4, 1))
    assert [parts for _, parts in hidden_matrices(layer)] == [(4, 2)]


# ---- Training ----


def test_one_schedule_scales_both_rates(tmp_path):
    trainer = make_trainer(tmp_path, **MUON, lr_scheduler_type="linear", max_steps=4)
    trainer.train()
    assert [group["initial_lr"] for group in trainer.optimizer.param_groups[:3]] == [1e-2, 1e-2, 1e-2]
    trainer = make_trainer(tmp_path, **{**MUON, "muon_learning_rate": 0.03}, lr_scheduler_type="linear", max_steps=4)
    rates = []
    trainer.create_optimizer_and_scheduler(4)
    for _ in range(4):
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    for step, (first, second, *others) in enumerate(rates):
        factor = 1 - step / 4
        assert first == second == pytest.approx(0.01 * factor)
        assert others == [pytest.approx(0.03 * factor)] * len(others)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    def run(folder: Path, checkpoint: Path | None = None) -> dict[str, torch.Tensor]:
        trainer = make_trainer(
            folder, make_model(dropout=0.1), **MUON, weight_decay=0.1, save_strategy="steps", save_steps=2
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        return weights_of(trainer)

    whole = run(tmp_path / "whole")
    resumed = run(tmp_path / "resumed", tmp_path / "whole" / "checkpoint-2")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_accumulated_micro_batches_are_one_batch(tmp_path, float64):
    weights = []
    for size, count in ((8, 1), (4, 2)):
        trainer = make_trainer(
            tmp_path, train=Rows(16), **MUON, per_device_train_batch_size=size, gradient_accumulation_steps=count,
            max_steps=2,
        )  # fmt: skip
        trainer.train()
        weights.append(weights_of(trainer))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


# ---- Errors ----


def test_a_model_without_matrices_is_refused(tmp_path):
    model = make_model()
    for parameter, _ in list(hidden_matrices(model)):
        parameter.requires_grad = False
    with pytest.raises(ValueError, match="optim is 'muon', but AREncoderDecoderForCausalLM has no matrix for it"):
        make_trainer(tmp_path, model, **MUON)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"muon_learning_rate": 0.0}, "muon_learning_rate is 0.0, but it must be above 0"),
        ({"muon_momentum": 1.0}, "muon_momentum is 1.0, but it must be 0 or more and below 1"),
        ({"optim_args": "a=1"}, "optim_args is 'a=1', but with optim 'muon' it must not be set"),
    ],
)
def test_wrong_values_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **MUON | arguments)
