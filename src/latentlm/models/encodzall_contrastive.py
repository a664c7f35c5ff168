"""Multiple-negatives ranking over the batch of all processes."""

import torch
import torch.distributed
from torch import nn


def gather_with_gradient(values: torch.Tensor) -> tuple[torch.Tensor, int]:
    """`(B, D)` of every process, one after the other, and where this process's rows begin. Gradients come back to the
    process whose rows they are; all processes must have as many."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values, 0
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(values)), torch.distributed.get_rank() * len(values)


def ranking_loss(noisy: torch.Tensor, clean: torch.Tensor, scale: float, symmetric: bool = False) -> torch.Tensor:
    """Cross-entropy of finding the clean text of each noisy one among all clean texts (Henderson et al. 2017,
    arXiv:1705.00652), S_ij = scale cos(noisy_i, clean_j), over the batch of all processes.

    Args:
        noisy, clean: `(B, D)`, row by row the same texts.
        symmetric: the mean with finding the noisy text of each clean one.

    Returns:
        `(B,)`, in nats, of this process's texts.

    Raises:
        ValueError: if there is nothing to tell apart: one text in all.
    """
    noisy, clean = (nn.functional.normalize(side.float(), dim=-1) for side in (noisy, clean))
    all_clean, start = gather_with_gradient(clean)
    if len(all_clean) < 2:
        raise ValueError("The contrastive loss ranks texts against each other, but the batch has one text alone.")
    targets = torch.arange(start, start + len(noisy), device=noisy.device)
    loss = nn.functional.cross_entropy(scale * noisy @ all_clean.T, targets, reduction="none")
    if symmetric:
        all_noisy, _ = gather_with_gradient(noisy)
        backward = nn.functional.cross_entropy(scale * clean @ all_noisy.T, targets, reduction="none")
        loss = (loss + backward) / 2
    return loss
