"""Configuration of the language model on the codes of an FSQ tokenizer."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from .configuration_decoder_only import DecoderOnlyConfig
from .configuration_fsq_autoencoder import FSQAutoencoderConfig


@strict
class FSQConfig(DecoderOnlyConfig):
    """The decoder-only model with embeddings, output head and losses that use the FSQ codes of its tokens.

    Arguments are those of [`DecoderOnlyConfig`], and:

    Args:
        autoencoder: fields of the [`FSQAutoencoderConfig`] of the tokenizer, whose `levels` and `num_quantizers` define
            the digits of a code.
        num_special_tokens: number of tokens without a code, which are the last ids of the vocabulary.
        code_embedding_size: hidden width of the network whose embedding of the code is added to the embedding of a
            token; 0 for no such network.
        head: `"tied"` to the token embeddings; `"factorised"`, with one logit per digit value, summed over the digits
            of a token; `"hierarchical"`, which predicts the codes of a residual quantization from coarse to fine, each
            among the codes that tokens have after the earlier ones; or `"decoder"`, the output path of the original
            design. There the decoder of the autoencoder spells the next token from the hidden state, and the logit of a
            token is the log-probability of its bytes and their end.
        byte_loss_weight: weight of `byte_loss`, the loss of an additional head through which the decoder of the
            autoencoder spells the next token from the hidden state; 0 for no such head.
        reconstruction_loss_weight: weight of the reconstruction loss of the autoencoder in joint training.
        joint: whether the encoder computes codes instead of the table, so that the loss of the language model also
            trains the encoder.
        min_code_entropy: share of the initial entropy of codes, in [0, 1]; joint training stops where the entropy falls
            below this share.
        train_decoder: whether the decoder of the autoencoder is trained without `joint`, by `byte_loss` or as the head.
    """

    model_type = "fsq"

    keys_to_ignore_at_inference = [
        *DecoderOnlyConfig.keys_to_ignore_at_inference,
        "byte_loss",
        "reconstruction_loss",
    ]

    vocab_size: int = 32768
    autoencoder: dict[str, Any] | None = None
    num_special_tokens: int = 4
    code_embedding_size: int = 64
    head: Literal["tied", "factorised", "hierarchical", "decoder"] = "tied"
    byte_loss_weight: float | int = 0.0
    reconstruction_loss_weight: float | int = 1.0
    joint: bool = False
    min_code_entropy: float | int = 0.8
    train_decoder: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        # All fields are stored, so that the defaults of another version cannot change a saved model.
        self.autoencoder = own_fields(FSQAutoencoderConfig(**(self.autoencoder or {})))
        if self.head != "tied":
            self.tie_word_embeddings = False
        super().__post_init__(**kwargs)
        self.auto_map = {
            "AutoConfig": "configuration_fsq.FSQConfig",
            "AutoModel": "modeling_fsq.FSQModel",
            "AutoModelForCausalLM": "modeling_fsq.FSQForCausalLM",
        }

    @property
    def autoencoder_config(self) -> FSQAutoencoderConfig:
        return FSQAutoencoderConfig(**(self.autoencoder or {}))

    @property
    def has_autoencoder(self) -> bool:
        """Whether the model includes the autoencoder."""
        return self.joint or self.byte_loss_weight > 0 or self.head == "decoder"

    def validate_codes(self) -> None:
        autoencoder = self.autoencoder_config
        if not 0 <= self.num_special_tokens < self.vocab_size:
            raise ValueError(
                f"`num_special_tokens` is {self.num_special_tokens}, but must lie between 0 and `vocab_size` "
                f"{self.vocab_size}."
            )
        if self.vocab_size - self.num_special_tokens > autoencoder.num_codes:
            raise ValueError(
                f"`vocab_size` {self.vocab_size} needs as many codes, but `levels` {list(autoencoder.levels)} and "
                f"`num_quantizers` {autoencoder.num_quantizers} give {autoencoder.num_codes}."
            )

    def validate_code_losses(self) -> None:
        for name in ("code_embedding_size", "byte_loss_weight", "reconstruction_loss_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but must be at least 0.")
        if not 0 <= self.min_code_entropy <= 1:
            raise ValueError(f"`min_code_entropy` is {self.min_code_entropy}, but a share lies in [0, 1].")
        if self.joint and not self.code_embedding_size:
            raise ValueError("`joint` trains the encoder through the code embedding: `code_embedding_size` is 0.")
        if self.train_decoder and not self.byte_loss_weight and self.head != "decoder":
            raise ValueError(
                "`train_decoder` needs `byte_loss_weight` above 0 or `head` 'decoder': nothing else would train it."
            )


def own_fields(config: FSQAutoencoderConfig) -> dict[str, Any]:
    """Return the fields that [`FSQAutoencoderConfig`] declares itself, with tuples as lists, as JSON has them."""
    values = {name: getattr(config, name) for name in FSQAutoencoderConfig.__annotations__ if name != "model_type"}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


__all__ = ["FSQConfig"]
