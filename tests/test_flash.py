"""Flash attention, whose kernels need a GPU: what reaches them gives what sdpa gives (flash.py reads it as they do)."""

import encodzall_setup
import pytest
import torch
from architectures import CAUSAL, Case, each_causal_case, token_ids
from flash import flash_attention
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from latentlm import EncodzallForTokenClassification

FLASH = "flash_attention_2"


@pytest.fixture(autouse=True)
def written_out(monkeypatch) -> list[int]:
    """Flash attention written out; returns its calls."""
    calls: list[int] = []

    def counted(*args, **kwargs):
        calls.append(1)
        return flash_attention(*args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, FLASH, counted)
    return calls


def on_flash(model: PreTrainedModel) -> PreTrainedModel:
    """The model, told to use flash attention by its configuration, past transformers' look for the kernel."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config._attn_implementation = FLASH
    return model


def rows_of_documents() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and positions of two rows with three and two documents, the second padded on both sides."""
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 0, 1, 2, 3], [0, 0, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5]])
    mask = torch.ones_like(positions)
    mask[1, :2] = mask[1, 10:] = 0
    return token_ids(2, 12), mask, positions


@each_causal_case
@pytest.mark.parametrize("inputs", ["plain", "padded", "packed", "packed_and_padded"])
@torch.no_grad()
def test_causal_models(case, inputs, written_out):
    ids, mask, positions = rows_of_documents()
    options = {
        "plain": {},
        "padded": {"attention_mask": mask},
        "packed": {"position_ids": positions},
        "packed_and_padded": {"attention_mask": mask, "position_ids": positions},
    }[inputs]
    real = mask.bool() if "padded" in inputs else torch.ones_like(mask).bool()
    expected = case.model("sdpa")(ids, **options).logits
    found = on_flash(case.model())(ids, **options).logits
    assert written_out
    torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-4)


@each_causal_case
def test_causal_models_generate(case, written_out):
    ids = token_ids(2, 12)
    expected = case.model("sdpa").generate(ids, max_new_tokens=6, do_sample=False)
    assert torch.equal(on_flash(case.model()).generate(ids, max_new_tokens=6, do_sample=False), expected)
    assert written_out


@pytest.mark.parametrize("variant", encodzall_setup.VARIANTS)
def test_encodzall(variant, written_out):
    inputs = encodzall_setup.encode()
    labels = encodzall_setup.labels_of()
    expected = encodzall_setup.build(variant)(**inputs, labels=labels)
    model = encodzall_setup.build(variant)
    on_flash(model)
    output = model(**inputs, labels=labels)
    assert written_out
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-3, atol=1e-4)
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    model.set_attn_implementation("sdpa")
    assert torch.equal(ids, model.generate(**inputs, max_new_tokens=6, do_sample=False))
    assert EncodzallForTokenClassification._supports_flash_attn


def test_a_mask_that_flash_attention_cannot_read_is_an_error():
    model = on_flash(Case(CAUSAL[0], "default").model())
    with pytest.raises(ValueError, match="`attention_mask` has 4 dimensions, but `attn_implementation` 'flash"):
        model(token_ids(1, 4), attention_mask=torch.zeros(1, 1, 4, 4))
