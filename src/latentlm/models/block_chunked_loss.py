"""Next-token cross-entropy without whole logits, which for large vocabularies take most of a step's memory."""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

from .block_layers import is_plain

LARGE_VOCABULARY = 8192
"""The smallest vocabulary whose loss is taken in chunks; below it, whole logits are faster."""


class ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of -log softmax(h W^T)[label] in nats, a float32 scalar. The forward also computes the gradients, chunk by
    chunk, so that the logits of only one chunk exist at a time; the backward scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: torch.Tensor,  # (N, D)
        weight: torch.Tensor,  # (V, D)
        labels: torch.Tensor,  # (N), -100 is ignored
        dtype: torch.dtype,  # of the products
    ) -> torch.Tensor:
        hidden, matrix = hidden_states.to(dtype), weight.to(dtype)
        hidden_grad = torch.empty_like(hidden)
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        predicted = labels.ne(-100).unsqueeze(1)
        targets = labels.clamp(min=0).unsqueeze(1)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        size = 100 if hidden.device.type == "cpu" else 1024
        parts = (hidden.split(size), hidden_grad.split(size), targets.split(size), predicted.split(size))
        for states, grad, target, counts in zip(*parts, strict=True):
            logits = (states @ matrix.T).float()
            logits.sub_(logits.amax(-1, keepdim=True))
            aimed = logits.gather(1, target)
            sums = logits.exp_().sum(-1, keepdim=True)  # not logsumexp, whose exponentials would be taken twice
            total += ((sums.log() - aimed) * counts).sum()
            logits.mul_(counts / sums).scatter_add_(1, target, -counts.float())  # gradient
            logits = logits.to(dtype)
            torch.mm(logits, matrix, out=grad)
            if weight_grad is not None:
                if dtype == torch.float32:
                    weight_grad.addmm_(logits.T, states)
                else:
                    weight_grad += logits.T @ states
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.dtypes = hidden_states.dtype, weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients = (
            None if part is None else (part * grad).to(dtype)
            for part, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *gradients, None, None


def can_chunk(head: nn.Module, device: torch.device) -> bool:
    """Whether a head can be replaced by products with its weight: a plain `nn.Linear` without bias and hooks, whose
    weight is whole and on `device`. PEFT's, quantized, sharded and offloaded heads cannot."""
    if not is_plain(head, device) or head.bias is not None:
        return False
    weight: Any = head.weight
    return weight.is_floating_point() and not isinstance(weight, DTensor)


def chunked_cross_entropy(
    head: nn.Linear,
    hidden_states: torch.Tensor,  # (B, T, D)
    shift_labels: torch.Tensor,  # (B, T), the next tokens; -100 is ignored
    num_items_in_batch: torch.Tensor | int | None,
) -> torch.Tensor:
    """Return the mean cross-entropy of the next tokens in nats, or their sum divided by `num_items_in_batch`; products
    have autocast's precision."""
    kind = hidden_states.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else head.weight.dtype
    labels = shift_labels.to(hidden_states.device).flatten()
    with torch.autocast(kind, enabled=False):
        total: Any = ChunkedCrossEntropy.apply(hidden_states.flatten(0, 1), head.weight, labels, dtype)
    return total / number_of_items(labels.ne(-100), num_items_in_batch)


def number_of_items(predicted: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor | int:
    """Return `num_items_in_batch`, on the device of the mask of predicted tokens; if it is None, their number."""
    if num_items_in_batch is None:
        return predicted.sum()
    return num_items_in_batch if isinstance(num_items_in_batch, int) else num_items_in_batch.to(predicted.device)
