"""How weights start, which neither the table of options nor the reference sees."""

import math
import sys

import pytest
import torch
from architectures import ARCHITECTURES, Architecture
from conftest import REPOSITORY
from transformers import AutoConfig

from latentlm.models.block_layers import PreNormLayer

sys.path.insert(0, str(REPOSITORY / "eval" / "experiments"))

import initial_weights

WITH_LAYERS = [architecture for architecture in ARCHITECTURES if "zero_init_residual" in architecture.own_fields]


@pytest.mark.parametrize("architecture", WITH_LAYERS, ids=lambda row: row.name)
def test_with_zero_init_residual_every_layer_starts_as_the_identity(architecture: Architecture):
    """Whatever other options there are: scales of an embedding or of values change nothing of that."""
    fields = architecture.sizes | architecture.variants.get("block_options", {})
    states = torch.randn(2, 5, fields["hidden_size"])
    for on in (True, False):
        model = architecture.head_class(architecture.config_class(**fields, zero_init_residual=on))
        layers = [module for module in model.modules() if isinstance(module, PreNormLayer)]
        assert layers
        for layer in layers:
            output, *_ = layer(states, embeddings=torch.randn_like(states))
            assert torch.equal(output, states) == on


@pytest.mark.parametrize("folder", initial_weights.FOLDERS)
def test_a_published_configuration_starts_near_a_uniform_guess(folder: str):
    config = AutoConfig.from_pretrained(REPOSITORY / "hub_configs" / f"{folder}-tiny")
    loss, stream = initial_weights.measure(config, seed=0)
    assert loss == pytest.approx(math.log(config.vocab_size), abs=0.15)
    assert all(0 < deviation < 2 for stack in stream.values() for deviation in stack)
