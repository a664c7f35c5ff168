"""Configuration of the auto-regressive encoder-decoder."""

from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_encoder_decoder import EncoderDecoderConfig


@strict
class AREncoderDecoderConfig(EncoderDecoderConfig):
    """A causal encoder followed by a causal decoder that also cross-attends to the encoder output.

    Arguments are those of [`EncoderDecoderConfig`]; the depths of the two stacks may differ. The defaults are the
    original sizes with 13 + 13 layers: 15,762,900 parameters without the position table.
    """

    model_type = "ar_encoder_decoder"

    hidden_size: int = 150
    num_attention_heads: int = 5

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.auto_map = {
            "AutoConfig": "configuration_ar_encoder_decoder.AREncoderDecoderConfig",
            "AutoModel": "modeling_ar_encoder_decoder.AREncoderDecoderModel",
            "AutoModelForCausalLM": "modeling_ar_encoder_decoder.AREncoderDecoderForCausalLM",
        }


__all__ = ["AREncoderDecoderConfig"]
