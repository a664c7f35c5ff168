"""Small EncodZall models and texts that several test files share."""

import architectures
import pytest
from architectures import ARCHITECTURES

from latentlm import EncodzallConfig, EncodzallForMaskedDenoising, EncodzallTokenizer

[ROW] = [architecture for architecture in ARCHITECTURES if architecture.config_class is EncodzallConfig]
SIZES = ROW.sizes
VARIANTS = {name: fields for name, fields in ROW.variants.items() if name != "no_word_loss"}  # test_encodzall.py has it
OPTIONS = {
    "num_key_value_heads": 2,
    "num_word_encoder_layers": 1,
    "num_context_encoder_layers": 1,
    "num_decoder_layers": 1,
    "max_word_bytes": 8,
    "word_pooling": "max",
    "word_decoder": "shared",
    "cross_attention_positions": "none",
    "sequence_loss_weight": 0.5,
    "word_loss_weight": 0.5,
    "word_loss_gamma": 0.0,
    "rms_norm_eps": 1e-2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 7.0},
    "hidden_dropout": 0.5,
    "attention_dropout": 0.5,
}
"""One other value of each option that golden.json has on record."""
TEXTS = [
    "Words of a text, packed.",
    "",
    "  a longwordthatiscutintosomeparts end ",
    "日本語のテキスト and more words here",
]
CLOSE = {"atol": 1e-4, "rtol": 1e-4}  # of large logits
EQUAL = {"atol": 1e-5, "rtol": 1e-5}
BACKENDS = ["eager", "sdpa", "flex_attention"]
each_variant = pytest.mark.parametrize("variant", VARIANTS)
tokenizer = EncodzallTokenizer()


def build(variant: str = "default", model_class=EncodzallForMaskedDenoising, backend: str = "sdpa", **fields):
    return architectures.build(model_class, EncodzallConfig(**{**SIZES, **VARIANTS[variant], **fields}), backend)


def encode(texts=TEXTS, **options):
    return tokenizer(texts, padding=True, return_tensors="pt", **options)


def labels_of(texts=TEXTS):
    ids = encode(texts)["input_ids"]
    return ids.masked_fill(ids == tokenizer.pad_token_id, -100)
