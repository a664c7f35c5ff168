"""The decoder-only baseline: a plain pre-norm causal transformer with tied embeddings."""

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import SelfAttention
from .causal_lm import TransformerPreTrainedModel, shifted
from .configuration_decoder_only import DecoderOnlyConfig
from .layers import CausalLayer, layer_norm
from .outputs import CausalLMOutput
from .positions import PositionSubtraction


class DecoderOnlyPreTrainedModel(TransformerPreTrainedModel):
    config: DecoderOnlyConfig
    _no_split_modules = ["CausalLayer"]
    _can_record_outputs = {"hidden_states": CausalLayer, "attentions": SelfAttention}

    @property
    def num_residual_projections(self) -> int:
        return 2 * self.config.num_hidden_layers


class DecoderOnlyModel(DecoderOnlyPreTrainedModel):
    def __init__(self, config: DecoderOnlyConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.num_position_embeddings:
            self.embed_positions = nn.Embedding(config.num_position_embeddings, config.hidden_size)
        if config.position_embedding_type == "rotary":
            self.rotary = LlamaRotaryEmbedding(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList([CausalLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = layer_norm(config)
        if config.position_subtraction != "none":
            self.position_subtraction = PositionSubtraction(config)
        self.gradient_checkpointing = False
        self.post_init()

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
    ) -> BaseModelOutputWithPast:
        hidden_states, mask, positions, past_key_values = self.embed(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache
        )
        rotary = None
        if self.config.position_embedding_type == "learned":
            hidden_states = hidden_states + self.embed_positions(positions)
        else:
            rotary = self.rotary(hidden_states, positions)
        hidden_states = self.dropout(hidden_states)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=mask,
                rotary=rotary,
                past_key_values=past_key_values,
                position_ids=position_ids,  # the flash backend finds packed documents by it
                **kwargs,
            )
        hidden_states = self.norm(hidden_states)
        if self.config.position_subtraction != "none":
            hidden_states = self.position_subtraction(hidden_states, self.embed_positions(positions + 1))
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=past_key_values)


class DecoderOnlyForCausalLM(DecoderOnlyPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: DecoderOnlyConfig):
        super().__init__(config)
        self.model = DecoderOnlyModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,  # (B, T), -100 is ignored; position t is scored against label t + 1
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        shift_labels: torch.LongTensor | None = None,  # (B, T), instead of labels: already moved by one
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> CausalLMOutput:
        if shift_labels is None and labels is not None:
            shift_labels = shifted(labels)
        if shift_labels is not None and use_cache is None:
            use_cache = False  # nobody continues from a training batch
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))  # (B, T, V)
        lm_loss = None
        if shift_labels is not None:
            lm_loss = self.loss_function(
                logits, labels, self.config.vocab_size, num_items_in_batch, shift_labels=shift_labels
            )
        return CausalLMOutput(
            loss=lm_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            lm_loss=lm_loss,
        )


__all__ = ["DecoderOnlyForCausalLM", "DecoderOnlyModel", "DecoderOnlyPreTrainedModel"]
