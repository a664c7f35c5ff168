"""Nothing looks at the future, at padding or at the neighbours in the batch: earlier logits do not move.

lm-eval scores right-padded batches without a mask, so every one of these is a wrong benchmark number if it fails.
"""

import pytest
import torch
from architectures import PAD, Case, each_case, each_causal_architecture, each_causal_case, loss_terms, token_ids

BACKENDS = ["eager", "sdpa"]


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to the rounding of kernels that block other shapes differently; logits here are of the order of 10."""
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["train", "eval"])
@each_causal_case
def test_the_future_does_not_move_the_past(case: Case, mode: str, backend: str):
    model = case.model(backend).train(mode == "train")
    ids = token_ids(2, 12)
    logits = model(ids).logits
    for t in (1, 6, 11):
        changed = ids.clone()
        changed[:, t:] = token_ids(2, 12 - t, seed=1)
        moved = ((model(changed).logits - logits).abs() > case.tolerance).any(-1)
        assert not moved[:, :t].any()
        assert moved[:, t:].any(1).all()  # the change was seen at all


@each_causal_case
def test_no_gradient_comes_from_the_future(case: Case):
    """Also finds what perturbing tokens can miss, such as a mean over time that hardly changes."""
    case.skip_if_excepted("inputs_embeds")
    model = case.model()
    embeddings = model.get_input_embeddings()(token_ids(1, 12)).detach().requires_grad_()
    model(inputs_embeds=embeddings).logits[0, 5].sum().backward()
    assert (embeddings.grad[0, 6:] == 0).all()
    assert (embeddings.grad[0, :6] != 0).any(-1).all()


@pytest.mark.parametrize("backend", BACKENDS)
@each_causal_case
def test_right_padding_without_a_mask_moves_nothing(case: Case, backend: str):
    model = case.model(backend)
    ids = token_ids(2, 8)
    alone = model(ids).logits
    for content in (torch.full((2, 9), PAD), token_ids(2, 9, seed=1)):
        assert_same(model(torch.cat([ids, content], 1)).logits[:, :8], alone)


@pytest.mark.parametrize("backend", BACKENDS)
@each_case
def test_neighbours_in_the_batch_move_nothing(case: Case, backend: str):
    """The first example, alone and padded to the length of the batch, beside others, and beside empty ones."""
    if backend == "sdpa":
        case.skip_if_excepted("attention")
    model = case.model(backend)
    batch = case.batch(3)
    batch.pop("clean_input_ids", None)
    alone = model(**{name: value[:1] for name, value in batch.items()}).logits
    together = model(**batch).logits[:1]
    assert_same(together, alone)
    if case.architecture.causal:
        batch["input_ids"][1:] = PAD
        torch.testing.assert_close(model(**batch).logits[:1], together, rtol=0, atol=case.tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@each_causal_case
def test_left_padding_moves_nothing(case: Case, backend: str):
    model = case.model(backend)
    ids = token_ids(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    padded = model(ids, attention_mask=mask).logits
    assert_same(padded[0, 5:], model(ids[:1, 5:]).logits[0])
    assert_same(padded[1], model(ids[1:]).logits[0])
    ids[0, :5] = PAD
    again = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(again[0, 5:], padded[0, 5:], rtol=0, atol=case.tolerance)
    assert padded.isfinite().all()


@pytest.mark.parametrize("side", ["left", "right"])
@each_causal_case
def test_padding_moves_no_loss(case: Case, side: str):
    """Each term of the padded batch is the mean over the tokens that the rows predict alone."""
    model = case.model().train()
    ids = token_ids(2, 12)
    short = 7
    real = slice(12 - short, 12) if side == "left" else slice(0, short)
    mask = torch.zeros_like(ids)
    mask[0, real] = 1
    mask[1] = 1
    labels = ids.masked_fill(mask == 0, -100)
    if side == "left":
        labels[0, 12 - short] = -100  # predicted by a padding position otherwise
    padded = loss_terms(model(ids.masked_fill(mask == 0, PAD), attention_mask=mask, labels=labels))
    first = loss_terms(model(ids[:1, real], labels=ids[:1, real]))
    second = loss_terms(model(ids[1:], labels=ids[1:]))
    for name, value in padded.items():
        expected = (first[name] * (short - 1) + second[name] * 11) / (short - 1 + 11)
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


@each_causal_architecture
def test_the_longest_context_is_causal_too(architecture):
    """The last position uses the last row of the position table."""
    case = Case(architecture, next(iter(architecture.variants)))
    model = case.model(position_subtraction="plain")
    ids = token_ids(1, model.config.max_position_embeddings)
    logits = model(ids).logits
    ids[:, -1] += 1
    ids %= model.config.vocab_size
    assert torch.equal(model(ids).logits[:, :-1], logits[:, :-1])
