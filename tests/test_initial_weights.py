"""How weights start, which the reference does not see."""

import math
import sys

import pytest
from conftest import REPOSITORY
from transformers import AutoConfig

sys.path.insert(0, str(REPOSITORY / "eval" / "experiments"))

import initial_weights


@pytest.mark.parametrize("folder", initial_weights.FOLDERS)
def test_a_published_configuration_starts_near_a_uniform_guess(folder: str):
    config = AutoConfig.from_pretrained(REPOSITORY / "hub_configs" / f"{folder}-tiny")
    loss, stream = initial_weights.measure(config, seed=0)
    assert loss == pytest.approx(math.log(config.vocab_size), abs=0.15)
    assert all(0 < deviation < 2 for stack in stream.values() for deviation in stack)
