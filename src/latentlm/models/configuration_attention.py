"""Configuration fields and checks of attention, which the configurations of all transformers of this package share."""

import copy
from typing import Any, Literal, Self

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig


@strict
class AttentionConfig(PreTrainedConfig):
    """Base of the configurations of all transformers of this package; not a model by itself.

    Args:
        num_key_value_heads: number of heads for keys and values (grouped-query attention, Ainslie et al. 2023,
            arXiv:2305.13245), `num_attention_heads` when None.
        attention_form: `"regular"` or `"latent"` (multi-head latent attention, DeepSeek-V2, arXiv:2405.04434). Latent
            attention computes the keys and values of all heads from one small latent vector. A cache stores that vector
            and one rotated key, which the heads share.
        query_latent_size, key_value_latent_size, latent_rope_size: widths in latent attention: of the latent vector of
            queries, of that of keys and values, and of the part of queries and keys that rotary positions rotate.
    """

    num_key_value_heads: int | None = None
    attention_form: Literal["regular", "latent"] = "regular"
    query_latent_size: int = 128
    key_value_latent_size: int = 64
    latent_rope_size: int = 16

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        super().__post_init__(**kwargs)

    @property
    def num_key_value_groups(self) -> int:
        """The number of query heads that share a key and a value."""
        return max(1, self.num_attention_heads // max(1, self.num_key_value_heads or 1))  # a validator rejects 0

    @property
    def cache_config(self) -> Self:
        """The configuration from which transformers allocates the cache of an attention."""
        if self.attention_form == "regular":
            return self
        config = copy.copy(self)
        config.num_key_value_heads = 1
        config.head_dim = config.qk_head_dim = self.key_value_latent_size  # the rotated key has another size
        return config

    def validate_with_attention(self) -> None:  # validators run in the order of their names, this one after the sizes
        heads, shared = self.num_attention_heads, self.num_key_value_heads
        if shared is None or shared < 1 or heads % shared:
            raise ValueError(f"`num_key_value_heads` is {shared}, but must divide `num_attention_heads` {heads}.")
        for name in ("query_latent_size", "key_value_latent_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but it must be at least 1.")
        if self.latent_rope_size < 2 or self.latent_rope_size % 2:
            raise ValueError(
                f"`latent_rope_size` is {self.latent_rope_size}, but rotary positions need an even size of at least 2."
            )
        if self.attention_form == "latent" and shared != heads:
            raise ValueError(
                f"`num_key_value_heads` is {shared}, but with `attention_form` 'latent' each of the "
                f"`num_attention_heads` {heads} has keys of its own, made of one latent: leave it out."
            )


def divisors(size: int) -> list[int]:
    """Return the divisors of a positive integer in ascending order."""
    return [n for n in range(1, size + 1) if size % n == 0]
