"""Quantizers from vectors to discrete codes and back: vector quantization with residual stages, and FSQ with the same
interface."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
from torch import nn
from transformers import initialization as init

from .block_fsq import FSQ


@dataclass
class Quantized:
    """What a quantizer makes of vectors.

    Args:
        vectors: `(..., D)`, with the gradient of the straight-through estimator; 0 where a row is not real, if they are
            quantized at all.
        codes: `(..., depth)`, int64; -1 where a row is not real.
        loss: `(...)`, float32, `vq_loss` of each row, 0 where a row is not real; None for quantizers without one.
    """

    vectors: torch.Tensor
    codes: torch.Tensor
    loss: torch.Tensor | None

    def with_zero_gradient(self) -> "Quantized":
        """Return the same values with a gradient of zero. It is not left out, since DDP waits for the gradient of every
        parameter."""
        loss = None if self.loss is None else self.loss.detach() + 0 * self.loss
        return Quantized(self.vectors.detach() + 0 * self.vectors, self.codes, loss)


class Float32Buffers(nn.Module):
    """Base of modules whose own buffers stay float32 when the weights become shorter. In a shorter dtype averages would
    stop moving, and counts would stop growing."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers(recurse=False):
            if before[name].dtype == torch.float32 and buffer.dtype != torch.float32:
                self._buffers[name] = before[name].to(buffer.device)
        return self


class ScaledLinear(nn.Linear):
    """Linear map without bias. Its initial weights keep the size of the input, whatever the configuration's standard
    deviation is: with small weights all vectors are alike."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)


class VectorQuantizer(Float32Buffers):
    """Vector quantizer: each vector becomes the nearest entry of a codebook (van den Oord et al. 2017, 1711.00937).

    The nearest entry is found in a small space between two learned projections. Stage k quantizes what the stages
    before it left over (Zeghidour et al. 2021, 2107.03312). The codebook follows the vectors by exponential moving
    averages (1711.00937, appendix A.1). An entry that a step does not use stays where it is; one that is unused for
    long is replaced by a recent vector (2107.03312, section III-C).

    In training a forward only gathers statistics. [`update`], once per optimizer step, changes the codebook: to what
    one big batch would make of it, however that was divided into micro-batches and processes.

    Args:
        hidden_size: D.
        num_codes: K, the number of entries of each stage.
        code_dim: size of the space between the projections.
        depth: number of stages.
        commitment: weight of the commitment term in `loss`. The other term, the codebook's, has no gradient here.
        decay: of the moving averages.
        reset_after: an entry is replaced if neither the last `reset_after * K` vectors nor the last quarter of all used
            it; at once if none ever used it. Patience grows so that codes keep their meaning: entries are used
            unequally, and a rare one that is replaced takes over a part of what others stand for.
    """

    codebook: torch.Tensor
    counts: torch.Tensor
    sums: torch.Tensor
    idle: torch.Tensor
    seen: torch.Tensor
    updates: torch.Tensor

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
        self.down = ScaledLinear(hidden_size, code_dim)
        self.norm = nn.RMSNorm(code_dim)  # vectors and entries have one scale from the first step on
        self.up = ScaledLinear(code_dim, hidden_size)
        uses = torch.ones(depth, num_codes, dtype=torch.float32)  # whatever the default type is while a model is loaded
        self.register_buffer("codebook", spread_values(depth, num_codes, code_dim))
        self.register_buffer("counts", uses)
        self.register_buffer("sums", spread_values(depth, num_codes, code_dim))
        self.register_buffer("idle", torch.full_like(uses, NEVER))  # vectors since the last use
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

    def forward(self, vectors: torch.Tensor, real: torch.Tensor, keys: torch.Tensor | None = None) -> Quantized:
        """Quantize vectors; in training, gather statistics too.

        Args:
            vectors: `(..., D)`.
            real: `(...)`, bool; other rows are ignored.
            keys: `(...)`, int64, equal only for equal vectors ([`prefix_keys`]); recent vectors are chosen by it.
                Without keys the bits of vectors are used, which may differ in the last place between divisions of a
                batch; then statistics are gathered only where there are gradients.
        """
        mask = real.unsqueeze(-1)
        with torch.autocast(vectors.device.type, enabled=False):
            # Every place is computed, with zeros where none is real: to pick the real ones, the host would wait.
            latents = self.norm(self.down(vectors.where(mask, 0).to(self.norm.weight.dtype))).float()
        residual, total, codes, residuals = latents.detach(), torch.zeros_like(latents), [], []
        for stage in range(self.depth):
            residuals.append(residual)
            code = self.nearest(residual, stage)
            entry = self.codebook[stage].index_select(0, code.flatten()).view_as(residual)
            total, residual = total + entry, residual - entry
            codes.append(code)
        codes = torch.stack(codes, -1)
        trains = keys is not None or (torch.is_grad_enabled() and self.norm.weight.requires_grad)
        if self.training and trains and not in_backward():
            keys = bit_keys(latents.detach()) if keys is None else keys
            priorities = scrambled(keys ^ self.updates).where(real, NO_VECTOR)
            statistics = Statistics.of(
                self.codebook, codes.flatten(0, -2), torch.stack(residuals, -2).flatten(0, -3), priorities.flatten()
            )
            self.gathered = statistics if self.gathered is None else self.gathered + statistics
        total = total.detach()
        commitment = (latents - total).square().mean(-1)
        loss = commitment.detach() + self.commitment * commitment
        quantized = self.up((latents + (total - latents).detach()).to(vectors.dtype))
        return Quantized(quantized.where(mask, 0), codes.where(mask, -1), loss.where(real, 0))

    def nearest(self, vectors: torch.Tensor, stage: int) -> torch.Tensor:
        """Return the entry `(...)`, int64, nearest to each vector `(..., code_dim)`; float32 also under autocast."""
        with torch.autocast(vectors.device.type, enabled=False):
            codebook = self.codebook[stage]
            return (codebook.square().sum(1) - 2 * vectors @ codebook.T).argmin(-1)

    def embed(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the vectors `(..., D)` of codes `(..., depth)`, as a forward gives them."""
        entries = torch.stack([self.codebook[stage][codes[..., stage]] for stage in range(self.depth)]).sum(0)
        return self.up(entries.to(self.norm.weight.dtype))

    @torch.no_grad()
    def update(self) -> None:
        """Move the codebook by what all processes gathered since the last update. The result is the same in all of
        them."""
        statistics = (self.gathered or Statistics.empty(self.codebook)).over_processes()
        self.gathered = None
        counts, sums = statistics.counts, statistics.sums
        any_vector = counts.any()  # without one everything stays as it is
        for average, new in ((self.counts, counts), (self.sums, sums)):
            average.copy_(torch.where(any_vector, torch.add(average * self.decay, new, alpha=1 - self.decay), average))
        # Without a use both averages decay alike, until they vanish: the entry stays where it is. With a use there is
        # at least 1 - decay to divide by, so that nothing has to be smoothed.
        used = (counts > 0).unsqueeze(-1)
        self.codebook.copy_(torch.where(used, self.sums / self.counts.unsqueeze(-1), self.codebook))
        self.idle.copy_(torch.where(counts > 0, 0, self.idle + counts.sum(1, keepdim=True)))
        self.seen += counts[0].sum().long()
        self.reset(statistics)
        self.updates += any_vector

    def reset(self, statistics: "Statistics") -> None:
        """Replace entries that are hardly used, the longest unused first, by recent vectors, which come in random
        order. The first update replaces any entry, so that the first vectors are the first codebook."""
        patience = (self.seen / 4).clamp(min=self.reset_after * self.num_codes)
        num_recent = (statistics.priorities < NO_VECTOR).sum()  # they come first
        order = torch.arange(len(statistics.priorities), device=self.idle.device)
        for stage in range(self.depth):
            num_replaced = ((self.idle[stage] > patience) | (self.updates == 0)).sum()
            places = self.idle[stage].argsort(descending=True, stable=True)[: len(order)]
            replaces = order < torch.minimum(num_recent, num_replaced)
            entries = statistics.recent[:, stage]
            for values, new in ((self.codebook, entries), (self.sums, entries), (self.counts, 1.0), (self.idle, 0.0)):
                before = values[stage, places]
                mask = replaces if before.ndim == 1 else replaces.unsqueeze(1)
                values[stage, places] = torch.where(mask, new, before)


@dataclass
class Statistics:
    """Statistics that forwards gathered. However vectors are divided into parts, the parts' statistics add up to the
    same.

    Attributes:
        counts: `(depth, K)`, float32, uses of each entry.
        sums: `(depth, K, code_dim)`, the sum of the vectors that became each entry.
        recent: `(M, depth, code_dim)`, the input of each stage, for the M different vectors of the smallest priorities.
        priorities: `(M,)`, int64, ascending; `NO_VECTOR` where there are fewer than M.
    """

    counts: torch.Tensor
    sums: torch.Tensor
    recent: torch.Tensor
    priorities: torch.Tensor

    @classmethod
    def empty(cls, codebook: torch.Tensor) -> "Statistics":
        depth, num_codes, code_dim = codebook.shape
        size = min(num_codes, MOST_RECENT)
        priorities = torch.full((size,), NO_VECTOR, device=codebook.device)
        return cls(
            codebook.new_zeros(depth, num_codes),
            torch.zeros_like(codebook),
            codebook.new_zeros(size, depth, code_dim),
            priorities,
        )

    @classmethod
    def of(
        cls, codebook: torch.Tensor, codes: torch.Tensor, residuals: torch.Tensor, priorities: torch.Tensor
    ) -> "Statistics":
        """Make the statistics of N places: codes `(N, depth)`, the input of each stage `(N, depth, code_dim)`, and
        priorities `(N,)`, which are `NO_VECTOR` where a place has no vector."""
        statistics = cls.empty(codebook)
        is_vector = (priorities < NO_VECTOR).to(residuals.dtype)
        for stage, (code, residual) in enumerate(zip(codes.unbind(1), residuals.unbind(1), strict=True)):
            statistics.counts[stage].index_add_(0, code, is_vector)
            statistics.sums[stage].index_add_(0, code, residual * is_vector.unsqueeze(1))
        recent = torch.cat((statistics.recent, residuals))
        size, priorities = len(statistics.priorities), torch.cat((statistics.priorities, priorities))
        return cls(statistics.counts, statistics.sums, *chosen(recent, priorities, size))

    def __add__(self, other: "Statistics") -> "Statistics":
        recent, priorities = torch.cat((self.recent, other.recent)), torch.cat((self.priorities, other.priorities))
        size = len(self.priorities)
        return Statistics(self.counts + other.counts, self.sums + other.sums, *chosen(recent, priorities, size))

    def over_processes(self) -> "Statistics":
        recent, priorities, size = all_gathered(self.recent), all_gathered(self.priorities), len(self.priorities)
        return Statistics(all_summed(self.counts), all_summed(self.sums), *chosen(recent, priorities, size))


def chosen(recent: torch.Tensor, priorities: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `size` vectors of the smallest priorities, and these priorities; of equal vectors only one."""
    priorities, order = priorities.sort(stable=True)
    again = nn.functional.pad(priorities[1:] == priorities[:-1], (1, 0))
    priorities, first = priorities.masked_fill(again, NO_VECTOR).sort(stable=True)
    return recent[order[first[:size]]], priorities[:size]


NEVER = 1e30
"""`idle` of an entry that was never used; finite, so that buffers can be compared."""
MOST_RECENT = 1024
"""The number of vectors of a step that are kept for replacing entries."""
NO_VECTOR = torch.iinfo(torch.long).max
"""The priority of a place without a vector."""


class FSQQuantizer(nn.Module):
    """Finite scalar quantization in place of a codebook. It has one stage, no loss and nothing to update."""

    depth = 1

    def __init__(self, hidden_size: int, levels: Sequence[int]):
        super().__init__()
        self.fsq = FSQ(levels)
        self.down = ScaledLinear(hidden_size, len(levels))
        self.up = ScaledLinear(len(levels), hidden_size)

    @property
    def num_codes(self) -> int:
        return self.fsq.num_codes

    def forward(self, vectors: torch.Tensor, real: torch.Tensor, keys: torch.Tensor | None = None) -> Quantized:
        values, index = self.fsq(self.down(vectors))
        quantized = self.up(values.to(vectors.dtype)) * real.unsqueeze(-1)
        codes = index.masked_fill(~real, -1).unsqueeze(-1)
        return Quantized(quantized, codes, None)

    def embed(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the vectors `(..., D)` of codes `(..., 1)`."""
        values = self.fsq.values(self.fsq.digits(codes.squeeze(-1)))
        return self.up(values.to(self.up.weight.dtype))

    def update(self) -> None:
        pass


def spread_values(*shape: int) -> torch.Tensor:
    """Return float32 values that look random, of unit variance and always the same: transformers wants buffers without
    chance. The formula is a quadratic Weyl sequence, frac(n^2 (sqrt(5) - 1) / 2)."""
    places = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return (math.sqrt(12) * ((places.square() * (math.sqrt(5) - 1) / 2).frac() - 0.5)).float().view(shape)


def in_backward() -> bool:
    """Whether this is gradient checkpointing's second forward, which must not be counted again. Always false in a graph
    that is being compiled."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def scrambled(values: torch.Tensor) -> torch.Tensor:
    """Replace int64 numbers by random-looking ones, one to one (the finalizer of SplitMix64)."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        values = (values ^ ((values >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return values


def prefix_keys(ids: torch.Tensor) -> torch.Tensor:
    """Return a number for each place of rows `(R, T)`, `(R, T)`, int64, that tells what the row holds up to there.
    Unlike floating-point results, it depends neither on the shape of the batch nor on the row's place in it."""
    places = torch.arange(ids.shape[1], device=ids.device)
    return scrambled((places << 32) + ids).cumsum(1)


def bit_keys(vectors: torch.Tensor) -> torch.Tensor:
    """Return a number for each vector `(..., code_dim)`, float32: `(...)`, int64, equal for vectors of equal bits."""
    bits = vectors.contiguous().view(torch.int32).long()
    places = torch.arange(bits.shape[-1], device=bits.device)
    return scrambled((places << 32) + bits).sum(-1)


def processes() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_summed(values: torch.Tensor) -> torch.Tensor:
    """Return the sum over processes."""
    if processes() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def all_gathered(values: torch.Tensor) -> torch.Tensor:
    """Return the values `(n, ...)` of all processes, concatenated; n is the same in each."""
    if processes() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(processes())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def code_usage(counts: torch.Tensor) -> tuple[float, float]:
    """Return the perplexity of the codes of one stage from their counts `(K,)`, and the share of the codebook that is
    used."""
    shares = counts.double() / counts.sum().clamp(min=1)
    return math.exp(torch.special.entr(shares).sum().item()), (shares > 0).double().mean().item()
