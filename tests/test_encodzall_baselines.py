"""The encoders that EncodZall is compared with in eval/encodzall/baselines.py."""

import sys

import pytest
import torch
from conftest import REPOSITORY

from latentlm import EncodzallForMaskedDenoising, EncodzallTokenizer
from latentlm.runs import load_recipe

sys.path.insert(0, str(REPOSITORY / "eval" / "encodzall"))
from baselines import BASELINES, learn_pieces

TEXTS = ["The first text, and", "", "日本語 of the second  ", "word"]
PIECES = learn_pieces(b"The first text and the second of all words, " * 20).to_str()


@pytest.mark.parametrize("kind", BASELINES)
def test_a_baseline_has_as_many_parameters_and_reads_what_encodzall_reads(kind):
    config = load_recipe(REPOSITORY / "eval" / "encodzall" / "realistic.yaml", {"output_dir": "unused"}).build_config(
        EncodzallTokenizer()
    )
    ours = EncodzallForMaskedDenoising(config).num_parameters()
    config.pieces = PIECES
    model = BASELINES[kind](config)
    assert abs(model.num_parameters() / ours - 1) < 0.03
    batch = EncodzallTokenizer()(TEXTS, padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    output = model.train()(**batch, labels=labels, clean_input_ids=batch["input_ids"])
    output.loss.backward()
    assert output.contrastive_loss > 0
    assert all(parameter.grad is not None for parameter in model.parameters())
    # Each text for itself: neither the neighbours nor the padding move it.
    model.eval()
    with torch.no_grad():
        together = model.model(**batch).pooler_output
        alone = [model.model(**EncodzallTokenizer()(text, return_tensors="pt")).pooler_output for text in TEXTS]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
