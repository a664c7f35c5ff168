"""Finite scalar quantization (Mentzer et al. 2023, arXiv:2309.15505), in its symmetric form."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from transformers import initialization as init


class FSQ(nn.Module):
    """Finite scalar quantization, which rounds each of n bounded values to one of `levels[i]` values that are spaced
    evenly over [-1, 1].

    With L levels, z becomes the position p = (tanh(z / temperature) + 1) / 2 * (L - 1), the digit d = round(p) and the
    value 2 d / (L - 1) - 1, whose gradient is that of p (straight-through). All L values are used, also for an even L,
    where the rounding without an offset, round(tanh(z) * (L - 1) / 2), has only L - 1 values. The index of a code is
    sum_i d_i * prod_{j<i} L_j, so the first dimension changes fastest. There is no codebook.

    With several quantizers (residual quantization), each further one scales the remainder of those before it to
    [-1, 1], and rounds it to the same levels. z then still has n dimensions, and its code has n digits for each
    quantizer, the coarsest first. The value of a code is the sum of the values of the quantizers, of which the i-th
    (from 0) is divided by (L - 1)^i.

    Args:
        levels: number of values in each dimension, at least 2.
        temperature: divides z before the tanh.
        noise: share of values that, in training, get uniform noise in [-0.5, 0.5] steps instead of rounding.
        num_quantizers: 1, or more for residual quantization.
    """

    level_counts: torch.Tensor
    strides: torch.Tensor

    def __init__(self, levels: Sequence[int], temperature: float = 1.0, noise: float = 0.0, num_quantizers: int = 1):
        super().__init__()
        self.levels = tuple(levels) * num_quantizers
        self.num_dimensions = len(levels)
        self.temperature = temperature
        self.noise = noise
        for name, values in self.constants.items():
            self.register_buffer(name, values, persistent=False)

    @property
    def constants(self) -> dict[str, torch.Tensor]:
        """The constants L_i and prod_{j<i} L_j of each digit, `(N,)`, int64. They are buffers, because an accelerator
        would wait for a copy from the host in every forward."""
        strides = [math.prod(self.levels[:i]) for i in range(len(self.levels))]
        return {"level_counts": torch.tensor(self.levels), "strides": torch.tensor(strides)}

    def initialize_parameters(self) -> None:
        for name, values in self.constants.items():  # `from_pretrained` does not load these buffers
            init.copy_(getattr(self, name), values)

    @property
    def num_codes(self) -> int:
        """The number of codes, over all quantizers."""
        return math.prod(self.levels)

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Quantize `z` `(..., n)`: return values `(..., n)`, float32 also under autocast, and code indices `(...)`,
        int64."""
        positions = self.positions(z)
        digits = positions.detach().round()
        moved = digits
        if self.training and self.noise:
            moved = torch.where(self.draw(positions) < self.noise, positions + self.draw(positions) - 0.5, digits)
        straight_through = positions + (moved - positions).detach()
        if len(self.levels) > self.num_dimensions:  # only the first quantizer has a gradient
            coarse = straight_through[..., : self.num_dimensions]
            straight_through = torch.cat((coarse, moved[..., self.num_dimensions :].detach()), -1)
        return self.values(straight_through), self.index(digits.long())

    def positions(self, z: torch.Tensor) -> torch.Tensor:
        """Return the positions of `z` `(..., n)` between the digits 0 and L - 1 before rounding, `(..., N)`, float32,
        where N is n times the number of quantizers. Each further quantizer has the positions of the remainder of those
        before it."""
        steps = self.level_counts[: self.num_dimensions] - 1
        positions = [(torch.tanh(z.float() / self.temperature) + 1) / 2 * steps]
        while len(positions) * self.num_dimensions < len(self.levels):
            left = positions[-1] - positions[-1].detach().round()  # in [-0.5, 0.5] steps
            positions.append((left + 0.5) * steps)
        return positions[0] if len(positions) == 1 else torch.cat(positions, -1)

    def values(self, digits: torch.Tensor) -> torch.Tensor:
        """Return the values `(..., n)`, float32, of digits `(..., N)` from 0 to L - 1. They are scaled to [-1, 1] and
        summed over the quantizers."""
        values = 2 * digits.float() / (self.level_counts - 1) - 1
        if len(self.levels) == self.num_dimensions:
            return values
        total, steps = torch.zeros_like(values[..., : self.num_dimensions]), self.level_counts - 1
        for part, scale in zip(
            reversed(values.split(self.num_dimensions, -1)), reversed(steps.split(self.num_dimensions)), strict=True
        ):
            total = part + total / scale
        return total

    def index(self, digits: torch.Tensor) -> torch.Tensor:
        """Return the code indices `(...)` of digits `(..., N)`, both int64."""
        return (digits * self.strides).sum(-1)

    def digits(self, index: torch.Tensor) -> torch.Tensor:
        """Return the digits `(..., N)` of code indices `(...)`, both int64; the digits of the first quantizer come
        first."""
        return index.unsqueeze(-1) // self.strides % self.level_counts

    def draw(self, like: torch.Tensor) -> torch.Tensor:
        """Draw uniform numbers in [0, 1) of the same shape."""
        return torch.rand_like(like)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, temperature={self.temperature}, noise={self.noise}"
