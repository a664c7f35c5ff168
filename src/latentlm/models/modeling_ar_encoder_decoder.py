"""The auto-regressive encoder-decoder (seed: ar-encoder-decoder): a causal encoder, then a causal decoder that also
cross-attends to the encoder output. One pass predicts the next token at every position."""

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import CrossAttention, Rotary, SelfAttention
from .causal_lm import TransformerPreTrainedModel, mean_over_predicted, shifted
from .configuration_ar_encoder_decoder import AREncoderDecoderConfig
from .embedding_loss import EmbeddingLoss
from .layers import CausalLayer, FeedForward, layer_norm
from .outputs import EncoderDecoderCausalLMOutput, EncoderDecoderModelOutput
from .positions import PositionSubtraction


class DecoderLayer(GradientCheckpointingLayer):
    """h += SelfAttention(LN1(h)); h += gate * CrossAttention(LN_q(h), LN_kv(encoder)); h += FeedForward(LN2(h));
    the first two in the other order with `decoder_order="cross_first"`."""

    def __init__(self, config: AREncoderDecoderConfig, layer_idx: int):
        super().__init__()
        self.cross_first = config.decoder_order == "cross_first"
        self.self_attn_norm = layer_norm(config)
        self.self_attn = SelfAttention(config, layer_idx)
        self.cross_attn_query_norm = layer_norm(config)
        self.cross_attn_key_norm = layer_norm(config)
        self.cross_attn = CrossAttention(config, layer_idx + 1)
        self.cross_attn_gate = nn.Parameter(torch.empty(())) if config.cross_attention_gate else None
        self.mlp_norm = layer_norm(config)
        self.mlp = FeedForward(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def initialize_parameters(self) -> None:
        if self.cross_attn_gate is not None:
            init.ones_(self.cross_attn_gate)

    def attend_self(self, hidden_states: torch.Tensor, mask, rotary, past_key_values, **kwargs) -> torch.Tensor:
        attended, _ = self.self_attn(self.self_attn_norm(hidden_states), mask, rotary, past_key_values, **kwargs)
        return hidden_states + self.dropout(attended)

    def attend_encoder(
        self, hidden_states: torch.Tensor, encoder_states: torch.Tensor, mask, rotary, past_key_values, **kwargs
    ) -> torch.Tensor:
        attended, _ = self.cross_attn(
            self.cross_attn_query_norm(hidden_states),
            self.cross_attn_key_norm(encoder_states),
            mask,
            rotary,
            past_key_values,
            **kwargs,
        )
        if self.cross_attn_gate is not None:
            attended = self.cross_attn_gate * attended
        return hidden_states + self.dropout(attended)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, T, D)
        encoder_states: torch.Tensor,  # (B, T, D)
        attention_mask: torch.Tensor | None = None,
        rotary: Rotary | None = None,
        cross_rotary: Rotary | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        cross = (encoder_states, attention_mask, cross_rotary, past_key_values)
        if self.cross_first:
            hidden_states = self.attend_encoder(hidden_states, *cross, **kwargs)
        hidden_states = self.attend_self(hidden_states, attention_mask, rotary, past_key_values, **kwargs)
        if not self.cross_first:
            hidden_states = self.attend_encoder(hidden_states, *cross, **kwargs)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))


class AREncoderDecoderPreTrainedModel(TransformerPreTrainedModel):
    config: AREncoderDecoderConfig
    _no_split_modules = ["CausalLayer", "DecoderLayer"]
    _can_record_outputs = {
        "hidden_states": [OutputRecorder(CausalLayer), OutputRecorder(DecoderLayer)],
        "attentions": SelfAttention,
        "cross_attentions": CrossAttention,
    }

    @property
    def num_residual_projections(self) -> int:
        # The seed's formula with L layers per stack: 0.02 / sqrt(2 L).
        return self.config.num_hidden_layers


class AREncoderDecoderModel(AREncoderDecoderPreTrainedModel):
    # Belongs to the language-model loss: not needed here when a `ForCausalLM` checkpoint is loaded.
    _keys_to_ignore_on_load_unexpected = [r"^embedding_loss\."]

    def __init__(self, config: AREncoderDecoderConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.num_position_embeddings:
            self.embed_positions = nn.Embedding(config.num_position_embeddings, config.hidden_size)
        if config.position_embedding_type == "rotary":
            self.rotary = LlamaRotaryEmbedding(config)
            self.cross_rotary = LlamaRotaryEmbedding(config.per_layer_config[-1])  # its heads have another size
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.encoder_layers = nn.ModuleList([CausalLayer(config, i) for i in range(config.num_encoder_layers)])
        self.bridge_norm = layer_norm(config) if config.bridge_layer_norm else nn.Identity()
        self.bridge = nn.Linear(config.hidden_size, config.hidden_size, bias=config.use_bias)
        # Two cache layers per decoder layer: self-attention, then cross-attention.
        first = config.num_encoder_layers
        self.decoder_layers = nn.ModuleList(
            [DecoderLayer(config, first + 2 * i) for i in range(config.num_decoder_layers)]
        )
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
    ) -> EncoderDecoderModelOutput:
        config = self.config
        embeddings, mask, positions, past_key_values = self.embed(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache
        )
        # position_ids: the flash backend finds packed documents by them.
        shared = {"attention_mask": mask, "past_key_values": past_key_values, "position_ids": position_ids, **kwargs}

        rotary = cross_rotary = None
        if config.position_embedding_type == "learned":
            embeddings = embeddings + self.embed_positions(positions)
        else:
            rotary, cross_rotary = (table(embeddings, positions) for table in (self.rotary, self.cross_rotary))
        embeddings = self.dropout(embeddings)

        encoder_states = embeddings
        for layer in self.encoder_layers:
            encoder_states = layer(encoder_states, rotary=rotary, **shared)

        hidden_states = self.bridge(self.bridge_norm(encoder_states))
        if config.add_next_position:
            hidden_states = hidden_states + self.embed_positions(positions + 1)
        for layer in self.decoder_layers:
            hidden_states = layer(hidden_states, encoder_states, rotary=rotary, cross_rotary=cross_rotary, **shared)
        hidden_states = self.norm(hidden_states)
        if config.position_subtraction != "none":
            hidden_states = self.position_subtraction(hidden_states, self.embed_positions(positions + 1))
        return EncoderDecoderModelOutput(
            last_hidden_state=hidden_states,
            past_key_values=past_key_values,
            encoder_last_hidden_state=encoder_states,
            input_embeddings=embeddings,
        )


class AREncoderDecoderForCausalLM(AREncoderDecoderPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: AREncoderDecoderConfig):
        super().__init__(config)
        self.model = AREncoderDecoderModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.embedding_loss != "none":
            self.embedding_loss = EmbeddingLoss(config)
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
    ) -> EncoderDecoderCausalLMOutput:
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
        loss = lm_loss = embedding_loss = None
        if shift_labels is not None:
            loss = lm_loss = self.loss_function(
                logits, labels, self.config.vocab_size, num_items_in_batch, shift_labels=shift_labels
            )
            if self.config.embedding_loss != "none":
                token_mask = attention_mask if attention_mask is None or attention_mask.ndim == 2 else None
                if position_ids is None and token_mask is not None:
                    position_ids = (token_mask.long().cumsum(-1) - 1).clamp(min=0)
                disaffinity_BT = self.embedding_loss(
                    outputs.input_embeddings, outputs.encoder_last_hidden_state, token_mask, position_ids
                )
                embedding_loss = mean_over_predicted(disaffinity_BT, shift_labels, num_items_in_batch)
                if self.training:
                    loss = lm_loss + self.config.embedding_loss_weight * embedding_loss
        return EncoderDecoderCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            lm_loss=lm_loss,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            embedding_loss=embedding_loss,
        )

    def training_statistics(self) -> dict[str, float]:
        """Scalars to log beside the losses: mean absolute gains of the embedding loss's LayerNorms (both near 0 is its
        trivial optimum) and the cross-attention gate of each decoder layer."""
        statistics = {}
        if self.config.embedding_loss != "none":
            for name in ("output_norm", "input_norm"):
                weight = getattr(getattr(self.embedding_loss, name), "weight", None)
                if weight is not None:
                    statistics[f"embedding_loss_{name}_gain"] = whole(weight).abs().mean().item()
        if self.config.cross_attention_gate:
            for i, layer in enumerate(self.model.decoder_layers):
                statistics[f"cross_attention_gate_{i}"] = whole(layer.cross_attn_gate).item()
        return statistics


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """The values of a parameter, gathered from all processes where FSDP2 has sharded it."""
    return parameter.detach().full_tensor() if hasattr(parameter, "full_tensor") else parameter.detach()


__all__ = ["AREncoderDecoderForCausalLM", "AREncoderDecoderModel", "AREncoderDecoderPreTrainedModel"]
