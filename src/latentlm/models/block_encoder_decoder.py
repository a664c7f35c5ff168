"""What the causal encoder-decoders share: decoder layer, bridge, embedding loss.

A model says in `run_stacks` how its encoder and decoder layers follow each other.
"""

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.utils.output_capturing import OutputRecorder

from .block_attention import FORMS, Attention, Rotary, rotary_table
from .block_causal_head import CausalLMHead, CausalModel, CausalPreTrainedModel
from .block_embedding_loss import EmbeddingLoss
from .block_layers import PreNormLayer, make_norm
from .block_learned_dropout import LearnedDropout, make_learned_dropout
from .block_outputs import EncoderDecoderCausalLMOutput, EncoderDecoderModelOutput
from .configuration_encoder_decoder import EncoderDecoderConfig


def decoder_layer(config: EncoderDecoderConfig, layer_idx: int, learned_dropout: LearnedDropout | None) -> PreNormLayer:
    """Make a decoder layer, which reads the encoder; `layer_idx` is the cache layer of its first attention."""
    self_attn, attention = None, FORMS[config.attention_form]
    if len(config.decoder_attention_configs) == 2:
        self_attn = attention(config, layer_idx)
        layer_idx += 1
    return PreNormLayer(
        config,
        self_attn,
        attention(config, layer_idx, reads_memory=True, num_heads=config.num_cross_attention_heads),
        learned_dropout,
        cross_first=config.decoder_order == "cross_first",
        norms_memory=True,
        gated=config.cross_attention_gate,
    )


class EncoderDecoderPreTrainedModel(CausalPreTrainedModel):
    """Base class of the causal encoder-decoders: flags and recorded outputs."""

    config: EncoderDecoderConfig
    _no_split_modules = ["PreNormLayer"]
    _can_record_outputs = {
        "hidden_states": PreNormLayer,
        "attentions": OutputRecorder(Attention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(Attention, index=1, layer_name="cross_attn"),
    }

    @property
    def num_residual_projections(self) -> int:
        # The original formula with L layers per stack: 0.02 / sqrt(2 L).
        return self.config.num_hidden_layers


class EncoderDecoderModel(CausalModel, EncoderDecoderPreTrainedModel):
    """A causal encoder-decoder without head: encoder layers, bridge and decoder layers."""

    output_class = EncoderDecoderModelOutput
    # Belongs to the language-model loss: not needed here when a `ForCausalLM` checkpoint is loaded.
    _keys_to_ignore_on_load_unexpected = [r"^embedding_loss\."]

    def build_layers(self, config: EncoderDecoderConfig) -> None:
        if config.position_embedding_type == "rotary":
            self.cross_rotary = rotary_table(config.cross_attention_config)  # its heads have another size
        # In the cache the encoder's attentions come first, then those of the decoder layers (self, cross).
        attentions = len(config.attention_configs)
        masks = {"encoder": 0, "decoder": config.num_encoder_layers if "encoder" in config.masked_stacks else 0}

        def dropout(stack: str, i: int) -> LearnedDropout | None:
            if stack in config.masked_stacks:
                return make_learned_dropout(config, attentions + masks[stack] + i)
            return None

        self.encoder_layers = nn.ModuleList(
            PreNormLayer(config, FORMS[config.attention_form](config, i), learned_dropout=dropout("encoder", i))
            for i in range(config.num_encoder_layers)
        )
        self.bridge_norm = make_norm(config) if config.bridge_layer_norm else nn.Identity()
        self.bridge = nn.Linear(config.hidden_size, config.hidden_size, bias=config.use_bias)
        first, each = config.num_encoder_layers, len(config.decoder_attention_configs)
        self.decoder_layers = nn.ModuleList(
            decoder_layer(config, first + each * i, dropout("decoder", i)) for i in range(config.num_decoder_layers)
        )

    def run_stacks(
        self,
        embeddings: torch.Tensor,  # (B, T, D)
        positions: torch.Tensor,  # (B or 1, T)
        shared_attention: torch.Tensor | None,  # (B, T, M), of LearnedDropout
        memory_rotary: tuple[Rotary, Rotary] | None,
        **shared,  # what every layer gets
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor | None]]:
        """Run both stacks: return the last states of encoder and decoder, `(B, T, D)` each, and the penalties of each
        layer's mask."""
        raise NotImplementedError

    def cross_bridge(self, encoder_states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the decoder's input `(B, T, D)`: the encoder's states, after the bridge."""
        hidden_states = self.bridge(self.bridge_norm(encoder_states))
        if self.config.add_next_position:
            hidden_states = hidden_states + self.embed_positions(positions + 1).to(hidden_states.device)
        return hidden_states

    def run_layers(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        shared_attention: torch.Tensor | None,
        **shared: Any,
    ) -> tuple[torch.Tensor, list[torch.Tensor | None], dict[str, Any]]:
        memory_rotary = None
        if self.config.position_embedding_type == "rotary":
            memory_rotary = (self.cross_rotary(embeddings, positions),) * 2
        encoder_states, hidden_states, penalties = self.run_stacks(
            embeddings, positions, shared_attention, memory_rotary, **shared
        )
        fields = {"encoder_last_hidden_state": encoder_states, "input_embeddings": embeddings}
        return hidden_states, penalties, fields


class EncoderDecoderForCausalLM(CausalLMHead, EncoderDecoderPreTrainedModel, GenerationMixin):
    """A causal encoder-decoder with language-model head and embedding loss."""

    output_class = EncoderDecoderCausalLMOutput
    model_class: type[EncoderDecoderModel]

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__(config)
        self.model = self.model_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.embedding_loss != "none":
            self.embedding_loss = EmbeddingLoss(config)
        self.post_init()

    @property
    def further_losses(self) -> list[str]:
        return [*super().further_losses, *(["embedding_loss"] if self.config.embedding_loss != "none" else [])]

    def extra_losses(self, outputs: Any, training_step: torch.Tensor | None, **inputs: Any) -> dict[str, Any]:
        losses = super().extra_losses(outputs, training_step, **inputs)
        token_mask, position_ids = inputs["token_mask"], inputs["position_ids"]
        if (
            self.config.embedding_loss != "none" and not inputs["continued"]
        ):  # a cache does not hold the embeddings before it
            if position_ids is None and token_mask is not None:
                position_ids = (token_mask.long().cumsum(-1) - 1).clamp(min=0)
            disaffinity_BT = self.embedding_loss(
                outputs.input_embeddings, outputs.encoder_last_hidden_state, token_mask, position_ids
            )
            losses["embedding_loss"] = (disaffinity_BT, self.config.embedding_loss_weight)
        return losses

    def training_statistics(self) -> dict[str, float]:
        """Return scalars to log beside the losses: the mean absolute gains of the embedding loss's LayerNorms (both
        near 0 is its trivial optimum), and the cross-attention gate of each decoder layer."""
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


def whole(parameter: Any) -> torch.Tensor:
    """Return the values of a parameter, gathered from all processes where FSDP2 has sharded it."""
    return parameter.detach().full_tensor() if hasattr(parameter, "full_tensor") else parameter.detach()
