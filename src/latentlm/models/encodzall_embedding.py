"""Text embeddings: hashed n-grams of the words, weighted by frequency, beside the whitened mean of the words' vectors.
What is fitted lies in buffers, which a checkpoint carries."""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from .configuration_encodzall import EncodzallConfig
from .configuration_ngram_embedding import MODULUS
from .encodzall_words import NUM_BYTES, is_space

MULTIPLIER = 1_000_003  # times a number below MODULUS it stays in int64
RIDGE = 0.01  # of the mean variance, added before its root is divided by


class TextEmbedding(nn.Module):
    """The embedding `(B, D + K)` of a text, in which a share s of every cosine comes from the context:

        [sqrt(s) unit((m - mean) W),  sqrt(1 - s) unit(w sqrt(c))]

    m is the mean `(B, D)` of the words' vectors. c `(B, K)` counts n-grams in K buckets: of lower-case ASCII, inside
    words, with a boundary on either side of a word, so that "a" has the one trigram "_a_" (`char_wb` in scikit-learn);
    and the first bytes of words, which inflected forms share. [`fit`] sets the other values: w = a / (a + frequency of
    the bucket) is the smooth inverse frequency of Arora et al. (2017, "A simple but tough-to-beat baseline for sentence
    embeddings"); mean and W whiten m (Su et al. 2021, 2103.15316). Before fitting, w is 1, the mean 0 and W the
    identity.
    """

    weights: torch.Tensor  # (K,), w
    mean: torch.Tensor  # (D,)
    whitening: torch.Tensor  # (D, D), W

    def __init__(self, config: EncodzallConfig):
        super().__init__()
        assert config.text_ngrams is not None
        prefixes = [(length + 1, True) for length in config.text_prefixes or []]  # with the boundary before them
        self.windows = [(length, False) for length in config.text_ngrams] + prefixes
        self.buckets = config.text_ngram_buckets
        self.share = config.text_context_share
        self.register_buffer("weights", torch.ones(self.buckets))
        self.register_buffer("mean", torch.zeros(config.hidden_size))
        self.register_buffer("whitening", torch.eye(config.hidden_size))

    def initialize_parameters(self) -> None:
        init.ones_(self.weights)
        init.zeros_(self.mean)
        init.copy_(self.whitening, torch.eye(len(self.mean), device=self.mean.device))

    def forward(
        self,
        pooled: torch.Tensor,  # (B, D)
        ids: torch.Tensor,  # (B, T), int64
        real: torch.Tensor,  # (B, T), bool; other ids are none
    ) -> torch.Tensor:
        """Return the embedding `(B, D + K)`, of length 1; shorter where a text has no word."""
        context = (pooled.float() - self.mean.float()) @ self.whitening.float()
        ngrams = self.weights.float() * self.count(ids, real).sqrt()
        parts = ((context, self.share), (ngrams, 1 - self.share))
        return torch.cat([nn.functional.normalize(part) * share**0.5 for part, share in parts], 1).to(pooled.dtype)

    def count(self, ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Count the n-grams of texts `(B, T)` in each bucket: `(B, K)`, float32."""
        is_letter = real & (ids < NUM_BYTES) & ~is_space(ids)
        lower = ids + 32 * ((ids >= 65) & (ids <= 90))
        symbols = torch.where(is_letter, lower + 1, 0)  # 0 is a boundary
        symbols = nn.functional.pad(symbols, (1, max(length for length, _ in self.windows)))
        buckets = []
        for length, is_prefix in self.windows:
            windows = symbols.unfold(1, length, 1)  # (B, T + ..., n)
            total = torch.full_like(windows[..., 0], length)
            for symbol in windows.unbind(-1):
                total = (total * MULTIPLIER + symbol) % MODULUS
            letters = windows > 0
            if is_prefix:
                counts = ~letters[..., 0] & letters[..., 1:].all(-1)
            else:
                counts = letters[..., 1:-1].all(-1) & letters.any(-1)
            buckets.append(torch.where(counts, total % self.buckets, self.buckets))
        bucket = torch.cat(buckets, 1)
        counts = torch.zeros(len(ids), self.buckets + 1, device=ids.device)
        return counts.scatter_add(1, bucket, torch.ones_like(bucket, dtype=counts.dtype))[:, :-1]

    @torch.no_grad()
    def fit(self, pooled: torch.Tensor, counts: torch.Tensor, smoothing: float) -> None:
        """Set weights, mean and whitening from the means `(N, D)` of N texts and the counts `(K,)` of all together."""
        frequencies = counts.double() / counts.sum().clamp(min=1)
        self.weights.copy_(smoothing / (smoothing + frequencies))
        mean = pooled.double().mean(0)
        variances, directions = torch.linalg.eigh((pooled.double() - mean).T.cov())
        self.mean.copy_(mean)
        scales = (variances.clamp(min=0) + RIDGE * variances.mean()).rsqrt()
        self.whitening.copy_(directions * scales @ directions.T)


def make_text_embedding(config: Any) -> TextEmbedding | None:
    """Make the text embedding, if the configuration asks for it."""
    return None if config.text_ngrams is None else TextEmbedding(config)
