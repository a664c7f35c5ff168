"""Micro-batches that know `num_items_in_batch` add up to one big batch: gradients and logged values, per loss term.

What two processes add up to is in test_two_processes.py.
"""

import pytest
import torch
from architectures import Case, each_architecture, each_case, each_causal_case, gradients, loss_terms, token_ids


def batch_with_unequal_rows() -> tuple[dict[str, torch.Tensor], int]:
    """Four rows with 11, 11, 2 and 6 predicted tokens: a mean of means is far from the mean."""
    ids = token_ids(4, 12)
    labels = ids.clone()
    labels[2, 3:] = -100
    labels[3, :6] = -100
    mask = torch.ones_like(ids)
    mask[3, :5] = 0
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}, int((labels[:, 1:] != -100).sum())


@each_case
def test_micro_batches_add_up_to_one_big_batch(case: Case):
    """The contrastive loss has the neighbours of its micro-batch alone (docs/limits.md): it is not among the terms."""
    model = case.model().train()
    if case.architecture.causal:
        batch, count = batch_with_unequal_rows()
        assert count == 11 + 11 + 2 + 6
    else:
        batch = case.batch(4)
        batch.pop("clean_input_ids", None)
        count = int((batch["labels"] != -100).sum())
    names = ["loss", *loss_terms(model(**batch))]
    for name in names:
        whole = model(**batch)[name]
        whole.backward()
        big = gradients(model)
        total = 0.0
        for rows in (slice(0, 1), slice(1, 3), slice(3, 4)):
            part = {key: value[rows] for key, value in batch.items()}
            share = model(**part, num_items_in_batch=torch.tensor(count))[name]
            share.backward()
            total += share.item()
        accumulated = gradients(model)
        assert total == pytest.approx(whole.item(), rel=1e-5), name
        assert accumulated.keys() == big.keys(), name
        for parameter, gradient in big.items():
            torch.testing.assert_close(gradient, accumulated[parameter], rtol=1e-3, atol=1e-5)


@each_case
def test_a_micro_batch_without_predicted_tokens_is_zero(case: Case):
    """A micro-batch whose labels are all ignored happens in padded data; its share is 0, not NaN."""
    model = case.model().train()
    batch = case.batch()
    output = model(**batch | {"labels": torch.full_like(batch["labels"], -100)}, num_items_in_batch=10)
    output.loss.backward()
    assert all(value.item() == 0 for value in loss_terms(output).values())
    assert all((gradient == 0).all() for gradient in gradients(model).values())


@each_causal_case
def test_labels_that_are_already_shifted_give_the_same_terms(case: Case):
    model = case.model().train()
    batch, count = batch_with_unequal_rows()
    labels = batch.pop("labels")
    shift_labels = torch.full_like(labels, -100)
    shift_labels[:, :-1] = labels[:, 1:]
    for num_items in (None, count):
        expected = model(**batch, labels=labels, num_items_in_batch=num_items)
        output = model(**batch, shift_labels=shift_labels, num_items_in_batch=num_items)
        for name, value in loss_terms(expected).items():
            assert output[name].item() == value.item(), name


@each_architecture
def test_the_trainer_passes_the_count(architecture):
    """Trainer gives `num_items_in_batch` only to models whose forward takes keyword arguments."""
    from transformers import Trainer, TrainingArguments

    model = Case(architecture, architecture.typical).model()
    trainer = Trainer(model, TrainingArguments(report_to="none", use_cpu=True))
    assert trainer.model_accepts_loss_kwargs
    if not architecture.causal:
        return  # the count of labels is not shifted there: test_heads.py sees it in a step
    batch, count = batch_with_unequal_rows()
    assert trainer._get_num_items_in_batch([batch], torch.device("cpu")) == count
