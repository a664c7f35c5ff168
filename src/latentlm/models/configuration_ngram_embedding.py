"""Configuration fields and checks of hashed n-gram embeddings, which most architectures of this package can switch
on."""

import copy
from dataclasses import dataclass
from typing import Any

from huggingface_hub.dataclasses import strict

MODULUS = 2**31 - 1
"""The prime modulus of the polynomial hashes, which is small enough for products of two hashes to fit into int64."""


@strict
@dataclass
class NgramEmbeddingConfig:
    """Fields of hashed n-gram embeddings (BLT, Pagnoni et al. 2024, arXiv:2412.09871, section 3.2.1); not a model by
    itself.

    Args:
        ngram_embedding: lengths n, such as `[2, 3, 4]`. For each n, the last n ids of a position are hashed to a row of
            a table, which is added to the embedding. None for no such table.
        ngram_embedding_size: width of the rows of the table, None for the width of the model. With another width, the
            rows of all n are concatenated and projected to the width of the model, so that a table can have many narrow
            rows.
        ngram_buckets: number of rows of the table for each n; several n-grams may share a row.
        ngram_multiplier: base of the rolling hash, see [`NgramEmbedding`]. It must not change after training.
    """

    ngram_embedding: list[int] | None = None
    ngram_embedding_size: int | None = None
    ngram_buckets: int = 4096
    ngram_multiplier: int = 1_000_000_007

    @property
    def ngram_reach(self) -> int:
        """The number of ids before its own that the embedding of a position depends on."""
        return max(self.ngram_embedding or [1]) - 1

    @property
    def num_id_digits(self) -> int:
        """The number of base-256 digits of the largest id plus 1."""
        config: Any = self  # subclasses have a vocabulary
        return (config.vocab_size.bit_length() + 7) // 8

    @property
    def id_cache_config(self) -> Any:
        """The configuration from which transformers allocates the cache layer that stores ids; see [`previous_ids`]."""
        config: Any = copy.copy(self)
        config.num_attention_heads = config.num_key_value_heads = 1
        config.head_dim = self.num_id_digits
        return config

    def validate_ngram_embedding(self) -> None:
        lengths = self.ngram_embedding
        if lengths is not None and (not lengths or min(lengths) < 2 or len(set(lengths)) < len(lengths)):
            raise ValueError(
                f"`ngram_embedding` is {lengths}, but it must be a list of distinct lengths of at least 2, as "
                "[2, 3, 4], or None for no n-gram embeddings."
            )
        if self.ngram_embedding_size is not None and self.ngram_embedding_size < 1:
            raise ValueError(
                f"`ngram_embedding_size` is {self.ngram_embedding_size}, but it must be at least 1, or None for the "
                "width of the model."
            )
        if self.ngram_buckets < 1:
            raise ValueError(f"`ngram_buckets` is {self.ngram_buckets}, but it must be at least 1.")
        if not 2 <= self.ngram_multiplier <= MODULUS - 2:
            raise ValueError(
                f"`ngram_multiplier` is {self.ngram_multiplier}, but it must lie between 2 and {MODULUS - 2}."
            )


__all__ = ["MODULUS", "NgramEmbeddingConfig"]
