"""Finite scalar quantization (Mentzer et al. 2023, arXiv:2309.15505), in its symmetric form."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from transformers import initialization as init


class FSQ(nn.Module):
    """Rounds each of n bounded values to one of `levels[i]` values spaced evenly over [-1, 1]; no codebook exists.

    With L levels, z becomes the position p = (tanh(z / temperature) + 1) / 2 * (L - 1), the digit d = round(p) and the
    value 2 d / (L - 1) - 1, whose gradient is that of p (straight-through). All L values are used, also of an even L:
    the original round(tanh(z) * (L - 1) / 2) has only L - 1 of them. A code has the index sum_i d_i * prod_{j<i} L_j:
    the first dimension changes fastest.

    Args:
        levels: number of values in each dimension, at least 2.
        temperature: divides z.
        noise: in training, the share of values that are moved by uniform noise of half a step to either side instead
            of being rounded.
    """

    level_counts: torch.Tensor
    strides: torch.Tensor

    def __init__(self, levels: Sequence[int], temperature: float = 1.0, noise: float = 0.0):
        super().__init__()
        self.levels = tuple(levels)
        self.temperature = temperature
        self.noise = noise
        for name, values in self.constants.items():
            self.register_buffer(name, values, persistent=False)

    @property
    def constants(self) -> dict[str, torch.Tensor]:
        """Of each dimension L_i and prod_{j<i} L_j, `(n,)`, int64. As buffers, not made in a forward: an accelerator
        would wait for the copy."""
        strides = [math.prod(self.levels[:i]) for i in range(len(self.levels))]
        return {"level_counts": torch.tensor(self.levels), "strides": torch.tensor(strides)}

    def initialize_parameters(self) -> None:
        for name, values in self.constants.items():  # which `from_pretrained` does not read
            init.copy_(getattr(self, name), values)

    @property
    def num_codes(self) -> int:
        return math.prod(self.levels)

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Values `(..., n)`, float32 also under autocast, and code indices `(...)`, int64, of `z` `(..., n)`."""
        positions = self.positions(z)
        digits = positions.detach().round()
        moved = digits
        if self.training and self.noise:
            moved = torch.where(self.draw(positions) < self.noise, positions + self.draw(positions) - 0.5, digits)
        straight_through = positions + (moved - positions).detach()
        return self.values(straight_through), self.index(digits.long())

    def positions(self, z: torch.Tensor) -> torch.Tensor:
        """Where `z` `(..., n)` lies between the digits 0 and L - 1 of each dimension, before rounding; float32."""
        return (torch.tanh(z.float() / self.temperature) + 1) / 2 * (self.level_counts - 1)

    def values(self, digits: torch.Tensor) -> torch.Tensor:
        """Digits `(..., n)`, from 0 to L - 1, spread over [-1, 1]; float32."""
        return 2 * digits.float() / (self.level_counts - 1) - 1

    def index(self, digits: torch.Tensor) -> torch.Tensor:
        """Code indices `(...)` of digits `(..., n)`, both int64."""
        return (digits * self.strides).sum(-1)

    def digits(self, index: torch.Tensor) -> torch.Tensor:
        """Digits `(..., n)` of code indices `(...)`, both int64."""
        return index.unsqueeze(-1) // self.strides % self.level_counts

    def draw(self, like: torch.Tensor) -> torch.Tensor:
        """Uniform numbers in [0, 1)."""
        return torch.rand_like(like)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, temperature={self.temperature}, noise={self.noise}"
