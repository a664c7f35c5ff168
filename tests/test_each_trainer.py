"""The trainer of every architecture: a step is that of transformers' Trainer, a resumed run the uninterrupted one."""

from pathlib import Path

import torch
from architectures import Architecture, Case, each_architecture
from training_setup import make_trainer, metrics_of, weights_of
from transformers import Trainer, TrainingArguments

from latentlm.training import LatentTrainer

SGD = {"max_steps": 1, "optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}


@each_architecture
def test_a_step_is_that_of_transformers_trainer(architecture: Architecture, tmp_path: Path):
    """Without noise, which is the trainer's own."""
    case, rows = Case(architecture, architecture.typical), architecture.rows(8)
    case.skip_if_excepted("plain_step")
    still = {name: 0.0 for name in architecture.training_arguments if name == "noise_strength"}
    ours = make_trainer(
        tmp_path / "ours",
        case.model(**architecture.training_fields),
        train=rows,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        **SGD | still,
    )
    ours.train()
    model = case.model(**architecture.training_fields)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    arguments = TrainingArguments(
        str(tmp_path / "plain"), report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True,
        per_device_train_batch_size=8, **SGD,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=rows).train()
    expected = dict(model.named_parameters())
    assert any(not torch.equal(expected[name], value) for name, value in before.items())
    for name, value in weights_of(ours).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@each_architecture
def test_a_resumed_run_is_the_uninterrupted_one(architecture: Architecture, tmp_path: Path):
    """With dropout where there is some, evaluations, and whatever the trainer itself remembers."""
    case = Case(architecture, architecture.typical)
    dropout = {"hidden_dropout": 0.1} if "hidden_dropout" in architecture.own_fields else {}

    def run(folder: Path, checkpoint: Path | None = None) -> LatentTrainer:
        trainer = make_trainer(
            folder,
            case.model(**architecture.training_fields, **dropout),
            train=architecture.rows(13),  # the third step of 4 rows and 1 is the first of another epoch
            evaluation=architecture.rows(3),
            max_steps=5,
            learning_rate=1e-3,
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="steps",
            save_steps=2,
            save_total_limit=None,
            **architecture.training_arguments,
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    whole = weights_of(run(tmp_path / "whole"))
    resumed = weights_of(run(tmp_path / "resumed", tmp_path / "whole" / "checkpoint-2"))
    assert metrics_of(tmp_path / "resumed") == metrics_of(tmp_path / "whole")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
