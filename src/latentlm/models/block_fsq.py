"""Finite scalar quantization (Mentzer et al. 2023, arXiv:2309.15505), in its symmetric form."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from transformers import initialization as init


class FSQ(nn.Module):
    """Finite scalar quantization: each of n bounded values is rounded to one of `levels[i]` values spaced evenly over
    [-1, 1].

    With L levels, z becomes the position p = (tanh(z / temperature) + 1) / 2 * (L - 1), the digit d = round(p) and the
    value 2 d / (L - 1) - 1, whose gradient is that of p (straight-through). All L values are used, also for an even L:
    the original round(tanh(z) * (L - 1) / 2) has only L - 1 of them. A code has the index sum_i d_i * prod_{j<i} L_j:
    the first dimension changes fastest. There is no codebook.

    With several quantizers (residual quantization), each further one stretches to [-1, 1] what those before it leave,
    and rounds it to the same levels. z then has n dimensions, and its code n digits for each quantizer, the coarsest
    first. Its value is the sum of the quantizers' values, the i-th (from 0) divided by (L - 1)^i.

    Args:
        levels: number of values in each dimension, at least 2.
        temperature: divides z.
        noise: in training, the share of values that are moved by uniform noise of half a step to either side instead of
            being rounded.
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
        """The constants L_i and prod_{j<i} L_j of each digit, `(N,)`, int64. They are buffers, since an accelerator
        would wait for a copy in the forward."""
        strides = [math.prod(self.levels[:i]) for i in range(len(self.levels))]
        return {"level_counts": torch.tensor(self.levels), "strides": torch.tensor(strides)}

    def initialize_parameters(self) -> None:
        for name, values in self.constants.items():  # which `from_pretrained` does not read
            init.copy_(getattr(self, name), values)

    @property
    def num_codes(self) -> int:
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
        if len(self.levels) > self.num_dimensions:  # the first quantizer has the gradient of the whole
            coarse = straight_through[..., : self.num_dimensions]
            straight_through = torch.cat((coarse, moved[..., self.num_dimensions :].detach()), -1)
        return self.values(straight_through), self.index(digits.long())

    def positions(self, z: torch.Tensor) -> torch.Tensor:
        """Return where `z` `(..., n)`, and what each quantizer leaves of it, lies between the digits 0 and L - 1 before
        rounding: `(..., N)`, float32, where N is n times the number of quantizers."""
        steps = self.level_counts[: self.num_dimensions] - 1
        positions = [(torch.tanh(z.float() / self.temperature) + 1) / 2 * steps]
        while len(positions) * self.num_dimensions < len(self.levels):
            left = positions[-1] - positions[-1].detach().round()  # half a step to either side
            positions.append((left + 0.5) * steps)
        return positions[0] if len(positions) == 1 else torch.cat(positions, -1)

    def values(self, digits: torch.Tensor) -> torch.Tensor:
        """Return the values `(..., n)`, float32, of digits `(..., N)` from 0 to L - 1: spread over [-1, 1], and summed
        over the quantizers."""
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
        """Return the digits `(..., N)` of code indices `(...)`, both int64, those of the first quantizer first."""
        return index.unsqueeze(-1) // self.strides % self.level_counts

    def draw(self, like: torch.Tensor) -> torch.Tensor:
        """Draw uniform numbers in [0, 1) of the same shape."""
        return torch.rand_like(like)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, temperature={self.temperature}, noise={self.noise}"
