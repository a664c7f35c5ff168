"""Heads with a loss that are no causal language models, under transformers' Trainer: accumulation, evaluation."""

import inspect
from collections.abc import Callable
from typing import Any

import encodzall_setup
import pytest
import torch
from architectures import AUTOENCODER, CAUSAL, build, gradients
from torch import nn
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

import latentlm
from latentlm import (
    EncodzallForMaskedDenoising,
    EncodzallForMaskedLM,
    EncodzallForSequenceClassification,
    EncodzallForTokenClassification,
    FSQAutoencoderConfig,
    FSQAutoencoderModel,
)
from latentlm.architectures import resolve

TEXTS = ["hello world", "a b c", "the quick brown fox", "x", "yes no", "some other text", "seven words in here", "end"]
Rows = list[dict[str, Any]]
Head = tuple[nn.Module, Rows, Callable[[Rows], dict[str, torch.Tensor]]]
tokenizer = encodzall_setup.tokenizer


def text_head(labels: list[Any], **fields: Any) -> Head:
    model = encodzall_setup.build(model_class=EncodzallForSequenceClassification, **fields)
    rows = [dict(tokenizer(text)) | {"labels": label} for text, label in zip(TEXTS, labels, strict=True)]
    return model, rows, DataCollatorWithPadding(tokenizer)


def word_head(first_only: bool) -> Head:
    """A label for each word: at its first id, or at all of them."""
    rows = []
    for text in TEXTS:
        row = dict(tokenizer(text))
        words = row["word_ids"]
        first = [i == 0 or words[i] != words[i - 1] for i in range(len(words))]
        labels = [word % 3 if begins or not first_only else -100 for word, begins in zip(words, first, strict=True)]
        rows.append(row | {"labels": [*labels[:-1], -100]})  # the last word is the end of the text
    model = encodzall_setup.build(model_class=EncodzallForTokenClassification, num_labels=3)
    return model, rows, DataCollatorForTokenClassification(tokenizer)


def chunk_head() -> Head:
    """Chunks of 1 to 3 bytes and their end. The entropy of codes is a statistic of the batch (docs/limits.md)."""
    rows = []
    for text in TEXTS:
        data = [*text.encode()[: 1 + len(text) % 3]]
        rest = 3 - len(data)
        rows.append({"input_ids": [*data, 256, *[256] * rest], "labels": [*data, 256, *[-100] * rest]})
    config = FSQAutoencoderConfig(**AUTOENCODER, margin_loss_weight=0.5)
    return build(FSQAutoencoderModel, config, "eager"), rows, default_data_collator


def denoising_head() -> Head:
    rows = [dict(tokenizer(text)) | {"labels": tokenizer(text)["input_ids"]} for text in TEXTS]
    return encodzall_setup.build(), rows, DataCollatorForSeq2Seq(tokenizer)


def masking_head() -> Head:
    """Every other byte masked."""
    rows = []
    for text in TEXTS:
        encoded = tokenizer(text)
        masked = [i % 2 and id_ < 256 for i, id_ in enumerate(encoded["input_ids"])]
        pairs = [*zip(encoded["input_ids"], masked, strict=True)]
        ids, labels = [263 if hide else id_ for id_, hide in pairs], [id_ if hide else -100 for id_, hide in pairs]
        rows.append(dict(encoded) | {"input_ids": ids, "labels": labels})
    model = encodzall_setup.build(model_class=EncodzallForMaskedLM)
    return model, rows, DataCollatorForSeq2Seq(tokenizer)


ENCODZALL = {
    "denoising": (EncodzallForMaskedDenoising, denoising_head),
    "classes": (EncodzallForSequenceClassification, lambda: text_head([0, 1, 2, 1, 0, 2, 1, 1], num_labels=3)),
    "values": (EncodzallForSequenceClassification, lambda: text_head([0.5 * row for row in range(8)], num_labels=1)),
    "several classes": (
        EncodzallForSequenceClassification,
        lambda: text_head([[row % 2, row % 3 > 1, 1.0] for row in range(8)], num_labels=3),
    ),
    "masks": (EncodzallForMaskedLM, masking_head),
    "words": (EncodzallForTokenClassification, lambda: word_head(True)),
    "ids of words": (EncodzallForTokenClassification, lambda: word_head(False)),
}
AUTOENCODERS = {"chunks": (FSQAutoencoderModel, chunk_head)}
HEADS = ENCODZALL | AUTOENCODERS
each_head = pytest.mark.parametrize("head", HEADS)


class Sequential(Trainer):
    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def make_trainer(folder, head: Head, **arguments: Any) -> Trainer:
    model, rows, collator = head
    args = TrainingArguments(
        str(folder), report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True, **arguments
    )
    kinds = {"train_dataset": rows, "eval_dataset": rows, "data_collator": collator}
    return Sequential(model=model, args=args, **kinds)


def test_the_table_has_every_head():
    classes = [resolve(head) for row in latentlm.ARCHITECTURES.values() for head in row.heads.values()]
    with_labels = {head for head in classes if "labels" in inspect.signature(head.forward).parameters}
    causal = {row.head_class for row in CAUSAL}  # test_plain_trainer.py
    assert {head_class for head_class, _ in HEADS.values()} | causal == with_labels


@each_head
def test_accumulation_changes_neither_loss_nor_gradient(head, tmp_path):
    """8 rows at once, and 4 times 2, in one step of the Trainer."""
    losses, found = [], []

    class KeepGradient(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    for batch, steps in ((8, 1), (2, 4)):
        trainer = make_trainer(
            tmp_path,
            HEADS[head][1](),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            max_steps=1,
            max_grad_norm=0.0,
            learning_rate=0.0,
            logging_steps=1,
            optim="sgd",
        )
        trainer.add_callback(KeepGradient())
        trainer.train()
        losses.append(next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert found[0].keys() == found[1].keys() and len(found[0]) > 5
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@each_head
def test_shares_of_a_loss_add_up(head):
    """The same without a trainer, and against the loss that knows no count."""
    model, rows, collator = HEADS[head][1]()
    model.train()
    whole = model(**collator([dict(row) for row in rows])).loss
    whole.backward()
    expected = gradients(model)
    parts = [collator([dict(row) for row in rows[start:end]]) for start, end in ((0, 1), (1, 4), (4, 8))]
    count = sum(part["labels"].ne(-100).sum() for part in parts)
    shares = [model(**part, num_items_in_batch=count).loss for part in parts]
    torch.testing.assert_close(sum(shares), whole)
    sum(shares).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)


@each_head
def test_evaluation_has_a_loss_and_metrics_get_the_logits(head, tmp_path):
    """With no setting: no label names, no keys to ignore."""
    seen = []
    model, rows, collator = made = HEADS[head][1]()
    trainer = make_trainer(tmp_path, made, per_device_eval_batch_size=3)
    trainer.compute_metrics = lambda prediction: seen.append(prediction) or {"rows": len(prediction.predictions)}
    metrics = trainer.evaluate()
    with torch.no_grad():
        batches = [collator([dict(row) for row in rows[start : start + 3]]) for start in (0, 3, 6)]
        losses = [model(**batch).loss.item() for batch in batches]
    # Trainer weights the mean of each batch by its rows.
    expected = sum(loss * len(batch["labels"]) for loss, batch in zip(losses, batches, strict=True)) / 8
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-4) and metrics["eval_rows"] == 8
    [prediction] = seen
    with torch.no_grad():
        logits = model(**collator([dict(rows[0])])).logits[0]
    of_row = torch.from_numpy(prediction.predictions[0])[tuple(map(slice, logits.shape))]  # others are longer
    torch.testing.assert_close(of_row, logits, rtol=1e-4, atol=1e-4)
