"""Configuration of the decoder-only baseline."""

from collections.abc import Sequence
from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_common import TransformerConfig


@strict
class DecoderOnlyConfig(TransformerConfig):
    """A plain causal transformer, the baseline with which every architecture of this package is compared.

    Arguments are those of [`TransformerConfig`], and:

    Args:
        num_hidden_layers: number of layers.

    The defaults are those of the original baseline: 16,036,800 parameters without the position table.
    """

    model_type = "decoder_only"

    num_hidden_layers: int = 26

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.auto_map = {
            "AutoConfig": "configuration_decoder_only.DecoderOnlyConfig",
            "AutoModel": "modeling_decoder_only.DecoderOnlyModel",
            "AutoModelForCausalLM": "modeling_decoder_only.DecoderOnlyForCausalLM",
        }

    @property
    def num_learned_dropouts(self) -> int:
        return self.num_hidden_layers

    @property
    def attention_configs(self) -> Sequence["DecoderOnlyConfig"]:
        return [self] * self.num_hidden_layers

    def validate_layers(self) -> None:
        if self.num_hidden_layers < 1:
            raise ValueError(f"`num_hidden_layers` is {self.num_hidden_layers}, but it must be at least 1.")


__all__ = ["DecoderOnlyConfig"]
