"""The embedding loss: the distance between the encoder output and an aggregate of the input embeddings.

It is the "Embedding loss" of the original design. With the encoder detached and both LayerNorms learned it has a
trivial optimum (both gains go to 0), hence the control `embedding_loss_output_norm="plain"`.
"""

import torch
from torch import nn
from transformers import initialization as init

from .block_positions import document_begins


class Float32LayerNorm(nn.LayerNorm):
    """LayerNorm computed in float32, whatever the dtype of its parameters."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight, bias = (None if p is None else p.float() for p in (self.weight, self.bias))
        return nn.functional.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class CumulativeMean(nn.Module):
    """Mean of the embeddings so far: A_t = mean of E_z over the real tokens z <= t of the same document."""

    def __init__(self, config):
        super().__init__()

    def forward(
        self, embeddings: torch.Tensor, token_mask: torch.Tensor | None, position_ids: torch.Tensor | None
    ) -> torch.Tensor:
        if position_ids is None and token_mask is None:
            count = torch.arange(1, embeddings.shape[1] + 1, device=embeddings.device, dtype=embeddings.dtype)
            return embeddings.cumsum(1) / count[:, None]
        mask = torch.ones(embeddings.shape[:2], device=embeddings.device) if token_mask is None else token_mask
        mask = mask.to(embeddings.dtype)[..., None]  # (B, T, 1)
        # Exclusive sums, so that the sum before the document's first token can be taken off.
        total = nn.functional.pad((embeddings * mask).cumsum(1), (0, 0, 1, 0))  # (B, T + 1, D)
        count = nn.functional.pad(mask.cumsum(1), (0, 0, 1, 0))
        if position_ids is None:
            return total[:, 1:] / count[:, 1:].clamp(min=1)
        start = document_start(position_ids, token_mask, len(embeddings))[..., None]  # (B, T, 1)
        before = total.gather(1, start.expand(-1, -1, total.shape[-1]))
        return (total[:, 1:] - before) / (count[:, 1:] - count.gather(1, start)).clamp(min=1)


class CausalConvolution(nn.Module):
    """Depthwise causal convolution with K taps: A_t = K / n_t * sum over k of w_k * E_{t-k}, over the n_t taps that lie
    on real tokens of the document. At the start of training, where every w_k is 1 / K, it is their mean."""

    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.embedding_loss_kernel_size, config.hidden_size))

    def initialize_parameters(self) -> None:
        init.constant_(self.weight, 1 / self.weight.shape[0])

    def forward(
        self, embeddings: torch.Tensor, token_mask: torch.Tensor | None, position_ids: torch.Tensor | None
    ) -> torch.Tensor:
        length = embeddings.shape[1]
        index = torch.arange(length, device=embeddings.device)
        real = torch.ones_like(embeddings[..., :1])  # (B, T, 1)
        if token_mask is not None:
            real = token_mask[..., None].to(embeddings.dtype)
        if position_ids is not None:
            index = index - document_start(position_ids, token_mask, len(embeddings))  # in the document
        total, taps = torch.zeros_like(embeddings), torch.zeros_like(real)
        for k, weight in enumerate(self.weight[:length]):
            inside = nn.functional.pad(real[:, : length - k], (0, 0, k, 0)) * (index >= k)[..., None]
            total = total + weight * nn.functional.pad(embeddings[:, : length - k], (0, 0, k, 0)) * inside
            taps = taps + inside
        return total * (len(self.weight) / taps.clamp(min=1))


class CausalMixing(nn.Module):
    """Learned weights for pairs of positions: A_t = sum over z <= t of softmax_z(W[t, z]) * E_z. At the start of
    training it is the mean."""

    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.max_position_embeddings, config.max_position_embeddings))

    def initialize_parameters(self) -> None:
        init.zeros_(self.weight)

    def forward(
        self, embeddings: torch.Tensor, token_mask: torch.Tensor | None, position_ids: torch.Tensor | None
    ) -> torch.Tensor:
        length = embeddings.shape[1]
        index = torch.arange(length, device=embeddings.device)
        visible = (index[:, None] >= index[None, :]).unsqueeze(0)  # (1, T, T)
        if position_ids is None:
            scores = self.weight[:length, :length].unsqueeze(0)
        else:
            start = document_start(position_ids, token_mask, len(embeddings))
            visible = visible & (start[:, :, None] == start[:, None, :])
            rows = nn.functional.embedding(position_ids, self.weight)  # (B, T, max_position_embeddings)
            columns = position_ids[:, None, :].expand(-1, length, -1)
            scores = rows.expand(len(columns), -1, -1).gather(2, columns)  # (B, T, T)
        if token_mask is not None:
            visible = visible & token_mask.bool()[:, None, :]
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
        return scores.softmax(-1, dtype=torch.float32) @ embeddings


def document_start(position_ids: torch.Tensor, token_mask: torch.Tensor | None, batch_size: int) -> torch.Tensor:
    """Return the index `(B, T)` of the first token of each token's document. Positions may have gaps, and real tokens
    padding between them."""
    begins = document_begins(position_ids, token_mask)
    index = torch.arange(begins.shape[1], device=begins.device)
    return (index * begins).cummax(-1).values.expand(batch_size, -1)


AGGREGATIONS = {"mean": CumulativeMean, "convolution": CausalConvolution, "mixing": CausalMixing}


class EmbeddingLoss(nn.Module):
    """Distance between the encoder output and the aggregated embeddings, in float32.

    With A the aggregate and Z = LN_out(encoder output), per token:
        mse:        mean over D of (A - Z)^2
        cosine:     1 - (cos(A, Z) + 1) / 2
        log_cosine: -log((cos(A, Z) + 1) / 2)
    """

    def __init__(self, config):
        super().__init__()
        self.kind = config.embedding_loss
        self.detach = config.embedding_loss_detach
        self.input_norm_place = config.embedding_loss_input_norm
        size, eps = config.hidden_size, config.layer_norm_eps
        self.output_norm = nn.Identity()
        if config.embedding_loss_output_norm != "none":
            affine = config.embedding_loss_output_norm == "affine"
            self.output_norm = Float32LayerNorm(size, eps=eps, elementwise_affine=affine)
        self.input_norm = nn.Identity() if self.input_norm_place == "none" else Float32LayerNorm(size, eps=eps)
        self.aggregation = AGGREGATIONS[config.embedding_loss_aggregation](config)

    def forward(
        self,
        embeddings: torch.Tensor,  # (B, T, D)
        encoder_states: torch.Tensor,  # (B, T, D)
        token_mask: torch.Tensor | None = None,  # (B, T), true where a token is real
        position_ids: torch.Tensor | None = None,  # (B, T), when documents do not all start at index 0
    ) -> torch.Tensor:
        """Return the distance of each token, `(B, T)`, float32."""
        embeddings, encoder_states = embeddings.float(), encoder_states.float()
        if self.detach == "encoder":
            encoder_states = encoder_states.detach()
        elif self.detach == "embeddings":
            embeddings = embeddings.detach()
        with torch.autocast(embeddings.device.type, enabled=False):
            target = self.output_norm(encoder_states)
            if self.input_norm_place == "before":
                embeddings = self.input_norm(embeddings)
            aggregate = self.aggregation(embeddings, token_mask, position_ids)
            if self.input_norm_place == "after":
                aggregate = self.input_norm(aggregate)
            if self.kind == "mse":
                return (aggregate - target).square().mean(-1)
            affinity = (nn.functional.cosine_similarity(aggregate, target, dim=-1) + 1) / 2
            if self.kind == "cosine":
                return 1 - affinity
            return -affinity.clamp(min=1e-6).log()
