"""Residual convolutions over the bytes of a text, then the mean of each word, in place of EncodZall's encoders."""

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from latentlm import EncodzallConfig
from latentlm.models.encodzall_base import EncodzallModelOutput, EncodzallPreTrainedModel
from latentlm.models.encodzall_words import find_real_words
from latentlm.runs import Recipe

from .word_encoders import PeerDenoiser, mean_of_words, register

BLOCKS = 5  # of two convolutions: what leaves as many parameters as EncodZall has
KERNEL = 5


class ConvolutionEncoder(EncodzallPreTrainedModel):
    """Sees `2 * BLOCKS * (KERNEL // 2)` bytes to either side."""

    def __init__(self, config: EncodzallConfig):
        super().__init__(config)
        size = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, size)
        self.embed_ngrams = None  # that of the decoder, which a peer has none of
        self.norms = nn.ModuleList([nn.RMSNorm(size) for _ in range(BLOCKS)])
        self.convolutions = nn.ModuleList(
            [nn.Conv1d(size, size, KERNEL, padding="same", bias=False) for _ in range(2 * BLOCKS)]
        )
        self.norm = nn.RMSNorm(size)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,  # (B, T)
        attention_mask: torch.Tensor | None = None,
        word_ids: torch.Tensor | None = None,  # (B, T)
        **kwargs: Any,
    ) -> EncodzallModelOutput:
        real = input_ids != self.config.pad_token_id
        inside = real.unsqueeze(-1)  # padding stays 0 between all convolutions, as beyond the end of a text
        states = self.embed_tokens(input_ids) * inside

        def convolve(index: int, states: torch.Tensor) -> torch.Tensor:
            return self.convolutions[index](states.transpose(1, 2)).transpose(1, 2) * inside

        for block, norm in enumerate(self.norms):
            change = nn.functional.gelu(convolve(2 * block, norm(states)))
            states = states + convolve(2 * block + 1, change)
        if word_ids is None:
            word_ids = find_real_words(input_ids, real, self.config.max_word_bytes)
        return mean_of_words(self.norm(states), torch.where(real, word_ids, -1))


class ConvolutionDenoiser(PeerDenoiser):
    """[`PeerDenoiser`] that reads with convolutions."""

    encoder_class = ConvolutionEncoder


def prepare(recipe: Recipe) -> list[TrainerCallback]:
    register(ConvolutionDenoiser)
    return []
