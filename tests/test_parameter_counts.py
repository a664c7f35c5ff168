"""Parameter counts of the published runs, to the digit. Counted without the position table, on the meta device."""

import pytest
import torch
from torch import nn

from latentlm import (
    AREncoderDecoderConfig,
    AREncoderDecoderForCausalLM,
    DecoderOnlyConfig,
    DecoderOnlyForCausalLM,
    ParallelEncoderDecoderConfig,
    ParallelEncoderDecoderForCausalLM,
)


def count(model: nn.Module, with_positions: bool = False) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if with_positions or "embed_positions" not in name)


BASE = {
    "hidden_size": 768,
    "num_encoder_layers": 6,
    "num_decoder_layers": 6,
    "num_attention_heads": 12,
    "max_position_embeddings": 1024,
}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 15_762_900),  # "plain": the defaults are the original run
        ({"position_subtraction": "plain"}, 15_762_900),
        ({"embedding_loss": "mse"}, 15_763_500),
        ({"embedding_loss": "cosine"}, 15_763_500),
        ({"embedding_loss": "mse", "embedding_loss_weight": 8.0, "position_subtraction": "plain"}, 15_763_500),
        ({"embedding_loss": "mse", "embedding_loss_output_norm": "plain"}, 15_763_200),
        (BASE, 138_306_048),
        (BASE | {"embedding_loss": "mse"}, 138_309_120),
    ],
    ids=lambda value: "-".join(map(str, value.values())) or "default" if isinstance(value, dict) else str(value),
)
def test_ar_encoder_decoder(fields, expected):
    with torch.device("meta"):
        assert count(AREncoderDecoderForCausalLM(AREncoderDecoderConfig(**fields))) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 16_036_800),
        ({"hidden_dropout": 0.2, "attention_dropout": 0.2}, 16_036_800),
        ({"hidden_size": 156, "num_attention_heads": 12}, 15_441_192),
        ({"position_subtraction": "plain"}, 16_036_800),
        ({"hidden_size": 210, "num_hidden_layers": 10}, 15_850_380),  # the parallel model's peer
        ({"hidden_size": 144, "num_attention_heads": 9, "learned_dropout": "bernoulli"}, 15_335_424),
    ],
    ids=str,
)
def test_decoder_only(fields, expected):
    with torch.device("meta"):
        assert count(DecoderOnlyForCausalLM(DecoderOnlyConfig(**fields))) == expected


MASKS = {"learned_dropout": "bernoulli"}
MASK = 3 * 200 * 200 + 200  # queries, keys and values, and the shift


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 15_697_600),
        ({"embedding_loss": "mse"}, 15_698_400),  # the published size
        ({"decoder_self_attention": False}, 15_697_600 - 5 * (4 * 200 * 200 + 200)),
        ({"num_decoder_layers": 3}, 15_697_600 - 2 * (16 * 200 * 200 + 4 * 200)),
        (MASKS, 15_697_600 + 10 * MASK),
        (MASKS | {"learned_dropout_stacks": "decoder"}, 15_697_600 + 5 * MASK),
        (MASKS | {"learned_dropout_input": "embedding"}, 15_697_600 + 3 * 200 * 200 + 10 * 200),
    ],
    ids=str,
)
def test_parallel_encoder_decoder(fields, expected):
    with torch.device("meta"):
        assert count(ParallelEncoderDecoderForCausalLM(ParallelEncoderDecoderConfig(**fields))) == expected


@pytest.mark.parametrize(
    ("fields", "rows"),
    [
        ({}, 200),
        ({"position_subtraction": "plain"}, 201),
        ({"position_subtraction": "layer_norm"}, 201),
        ({"position_embedding_type": "rotary"}, 0),
        ({"position_embedding_type": "rotary", "position_subtraction": "plain"}, 201),
        ({"add_next_position": True}, 201),
    ],
    ids=str,
)
def test_position_table_has_one_more_row_where_the_next_position_is_used(fields, rows):
    with torch.device("meta"):  # 5 cross-attention heads: rotary positions need an even head size
        model = AREncoderDecoderForCausalLM(AREncoderDecoderConfig(num_cross_attention_heads=5, **fields))
    assert count(model, with_positions=True) - count(model) == rows * 150


def test_cross_attention_has_twice_the_heads_of_self_attention_unless_told():
    assert AREncoderDecoderConfig(num_attention_heads=5).num_cross_attention_heads == 10
    assert AREncoderDecoderConfig(num_attention_heads=5, num_cross_attention_heads=3).num_cross_attention_heads == 3
