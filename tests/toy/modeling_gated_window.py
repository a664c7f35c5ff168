"""The gated window: every layer adds a gated, weighted sum over the last few tokens."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel, slice_logits_to_keep
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_gated_window import GatedWindowConfig


@dataclass
class GatedWindowOutput(ModelOutput):
    """`lm_loss` is a named loss: the trainer logs it by itself."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    lm_loss: torch.Tensor | None = None


class GatedWindowLayer(nn.Module):
    def __init__(self, config: GatedWindowConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.lags = nn.Parameter(torch.ones(config.window, config.hidden_size) / config.window)
        self.gate = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:  # (B, T, D), (B, T, 1)
        normed = self.norm(x) * real
        window = len(self.lags)
        recent = nn.functional.pad(normed, (0, 0, window - 1, 0)).unfold(1, window, 1)  # (B, T, D, window)
        mixed = (recent * self.lags.T).sum(-1)
        return x + self.output(torch.sigmoid(self.gate(normed)) * mixed)


class GatedWindowPreTrainedModel(PreTrainedModel):
    config_class = GatedWindowConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = False
    _supports_sdpa = True  # there is no attention that could differ


class GatedWindowModel(GatedWindowPreTrainedModel):
    def __init__(self, config: GatedWindowConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([GatedWindowLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,  # (B, T)
        attention_mask: torch.Tensor | None = None,  # (B, T), 1 where a token is real
        inputs_embeds: torch.FloatTensor | None = None,  # (B, T, D)
        **kwargs,
    ) -> BaseModelOutput:
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if x.shape[1] > self.config.max_position_embeddings:
            raise ValueError(
                f"{x.shape[1]} tokens, but `max_position_embeddings` is {self.config.max_position_embeddings}."
            )
        real = x.new_ones(*x.shape[:2], 1) if attention_mask is None else attention_mask.unsqueeze(-1).to(x.dtype)
        for layer in self.layers:
            x = layer(x, real)
        return BaseModelOutput(last_hidden_state=self.norm(x))


class GatedWindowForCausalLM(GatedWindowPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: GatedWindowConfig):
        super().__init__(config)
        self.model = GatedWindowModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,  # (B, T), -100 is ignored
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> GatedWindowOutput:
        hidden_states = self.model(input_ids, attention_mask, inputs_embeds).last_hidden_state
        logits = self.lm_head(slice_logits_to_keep(hidden_states, logits_to_keep))
        loss, shifted = None, kwargs.get("shift_labels")  # in place of labels: already moved by one
        if labels is not None or shifted is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, num_items_in_batch, shift_labels=shifted)
        return GatedWindowOutput(loss=loss, logits=logits, lm_loss=loss)
