"""Configuration fields and checks that the language models on tokens share."""

from collections.abc import Sequence
from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from .configuration_attention import divisors
from .configuration_learned_dropout import LearnedDropoutConfig
from .configuration_ngram_embedding import NgramEmbeddingConfig


@strict
class TransformerConfig(LearnedDropoutConfig, NgramEmbeddingConfig):
    """Base of the language-model configurations; not a model by itself.

    Arguments are those of [`LearnedDropoutConfig`] and [`NgramEmbeddingConfig`], and:

    Args:
        vocab_size: number of token ids, special tokens included.
        hidden_size: width D of the hidden states.
        num_attention_heads: number of heads of each self-attention; must divide `hidden_size`.
        intermediate_size: width of the feed-forward layers, `4 * hidden_size` when None.
        max_position_embeddings: maximum context length in tokens; longer inputs raise an error.
        position_embedding_type: `"learned"` adds a table to the input, `"rotary"` rotates queries and keys instead.
        rope_parameters: rotary parameters in the format of transformers (`rope_type`, `rope_theta`, ...); used with
            `"rotary"` only.
        position_subtraction: operation on the final hidden state before the output layer: `"none"`, `"plain"` (subtract
            the embedding of the *next* position) or `"layer_norm"` (the same, then a LayerNorm). With rotary positions
            the position table exists only for this subtraction.
        hidden_act: activation of the feed-forward layers: `"gelu"`, or `"relu2"`, the square of ReLU (Primer, So et al.
            2021, arXiv:2109.08668).
        use_bias: whether linear layers and LayerNorms have biases.
        hidden_dropout: dropout on the embeddings and on what each block adds to the residual stream.
        attention_dropout: dropout on attention probabilities.
    """

    # A Trainer does not pass these outputs to `compute_metrics`, which expects the logits alone.
    keys_to_ignore_at_inference = ["past_key_values", "lm_loss", "mask_entropy_loss", "mask_l1_loss"]
    base_model_fsdp_plan = {
        "embed_tokens": "free_full_weight",
        "layers.*": "free_full_weight",
        "norm": "keep_full_weight",
    }

    vocab_size: int = 50257
    hidden_size: int = 160
    num_attention_heads: int = 10
    intermediate_size: int | None = None
    max_position_embeddings: int = 200
    position_embedding_type: Literal["learned", "rotary"] = "learned"
    rope_parameters: dict[str, Any] | None = None
    position_subtraction: Literal["none", "plain", "layer_norm"] = "none"
    hidden_act: Literal["gelu", "relu2"] = "gelu"
    use_bias: bool = False
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    hidden_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        super().__post_init__(**kwargs)

    @property
    def num_position_embeddings(self) -> int:
        """The number of rows of the learned position table: `max_position_embeddings`, one more where the embedding of
        the next position is used, and 0 without a table."""
        if self.position_subtraction != "none":
            return self.max_position_embeddings + 1
        return self.max_position_embeddings if self.position_embedding_type == "learned" else 0

    @property
    def num_learned_dropouts(self) -> int:
        """The number of feed-forward blocks that have a mask if LearnedDropout is on."""
        raise NotImplementedError

    @property
    def attention_configs(self) -> Sequence["TransformerConfig"]:
        """One configuration for each self- or cross-attention, in the order of their cache layers."""
        raise NotImplementedError

    @property
    def per_layer_config(self) -> list["TransformerConfig"]:
        """One configuration for each *cache* layer, from which transformers allocates caches. The first ones belong to
        the attentions of the layers, then come those that compute masks, whose heads have their own number and size.
        The last one stores ids for n-grams."""
        masks, ids = 0, [] if self.ngram_embedding is None else [self.id_cache_config]
        if self.learned_dropout != "none":
            masks = 1 if self.learned_dropout_input == "embedding" else self.num_learned_dropouts
        return [*(config.cache_config for config in self.attention_configs), *[self.mask_cache_config] * masks, *ids]

    @property
    def layer_types(self) -> list[str]:
        """The type of every *cache* layer, from which `generate_batch` allocates its cache."""
        return ["full_attention"] * len(self.per_layer_config)

    def validate_layer_type(self) -> None:
        """Skip the check of transformers for `num_hidden_layers` types, since there is one type for each cache
        layer."""

    @per_layer_config.setter
    def per_layer_config(self, value: None) -> None:
        if value is not None:
            raise ValueError(f"`per_layer_config` is derived from the other fields and cannot be set, got {value!r}.")

    def validate_sizes(self) -> None:
        """Raise ValueError unless every size is at least 1 and every dropout rate lies in [0, 1)."""
        for name in ("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but it must be at least 1.")
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but a dropout rate lies in [0, 1).")

    def validate_heads(self) -> None:
        self.validate_sizes()  # first, because the next check divides by sizes
        self.check_heads("num_attention_heads")

    def check_heads(self, name: str) -> None:
        """Raise ValueError unless the number of heads `name` divides `hidden_size` into heads that the position
        embedding can use."""
        num_heads = getattr(self, name)
        if num_heads < 1 or self.hidden_size % num_heads:
            raise ValueError(
                f"`{name}` is {num_heads}, which does not divide `hidden_size` {self.hidden_size}; "
                f"possible values: {divisors(self.hidden_size)}."
            )
        if self.position_embedding_type == "rotary" and (self.hidden_size // num_heads) % 2:
            raise ValueError(
                f"`{name}` is {num_heads}, so heads have size {self.hidden_size // num_heads}, but "
                "`position_embedding_type` 'rotary' needs an even head size."
            )
