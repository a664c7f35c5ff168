"""The decoder-only baseline: a plain pre-norm causal transformer with tied embeddings."""

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .block_attention import FORMS, Attention, rotary_table
from .block_causal_head import CausalLMHead, CausalPreTrainedModel, PositionSubtraction
from .block_layers import PreNormLayer, make_norm
from .block_learned_dropout import make_learned_dropout, make_shared_mask_attention, mean_penalties
from .block_outputs import CausalModelOutput
from .configuration_decoder_only import DecoderOnlyConfig


class DecoderOnlyPreTrainedModel(CausalPreTrainedModel):
    config: DecoderOnlyConfig
    _no_split_modules = ["PreNormLayer"]
    _can_record_outputs = {
        "hidden_states": PreNormLayer,
        "attentions": OutputRecorder(Attention, index=1, layer_name="self_attn"),
    }

    @property
    def num_residual_projections(self) -> int:
        return 2 * self.config.num_hidden_layers


class DecoderOnlyModel(DecoderOnlyPreTrainedModel):
    def __init__(self, config: DecoderOnlyConfig):
        super().__init__(config)
        self.embed_tokens = self.build_embedding(config)
        if config.num_position_embeddings:
            self.embed_positions = nn.Embedding(config.num_position_embeddings, config.hidden_size)
        if config.position_embedding_type == "rotary":
            self.rotary = rotary_table(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        # In the cache the attentions of the layers come first, then those that decide masks.
        count = config.num_hidden_layers
        self.mask_attention = make_shared_mask_attention(config, count)
        attention = FORMS[config.attention_form]
        self.layers = nn.ModuleList(
            PreNormLayer(config, attention(config, i), learned_dropout=make_learned_dropout(config, count + i))
            for i in range(count)
        )
        self.norm = make_norm(config)
        if config.position_subtraction != "none":
            self.position_subtraction = PositionSubtraction(config)
        self.gradient_checkpointing = False
        self.post_init()

    def build_embedding(self, config: DecoderOnlyConfig) -> nn.Embedding:
        return nn.Embedding(config.vocab_size, config.hidden_size)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,  # (B, T)
        attention_mask: torch.Tensor | None = None,  # (B, T_seen), 1 where a token is real
        position_ids: torch.LongTensor | None = None,  # (B, T), restarting at 0 for each packed document
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,  # (B, T, D)
        use_cache: bool | None = None,
        **kwargs,
    ) -> CausalModelOutput:
        hidden_states, mask, positions, past_key_values = self.embed(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache
        )
        shared = {"mask": mask, "past_key_values": past_key_values, **kwargs}
        rotary = None
        if self.config.position_embedding_type == "learned":
            hidden_states = hidden_states + self.embed_positions(positions)
        else:
            rotary = self.rotary(hidden_states, positions)
        hidden_states = self.dropout(hidden_states)
        shared_attention = None if self.mask_attention is None else self.mask_attention(hidden_states, **shared)[0]
        penalties = []
        for layer in self.layers:
            hidden_states, layer_penalties = layer(hidden_states, None, shared_attention, rotary=rotary, **shared)
            penalties.append(layer_penalties)
        hidden_states = self.norm(hidden_states)
        if self.config.position_subtraction != "none":
            hidden_states = self.position_subtraction(hidden_states, self.embed_positions(positions + 1))
        return CausalModelOutput(
            last_hidden_state=hidden_states,
            past_key_values=past_key_values,
            mask_penalties=mean_penalties(penalties),
        )


class DecoderOnlyForCausalLM(CausalLMHead, DecoderOnlyPreTrainedModel, GenerationMixin):
    def __init__(self, config: DecoderOnlyConfig):
        super().__init__(config)
        self.model = DecoderOnlyModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


__all__ = ["DecoderOnlyForCausalLM", "DecoderOnlyModel", "DecoderOnlyPreTrainedModel"]
