"""The BLT of transformers (Pagnoni et al. 2024, 2412.09871) through the recipe of the flat model.

Its patcher, which transformers only loads, learns here beside it, by a loss of its own (`entropy_loss`), as the entropy
model of the Abstractinator does; its threshold follows the entropies so that patches have `PATCH_LENGTH` bytes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import BltConfig, BltModel, TrainerCallback
from transformers.models.blt.modeling_blt import process_patch_lengths

from latentlm import DecoderOnlyConfig
from latentlm.models.block_outputs import CausalLMOutput
from latentlm.runs import Recipe

from .causal import CausalPeer, register

PATCH_LENGTH = 3.0  # bytes, as abstractinator/one-level.yaml ends with
MAX_PATCH_LENGTH = 32  # as there
WINDOW = 64  # as there
HASHED = [3]  # bytes of the hashed embeddings, where the recipe has no `ngram_embedding`
HASH_VOCABULARY = 1600  # of those: what leaves as many parameters as the Abstractinator of its page has
FOLLOWING = 0.05  # how far the threshold moves in a step


def blt_config(config: DecoderOnlyConfig) -> BltConfig:
    """As many layers of each kind as one level of the Abstractinator has; hashed embeddings as the recipe says."""
    sizes: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.hidden_size * 7 // 2,
        "max_position_embeddings": 2 * config.max_position_embeddings,
    }
    whole = {"hidden_size_global": config.hidden_size}
    return BltConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=sizes["max_position_embeddings"],
        patcher_config={**sizes, "num_hidden_layers": 2, "sliding_window": WINDOW},
        encoder_config={**sizes, **whole, "num_hidden_layers": 1},
        decoder_config={**sizes, **whole, "num_hidden_layers": 2},
        global_config={name: value for name, value in sizes.items() if name != "vocab_size"} | {"num_hidden_layers": 2},
        encoder_hash_byte_group_size=config.ngram_embedding or HASHED,
        encoder_hash_byte_group_vocab=config.ngram_buckets if config.ngram_embedding else HASH_VOCABULARY,
        local_attention_window_len=WINDOW,
    )


@dataclass
class BltOutput(CausalLMOutput):
    """[`CausalLMOutput`] with the loss of the patcher."""

    entropy_loss: torch.FloatTensor | None = None


class PatchedBlt(nn.Module):
    """BLT with its patcher, an output layer and the threshold of the patches."""

    threshold: torch.Tensor

    def __init__(self, config: DecoderOnlyConfig):
        super().__init__()
        self.blt = BltModel(blt_config(config))
        assert self.blt.patcher is not None  # a configuration without one has none
        self.blt.patcher.requires_grad_(True)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for head in (self.lm_head, self.blt.patcher.lm_head):
            head.is_output = True  # no matrix for Muon
        self.register_buffer("threshold", torch.tensor(2.0))

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `(B, T, V)` of the next byte, and of the patcher. Rows without padding."""
        patcher: Any = self.blt.patcher
        entropies, _, patcher_logits = patcher(input_ids)
        entropies = entropies.detach().float()
        if self.training:
            wanted = entropies[:, 1:].flatten().quantile(1 - 1 / PATCH_LENGTH)
            self.threshold.lerp_(wanted, FOLLOWING)
        lengths = patcher.patch_lengths_from_entropies(entropies, input_ids.shape[1], 1, self.threshold)
        lengths = process_patch_lengths(lengths, MAX_PATCH_LENGTH)
        states = self.blt(input_ids, patch_lengths=lengths, use_cache=False).last_hidden_state
        return self.lm_head(states), patcher_logits


class BltPeer(CausalPeer):
    """BLT under the configuration of the decoder-only model."""

    network: PatchedBlt
    patcher_logits: torch.Tensor

    def build(self, config: DecoderOnlyConfig) -> nn.Module:
        return PatchedBlt(config)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PatchedBlt):
            nn.init.constant_(module.threshold, 2.0)

    def logits(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None
    ) -> torch.Tensor:
        logits, self.patcher_logits = self.network(input_ids)
        return logits

    def extra_losses(
        self, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
    ) -> dict[str, torch.Tensor]:
        return {"entropy_loss": self.next_token_loss(self.patcher_logits, labels, num_items_in_batch)}

    def output(self, **fields: Any) -> CausalLMOutput:
        return BltOutput(**fields)


def prepare(recipe: Recipe) -> list[TrainerCallback]:
    register(BltPeer)
    return []
