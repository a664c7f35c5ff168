"""`torch.export` of every architecture, with batches and lengths of any size."""

import encodzall_setup
import pytest
import torch
from architectures import AUTOENCODER, Case, build, token_ids, typical_causal_case
from encodzall_setup import EQUAL, TEXTS, each_variant, encode
from torch.export import Dim, export

from latentlm import EncodzallModel, FSQAutoencoderConfig, FSQAutoencoderModel
from latentlm.models.encodzall_packing import Packing

pytestmark = pytest.mark.filterwarnings("ignore")
ANY = Dim.DYNAMIC


def padded(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = token_ids(rows, length, seed=rows)
    mask = torch.ones_like(ids)
    mask[-1, length // 2 :] = 0
    return ids, mask


@torch.no_grad()
@typical_causal_case
def test_causal_models_export_exactly(case: Case):
    case.skip_if_excepted("export")
    model = case.model()
    ids, mask = padded(2, 9)
    shapes = {"input_ids": {0: ANY, 1: ANY}, "attention_mask": {0: ANY, 1: ANY}, "use_cache": None}
    program = export(model, (ids,), {"attention_mask": mask, "use_cache": False}, dynamic_shapes=shapes)
    ids, mask = padded(3, 14)
    found = program.module()(ids, attention_mask=mask, use_cache=False).logits
    assert torch.equal(found, model(ids, attention_mask=mask, use_cache=False).logits)


@torch.no_grad()
def test_the_fsq_autoencoder_exports_exactly():
    model = build(FSQAutoencoderModel, FSQAutoencoderConfig(**AUTOENCODER), "eager")
    chunks = token_ids(3, 4)
    program = export(model, (chunks,), dynamic_shapes={"input_ids": {0: ANY}})
    chunks = token_ids(5, 4, seed=1)
    found, expected = program.module()(chunks), model(chunks)
    assert torch.equal(found.code_index, expected.code_index) and torch.equal(found.logits, expected.logits)


@torch.no_grad()
@each_variant
def test_the_encoders_of_encodzall_export_with_a_packing(variant):
    model = encodzall_setup.build(variant, EncodzallModel)

    def inputs(texts: list[str]) -> tuple[torch.Tensor, Packing]:
        ids = encode(texts)["input_ids"]
        return ids, model.pack(ids)["packing"]

    ids, packing = inputs(TEXTS)
    sizes = {0: ANY, 1: ANY}
    shapes = {"input_ids": sizes, "packing": dict.fromkeys(packing, sizes)}
    program = export(model, (ids,), {"packing": packing}, dynamic_shapes=shapes).module()
    for texts in (TEXTS, ["other texts, more words than before in the longest one", "two three"]):
        ids, packing = inputs(texts)
        torch.testing.assert_close(program(ids, packing=packing).pooler_output, model(ids).pooler_output, **EQUAL)
