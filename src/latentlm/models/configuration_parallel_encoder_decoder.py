"""Configuration of the parallel encoder-decoder."""

from collections.abc import Sequence
from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_encoder_decoder import EncoderDecoderConfig


@strict
class ParallelEncoderDecoderConfig(EncoderDecoderConfig):
    """Encoder and decoder streams run in lockstep: decoder layer *l* cross-attends to encoder layer *l*.

    Arguments are those of [`EncoderDecoderConfig`], and:

    Args:
        num_decoder_layers: number of layers of the decoder, at most `num_encoder_layers`. With fewer, the decoder
            starts deeper: layer `num_encoder_layers - num_decoder_layers` of the encoder is the first one with a
            decoder layer beside it, and the bridge reads the output of the encoder layers below.
        decoder_self_attention: whether decoder layers also attend to the decoder's own stream.

    The defaults are the published sizes with 5 + 5 layers: 15,697,600 parameters without the position table, and
    15,698,400 with the LayerNorms of the embedding loss.
    """

    model_type = "parallel_encoder_decoder"

    hidden_size: int = 200
    num_attention_heads: int = 5
    num_encoder_layers: int = 5
    num_decoder_layers: int = 5
    decoder_self_attention: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.auto_map = {
            "AutoConfig": "configuration_parallel_encoder_decoder.ParallelEncoderDecoderConfig",
            "AutoModel": "modeling_parallel_encoder_decoder.ParallelEncoderDecoderModel",
            "AutoModelForCausalLM": "modeling_parallel_encoder_decoder.ParallelEncoderDecoderForCausalLM",
        }

    @property
    def decoder_attention_configs(self) -> Sequence[EncoderDecoderConfig]:
        return super().decoder_attention_configs if self.decoder_self_attention else [self.cross_attention_config]

    def validate_layers(self) -> None:
        super().validate_layers()
        if self.num_decoder_layers > self.num_encoder_layers:
            raise ValueError(
                f"`num_decoder_layers` is {self.num_decoder_layers}, but each decoder layer runs beside an encoder "
                f"layer: it must be at most `num_encoder_layers` {self.num_encoder_layers}."
            )
        if not self.decoder_self_attention and self.decoder_order != "self_first":
            raise ValueError(
                f"`decoder_order` is {self.decoder_order!r}, but `decoder_self_attention` is False, so there is no "
                "order; leave it at 'self_first'."
            )


__all__ = ["ParallelEncoderDecoderConfig"]
