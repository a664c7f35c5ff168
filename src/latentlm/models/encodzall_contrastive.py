"""Multiple-negatives ranking loss over the batch of all processes."""

import torch
import torch.distributed
from torch import nn


def gather_with_gradient(values: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return `(B, D)` of every process, concatenated, and the index at which this process's rows begin. Gradients
    return to the process that owns the rows; all processes must have equally many."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values, 0
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(values)), torch.distributed.get_rank() * len(values)


def ranking_loss(noisy: torch.Tensor, clean: torch.Tensor, scale: float, symmetric: bool = False) -> torch.Tensor:
    """Return the cross-entropy of finding the clean text of each noisy one among all clean texts, over the batch of all
    processes (Henderson et al. 2017, 1705.00652), with S_ij = scale cos(noisy_i, clean_j). It is 0, without a gradient,
    for a text that is alone in the batch, as the last batch of an epoch may have it.

    Args:
        noisy, clean: `(B, D)`, row by row the same texts.
        symmetric: whether to take the mean with finding the noisy text of each clean one.

    Returns:
        `(B,)`, in nats, of this process's texts.
    """
    noisy, clean = (nn.functional.normalize(side.float(), dim=-1) for side in (noisy, clean))
    all_clean, start = gather_with_gradient(clean)
    targets = torch.arange(start, start + len(noisy), device=noisy.device)
    loss = nn.functional.cross_entropy(scale * noisy @ all_clean.T, targets, reduction="none")
    if symmetric:
        all_noisy, _ = gather_with_gradient(noisy)
        backward = nn.functional.cross_entropy(scale * clean @ all_noisy.T, targets, reduction="none")
        loss = (loss + backward) / 2
    return loss
