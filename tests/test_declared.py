"""What model classes and configurations declare to other tools holds, which is found by using it."""

import re

import torch
from architectures import Architecture, Case, each_architecture, each_case
from conftest import REPOSITORY
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from latentlm.models import block_attention
from latentlm.models.block_attention import attend_seen


@each_case
def test_a_custom_attention_backend_takes_the_place_of_every_attention(case: Case, monkeypatch):
    """In a forward and in cached decoding, with masks of its own."""
    model = case.model()
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
            logits = model(**case.batch()).logits
        count, ids = len(calls), None
        if model.can_generate():
            ids = model.generate(**case.prompt(), max_new_tokens=4, do_sample=False)
            assert len(calls) > count
        return logits, count, ids

    def counting_seen(*args):
        calls.append(1)
        return attend_seen(*args)

    # It stands in for sdpa where few keys are seen.
    monkeypatch.setattr(block_attention, "attend_seen", counting_seen)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", counting)
    logits, count, ids = run()
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", None)  # not called any more
    monkeypatch.setattr(block_attention, "attend_seen", None)
    AttentionInterface.register("counting", counting)
    AttentionMaskInterface.register("counting", sdpa_mask)
    model.set_attn_implementation("counting")
    found, custom, generated = run()
    assert custom == count > 0
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
    assert ids is None or torch.equal(generated, ids)


@each_case
def test_every_entry_of_the_fsdp_plan_is_a_module(case: Case):
    model = case.model()
    names = {re.sub(r"\.\d+(?=\.|$)", ".*", name) for name, _ in model.named_modules()}
    assert not {entry for entry in model.fsdp_plan if entry not in names}


@each_architecture
def test_what_an_architecture_cannot_do_is_written_down(architecture: Architecture):
    limits = (REPOSITORY / "docs" / "limits.md").read_text(encoding="utf-8")
    assert not [capability for capability in architecture.exceptions if f"`{capability}`" not in limits]
