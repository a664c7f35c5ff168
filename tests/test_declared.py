"""What model classes and configurations declare to other tools holds, which is found by using it."""

import re
from collections.abc import Callable
from typing import Any

import encodzall_setup
import pytest
import torch
from architectures import ARCHITECTURES as LANGUAGE_MODELS
from architectures import AUTOENCODER, Case, parameters, token_ids
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from latentlm import FSQAutoencoderConfig, FSQAutoencoderModel


def language_model(case: Case) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    ids = token_ids(2, 12)
    return case.model(), {"input_ids": ids, "labels": ids}


def encodzall(variant: str) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    inputs = dict(encodzall_setup.encode())
    return encodzall_setup.build(variant), inputs | {"labels": encodzall_setup.labels_of()}


MODELS: list[Any] = [
    *(pytest.param(lambda case=p.values[0]: language_model(case), id=p.id) for p in parameters(LANGUAGE_MODELS)),
    *(pytest.param(lambda name=name: encodzall(name), id=f"encodzall-{name}") for name in encodzall_setup.VARIANTS),
    pytest.param(lambda: (FSQAutoencoderModel(FSQAutoencoderConfig(**AUTOENCODER)), {}), id="fsq_autoencoder"),
]
each_model = pytest.mark.parametrize("make", MODELS)


@each_model
def test_a_custom_attention_backend_takes_the_place_of_every_attention(make: Callable, monkeypatch):
    """In a forward and in cached decoding, with masks of its own."""
    model, inputs = make()
    if not model._supports_attention_backend:
        assert not any("attn" in name for name, _ in model.named_modules())
        return
    calls = []

    def counting(*args, **kwargs):
        calls.append(1)
        return sdpa_attention_forward(*args, **kwargs)

    def run() -> tuple[torch.Tensor, int, torch.Tensor | None]:
        calls.clear()
        with torch.no_grad():
            logits = model(**inputs).logits
        count, ids = len(calls), None
        if model.can_generate():
            prompt = {name: value for name, value in inputs.items() if name != "labels"}
            ids = model.generate(**prompt, max_new_tokens=4, do_sample=False)
            assert len(calls) > count
        return logits, count, ids

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", counting)
    logits, count, ids = run()
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", None)  # not called any more
    AttentionInterface.register("counting", counting)
    AttentionMaskInterface.register("counting", sdpa_mask)
    model.set_attn_implementation("counting")
    found, custom, generated = run()
    assert custom == count > 0
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
    assert ids is None or torch.equal(generated, ids)


@each_model
def test_every_entry_of_the_fsdp_plan_is_a_module(make: Callable):
    model, _ = make()
    names = {re.sub(r"\.\d+(?=\.|$)", ".*", name) for name, _ in model.named_modules()}
    assert not {entry for entry in model.fsdp_plan if entry not in names}
