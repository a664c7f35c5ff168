"""The decoders of EncodZall: one writes a text from its memory, one spells words from one vector each."""

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .block_attention import FORMS, Attention, SingleKeyAttention, rotary_table
from .block_layers import PreNormLayer, make_norm
from .block_learned_dropout import make_learned_dropout, make_shared_mask_attention, mean_penalties
from .block_masks import bidirectional_mask, causal_mask, sequence_mask
from .block_ngram_embedding import NgramEmbedding, previous_ids
from .block_positions import resolve_position_ids
from .block_refusals import check_filled_cache
from .configuration_encodzall import EncodzallConfig
from .encodzall_base import EncodzallDecoderOutput, EncodzallPreTrainedModel


class EncodzallDecoder(EncodzallPreTrainedModel):
    """A stack of decoder layers. It reads the memory of a text, or the vector of the one word that each token
    spells."""

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
        # In the cache the attentions of the layers come first, then those that decide masks.
        count = config.num_decoder_layers
        self.mask_attention = make_shared_mask_attention(config, count)
        self.layers = nn.ModuleList(
            PreNormLayer(
                config,
                attention(config, i),
                memory(config, i, reads_memory=True),
                learned_dropout=make_learned_dropout(config, count + i),
            )
            for i in range(count)
        )
        self.norm = make_norm(config)
        self.id_cache_idx = len(config.per_layer_config) - 1  # where n-grams have their ids
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.gradient_checkpointing = False
        self.post_init()
        self._fsdp_plan = {}  # the configuration's speaks of the encoder

    def freeze_queries(self) -> None:
        """Freeze the queries to the memory, which spelling does not use, since a word is a single key there."""
        for name, parameter in self.named_parameters():
            if ".cross_attn_query_norm." in name or ".cross_attn.q_" in name:
                parameter.requires_grad_(False)

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
        input_ids: torch.Tensor | None = None,  # (B, T), of which n-grams are embedded
        embed_ngrams: NgramEmbedding | None = None,
        **kwargs,
    ) -> EncodzallDecoderOutput:
        seen = None if past_key_values is None else past_key_values.self_attention_cache
        check_filled_cache(seen, self.config)
        mask, _ = causal_mask(self.config, inputs_embeds, attention_mask, seen, look=False)
        limit = self.config.max_position_embeddings
        positions = resolve_position_ids(inputs_embeds, attention_mask, None, seen, limit)
        if use_cache and past_key_values is None:
            past_key_values = EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        if embed_ngrams is not None and input_ids is not None:
            previous = None
            if past_key_values is not None:
                cache: Cache = past_key_values.self_attention_cache
                previous = previous_ids(input_ids, cache, self.id_cache_idx, self.config, inputs_embeds.dtype)
            inputs_embeds = inputs_embeds + embed_ngrams(input_ids, positions, previous)
        memory_mask = bidirectional_mask(self.config, inputs_embeds, word_mask, memory)
        rotary = self.rotary(inputs_embeds, positions)
        memory_rotary = None
        if self.config.cross_attention_positions == "bytes":
            memory_rotary = (rotary, self.rotary(memory, word_positions))
        hidden_states = self.dropout(inputs_embeds)
        shared: dict[str, Any] = {"mask": mask, "past_key_values": past_key_values, **kwargs}
        shared_attention = None if self.mask_attention is None else self.mask_attention(hidden_states, **shared)[0]
        penalties = []
        for layer in self.layers:
            hidden_states, layer_penalties = layer(
                hidden_states,
                memory,
                shared_attention,
                rotary=rotary,
                memory_rotary=memory_rotary,
                memory_mask=memory_mask,
                **shared,
            )
            penalties.append(layer_penalties)
        return EncodzallDecoderOutput(
            last_hidden_state=self.norm(hidden_states),
            past_key_values=past_key_values,
            mask_penalties=mean_penalties(penalties),
        )

    def spell(
        self, inputs_embeds: torch.Tensor, words: torch.Tensor, word: torch.Tensor, offset: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the hidden states `(R, L, D)` of embedded rows of words, and the penalties of LearnedDropout's masks
        `(R, L, K)` if there are any. Each slot sees its word's vector in `words` `(R, L, D)` and the slots before it in
        its word. `word` and `offset` `(R, L)` are those of a [`Spelling`]."""
        rows = self.dropout(inputs_embeds)
        mask = sequence_mask(self.config, rows, segments=word)
        rotary = self.rotary(rows, offset)
        shared_attention = None if self.mask_attention is None else self.mask_attention(rows, mask=mask)[0]
        penalties = []
        for layer in self.layers:
            rows, layer_penalties = layer(rows, words, shared_attention, rotary=rotary, mask=mask, single_key=True)
            penalties.append(layer_penalties)
        return self.norm(rows), mean_penalties(penalties)
