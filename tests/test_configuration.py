"""Configurations are checked when they are made, and survive being written and read."""

import json
import math
import re

import pytest
from architectures import ARCHITECTURES, Architecture, each_architecture, each_case, options

from latentlm import (
    AbstractinatorConfig,
    AREncoderDecoderConfig,
    DecoderOnlyConfig,
    EncodzallConfig,
    FSQAutoencoderConfig,
    FSQConfig,
    ParallelEncoderDecoderConfig,
)

ENCODER_DECODERS = [AREncoderDecoderConfig, ParallelEncoderDecoderConfig]
ALL = [DecoderOnlyConfig, *ENCODER_DECODERS]
ON = {"learned_dropout": "bernoulli"}

# (class, fields, what the message must contain: the field, the value, what would be right)
INVALID = [
    *[(config_class, {"vocab_size": 0}, ["`vocab_size`", "0", "at least 1"]) for config_class in ALL],
    *[(config_class, {"hidden_size": -8}, ["`hidden_size`", "-8", "at least 1"]) for config_class in ALL],
    *[(config_class, {"intermediate_size": 0}, ["`intermediate_size`", "0", "at least 1"]) for config_class in ALL],
    *[(config_class, {"max_position_embeddings": 0}, ["`max_position_embeddings`", "0"]) for config_class in ALL],
    *[(config_class, {"hidden_dropout": 1.0}, ["`hidden_dropout`", "1.0", "[0, 1)"]) for config_class in ALL],
    *[(config_class, {"attention_dropout": -0.1}, ["`attention_dropout`", "-0.1", "[0, 1)"]) for config_class in ALL],
    *[
        (
            config_class,
            {"hidden_size": 32, "num_attention_heads": 5},
            ["`num_attention_heads` is 5", "`hidden_size` 32", "[1, 2, 4, 8, 16, 32]"],
        )
        for config_class in ALL
    ],
    *[
        (
            config_class,
            {"hidden_size": 30, "num_attention_heads": heads, "position_embedding_type": "rotary"},
            ["attention_heads`", "15", "'rotary'", "even"],
        )
        for config_class, heads in [
            (DecoderOnlyConfig, 2),
            *((c, 1) for c in ENCODER_DECODERS),
        ]  # 2 cross-attention heads
    ],
    *[
        (config_class, {"position_subtraction": "yes"}, ["position_subtraction", "got yes", "plain"])
        for config_class in ALL
    ],
    *[
        (config_class, {"position_embedding_type": "alibi"}, ["position_embedding_type", "got alibi", "rotary"])
        for config_class in ALL
    ],
    *[(config_class, {"hidden_size": "160"}, ["hidden_size", "int", "'160'"]) for config_class in ALL],
    (FSQConfig, {"head": "byte"}, ["head", "byte", "factorised"]),
    *[
        (EncodzallConfig, fields, parts)
        for fields, parts in [
            ({"vocab_size": 100}, ["`vocab_size` is 100", "264"]),
            ({"num_attention_heads": 3}, ["`num_attention_heads` is 3", "divide"]),
            ({"num_key_value_heads": 3}, ["`num_key_value_heads` is 3", "divide"]),
            ({"num_decoder_layers": 0}, ["`num_decoder_layers` is 0", "at least 1"]),
            ({"max_word_bytes": 4}, ["`max_word_bytes` is 4", "at least 8"]),
            ({"word_pooling": "sum"}, ["word_pooling", "sum", "query"]),
            ({"word_decoder": "both"}, ["word_decoder", "both", "shared"]),
            ({"cross_attention_positions": "words"}, ["cross_attention_positions", "words", "bytes"]),
            ({"word_loss_gamma": -1}, ["`word_loss_gamma` is -1", "at least 0"]),
            ({"hidden_dropout": 1.0}, ["`hidden_dropout` is 1.0", "dropout rate"]),
            ({"attention_dropout": -0.1}, ["`attention_dropout` is -0.1", "dropout rate"]),
            ({"classifier_dropout": 1.0}, ["`classifier_dropout` is 1.0", "dropout rate"]),
        ]
    ],
    *[
        (FSQAutoencoderConfig, fields, parts)
        for fields, parts in [
            ({"levels": [8, 1]}, ["`levels`", "[8, 1]", "at least 2"]),
            ({"levels": []}, ["`levels`"]),
            ({"levels": [2] * 63}, ["`levels`", "index"]),
            ({"vocab_size": 256}, ["`vocab_size` is 256", "257"]),
            ({"max_chunk_bytes": 10}, ["`max_chunk_bytes` is 10", "`deconv_strides`"]),
            ({"max_chunk_bytes": 32}, ["`max_chunk_bytes` is 32", "at most 16"]),
            ({"conv_strides": [1]}, ["`conv_channels`", "`conv_strides`", "equal lengths"]),
            ({"deconv_channels": [16, 0], "deconv_strides": [2, 2]}, ["`deconv_channels`", "at least 1"]),
            ({"kernel_size": 4}, ["`kernel_size` is 4", "odd"]),
            ({"pooling": "max"}, ["pooling", "max", "flatten"]),
            ({"temperature": 0}, ["`temperature` is 0", "above 0"]),
            ({"temperature": math.nan}, ["`temperature` is nan"]),
            ({"margin_loss_weight": math.nan}, ["`margin_loss_weight` is nan"]),
            ({"quantization_noise": 1.5}, ["`quantization_noise` is 1.5", "[0, 1]"]),
            ({"margin": 0.6}, ["`margin` is 0.6", "0.5"]),
            ({"margin_loss_weight": -1}, ["`margin_loss_weight` is -1", "at least 0"]),
        ]
    ],
    *[
        (config_class, {"attention_form": "linear"}, ["attention_form", "linear", "latent"])
        for config_class in (*ALL, AbstractinatorConfig, EncodzallConfig)
    ],
    *[(config_class, {"hidden_act": "silu"}, ["hidden_act", "got silu", "relu2"]) for config_class in ALL],
    (AbstractinatorConfig, {"top_head": "none"}, ["top_head", "none", "continuous"]),
    (AbstractinatorConfig, {"hidden_dropout": 1.0}, ["`hidden_dropout` is 1.0"]),
    (AbstractinatorConfig, {"attention_dropout": -0.1}, ["`attention_dropout` is -0.1"]),
    (DecoderOnlyConfig, {"num_hidden_layers": 0}, ["`num_hidden_layers`", "0", "at least 1"]),
    *[
        (config_class, fields, parts)
        for config_class in ENCODER_DECODERS
        for fields, parts in [
            ({"num_encoder_layers": 0}, ["`num_encoder_layers`", "0", "`decoder_only`"]),
            ({"num_decoder_layers": 0}, ["`num_decoder_layers`", "0", "at least 1"]),
            ({"num_cross_attention_heads": 7}, ["`num_cross_attention_heads`", "7", "hidden_size"]),
            ({"embedding_loss": "l1"}, ["embedding_loss", "got l1", "log_cosine"]),
            ({"embedding_loss_weight": -1.0}, ["`embedding_loss_weight`", "-1.0", "0 or more"]),
            ({"embedding_loss_weight": math.nan}, ["`embedding_loss_weight` is nan"]),
            ({"mask_l1_loss_weight": math.nan, "learned_dropout": "bernoulli"}, ["`mask_l1_loss_weight` is nan"]),
            ({"embedding_loss_kernel_size": 0}, ["`embedding_loss_kernel_size`", "0", "at least 1"]),
            ({"embedding_loss_aggregation": "max"}, ["embedding_loss_aggregation", "got max", "mixing"]),
            ({"decoder_order": "mlp_first"}, ["decoder_order", "got mlp_first", "cross_first"]),
            ({"learned_dropout_stacks": "encoder"}, ["`learned_dropout_stacks`", "'encoder'", "'none'"]),
            (ON | {"learned_dropout_stacks": "first"}, ["learned_dropout_stacks", "got first", "decoder"]),
        ]
    ],
    (ParallelEncoderDecoderConfig, {"num_decoder_layers": 6}, ["`num_decoder_layers` is 6", "`num_encoder_layers` 5"]),
    (
        ParallelEncoderDecoderConfig,
        {"decoder_order": "cross_first", "decoder_self_attention": False},
        ["`decoder_order` is 'cross_first'", "`decoder_self_attention`", "'self_first'"],
    ),
    *[
        (config_class, fields, parts)
        for config_class in (*ALL, AbstractinatorConfig, EncodzallConfig)
        for fields, parts in [
            ({"learned_dropout": "yes"}, ["learned_dropout", "got yes", "bernoulli"]),
            (ON | {"learned_dropout_input": "tokens"}, ["learned_dropout_input", "got tokens", "embedding"]),
            (ON | {"learned_dropout_shift": -0.1}, ["`learned_dropout_shift` is -0.1", "[0, pi]"]),
            (ON | {"learned_dropout_shift": 3.15}, ["`learned_dropout_shift` is 3.15", "[0, pi]"]),
            (ON | {"learned_dropout_detach": True}, ["`learned_dropout_detach`", "'embedding'", "'hidden_state'"]),
            (ON | {"learned_dropout_heads": 7}, ["`learned_dropout_heads` is 7", "`hidden_size`"]),
            (ON | {"learned_dropout_heads": 0}, ["`learned_dropout_heads` is 0", "`hidden_size`"]),
            (ON | {"learned_dropout_groups": 8}, ["`learned_dropout_groups` is 8", "are gone", "0.2.0"]),
            (ON | {"mask_l1_loss": "cubed"}, ["mask_l1_loss", "got cubed", "absolute"]),
            (ON | {"mask_l1_loss_weight": -1}, ["`mask_l1_loss_weight` is -1", "0 or more"]),
            (ON | {"mask_l1_loss_weight_min": 0.05}, ["`mask_l1_loss_weight_min` is 0.05", "`mask_l1_loss_rate`"]),
            (ON | {"mask_l1_loss_rate": 0.0}, ["`mask_l1_loss_rate` is 0.0", "never reaches its maximum 0.1"]),
            (ON | {"mask_l1_loss_rate": -1e-3}, ["`mask_l1_loss_rate` is -0.001", "never reaches its maximum"]),
            (
                ON | {"mask_l1_loss_rate": 1e-3, "mask_l1_loss_weight_min": 0.1},
                ["`mask_l1_loss_weight_min` is 0.1", "`mask_l1_loss_weight` 0.1", "below"],
            ),
            (ON | {"mask_entropy_loss_rate": 1e-3}, ["`mask_entropy_loss_weight_min` is 0.0", "weight` 0.0"]),
            # LearnedDropout's options without LearnedDropout
            ({"learned_dropout_shift": 1.0}, ["`learned_dropout_shift` is 1.0", "`learned_dropout` is 'none'"]),
            ({"mask_entropy_loss_weight": 1.0}, ["`mask_entropy_loss_weight` is 1.0", "`learned_dropout` is 'none'"]),
            (
                {"mask_l1_loss": "absolute", "learned_dropout_heads": 4},  # all of them in one message
                ["`mask_l1_loss` is 'absolute'", "`learned_dropout_heads` is 4", "'none'", "mask_l1_loss 'squared'"],
            ),
        ]
    ],
]


@pytest.mark.parametrize(("config_class", "fields", "parts"), INVALID, ids=str)
def test_an_invalid_value_is_an_error_that_names_field_value_and_what_is_right(config_class, fields, parts):
    with pytest.raises(Exception) as raised:  # huggingface_hub's errors have no narrower common base
        config_class(**fields)
    for part in parts:
        assert part in str(raised.value)


@each_architecture
def test_every_size_and_choice_is_checked(architecture: Architecture):
    """The list above cannot forget a field of a later architecture."""
    covered = {
        name for checked, fields, _ in INVALID if issubclass(architecture.config_class, checked) for name in fields
    }
    checked = {
        name
        for name in architecture.own_fields
        if re.search(r"Literal|dropout", f"{name} {architecture.config_class.__dataclass_fields__[name].type}")
    }
    same_check = {"embedding_loss_output_norm", "embedding_loss_input_norm", "embedding_loss_detach"}
    assert checked - same_check <= covered


@each_case
def test_json_round_trip(case, tmp_path):
    config = case.config()
    config.save_pretrained(tmp_path)
    again = type(config).from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert getattr(again, "num_hidden_layers", None) == getattr(config, "num_hidden_layers", None)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == case.architecture.name
    assert "per_layer_config" not in written  # derived, not stored


@each_architecture
def test_every_option_is_in_the_table(architecture: Architecture):
    """An option that no entry of tests/architectures.py changes would not be covered by test_reference.py."""
    varied = {name.split("=")[0] for name, _, _ in options(architecture)}
    assert set(architecture.own_fields) == varied | set(architecture.inert)


def test_auto_map_names_every_auto_class():
    for architecture in ARCHITECTURES:
        name = architecture.name
        assert architecture.config_class().auto_map == {
            "AutoConfig": f"configuration_{name}.{architecture.config_class.__name__}",
            **{auto.__name__: f"modeling_{name}.{head.__name__}" for auto, head in architecture.heads.items()},
        }


def test_the_cache_layers_are_derived_and_cannot_be_set():
    config = AREncoderDecoderConfig(num_encoder_layers=2, num_decoder_layers=3, hidden_size=32, num_attention_heads=2)
    assert [layer.num_attention_heads for layer in config.per_layer_config] == [2, 2, *[2, 4] * 3]
    assert config.num_hidden_layers == 5
    with pytest.raises(ValueError, match="per_layer_config"):
        config.per_layer_config = [config]
