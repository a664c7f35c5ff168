"""The decoder-only baseline: a plain pre-norm causal transformer with tied embeddings."""

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.utils.output_capturing import OutputRecorder

from .block_attention import FORMS, Attention
from .block_causal_head import CausalLMHead, CausalModel, CausalPreTrainedModel
from .block_layers import PreNormLayer
from .block_learned_dropout import make_learned_dropout
from .configuration_decoder_only import DecoderOnlyConfig


class DecoderOnlyPreTrainedModel(CausalPreTrainedModel):
    """Base class of the decoder-only models, with the flags and recorded outputs of transformers."""

    config: DecoderOnlyConfig
    _no_split_modules = ["PreNormLayer"]
    _can_record_outputs = {
        "hidden_states": PreNormLayer,
        "attentions": OutputRecorder(Attention, index=1, layer_name="self_attn"),
    }

    @property
    def num_residual_projections(self) -> int:
        return 2 * self.config.num_hidden_layers


class DecoderOnlyModel(CausalModel, DecoderOnlyPreTrainedModel):
    """The decoder-only transformer without a head, which computes hidden states `(B, T, D)` from ids `(B, T)`."""

    def build_layers(self, config: DecoderOnlyConfig) -> None:
        attention, count = FORMS[config.attention_form], config.num_hidden_layers
        self.layers = nn.ModuleList(
            PreNormLayer(config, attention(config, i), learned_dropout=make_learned_dropout(config, count + i))
            for i in range(count)
        )

    def run_layers(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        shared_attention: torch.Tensor | None,
        **shared: Any,
    ) -> tuple[torch.Tensor, list[torch.Tensor | None], dict[str, Any]]:
        hidden_states, penalties = embeddings, []
        for layer in self.layers:
            hidden_states, layer_penalties = layer(hidden_states, None, shared_attention, **shared)
            penalties.append(layer_penalties)
        return hidden_states, penalties, {}


class DecoderOnlyForCausalLM(CausalLMHead, DecoderOnlyPreTrainedModel, GenerationMixin):
    """[`DecoderOnlyModel`] with a head that predicts the next token."""

    def __init__(self, config: DecoderOnlyConfig):
        super().__init__(config)
        self.model = DecoderOnlyModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


__all__ = ["DecoderOnlyForCausalLM", "DecoderOnlyModel", "DecoderOnlyPreTrainedModel"]
