"""The decoders of EncodZall: of a text from its memory, of words from one vector each."""

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .block_attention import FORMS, Attention, SingleKeyAttention, rotary_table
from .block_layers import PreNormLayer, make_norm
from .block_masks import bidirectional_mask, causal_mask, sequence_mask
from .block_positions import resolve_position_ids
from .block_refusals import check_filled_cache
from .configuration_encodzall import EncodzallConfig
from .encodzall_base import EncodzallPreTrainedModel
from .encodzall_packing import Spelling


class EncodzallDecoder(EncodzallPreTrainedModel):
    """A stack of decoder layers: from the memory of a text, or from the one word that each token spells."""

    _can_record_outputs = {
        "hidden_states": PreNormLayer,
        "attentions": OutputRecorder(Attention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(Attention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: EncodzallConfig, one_word: bool = False):
        super().__init__(config)
        self.rotary = rotary_table(config)
        attention = FORMS[config.attention_form]
        memory = SingleKeyAttention if one_word else attention
        self.layers = nn.ModuleList(
            PreNormLayer(config, attention(config, i), memory(config, i, reads_memory=True))
            for i in range(config.num_decoder_layers)
        )
        self.norm = make_norm(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.gradient_checkpointing = False
        self.post_init()
        self._fsdp_plan = {}  # the configuration's speaks of the encoder

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        inputs_embeds: torch.Tensor,  # (B, T, D)
        memory: torch.Tensor,  # (B, S, D)
        word_mask: torch.Tensor,  # (B, S)
        word_positions: torch.Tensor,  # (B, S)
        attention_mask: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        seen = None if past_key_values is None else past_key_values.self_attention_cache
        check_filled_cache(seen, self.config)
        mask, _ = causal_mask(self.config, inputs_embeds, attention_mask, seen, look=False)
        limit = self.config.max_position_embeddings
        positions = resolve_position_ids(inputs_embeds, attention_mask, None, seen, limit)
        if use_cache and past_key_values is None:
            past_key_values = EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        memory_mask = bidirectional_mask(self.config, inputs_embeds, word_mask, memory)
        rotary = self.rotary(inputs_embeds, positions)
        memory_rotary = None
        if self.config.cross_attention_positions == "bytes":
            memory_rotary = (rotary, self.rotary(memory, word_positions))
        hidden_states = self.dropout(inputs_embeds)
        for layer in self.layers:
            hidden_states, _ = layer(
                hidden_states,
                memory,
                rotary=rotary,
                mask=mask,
                memory_rotary=memory_rotary,
                memory_mask=memory_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values
        )

    def spell(self, inputs_embeds: torch.Tensor, words: torch.Tensor, spelling: Spelling) -> torch.Tensor:
        """Hidden states `(R, L, D)` of embedded rows of words, each slot of which sees its word's vector `(R, L, D)`
        and the slots before it in there."""
        rows = self.dropout(inputs_embeds)
        mask = sequence_mask(self.config, rows, segments=spelling["word"])
        rotary = self.rotary(rows, spelling["offset"])
        for layer in self.layers:
            rows, _ = layer(rows, words, rotary=rotary, mask=mask, single_key=True)
        return self.norm(rows)
