"""What the causal peers share: they are built from the recipe of the decoder-only model, and trained like it."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from latentlm import DecoderOnlyConfig
from latentlm.models.block_outputs import CausalLMOutput


class CausalPeer(PreTrainedModel):
    """A causal model of another library under the configuration of the decoder-only model.

    A subclass has `build(config)`, the network, and `logits(input_ids, attention_mask, position_ids)`, `(B, T, V)`.
    """

    config_class = DecoderOnlyConfig
    config: DecoderOnlyConfig
    _auto_class = None  # loaded by its file, not from the Hub
    _supports_sdpa = True  # asked of a configuration that the decoder-only model has used

    def __init__(self, config: DecoderOnlyConfig):
        super().__init__(config)
        self.network = self.build(config)
        self.post_init()

    def build(self, config: DecoderOnlyConfig) -> nn.Module:
        raise NotImplementedError

    def logits(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None
    ) -> torch.Tensor:
        raise NotImplementedError

    def extra_losses(
        self, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
    ) -> dict[str, torch.Tensor]:
        """Named losses beside the next token's, each of weight 1 in training."""
        return {}

    def next_token_loss(
        self, logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        """Cross-entropy in nats; labels are shifted here."""
        if isinstance(num_items_in_batch, int):
            num_items_in_batch = torch.tensor(num_items_in_batch)
        return ForCausalLMLoss(logits, labels, logits.shape[-1], num_items_in_batch)

    def forward(
        self,
        input_ids: torch.Tensor,  # (B, T)
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        logits = self.logits(input_ids, attention_mask, position_ids)
        if labels is None:
            return CausalLMOutput(logits=logits)
        lm_loss = self.next_token_loss(logits, labels, num_items_in_batch)
        extra = self.extra_losses(labels, num_items_in_batch)
        loss = sum(extra.values(), lm_loss) if self.training else lm_loss
        return self.output(loss=loss, logits=logits, lm_loss=lm_loss, **extra)

    def output(self, **fields: Any) -> CausalLMOutput:
        return CausalLMOutput(**fields)


def register(peer: type[CausalPeer]) -> None:
    """Let the recipes of the decoder-only model build the peer, in this process."""
    AutoModelForCausalLM.register(DecoderOnlyConfig, peer, exist_ok=True)


def nearest_width(parameters: int, widths: range, count: Any) -> int:
    """The width at which `count(width)` comes nearest to `parameters`."""
    return min(widths, key=lambda width: abs(count(width) - parameters))


def body_parameters(config: DecoderOnlyConfig) -> int:
    """Parameters of the decoder-only model without its embedding tables: what a peer is to have."""
    from latentlm import DecoderOnlyForCausalLM

    with torch.device("meta"):
        model = DecoderOnlyForCausalLM(config)
    return count_body(model)


def count_body(model: nn.Module) -> int:
    """Parameters but for the tables that are looked up; several modules may share one."""
    tables = {
        id(module.weight): module.weight.numel() for module in model.modules() if isinstance(module, nn.Embedding)
    }
    return sum(parameter.numel() for parameter in model.parameters()) - sum(tables.values())
