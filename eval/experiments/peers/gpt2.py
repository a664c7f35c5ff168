"""GPT-2 of transformers, as wide and as deep as the decoder-only model of the recipe."""

from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback

from latentlm import DecoderOnlyConfig
from latentlm.runs import Recipe

from .causal import CausalPeer, register


class GPT2Peer(CausalPeer):
    """GPT-2 with learned positions; texts that share a row do not see each other."""

    _tied_weights_keys = {"network.lm_head.weight": "network.transformer.wte.weight"}
    network: GPT2LMHeadModel

    def build(self, config: DecoderOnlyConfig) -> nn.Module:
        sizes: dict[str, Any] = {
            "vocab_size": config.vocab_size,
            "n_embd": config.hidden_size,
            "n_layer": config.num_hidden_layers,
            "n_head": config.num_attention_heads,
            "n_positions": config.max_position_embeddings,
        }
        dropout: dict[str, Any] = {
            "resid_pdrop": config.hidden_dropout,
            "embd_pdrop": config.hidden_dropout,
            "attn_pdrop": config.attention_dropout,
        }
        return GPT2LMHeadModel._from_config(GPT2Config(**sizes, **dropout), attn_implementation="sdpa")

    def logits(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None
    ) -> torch.Tensor:
        return self.network(input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False).logits


def prepare(recipe: Recipe) -> list[TrainerCallback]:
    register(GPT2Peer)
    return []
