"""Configuration of the FSQ autoencoder."""

import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from .block_byte_pieces import MAX_PIECE_BYTES

END_CLASS = 256
"""The class of the symbol that follows the last byte of a chunk shorter than `max_chunk_bytes`."""


@strict
class FSQAutoencoderConfig(PreTrainedConfig):
    """An autoencoder from a chunk of bytes to one code of finite scalar quantization and back.

    Args:
        vocab_size: 257, the bytes and the end class; fixed.
        max_chunk_bytes: maximum length of a chunk in bytes, at most 16, the length of the longest piece of a tokenizer,
            which needs all 16; must be a multiple of the product of `deconv_strides`.
        embedding_size: width of the byte embedding.
        hidden_size: width of the vector that the decoder expands.
        conv_channels, conv_strides: output channels and stride of each convolution of the encoder.
        deconv_channels, deconv_strides: output channels and stride of each transposed convolution of the decoder.
        kernel_size: kernel size of all convolutions; odd.
        pooling: `"mean"` over the chunk, `"attention"` (a learned weight for each position) or `"flatten"`
            (concatenation of all positions).
        levels: number of values of each dimension of the quantization, at least 2.
        num_quantizers: number of stages of residual quantization, each with these levels. The first code is the
            coarsest, and each further stage quantizes the remainder of the stages before it.
        temperature: divides z before the tanh.
        quantization_noise: share of values that get noise instead of rounding in training.
        margin: distance from the border between two digits, in steps, below which `margin_loss` penalises values; at
            most half a step.
        margin_loss_weight, code_entropy_loss_weight: weights of the optional losses; a loss with weight 0 is not
            computed.
        hidden_act: activation after each convolution.

    The defaults are the original sizes: 0.94 M parameters.
    """

    model_type = "fsq_autoencoder"
    keys_to_ignore_at_inference = [  # `compute_metrics` of a Trainer expects the logits alone
        "code_index",
        "code_values",
        "reconstruction_loss",
        "margin_loss",
        "code_entropy_loss",
    ]
    base_model_fsdp_plan = {}  # the model is too small to be sharded

    vocab_size: int = END_CLASS + 1
    max_chunk_bytes: int = 16
    embedding_size: int = 64
    hidden_size: int = 256
    conv_channels: list[int] | tuple[int, ...] = (128, 256, 256)
    conv_strides: list[int] | tuple[int, ...] = (1, 2, 2)
    deconv_channels: list[int] | tuple[int, ...] = (256, 128, 64)
    deconv_strides: list[int] | tuple[int, ...] = (2, 2, 1)
    kernel_size: int = 3
    pooling: Literal["mean", "attention", "flatten"] = "mean"
    levels: list[int] | tuple[int, ...] = (8, 8, 8, 8, 8, 5, 5, 5)
    num_quantizers: int = 1
    temperature: float | int = 1.0
    quantization_noise: float | int = 0.0
    margin: float | int = 0.25
    margin_loss_weight: float | int = 0.0
    code_entropy_loss_weight: float | int = 0.0
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    pad_token_id: int | None = END_CLASS

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.auto_map = {
            "AutoConfig": "configuration_fsq_autoencoder.FSQAutoencoderConfig",
            "AutoModel": "modeling_fsq_autoencoder.FSQAutoencoderModel",
        }

    @property
    def num_codes(self) -> int:
        """The number of codes, over all stages."""
        return math.prod(self.levels) ** self.num_quantizers

    @property
    def num_start_positions(self) -> int:
        """The number of positions with which the decoder starts, and which its strides multiply to
        `max_chunk_bytes`."""
        return self.max_chunk_bytes // math.prod(self.deconv_strides)

    def validate_vocabulary(self) -> None:
        if self.vocab_size != END_CLASS + 1:
            raise ValueError(f"`vocab_size` is {self.vocab_size}, but must be 257: the bytes and the end class.")

    def validate_levels(self) -> None:
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"`levels` are {list(self.levels)}, but need one level count of at least 2 per dimension.")
        if self.num_quantizers < 1:
            raise ValueError(f"`num_quantizers` is {self.num_quantizers}, but must be at least 1.")
        if self.num_codes > 2**62:
            raise ValueError(
                f"`levels` {list(self.levels)} and `num_quantizers` {self.num_quantizers} give {self.num_codes} codes, "
                "more than an index can hold."
            )

    def validate_convolutions(self) -> None:
        for name in ("conv", "deconv"):
            channels, strides = getattr(self, f"{name}_channels"), getattr(self, f"{name}_strides")
            if not channels or len(channels) != len(strides) or min([*channels, *strides]) < 1:
                raise ValueError(
                    f"`{name}_channels` {list(channels)} and `{name}_strides` {list(strides)} must have equal lengths "
                    "and values of at least 1."
                )
        if self.max_chunk_bytes > MAX_PIECE_BYTES:
            raise ValueError(
                f"`max_chunk_bytes` is {self.max_chunk_bytes}, but must be at most {MAX_PIECE_BYTES}, the length "
                "of the longest piece of a tokenizer."
            )
        if self.max_chunk_bytes < 1 or self.max_chunk_bytes % math.prod(self.deconv_strides):
            raise ValueError(
                f"`max_chunk_bytes` is {self.max_chunk_bytes}, but must be a multiple of the product of "
                f"`deconv_strides` {list(self.deconv_strides)}."
            )
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` is {self.kernel_size}, but must be odd.")

    def validate_quantization(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"`temperature` is {self.temperature}, but must be above 0.")
        if not 0 <= self.quantization_noise <= 1:
            raise ValueError(f"`quantization_noise` is {self.quantization_noise}, but a share lies in [0, 1].")
        if not 0 < self.margin <= 0.5:
            raise ValueError(f"`margin` is {self.margin}, but must lie in (0, 0.5] steps.")
        for name in ("margin_loss_weight", "code_entropy_loss_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but a weight is at least 0.")


__all__ = ["FSQAutoencoderConfig"]
