"""Configuration fields and checks that the causal encoder-decoders share."""

from collections.abc import Sequence
from typing import Any, Literal, Self

from huggingface_hub.dataclasses import strict

from .configuration_common import TransformerConfig


@strict
class EncoderDecoderConfig(TransformerConfig):
    """Base of the configurations of causal encoder-decoders; not a model by itself.

    Arguments are those of [`TransformerConfig`], and:

    Args:
        num_encoder_layers, num_decoder_layers: number of layers of the two stacks.
        num_cross_attention_heads: number of heads of the cross-attention, `2 * num_attention_heads` when None.
        decoder_order: `"self_first"` (self-attention, then cross-attention) or `"cross_first"`.
        bridge_layer_norm: whether a LayerNorm precedes the linear bridge from encoder to decoder.
        add_next_position: whether the embedding of the next position is added to the decoder input.
        cross_attention_gate: whether each decoder layer multiplies its cross-attention output by a learned scalar with
            the initial value 1. A layer whose scalar becomes 0 does not use the encoder, so the split between encoder
            and decoder is learned.
        learned_dropout_stacks: the stacks whose feed-forward blocks LearnedDropout masks: `"both"`, `"encoder"` or
            `"decoder"`.
        embedding_loss: measure of the difference between the encoder output and an aggregate of the input embeddings,
            as an additional loss: `"none"`, `"mse"`, `"cosine"` or `"log_cosine"`.
        embedding_loss_weight: weight of the embedding loss in training.
        embedding_loss_output_norm: LayerNorm of the encoder output in that loss: `"affine"`, `"plain"` (without gain
            and bias, which excludes the trivial optimum of a gain of 0) or `"none"`.
        embedding_loss_input_norm: LayerNorm of the embeddings, `"before"` or `"after"` the aggregation, or `"none"`.
        embedding_loss_detach: the side that gets no gradient from this loss: `"encoder"`, `"embeddings"` or `"none"`.
        embedding_loss_aggregation: `"mean"` (cumulative average), `"convolution"` (causal, depthwise) or `"mixing"`
            (learned causal weights for each pair of positions).
        embedding_loss_kernel_size: number of taps of the `"convolution"`.
    """

    keys_to_ignore_at_inference = [
        *TransformerConfig.keys_to_ignore_at_inference,
        "encoder_last_hidden_state",
        "embedding_loss",
    ]
    base_model_fsdp_plan = {
        "embed_tokens": "free_full_weight",
        "encoder_layers.*": "free_full_weight",
        "decoder_layers.*": "free_full_weight",
        "norm": "keep_full_weight",
    }

    num_encoder_layers: int = 13
    num_decoder_layers: int = 13
    num_cross_attention_heads: int | None = None
    decoder_order: Literal["self_first", "cross_first"] = "self_first"
    bridge_layer_norm: bool = False
    add_next_position: bool = False
    cross_attention_gate: bool = False
    learned_dropout_stacks: Literal["both", "encoder", "decoder"] = "both"
    embedding_loss: Literal["none", "mse", "cosine", "log_cosine"] = "none"
    embedding_loss_weight: float | int = 1.0
    embedding_loss_output_norm: Literal["affine", "plain", "none"] = "affine"
    embedding_loss_input_norm: Literal["before", "after", "none"] = "before"
    embedding_loss_detach: Literal["encoder", "embeddings", "none"] = "encoder"
    embedding_loss_aggregation: Literal["mean", "convolution", "mixing"] = "mean"
    embedding_loss_kernel_size: int = 8

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_cross_attention_heads is None:
            self.num_cross_attention_heads = 2 * self.num_attention_heads
        super().__post_init__(**kwargs)

    @property
    def num_hidden_layers(self) -> int:
        """The number of layers of both stacks, which `hidden_states` and `attentions` count."""
        return self.num_encoder_layers + self.num_decoder_layers

    @property
    def num_position_embeddings(self) -> int:
        if self.add_next_position:
            return self.max_position_embeddings + 1
        return super().num_position_embeddings

    @property
    def masked_stacks(self) -> tuple[str, ...]:
        """The stacks whose feed-forward blocks have a mask if LearnedDropout is on."""
        return ("encoder", "decoder") if self.learned_dropout_stacks == "both" else (self.learned_dropout_stacks,)

    @property
    def num_learned_dropouts(self) -> int:
        return sum(getattr(self, f"num_{stack}_layers") for stack in self.masked_stacks)

    @property
    def cross_attention_config(self) -> Self:
        """The configuration of one cross-attention."""
        assert self.num_cross_attention_heads is not None  # `__post_init__` sets it
        return self.with_heads(self.num_cross_attention_heads, num_key_value_groups=self.num_key_value_groups)

    @property
    def decoder_attention_configs(self) -> Sequence["EncoderDecoderConfig"]:
        """The configurations of the attentions of one decoder layer: self-attention, then cross-attention."""
        return [self, self.cross_attention_config]

    @property
    def attention_configs(self) -> Sequence["EncoderDecoderConfig"]:
        return [self] * self.num_encoder_layers + [*self.decoder_attention_configs] * self.num_decoder_layers

    def validate_layers(self) -> None:
        for name in ("num_encoder_layers", "num_decoder_layers"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}, but both stacks need at least 1 layer; "
                    "for a model without encoder use `decoder_only`."
                )

    def validate_heads(self) -> None:
        super().validate_heads()  # first, because the other default follows from this number
        self.check_heads("num_cross_attention_heads")

    def validate_with_attention(self) -> None:
        super().validate_with_attention()
        groups = self.num_key_value_groups
        assert self.num_cross_attention_heads is not None  # `__post_init__` sets it
        if self.num_cross_attention_heads % groups:
            raise ValueError(
                f"`num_key_value_heads` is {self.num_key_value_heads}, so {groups} heads share keys and values, but "
                f"that does not divide `num_cross_attention_heads` {self.num_cross_attention_heads}."
            )

    def validate_embedding_loss(self) -> None:
        if not self.embedding_loss_weight >= 0:
            raise ValueError(f"`embedding_loss_weight` is {self.embedding_loss_weight}, but it must be 0 or more.")
        if self.embedding_loss_kernel_size < 1:
            raise ValueError(
                f"`embedding_loss_kernel_size` is {self.embedding_loss_kernel_size}, but it must be at least 1."
            )


__all__ = ["EncoderDecoderConfig"]
