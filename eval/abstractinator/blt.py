"""The BLT of transformers (Pagnoni et al. 2024, 2412.09871) through the recipe of the flat model, as many parameters.

    python eval/abstractinator/blt.py RECIPE.yaml [--field value ...]

Its patcher, which transformers only loads, learns here beside it, by a loss of its own (`entropy_loss`), as the entropy
model of the Abstractinator does; its threshold follows the entropies so that patches have `PATCH_LENGTH` bytes.
"""

import sys
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BltConfig, BltModel
from transformers.generation import GenerationMixin
from transformers.models.blt.modeling_blt import process_patch_lengths

from latentlm import DecoderOnlyConfig
from latentlm.cli.train import recipe_from_command_line
from latentlm.models.block_causal_head import CausalLMHead
from latentlm.models.block_outputs import CausalLMOutput, CausalModelOutput
from latentlm.models.modeling_decoder_only import DecoderOnlyPreTrainedModel
from latentlm.training.run import train

PATCH_LENGTH = 3.0  # bytes, as one-level.yaml ends with
MAX_PATCH_LENGTH = 32  # as there
WINDOW = 64  # as there
HASH_VOCABULARY = 1600  # hashed embeddings of three bytes: what leaves as many parameters as the pyramid has


def blt_config(config: DecoderOnlyConfig) -> BltConfig:
    """As many layers of each kind as one-level.yaml has."""
    sizes = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": 560,
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
        encoder_hash_byte_group_size=[3],
        encoder_hash_byte_group_vocab=HASH_VOCABULARY,
        local_attention_window_len=WINDOW,
    )


@dataclass
class BltOutput(CausalModelOutput):
    patcher_logits: torch.FloatTensor | None = None


@dataclass
class BltLMOutput(CausalLMOutput):
    entropy_loss: torch.FloatTensor | None = None


class PatchedBlt(DecoderOnlyPreTrainedModel):
    def __init__(self, config: DecoderOnlyConfig):
        super().__init__(config)
        self.blt = BltModel(blt_config(config))
        self.blt.patcher.requires_grad_(True)
        self.register_buffer("threshold", torch.tensor(2.0))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            nn.init.constant_(self.threshold, 2.0)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs) -> BltOutput:
        """Rows without padding: a text shorter than the rows is not for this script."""
        patcher = self.blt.patcher
        entropies, _, logits = patcher(input_ids)
        entropies = entropies.detach().float()
        if self.training:
            wanted = entropies[:, 1:].flatten().quantile(1 - 1 / PATCH_LENGTH)
            self.threshold.lerp_(wanted, 0.05)
        lengths = patcher.patch_lengths_from_entropies(entropies, input_ids.shape[1], 1, self.threshold)
        lengths = process_patch_lengths(lengths, MAX_PATCH_LENGTH)
        states = self.blt(input_ids, patch_lengths=lengths, use_cache=False).last_hidden_state
        return BltOutput(states, patcher_logits=logits)


class BltPeer(CausalLMHead, DecoderOnlyPreTrainedModel, GenerationMixin):
    _auto_class = None  # loaded by this file, not from the Hub
    _tied_weights_keys = {}
    output_class = BltLMOutput

    def __init__(self, config: DecoderOnlyConfig):
        super().__init__(config)
        self.model = PatchedBlt(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def extra_losses(self, outputs, shift_labels, **inputs):
        loss = nn.functional.cross_entropy(
            outputs.patcher_logits.float().transpose(1, 2), shift_labels, ignore_index=-100, reduction="none"
        )
        return {"entropy_loss": (loss, 1.0)}


if __name__ == "__main__":
    AutoModelForCausalLM.register(DecoderOnlyConfig, BltPeer, exist_ok=True)
    train(recipe_from_command_line(sys.argv[1:]))
