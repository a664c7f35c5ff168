"""The loss in chunks equals that of whole logits, with its gradients; and where there are whole logits after all."""

import pytest
import torch
from architectures import CAUSAL, Case
from peft import LoraConfig, get_peft_model
from torch import nn
from training_setup import Rows, make_model, make_trainer, weights_of

from latentlm.models import block_causal_head
from latentlm.models.block_chunked_loss import chunked_cross_entropy

VOCABULARY = 8192


@pytest.fixture
def small(monkeypatch):
    """Every vocabulary is large."""
    monkeypatch.setattr(block_causal_head, "LARGE_VOCABULARY", 2)


def step(model: nn.Module, **batch) -> tuple:
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(one: tuple, other: tuple, **tolerance) -> None:
    torch.testing.assert_close(one[0].loss, other[0].loss, **tolerance)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)


@pytest.mark.parametrize("num_items", [None, 77, torch.tensor(77)], ids=["mean", "number", "tensor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_and_its_gradients_are_those_of_whole_logits(num_items, dtype):
    torch.manual_seed(0)
    hidden = torch.randn(3, 77, 16, dtype=dtype, requires_grad=True)
    head = nn.Linear(16, VOCABULARY, bias=False, dtype=dtype)
    labels = torch.randint(0, VOCABULARY, (3, 77))
    labels[0, 5:40] = -100
    logits = head(hidden).flatten(0, 1)
    expected = nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum")
    expected = expected / (labels.ne(-100).sum() if num_items is None else num_items)
    loss = chunked_cross_entropy(head, hidden, labels, num_items)
    tolerance = {"rtol": 1e-5, "atol": 1e-7}
    torch.testing.assert_close(loss, expected.float(), **tolerance)
    gradients = [torch.autograd.grad(3 * value, (hidden, head.weight)) for value in (loss, expected)]
    for gradient, whole in zip(*gradients, strict=True):
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient, whole, **tolerance)


@pytest.mark.parametrize(
    "case",
    [Case(row, row.typical) for row in CAUSAL if row.name != "abstractinator"],
    ids=lambda c: c.architecture.name,
)
@pytest.mark.parametrize("tied", [True, False])
def test_every_causal_model(case: Case, tied: bool, small):
    """With accumulation's divisor, gradient checkpointing and `shift_labels`."""
    model = case.model(tie_word_embeddings=tied).train()
    batch = {**case.batch(), "num_items_in_batch": torch.tensor(50)}
    torch.manual_seed(0)
    chunked = step(model, **batch)
    assert chunked[0].logits is None
    model.returns_training_logits = True
    torch.manual_seed(0)
    whole = step(model, **batch)
    assert whole[0].logits is not None
    assert_same(whole, chunked, rtol=1e-4, atol=1e-6)
    model.returns_training_logits = False
    labels = batch.pop("labels")
    model.gradient_checkpointing_enable()
    torch.manual_seed(0)
    moved = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    assert_same(step(model, **batch, shift_labels=moved), chunked, rtol=1e-4, atol=1e-6)


def test_a_large_vocabulary_in_autocast():
    model = make_model(vocab_size=VOCABULARY).train()
    ids = torch.randint(0, VOCABULARY, (2, 20))
    exact = step(model, input_ids=ids, labels=ids)
    assert exact[0].logits is None
    with torch.autocast("cpu", torch.bfloat16):
        chunked = step(model, input_ids=ids, labels=ids)
        model.returns_training_logits = True
        whole = step(model, input_ids=ids, labels=ids)
    assert chunked[0].loss.dtype == torch.float32
    for name, gradient in exact[1].items():
        norm = gradient.norm()
        assert (chunked[1][name] - gradient).norm() <= 1.5 * (whole[1][name] - gradient).norm() + 0.01 * norm


def test_logits_where_they_are_asked_for(small):
    ids = torch.randint(0, 256, (2, 20))
    model = make_model().train()
    assert model(input_ids=ids, labels=ids).logits is None
    assert model(input_ids=ids).logits.shape == (2, 20, 259)
    with torch.no_grad():
        assert model(input_ids=ids, labels=ids).logits is not None
    assert model.eval()(input_ids=ids, labels=ids).logits is not None


def test_heads_that_are_more_than_a_product_have_whole_logits(small):
    ids = torch.randint(0, 256, (2, 20))
    adapted = get_peft_model(make_model(), LoraConfig(target_modules=["lm_head"], r=2)).train()
    hooked, custom, biased = make_model().train(), make_model().train(), make_model().train()
    hooked.lm_head.register_forward_hook(lambda *_: None)
    custom.loss_function = lambda logits, *_, **__: logits.sum()
    biased.lm_head.bias = nn.Parameter(torch.ones(259))
    for model in (adapted, hooked, custom, biased):
        assert model(input_ids=ids, labels=ids).logits is not None
    frozen = make_model(tie_word_embeddings=False).train()
    frozen.lm_head.requires_grad_(False)
    output, gradients = step(frozen, input_ids=ids, labels=ids)
    assert output.logits is None and "lm_head.weight" not in gradients and gradients


def test_a_compiled_model_has_whole_logits_in_one_graph(small):
    ids = torch.randint(0, 256, (2, 20))
    model = make_model().train()
    expected = model(input_ids=ids, labels=ids).loss
    output = torch.compile(model, backend="eager", fullgraph=True)(input_ids=ids, labels=ids)
    assert output.logits is not None
    torch.testing.assert_close(output.loss, expected)


def test_trainers(tmp_path, small, monkeypatch):
    """Training, evaluation and metrics, accumulated or not, as with whole logits; `compute_loss_func` sees logits."""
    seen = []

    def loss_of(outputs, labels, num_items_in_batch):
        seen.append(outputs.logits)
        return outputs.loss

    weights = []
    for options, arguments in (
        ({}, {}),
        ({}, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}),
        ({"compute_loss_func": loss_of}, {}),
    ):
        trainer = make_trainer(
            tmp_path, make_model(), train=Rows(8), max_steps=2, optim="sgd", options=options, eval_strategy="epoch",
            **arguments,
        )  # fmt: skip
        trainer.train()
        weights.append(weights_of(trainer))
    assert len(seen) == 2 and all(logits is not None for logits in seen)
    for other in weights[1:]:
        for name, value in weights[0].items():
            torch.testing.assert_close(other[name], value, msg=lambda m, n=name: f"{n}: {m}")
