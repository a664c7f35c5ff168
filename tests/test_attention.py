"""Attention of every architecture in its forms: what a cache keeps, what the configuration refuses."""

import pytest
import torch
from architectures import ARCHITECTURES, LATENT, SIZES, Case, build, token_ids
from encodzall_setup import SIZES as ENCODZALL_SIZES
from encodzall_setup import build as build_encodzall
from encodzall_setup import encode, labels_of

from latentlm import (
    AbstractinatorConfig,
    AREncoderDecoderConfig,
    DecoderOnlyConfig,
    DecoderOnlyForCausalLM,
    EncodzallConfig,
)
from latentlm.models.block_attention import Attention, SingleKeyAttention

CONFIGURATIONS = [
    (DecoderOnlyConfig, SIZES),
    (AREncoderDecoderConfig, SIZES),
    (AbstractinatorConfig, SIZES),
    (EncodzallConfig, ENCODZALL_SIZES),
]
BAD_FIELDS = [
    ({"num_key_value_heads": 3}, "`num_key_value_heads` is 3, but must divide `num_attention_heads`"),
    ({"num_key_value_heads": 0}, "`num_key_value_heads` is 0"),
    (LATENT | {"num_key_value_heads": 1}, "each of the `num_attention_heads` . has keys of its own"),
    ({"latent_rope_size": 3}, "`latent_rope_size` is 3, but rotary positions need an even size"),
    ({"key_value_latent_size": 0}, "`key_value_latent_size` is 0, but it must be at least 1"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_FIELDS, ids=[str(fields) for fields, _ in BAD_FIELDS])
@pytest.mark.parametrize(("config_class", "sizes"), CONFIGURATIONS, ids=lambda value: getattr(value, "model_type", ""))
def test_configurations_say_what_is_wrong(config_class, sizes, fields, message):
    with pytest.raises(Exception, match=message):
        config_class(**sizes | fields)


def test_heads_of_cross_attention_are_grouped_alike():
    with pytest.raises(Exception, match=r"so 2 heads share .* not divide `num_cross_attention_heads` 1"):
        AREncoderDecoderConfig(**SIZES, num_key_value_heads=1, num_cross_attention_heads=1)


def test_grouped_heads_are_those_of_equal_keys():
    """With the keys and values of each group repeated, the ungrouped model is the same one."""
    grouped = build(DecoderOnlyForCausalLM, DecoderOnlyConfig(**SIZES, num_hidden_layers=2, num_key_value_heads=1))
    whole = build(DecoderOnlyForCausalLM, DecoderOnlyConfig(**SIZES, num_hidden_layers=2))
    weights = grouped.state_dict()
    for name in [name for name in weights if "qkv_proj" in name]:
        query, key, value = weights[name].split((32, 16, 16))
        weights[name] = torch.cat((query, key, key, value, value))
    whole.load_state_dict(weights)
    ids = token_ids(2, 9)
    torch.testing.assert_close(grouped(ids).logits, whole(ids).logits)


def test_a_cache_keeps_the_latent_and_the_turned_key():
    cache = Case(ARCHITECTURES[0], "latent").model()(token_ids(2, 9), use_cache=True).past_key_values
    assert {(layer.keys.shape, layer.values.shape) for layer in cache.layers} == {((2, 1, 9, 8), (2, 1, 9, 4))}


@pytest.mark.parametrize("word_decoder", ["own", "shared", "none"])
def test_latent_attention_of_encodzall(word_decoder):
    """It changes the output, and its cache nothing."""
    model = build_encodzall(word_decoder=word_decoder, **LATENT)
    with torch.no_grad():
        losses = [other(**encode(), labels=labels_of()).loss for other in (model, build_encodzall())]
    assert not torch.isclose(*losses)
    outputs = [model.generate(**encode(), max_length=24, use_cache=use_cache) for use_cache in (True, False)]
    assert torch.equal(*outputs) and outputs[0].shape[1] > 3


@pytest.mark.parametrize("groups", [1, 2])
def test_a_single_key_is_read_as_its_value(groups):
    """Whatever the query: as attention does whose memory is one row."""
    config = EncodzallConfig(**ENCODZALL_SIZES, num_key_value_heads=4 // groups)
    config._attn_implementation = "sdpa"
    attention, single = Attention(config, 0, reads_memory=True), SingleKeyAttention(config, 0, reads_memory=True)
    single.v_proj.weight.data = attention.kv_proj.weight.data.chunk(2)[1]
    single.o_proj.weight.data = attention.o_proj.weight.data
    memory = torch.randn(3, 1, 64)
    expected, _ = attention(torch.randn(3, 5, 64), memory=memory)
    for module in (attention, single):
        torch.testing.assert_close(module.read_single(memory).expand(3, 5, 64), expected)
