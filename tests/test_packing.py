"""Documents packed into one row by `position_ids` are separate documents, on every backend and for every loss term."""

import pytest
import torch
from architectures import (
    Case,
    each_causal_architecture,
    each_causal_case,
    gradients,
    loss_terms,
    token_ids,
    typical_causal_case,
)

from latentlm.models.block_positions import packs_documents

LENGTHS = [5, 1, 3, 8]


def packed_row() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Token ids, positions and labels `(1, T)` of one row, and its documents. Their first tokens are not predicted."""
    ids = token_ids(1, sum(LENGTHS))
    positions = torch.cat([torch.arange(n) for n in LENGTHS]).unsqueeze(0)
    return ids, positions, ids.masked_fill(positions == 0, -100), list(ids.split(LENGTHS, 1))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("mode", ["train", "eval", "eval_without_cache"])
@each_causal_case
def test_packed_documents_do_not_see_each_other(case: Case, mode: str, backend: str):
    """Also where `use_cache` is left at its default, True, and an empty cache is made."""
    model = case.model(backend).train(mode == "train")
    ids, positions, _, documents = packed_row()
    options = {"use_cache": False} if mode == "eval_without_cache" else {}
    packed = model(ids, position_ids=positions, **options).logits
    separate = torch.cat([model(document, **options).logits for document in documents], 1)
    torch.testing.assert_close(packed, separate, rtol=1e-5, atol=2e-5)
    assert not torch.allclose(packed, model(ids, **options).logits, atol=1e-2)  # packing matters here


def padded_rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, mask and positions `(2, 10)`: documents of 4 and 3 tokens, padded on the left and between them, and of
    2 and 6, padded on the right."""
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]])
    positions = torch.tensor([[0, 0, 0, 1, 2, 3, 0, 0, 1, 2], [0, 1, 0, 1, 2, 3, 4, 5, 0, 0]])
    return token_ids(2, 10) * mask, mask, positions


PADDED_DOCUMENTS = [(0, slice(2, 6)), (0, slice(7, 10)), (1, slice(0, 2)), (1, slice(2, 8))]


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@each_causal_case
def test_a_mask_of_ones_lets_no_packed_document_see_another(case: Case, backend: str):
    """Every collator that pads gives one."""
    model = case.model(backend)
    ids, positions, _, _ = packed_row()
    packed = model(ids, position_ids=positions, attention_mask=torch.ones_like(ids))
    torch.testing.assert_close(packed.logits, model(ids, position_ids=positions).logits, rtol=1e-5, atol=2e-5)
    assert packed.past_key_values is None  # nobody continues several documents


@pytest.mark.parametrize(
    ("positions", "mask", "packs"),
    [
        ([0, 0], [1, 1], True),  # documents of one token
        ([0, 1, 0], [1, 1, 1], True),
        ([0, 1, 0], [1, 1, 0], False),  # padding
        ([0, 0, 1], [0, 1, 1], False),
        ([3, 4, 5], [1, 1, 1], False),
        ([3, 0, 1], [1, 1, 1], True),  # the end of a document that began before
    ],
)
def test_a_document_begins_where_a_real_token_follows_another_at_position_0(positions, mask, packs):
    positions, mask = torch.tensor([positions]), torch.tensor([mask])
    assert packs_documents(positions, mask, None) == packs
    if mask.all():
        assert packs_documents(positions, None, None) == packs


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@each_causal_case
def test_a_gap_between_positions_begins_no_document(case: Case, backend: str):
    """In training as in evaluation, with a mask of ones as without."""
    # Not of drawn masks, which training and evaluation do not share.
    drawn = {"learned_dropout": "sigmoid"} if case.config().learned_dropout == "bernoulli" else {}
    ids = token_ids(2, 10)
    positions = torch.tensor([[0, 1, 2, 5, 6, 7, 8, 9, 10, 11], [0, 1, 2, 0, 1, 4, 5, 6, 9, 10]])
    found = []
    with torch.no_grad():
        for training in (False, True):
            model = case.model(backend, **drawn).train(training)
            for mask in (None, torch.ones_like(ids)):
                found.append(model(ids, position_ids=positions, attention_mask=mask, use_cache=False).logits)
        moved = ids.clone()
        moved[[0, 1], [2, 4]] = 63 - ids[[0, 1], [2, 4]]  # before the first gap
        after = case.model(backend, **drawn)(moved, position_ids=positions, use_cache=False).logits
    for logits in found[1:]:
        torch.testing.assert_close(logits, found[0], rtol=1e-5, atol=2e-5)
    assert not torch.allclose(after[0, 3:], found[0][0, 3:]) and not torch.allclose(after[1, 5:], found[0][1, 5:])


@pytest.mark.parametrize("mode", ["train", "eval"])
@each_causal_case
def test_packed_and_padded_documents_are_separate(case: Case, mode: str):
    """Logits, every term of the loss, and gradients."""
    model = case.model().train(mode == "train")
    ids, mask, positions = padded_rows()
    labels = ids.masked_fill((positions == 0) | (mask == 0), -100)
    packed = model(ids, attention_mask=mask, position_ids=positions, labels=labels)
    packed.loss.backward()
    found = gradients(model)
    total = dict.fromkeys(loss_terms(packed), 0.0)
    for row, place in PADDED_DOCUMENTS:
        document = ids[row : row + 1, place]
        alone = model(document, labels=document, num_items_in_batch=(labels != -100).sum())
        torch.testing.assert_close(packed.logits[row : row + 1, place], alone.logits, rtol=1e-5, atol=2e-5)
        alone.loss.backward()
        for name, value in loss_terms(alone).items():
            total[name] += value.item()
    assert {name: value.item() for name, value in loss_terms(packed).items()} == pytest.approx(total, rel=1e-4)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


@each_causal_architecture
def test_packed_documents_are_not_continued_from_a_cache(architecture):
    model = Case(architecture, architecture.typical).model()
    ids, mask, positions = padded_rows()
    cache = model(ids[:, :1], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="`past_key_values` is given: a cache cannot tell them apart"):
        model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
    left_padded = mask.new_tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]])  # one document each, with zeros before it
    places = (left_padded.cumsum(-1) - 1).clamp(min=0)
    output = model(ids[:, :5], attention_mask=left_padded, position_ids=places, use_cache=True)
    assert output.past_key_values is not None


def assert_flex_equals_eager(case: Case) -> None:
    case.skip_if_excepted("flex_attention")
    ids, positions, _, _ = packed_row()
    expected = case.model("eager")(ids, position_ids=positions).logits
    model = case.model("flex_attention")
    for mask in (None, torch.ones_like(ids)):
        with torch.no_grad():  # forward only: on CPU flex has no backward
            packed = model(ids, position_ids=positions, attention_mask=mask).logits
        torch.testing.assert_close(packed, expected, rtol=1e-5, atol=2e-5)


@each_causal_case
def test_packed_documents_with_flex_attention(case: Case):
    """Interpreted: its kernels take half a minute to compile."""
    with torch.compiler.set_stance("force_eager"):
        assert_flex_equals_eager(case)


@pytest.mark.slow
@typical_causal_case
def test_packed_documents_with_compiled_flex_attention(case: Case):
    assert_flex_equals_eager(case)


@pytest.mark.parametrize("mode", ["train", "eval"])
@each_causal_case
def test_packed_losses_and_gradients_are_those_of_separate_documents(case: Case, mode: str):
    model = case.model().train(mode == "train")
    ids, positions, labels, documents = packed_row()
    count = int((labels != -100).sum())
    packed = model(ids, position_ids=positions, labels=labels)
    mean = {name: value.item() for name, value in loss_terms(packed).items()}
    packed.loss.backward()
    packed_gradients = gradients(model)

    total = dict.fromkeys(mean, 0.0)
    for document in documents:
        if document.shape[1] == 1:
            continue  # predicts nothing
        output = model(document, labels=document, num_items_in_batch=count)
        output.loss.backward()
        for name, value in loss_terms(output).items():
            total[name] += value.item()
    assert total == pytest.approx(mean, rel=1e-4, abs=1e-6)
    separate_gradients = gradients(model)
    assert packed_gradients.keys() == separate_gradients.keys()
    for name, gradient in packed_gradients.items():
        torch.testing.assert_close(gradient, separate_gradients[name], rtol=1e-3, atol=1e-5)


@each_causal_case
def test_rows_of_a_batch_are_packed_independently(case: Case):
    model = case.model()
    ids = token_ids(2, 10)
    positions = torch.stack([torch.arange(10), torch.cat([torch.arange(4), torch.arange(6)])])
    logits = model(ids, position_ids=positions).logits
    torch.testing.assert_close(logits[0], model(ids[:1]).logits[0], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(logits[1, 4:], model(ids[1:, 4:]).logits[0], rtol=1e-5, atol=2e-5)


@each_causal_architecture
def test_every_document_may_be_as_long_as_the_context(architecture):
    """The limit holds for a document, not for the row that documents are packed into."""
    case = Case(architecture, next(iter(architecture.variants)))
    model = case.model()
    limit = model.config.max_position_embeddings
    ids = token_ids(1, 2 * limit)
    logits = model(ids, position_ids=torch.arange(limit).repeat(2).unsqueeze(0)).logits
    torch.testing.assert_close(logits[:, limit:], model(ids[:, limit:]).logits, rtol=1e-5, atol=2e-5)
