"""Causal convolutions: a gated residual network (Dauphin et al. 2017, 1612.08083), its body as large."""

import torch
from torch import nn
from transformers import TrainerCallback

from latentlm import DecoderOnlyConfig
from latentlm.runs import Recipe

from .causal import CausalPeer, body_parameters, nearest_width, register

KERNEL = 5
LONGEST_DILATION = 16  # the dilation doubles from layer to layer up to it, and begins again


class GatedConvolution(nn.Module):
    """One residual layer: a causal convolution with a gate, then a mixing of channels."""

    def __init__(self, size: int, dilation: int):
        super().__init__()
        self.reach = (KERNEL - 1) * dilation
        self.norm = nn.LayerNorm(size)
        self.convolution = nn.Conv1d(size, 2 * size, KERNEL, dilation=dilation)
        self.project = nn.Linear(size, size)

    def forward(self, states: torch.Tensor) -> torch.Tensor:  # (B, T, C)
        channels = nn.functional.pad(self.norm(states).transpose(1, 2), (self.reach, 0))
        return states + self.project(nn.functional.glu(self.convolution(channels), 1).transpose(1, 2))


class ConvolutionNetwork(nn.Module):
    """Embedding, layers, and an output layer tied to the embedding."""

    def __init__(self, vocab_size: int, size: int, width: int, layers: int):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, size)
        self.widen = nn.Linear(size, width)
        dilations = [1, 2, 4, 8, LONGEST_DILATION]
        self.layers = nn.Sequential(*(GatedConvolution(width, dilations[i % len(dilations)]) for i in range(layers)))
        self.narrow = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        states = self.narrow(self.layers(self.widen(self.embed_tokens(input_ids))))
        return states @ self.embed_tokens.weight.T


def body_of_width(size: int, width: int, layers: int) -> int:
    """Parameters of the network but for the embedding."""
    layer = 2 * width + (KERNEL * width * 2 * width + 2 * width) + (width * width + width)
    return size * width + width + layers * layer + 2 * width + width * size + size


class ConvolutionPeer(CausalPeer):
    """Sees `(KERNEL - 1) * dilation` tokens further back with each layer, other documents of its row among them."""

    network: ConvolutionNetwork

    def build(self, config: DecoderOnlyConfig) -> nn.Module:
        size, layers = config.hidden_size, config.num_hidden_layers
        width = nearest_width(
            body_parameters(config), range(8, 4 * size), lambda width: body_of_width(size, width, layers)
        )
        return ConvolutionNetwork(config.vocab_size, size, width, layers)

    def logits(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None
    ) -> torch.Tensor:
        return self.network(input_ids)


def prepare(recipe: Recipe) -> list[TrainerCallback]:
    register(ConvolutionPeer)
    return []
