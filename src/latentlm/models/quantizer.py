"""Vectors to discrete codes and back: vector quantization with residual stages, and FSQ behind the same interface."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init

from .fsq import FSQ

Reduce = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Quantized:
    """Args:
    vectors: `(..., D)`, with the gradient of the straight-through estimator; 0 where a row is not real.
    codes: `(..., depth)`, int64; -1 where a row is not real.
    loss: `(...)`, float32, `vq_loss` of each row, 0 where a row is not real; None for quantizers without one.
    """

    vectors: torch.Tensor
    codes: torch.Tensor
    loss: torch.Tensor | None

    def detach(self) -> "Quantized":
        return Quantized(self.vectors.detach(), self.codes, None if self.loss is None else self.loss.detach())


class VectorQuantizer(nn.Module):
    """Each vector becomes the nearest entry of a codebook (van den Oord et al. 2017, 1711.00937), in a small space
    between two learned projections; stage k quantizes what the stages before left over (Zeghidour et al. 2021,
    2107.03312). The codebook follows by exponential moving averages (1711.00937, appendix A.1); entries that are not
    used are replaced by recent vectors (2107.03312, section III-C).

    In training a forward only gathers statistics. [`update`], once per optimizer step, changes the codebook: the sums
    over micro-batches and processes give what one big batch would.

    Args:
        hidden_size: D.
        num_codes: K entries of each stage.
        code_dim: of the space between the projections.
        depth: stages.
        commitment: weight of the commitment in `loss`, whose other term, the codebook's, has no gradient here.
        decay: of the moving averages.
        reset_after: an entry is replaced if the last `reset_after * K` vectors, and the last quarter of all, left it
            unused; at once if none ever used it. Patience grows so that codes keep their meaning: entries are used
            unequally, and one that is replaced because it is rare takes a part of what others stand for.
    """

    def __init__(
        self,
        hidden_size: int,
        num_codes: int,
        code_dim: int,
        depth: int = 1,
        commitment: float = 0.25,
        decay: float = 0.99,
        reset_after: float = 4.0,
    ):
        super().__init__()
        self.num_codes, self.depth, self.code_dim = num_codes, depth, code_dim
        self.commitment, self.decay, self.reset_after = commitment, decay, reset_after
        self.down = nn.Linear(hidden_size, code_dim, bias=False)
        self.norm = nn.RMSNorm(code_dim)  # vectors and entries have one scale from the first step on
        self.up = nn.Linear(code_dim, hidden_size, bias=False)
        self.down.keeps_scale = self.up.keeps_scale = True
        self.register_buffer("codebook", spread_values(depth, num_codes, code_dim))
        self.register_buffer("counts", torch.ones(depth, num_codes))
        self.register_buffer("sums", spread_values(depth, num_codes, code_dim))
        self.register_buffer("idle", torch.full((depth, num_codes), NEVER))  # vectors since the last use
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))  # vectors so far
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.gathered: Statistics | None = None

    def initialize_parameters(self) -> None:
        values = spread_values(*self.codebook.shape).to(self.codebook.device)
        init.copy_(self.codebook, values)
        init.copy_(self.sums, values)
        init.ones_(self.counts)
        init.constant_(self.idle, NEVER)
        init.zeros_(self.seen)
        init.zeros_(self.updates)

    def forward(self, vectors: torch.Tensor, real: torch.Tensor) -> Quantized:
        """Args:
        vectors: `(..., D)`.
        real: `(...)`, bool; other rows take no part in anything.
        """
        with torch.autocast(vectors.device.type, enabled=False):
            latents = self.norm(self.down(vectors[real].to(self.norm.weight.dtype))).float()  # (N, code_dim)
        residual, total, codes = latents.detach(), torch.zeros_like(latents), []
        gather = self.training and not in_backward()
        statistics = Statistics.empty(self.codebook) if gather else None
        for stage in range(self.depth):
            code = self.nearest(residual, stage)
            if statistics is not None:
                statistics.add(stage, code, residual)
            entry = self.codebook[stage].float().index_select(0, code)
            total, residual = total + entry, residual - entry
            codes.append(code)
        if statistics is not None:
            self.gathered = statistics if self.gathered is None else self.gathered + statistics
        total = total.detach()
        commitment = (latents - total).square().mean(-1)
        loss = commitment.detach() + self.commitment * commitment
        quantized = self.up((latents + (total - latents).detach()).to(vectors.dtype))
        return Quantized(
            scattered(quantized, real, 0), scattered(torch.stack(codes, -1), real, -1), scattered(loss, real, 0)
        )

    def nearest(self, vectors: torch.Tensor, stage: int) -> torch.Tensor:
        """The entry `(N,)` nearest to each vector `(N, code_dim)`; float32 also under autocast."""
        with torch.autocast(vectors.device.type, enabled=False):
            codebook = self.codebook[stage].float()
            return (codebook.square().sum(1) - 2 * vectors @ codebook.T).argmin(1)

    def embed(self, codes: torch.Tensor) -> torch.Tensor:
        """The vectors `(..., D)` of codes `(..., depth)`, as a forward gives them."""
        entries = sum(self.codebook[stage].float()[codes[..., stage]] for stage in range(self.depth))
        return self.up(entries.to(self.norm.weight.dtype))

    @torch.no_grad()
    def update(self, reduce: Reduce | None = None) -> None:
        """Move the codebook by what was gathered since the last update.

        Args:
            reduce: sums a tensor over processes; all processes end with the same codebook.
        """
        statistics = self.gathered or Statistics.empty(self.codebook)
        self.gathered = None
        counts, sums, recent = statistics.counts, statistics.sums, statistics.recent
        if reduce is not None:
            counts, sums, recent = reduce(counts), reduce(sums), reduce(recent)
        if not counts.any():
            return
        self.counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        # Laplace smoothing keeps entries finite that are hardly used.
        total = self.counts.sum(1, keepdim=True)
        smoothed = (self.counts + 1e-5) / (total + self.num_codes * 1e-5) * total
        self.codebook.copy_(self.sums / smoothed.unsqueeze(-1))
        self.idle.copy_(torch.where(counts > 0, 0, self.idle + counts.sum(1, keepdim=True)))
        self.seen += counts[0].sum().long()
        self.reset(recent)
        self.updates += 1

    def reset(self, recent: torch.Tensor) -> None:
        """Replace entries that are hardly used by vectors of the batch, drawn by a seed that resuming continues."""
        generator = torch.Generator().manual_seed(int(self.updates))
        patience = (self.seen / 4).clamp(min=self.reset_after * self.num_codes)
        for stage in range(self.depth):
            dead = (
                ((self.idle[stage] > patience) | (self.updates == 0)).nonzero().squeeze(1)
            )  # the first vectors are the first codebook
            rows = recent[stage][recent[stage, :, -1] > 0]
            if not len(dead) or not len(rows):
                continue
            chosen = torch.randperm(len(rows), generator=generator)[: len(dead)].to(rows.device)
            dead = dead[torch.randperm(len(dead), generator=generator)[: len(chosen)].to(dead.device)]
            entries = rows[chosen, :-1] / rows[chosen, -1:]  # where processes met in one place, their mean
            self.codebook[stage, dead] = entries
            self.counts[stage, dead] = 1.0
            self.sums[stage, dead] = entries
            self.idle[stage, dead] = 0


@dataclass
class Statistics:
    """What forwards have gathered: uses `(depth, K)` and sums `(depth, K, code_dim)` of entries, and of recent vectors
    `(depth, M, code_dim + 1)` the sum and, in the last column, the number in each place."""

    counts: torch.Tensor
    sums: torch.Tensor
    recent: torch.Tensor

    @classmethod
    def empty(cls, codebook: torch.Tensor) -> "Statistics":
        depth, num_codes, code_dim = codebook.shape
        zeros = codebook.new_zeros(depth, num_codes, dtype=torch.float32)
        size = min(num_codes, MOST_RECENT)
        return cls(zeros, zeros.new_zeros(codebook.shape), zeros.new_zeros(depth, size, code_dim + 1))

    def add(self, stage: int, codes: torch.Tensor, vectors: torch.Tensor) -> None:
        self.counts[stage].index_add_(0, codes, torch.ones_like(codes, dtype=torch.float32))
        self.sums[stage].index_add_(0, codes, vectors)
        size = min(self.recent.shape[1], len(vectors))
        chosen = vectors[torch.arange(size, device=vectors.device) * len(vectors) // max(size, 1)]
        self.recent[stage, : len(chosen), :-1] = chosen
        self.recent[stage, : len(chosen), -1] = 1

    def __add__(self, other: "Statistics") -> "Statistics":
        return Statistics(self.counts + other.counts, self.sums + other.sums, self.recent + other.recent)


NEVER = 1e30
"""Vectors since the last use of an entry that was not used; finite, so that buffers can be compared."""
MOST_RECENT = 1024
"""Vectors of a batch that are kept for replacing entries."""


class FSQQuantizer(nn.Module):
    """Finite scalar quantization in place of a codebook; one stage, no loss, nothing to update."""

    depth = 1

    def __init__(self, hidden_size: int, levels: Sequence[int]):
        super().__init__()
        self.fsq = FSQ(levels)
        self.down = nn.Linear(hidden_size, len(levels), bias=False)
        self.up = nn.Linear(len(levels), hidden_size, bias=False)
        self.down.keeps_scale = self.up.keeps_scale = True

    @property
    def num_codes(self) -> int:
        return self.fsq.num_codes

    def forward(self, vectors: torch.Tensor, real: torch.Tensor) -> Quantized:
        values, index = self.fsq(self.down(vectors))
        quantized = self.up(values.to(vectors.dtype)) * real.unsqueeze(-1)
        codes = index.masked_fill(~real, -1).unsqueeze(-1)
        return Quantized(quantized, codes, None)

    def embed(self, codes: torch.Tensor) -> torch.Tensor:
        """The vectors `(..., D)` of codes `(..., 1)`."""
        values = self.fsq.values(self.fsq.digits(codes.squeeze(-1)))
        return self.up(values.to(self.up.weight.dtype))

    def update(self, reduce: Reduce | None = None) -> None:
        pass


def spread_values(*shape: int) -> torch.Tensor:
    """Float32 values like random ones of unit variance, always the same: transformers wants buffers without chance."""
    places = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return (math.sqrt(12) * ((places.square() * (math.sqrt(5) - 1) / 2).frac() - 0.5)).float().view(shape)


def scattered(values: torch.Tensor, real: torch.Tensor, fill: float) -> torch.Tensor:
    """Values `(N, ...)` of the real rows in their places `(..., ...)`, and `fill` elsewhere."""
    places = values.new_full((*real.shape, *values.shape[1:]), fill)
    return places.masked_scatter(real.reshape(*real.shape, *[1] * (values.ndim - 1)).expand_as(places), values)


def in_backward() -> bool:
    """Whether this is gradient checkpointing's second forward, which must not be counted again."""
    return torch._C._current_graph_task_id() != -1


def code_usage(codes: torch.Tensor, num_codes: int) -> tuple[float, float]:
    """Perplexity of the codes `(N,)` of one stage, and the share of the codebook that they use."""
    shares = torch.bincount(codes, minlength=num_codes).double() / max(len(codes), 1)
    return math.exp(torch.special.entr(shares).sum().item()), (shares > 0).double().mean().item()
