"""T5 on bytes (ByT5's shape, Xue et al. 2021, 2105.13626) as a denoiser: noisy bytes in, clean bytes out."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, T5Config, T5ForConditionalGeneration, TrainerCallback

from latentlm import EncodzallConfig, EncodzallForMaskedDenoising
from latentlm.models.encodzall_base import EncodzallDenoisingOutput
from latentlm.runs import Recipe

from .causal import count_body, nearest_width


def t5_config(config: EncodzallConfig, feedforward: int) -> T5Config:
    """As many layers as EncodZall has on either side, as wide."""
    return T5Config(
        vocab_size=config.vocab_size,
        d_model=config.hidden_size,
        d_kv=config.hidden_size // config.num_attention_heads,
        num_heads=config.num_attention_heads,
        num_layers=config.num_word_encoder_layers + config.num_context_encoder_layers,
        num_decoder_layers=config.num_decoder_layers,
        d_ff=feedforward,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        pad_token_id=config.pad_token_id,
        eos_token_id=config.eos_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
    )


def body(config: Any, model_class: Any) -> int:
    with torch.device("meta"):
        return count_body(model_class(config))


class T5Peer(PreTrainedModel):
    """T5 under the configuration of EncodZall; its feed-forward layers are as wide as the same parameters allow."""

    config_class = EncodzallConfig
    config: EncodzallConfig
    main_input_name = "input_ids"
    _supports_sdpa = True  # asked of a configuration that EncodZall has used
    _tied_weights_keys = {
        "network.encoder.embed_tokens.weight": "network.shared.weight",
        "network.decoder.embed_tokens.weight": "network.shared.weight",
    }
    _auto_class = None  # loaded by its file, not from the Hub

    def __init__(self, config: EncodzallConfig):
        super().__init__(config)
        wanted = body(config, EncodzallForMaskedDenoising)
        layers = config.num_word_encoder_layers + config.num_context_encoder_layers + config.num_decoder_layers
        least = body(t5_config(config, 1), T5ForConditionalGeneration)
        per_width = 3 * config.hidden_size * layers
        width = nearest_width(wanted, range(1, 8 * config.hidden_size), lambda width: least + per_width * (width - 1))
        self.network = T5ForConditionalGeneration(t5_config(config, width))
        self.network.set_input_embeddings(self.network.shared)  # one table for both sides
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,  # (B, T_in), noisy
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,  # (B, T), clean, with the end
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> EncodzallDenoisingOutput:
        if attention_mask is None:
            attention_mask = (input_ids != self.config.pad_token_id).long()
        outputs = self.network(input_ids=input_ids, attention_mask=attention_mask, labels=labels, use_cache=False)
        if labels is None:
            return EncodzallDenoisingOutput(logits=outputs.logits)
        count = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
        total = nn.functional.cross_entropy(outputs.logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
        return EncodzallDenoisingOutput(loss=total / count, logits=outputs.logits, sequence_loss=total / count)


def prepare(recipe: Recipe) -> list[TrainerCallback]:
    AutoModelForSeq2SeqLM.register(EncodzallConfig, T5Peer, exist_ok=True)
    return []
