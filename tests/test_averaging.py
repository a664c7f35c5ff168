"""The mean of the weights at the end of a run, and schedules that end at zero."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_setup import make_model, make_trainer, metrics_of, weights_of
from transformers import TrainerCallback

from latentlm.runs.recipe import load_recipe

RUN = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}


class Keep(TrainerCallback):
    """The weights after each step."""

    def __init__(self):
        self.weights = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.weights.append({name: p.detach().clone() for name, p in model.named_parameters()})


def run(folder: Path, checkpoint: Path | None = None, start: float | None = 0.5, **arguments):
    keep = Keep()
    trainer = make_trainer(
        folder, make_model(dropout=0.1), average_weights_from=start, options={"callbacks": [keep]}, **RUN | arguments
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer, keep.weights


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "muon", "sgd"])
def test_the_mean_is_evaluated_and_saved_and_the_training_goes_on_without_it(tmp_path, optim):
    trainer, weights = run(tmp_path / "mean", optim=optim)
    _, plain_weights = run(tmp_path / "plain", start=None, optim=optim)
    for mine, theirs in zip(weights, plain_weights, strict=True):
        assert all(torch.equal(mine[name], value) for name, value in theirs.items())
    means = {name: torch.stack([w[name] for w in weights[3:]]).mean(0) for name in weights[0]}
    for name, value in weights_of(trainer).items():
        torch.testing.assert_close(value, means[name], msg=lambda m, n=name: f"{n}: {m}")
    last = load_file(tmp_path / "mean" / "checkpoint-6" / "model.safetensors")
    for name, value in last.items():
        torch.testing.assert_close(value, means[name])
    losses, plain_losses = (
        [entry["eval_loss"] for entry in metrics_of(tmp_path / name) if "eval_loss" in entry]
        for name in ("mean", "plain")
    )
    assert losses[0] == plain_losses[0]
    assert losses[2] == trainer.evaluate()["eval_loss"] != plain_losses[2]


@pytest.mark.parametrize(("step", "optim"), [(2, "muon"), (4, "muon"), (4, "adamw_torch_fused"), (6, "muon")])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, step, optim):
    whole, _ = run(tmp_path / "whole", optim=optim, save_total_limit=None)
    resumed, _ = run(tmp_path / "again", tmp_path / "whole" / f"checkpoint-{step}", optim=optim)
    assert metrics_of(tmp_path / "again") == metrics_of(tmp_path / "whole")
    expected = weights_of(whole)
    assert all(torch.equal(expected[name], value) for name, value in weights_of(resumed).items())


def test_the_best_checkpoint_stays_the_best(tmp_path):
    options = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "learning_rate": 0.3}
    trainer, _ = run(tmp_path, **options, save_total_limit=None)
    best = load_file(Path(trainer.state.best_model_checkpoint) / "model.safetensors")
    weights = weights_of(trainer)
    assert all(torch.equal(weights[name], value) for name, value in best.items())


@pytest.mark.parametrize("start", [-0.1, 1.0])
def test_wrong_values_are_refused(tmp_path, start):
    with pytest.raises(ValueError, match=f"average_weights_from is {start}, but it must be 0 or more and below 1"):
        make_trainer(tmp_path, average_weights_from=start)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (
            "lr_scheduler_type: warmup_stable_decay\n  lr_scheduler_kwargs: {num_decay_steps: 4, decay_type: linear}",
            [0, 0.5, 1, 1, 1, 0.75, 0.5, 0.25, 0],
        ),
        ("lr_scheduler_type: linear", [0, 0.5, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]),
    ],
    ids=["warmup_stable_decay", "linear"],
)
def test_schedules_of_a_recipe_end_at_zero(tmp_path, schedule, factors):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model:\n  model_type: decoder_only\ndata: {}\n"
        f"training:\n  max_steps: 8\n  warmup_steps: 2\n  learning_rate: 0.5\n  optim: muon\n  {schedule}\n"
    )
    arguments = load_recipe(recipe).training
    trainer = make_trainer(tmp_path, **{name: getattr(arguments, name) for name in (
        "max_steps", "warmup_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "optim"
    )})  # fmt: skip
    trainer.create_optimizer_and_scheduler(8)
    for factor in factors:
        assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(0.5 * factor)
        assert trainer.optimizer.param_groups[-1]["lr"] == pytest.approx(trainer.args.muon_learning_rate * factor)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()


def test_a_decay_without_its_length_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'warmup_stable_decay' needs `num_decay_steps`"):
        make_trainer(tmp_path, lr_scheduler_type="warmup_stable_decay")
