"""Hashed n-gram embeddings (BLT, 2412.09871, section 3.2.1): embeddings of the last ids, added before any layer."""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, QuantizedCache

from .configuration_ngram_embedding import MODULUS


class NgramTable(nn.EmbeddingBag):
    """The embedding table of n-grams. It is not an `nn.Embedding`, which tools would take for the token embeddings."""

    def initialize_parameters(self) -> None:
        init.zeros_(self.weight)


class NgramProjection(nn.Linear):
    """Projection of narrow embeddings, for `lengths` n side by side, to the width of the model. Its weights have
    variance 1 / `size`, so that a step of the table moves what is added to the embedding as far as a step of a wide
    table would."""

    def __init__(self, lengths: int, size: int, hidden_size: int):
        super().__init__(lengths * size, hidden_size, bias=False)
        self.size = size

    def initialize_parameters(self) -> None:
        init.normal_(self.weight, std=self.size**-0.5)


class NgramEmbedding(nn.Module):
    """Embedding of the last n ids, summed over the lengths n; zero at the start of training.

    With x_i the i-th id before the present one, plus 1, or 0 where there is none, a = `ngram_multiplier`, p =
    [`MODULUS`] and `ngram_buckets` K:

        h_n = (x_0 + x_1 a + ... + x_{n-1} a^(n-1)) mod p,        row = h_n mod K of the K rows for n

    All of it is computed in int64, so that it is the same on every device, eager or compiled.

    Rows of another width than the model's (`ngram_embedding_size`) are not summed: they are concatenated, and a matrix
    maps them to it (as ALBERT, 1909.11942, section 3.1, does with embeddings).
    """

    _fsdp_plan = {"table": "free_full_weight"}  # the model's plan takes it in

    def __init__(self, config: Any):
        super().__init__()
        self.lengths: list[int] = sorted(config.ngram_embedding)
        self.buckets, self.multiplier = config.ngram_buckets, config.ngram_multiplier
        size, rows = config.ngram_embedding_size, len(self.lengths) * self.buckets
        self.table = NgramTable(rows, config.hidden_size if size is None else size, mode="sum")
        self.up = None if size is None else NgramProjection(len(self.lengths), size, config.hidden_size)

    def forward(
        self,
        ids: torch.Tensor,  # (B, T), int64; a negative one is none
        depth: torch.Tensor,  # (B or 1, T): how many ids before this one belong to its document, or word
        previous: torch.Tensor | None = None,  # (B, max(n) - 1), the ids before `ids`; none where they begin a row
    ) -> torch.Tensor:
        """Return the embeddings `(B, T, D)`. Ids further back than `depth` count as none; `depth` may exceed the number
        of ids."""
        rows = self.rows(ids, depth, previous)
        if self.up is None:
            return self.table(rows.flatten(0, 1)).unflatten(0, ids.shape)
        return self.up(self.table(rows.reshape(-1, 1)).reshape(*ids.shape, -1))

    def rows(self, ids: torch.Tensor, depth: torch.Tensor, previous: torch.Tensor | None = None) -> torch.Tensor:
        """Return the rows of the table `(B, T, number of lengths)`, int64; the arguments are those of the forward."""
        reach, size = self.lengths[-1] - 1, ids.shape[1]
        seen = nn.functional.pad(ids, (reach, 0), value=-1) if previous is None else torch.cat((previous, ids), 1)
        symbols = (seen + 1).clamp(min=0)  # (B, reach + T)
        total, rows = torch.zeros_like(ids), []
        for back in range(reach + 1):
            symbol = symbols[:, reach - back : reach - back + size]
            if back:
                symbol = symbol.where(depth >= back, 0)
            total = (total + symbol * pow(self.multiplier, back, MODULUS)) % MODULUS
            if back + 1 in self.lengths:
                rows.append(total % self.buckets + len(rows) * self.buckets)
        return torch.stack(rows, -1)


def make_ngram_embedding(config: Any) -> NgramEmbedding | None:
    """Make the n-gram embedding, if the configuration asks for it."""
    return None if config.ngram_embedding is None else NgramEmbedding(config)


def previous_ids(
    ids: torch.Tensor,  # (B, T), int64; a negative one is none
    past_key_values: Cache,
    layer_idx: int,
    config: Any,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Write ids into the cache, and return those before them, `(B, max(n) - 1)`, int64, -1 where there is none.

    They are the keys of a layer of their own (`config.id_cache_config`), so that whatever reorders, cuts or repeats a
    cache does the same to them. A key holds the base-256 digits of an id plus 1, in the dtype of all keys, which may be
    as narrow as bfloat16. What was never written is 0, which means no id.

    Raises:
        ValueError: if the cache rounds its keys.
    """
    if isinstance(past_key_values, QuantizedCache):
        raise ValueError(
            f"`past_key_values` is a {type(past_key_values).__name__}, which would round the ids that "
            f"`ngram_embedding` {config.ngram_embedding} needs. Use another `cache_implementation`."
        )
    places = torch.arange(-config.ngram_reach, 0, device=ids.device) + past_key_values.get_seq_length(layer_idx)
    shifts = torch.arange(0, 8 * config.num_id_digits, 8, device=ids.device)
    digits = (((ids.unsqueeze(-1) + 1) >> shifts) & 255).to(dtype).unsqueeze(1)  # (B, 1, T, number of digits)
    keys, _ = past_key_values.update(digits, digits, layer_idx)
    keys = keys[:, 0].index_select(1, places.clamp(min=0))
    return ((keys.long() << shifts).sum(-1) - 1).where(places >= 0, -1)


def count_ngram_parameters(model: nn.Module) -> int:
    """Count the parameters of n-gram tables, which cost no arithmetic and are not part of the body."""
    # By name: a model loaded from the Hub has a class of its own.
    tables = [module for module in model.modules() if type(module).__name__ == NgramTable.__name__]
    return sum(parameter.numel() for table in tables for parameter in table.parameters())
