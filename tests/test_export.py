"""`torch.export` of every architecture, with batches and lengths of any size."""

import encodzall_setup
import pytest
import torch
from architectures import AUTOENCODER, Case, build, token_ids, typical_causal_case
from encodzall_setup import EQUAL, TEXTS, each_variant, encode
from torch import nn
from torch.export import Dim, export

from latentlm import EncodzallModel, FSQAutoencoderConfig, FSQAutoencoderModel
from latentlm.models.encodzall_words import Packing

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


class Embedder(nn.Module):
    """EncodZall's encoders, where the words are packed outside: `rows` and `words` lend their shapes alone."""

    def __init__(self, model: EncodzallModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids, packed: list[torch.Tensor], rows: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        packing = Packing(*packed, num_rows=rows.shape[0], row_length=rows.shape[1], longest=words.shape[1])
        return self.model(input_ids, packing=packing).pooler_output


def packed_texts(model: EncodzallModel, texts: list[str]) -> tuple:
    ids = encode(texts)["input_ids"]
    packing = model.pack(ids, ids != model.config.pad_token_id)
    packed = [value for value in vars(packing).values() if isinstance(value, torch.Tensor)]
    return ids, packed, torch.empty(packing.num_rows, packing.row_length), torch.empty(len(ids), packing.longest)


@torch.no_grad()
@each_variant
def test_the_encoders_of_encodzall_export_with_a_packing(variant):
    model = encodzall_setup.build(variant, EncodzallModel)
    example = packed_texts(model, TEXTS)
    shapes = ({0: ANY, 1: ANY}, [{0: ANY}] * len(example[1]), {0: ANY}, {0: ANY, 1: ANY})
    program = export(Embedder(model), example, dynamic_shapes=shapes).module()
    for texts in (TEXTS, ["other texts, more words than before in the longest one", "two three"]):
        inputs = packed_texts(model, texts)
        torch.testing.assert_close(program(*inputs), model(inputs[0]).pooler_output, **EQUAL)
