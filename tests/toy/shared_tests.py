"""The row of the shared tests, which `LATENTLM_TEST_ROWS` hands to tests/architectures.py."""

from architectures import Architecture
from transformers import AutoModelForCausalLM

from .configuration_gated_window import GatedWindowConfig
from .modeling_gated_window import GatedWindowForCausalLM, GatedWindowModel

ROW = Architecture(
    GatedWindowConfig,
    GatedWindowModel,
    GatedWindowForCausalLM,
    AutoModelForCausalLM,
    sizes={
        "vocab_size": 64,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "max_position_embeddings": 32,
        "pad_token_id": 0,
    },
    # Wide enough that a position's logits come from all tokens before it, as the shared tests expect.
    variants={"default": {"window": 8}, "wide": {"window": 12}},
    typical="default",
    tiny="",
    changes={"vocab_size": 65, "hidden_size": 24, "num_hidden_layers": 1, "window": 2},
    inert={
        "max_position_embeddings": "",
        "initializer_range": "",
        "pad_token_id": "",
        "bos_token_id": "",
        "eos_token_id": "",
    },
)
