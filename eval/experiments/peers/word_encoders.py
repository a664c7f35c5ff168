"""What the peers of EncodZall's encoders share: another encoder before the same decoder, losses, noise and rows."""

import torch
from transformers import AutoModelForSeq2SeqLM

from latentlm import EncodzallConfig, EncodzallForMaskedDenoising
from latentlm.models.encodzall_base import EncodzallModelOutput, EncodzallPreTrainedModel


class PeerDenoiser(EncodzallForMaskedDenoising):
    """EncodZall's denoiser with `encoder_class` in place of its encoders. For realistic noise: it knows no masks."""

    _auto_class = None  # loaded by its file, not from the Hub
    encoder_class: type[EncodzallPreTrainedModel]

    def __init__(self, config: EncodzallConfig):
        super().__init__(config)
        self.model = self.encoder_class(config)
        self.post_init()


def register(peer: type[PeerDenoiser]) -> None:
    """Let the recipes of EncodZall build the peer, in this process."""
    AutoModelForSeq2SeqLM.register(EncodzallConfig, peer, exist_ok=True)


def as_memory(memory: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> EncodzallModelOutput:
    """Vectors `(B, S, D)`, where they are real `(B, S)`, and the place of their first byte `(B, S)`."""
    memory = memory * mask.unsqueeze(-1)
    return EncodzallModelOutput(
        last_hidden_state=memory,
        pooler_output=memory.sum(1) / mask.sum(1, keepdim=True),
        word_mask=mask,
        word_positions=positions,
    )


def mean_of_words(states: torch.Tensor, words: torch.Tensor) -> EncodzallModelOutput:
    """The mean of each word's states.

    Args:
        states: `(B, T, D)`.
        words: `(B, T)` index of each place's word, -1 for padding.
    """
    real = words >= 0
    index = words.clamp(min=0)
    rows, size = len(words), int(words.max()) + 1
    count = index.new_zeros(rows, size).scatter_add(1, index, real.long())
    wide = index.unsqueeze(-1).expand_as(states)
    total = states.new_zeros(rows, size, states.shape[-1]).scatter_add(1, wide, states * real.unsqueeze(-1))
    places = torch.arange(words.shape[1], device=words.device) - real.long().argmax(1, keepdim=True)
    far = torch.where(real, places, words.shape[1])
    first = index.new_full((rows, size), words.shape[1]).scatter_reduce(1, index, far, "amin")
    mask = count > 0
    return as_memory(total / count.clamp(min=1).unsqueeze(-1), mask, first * mask)
