"""Learned-query attention that pools each segment to one vector."""

from dataclasses import dataclass

import torch
from torch import nn

from .block_attention import ProjectedRMSNorm
from .block_quantization import ScaledLinear
from .block_row_cache import RowState, where_active


@dataclass
class PoolingState(RowState):
    """The open segment of each of R rows, for symbols that come one at a time; float32.

    Attributes:
        maximum: `(R, Q * H)`, the largest score.
        numerator: `(R, Q * H, d)`, the sum of values weighted by exp(score - maximum).
        denominator: `(R, Q * H)`, the sum of these weights.
    """

    maximum: torch.Tensor
    numerator: torch.Tensor
    denominator: torch.Tensor

    def updated(self, active: torch.Tensor, new: "PoolingState") -> "PoolingState":
        """Return the new state in the active rows `(R,)`, bool, and this one in the others."""
        return PoolingState(
            where_active(active, new.maximum, self.maximum),
            where_active(active, new.numerator, self.numerator),
            where_active(active, new.denominator, self.denominator),
        )


class SegmentPooling(nn.Module):
    """Pooling by attention: each of Q learned queries attends to the symbols of one segment, and the results are
    joined, projected to D and normalised. Keys are normalised and have no position. It costs O(T), with sums by segment
    instead of an (S, T) mask."""

    def __init__(self, hidden_size: int, num_heads: int, num_queries: int, eps: float):
        super().__init__()
        self.num_heads, self.num_queries = num_heads, num_queries
        self.head_dim = hidden_size // num_heads
        self.queries = nn.Embedding(num_queries, hidden_size)
        # Small weights are soon outgrown by what all segments have in common, and then all vectors are alike.
        self.kv_proj = ScaledLinear(hidden_size, 2 * hidden_size)
        self.kv_proj.parts = (hidden_size, hidden_size)  # pyright: ignore[reportArgumentType]
        self.key_norm = ProjectedRMSNorm(self.head_dim, eps=eps)
        self.out_proj = ScaledLinear(num_queries * hidden_size, hidden_size)
        self.norm = ProjectedRMSNorm(hidden_size, eps=eps)

    def read(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores `(..., Q * H)` and values `(..., H, d)`, float32, of hidden states `(..., D)`."""
        key, value = (part.unflatten(-1, (self.num_heads, -1)) for part in self.kv_proj(hidden_states).chunk(2, -1))
        key = self.key_norm(key).float()
        queries = self.queries(torch.arange(self.num_queries, device=key.device)).float()
        queries = queries.unflatten(-1, (self.num_heads, -1))
        scores = torch.einsum("...hd,qhd->...qh", key, queries) * self.head_dim**-0.5
        return scores.flatten(-2), value.float()

    def weighted(self, weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Multiply the values `(..., H, d)` for every query by weights `(..., Q * H)`: `(..., Q * H, d)`."""
        weights = weights.unflatten(-1, (self.num_queries, self.num_heads)).unsqueeze(-1)
        return (weights * values.unsqueeze(-3)).flatten(-3, -2)

    def write(self, numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
        """Return the vectors `(..., D)` of sums `(..., Q * H, d)` and `(..., Q * H)`; of segments without symbols they
        mean nothing."""
        denominator = denominator.masked_fill(denominator == 0, 1)
        pooled = (numerator / denominator.unsqueeze(-1)).flatten(-2)
        return self.norm(self.out_proj(pooled.to(self.norm.weight.dtype)))

    def forward(self, hidden_states: torch.Tensor, segments: torch.Tensor, num_segments: int) -> torch.Tensor:
        """Return the vectors `(R, S, D)` of the segments, 0 where a row has fewer than S.

        Args:
            hidden_states: `(R, T, D)`.
            segments: `(R, T)`, int64, the segment of each symbol, -1 for padding.
            num_segments: S.
        """
        state = self.gathered(hidden_states, segments, num_segments)
        return self.write(state.numerator, state.denominator) * (state.denominator[..., :1] > 0)

    def gathered(self, hidden_states: torch.Tensor, segments: torch.Tensor, num_segments: int) -> PoolingState:
        """Return the sums of every segment, `(R, S, ...)` in place of `(R, ...)`."""
        scores, values = self.read(hidden_states)
        place = torch.where(segments < 0, num_segments, segments).unsqueeze(-1)
        place = place.expand_as(scores)  # padding goes to a place of its own
        lowest = scores.new_full((len(scores), num_segments + 1, scores.shape[-1]), -torch.inf)
        maximum = lowest.scatter_reduce(1, place, scores.detach(), "amax")
        weights = (scores - maximum.gather(1, place)).exp()
        denominator = torch.zeros_like(maximum).scatter_add(1, place, weights)
        values = self.weighted(weights, values)
        numerator = values.new_zeros(*maximum.shape, self.head_dim)
        numerator = numerator.scatter_add(1, place.unsqueeze(-1).expand_as(values), values)
        return PoolingState(maximum[:, :-1], numerator[:, :-1], denominator[:, :-1])

    # ---- One symbol at a time ----

    def start(self, num_rows: int, like: torch.Tensor) -> PoolingState:
        """Return the state of rows that have seen nothing."""
        shape = (num_rows, self.num_queries * self.num_heads)
        zeros = torch.zeros(shape, device=like.device)
        return PoolingState(zeros - torch.inf, zeros.new_zeros(*shape, self.head_dim), zeros.clone())

    def state_of_open(self, hidden_states: torch.Tensor, segments: torch.Tensor, lengths: torch.Tensor) -> PoolingState:
        """Return the state of the last segment of each row after a forward, from its arguments and the rows' lengths
        `(R,)`."""
        own = segments.gather(1, (lengths - 1).clamp(min=0).unsqueeze(1))
        is_last = (segments == own) & (segments >= 0)
        state = self.gathered(hidden_states, torch.where(is_last, 0, -1), 1)
        return PoolingState(state.maximum[:, 0], state.numerator[:, 0], state.denominator[:, 0])

    def add(self, state: PoolingState, hidden_states: torch.Tensor, fresh: torch.Tensor) -> PoolingState:
        """Add one more symbol `(R, D)` of each row; `fresh` `(R,)`, bool, says whether it opens a segment."""
        scores, values = self.read(hidden_states)
        before = state.maximum.masked_fill(fresh.unsqueeze(1), -torch.inf)
        maximum = torch.maximum(before, scores)
        decay, weight = (before - maximum).exp(), (scores - maximum).exp()
        return PoolingState(
            maximum,
            state.numerator * decay.unsqueeze(-1) + self.weighted(weight, values),
            state.denominator * decay + weight,
        )

    def finish(self, state: PoolingState) -> torch.Tensor:
        """Return the vector `(R, D)` of each row's open segment."""
        return self.write(state.numerator, state.denominator)
