"""How many passes of the expander a byte would take if the entropy model of level 1 wrote drafts (as in BLT-S,
2605.08044, the local decoder does): to the end of a segment, which it alone decides, and one pass verifies.

A byte of a draft is accepted with the probability that speculative sampling has (2302.01318), so that the distribution
of what is written stays: the overlap of both distributions. After one that is not, the rest of the segment is drafted
anew. The text is half of the validation text in place of what the model would write.
"""

from pathlib import Path
from typing import Any

import torch
import yaml

from .segments import read_text

LENGTH = 10_000  # bytes


def passes(accepted: torch.Tensor, segments: torch.Tensor) -> float:
    """Expected passes over bytes, by their probability of acceptance and the segments that they are in, both `(n,)`:
    one a segment, and one after every byte that is not accepted and is not the last of its segment."""
    is_last = torch.cat((segments[1:] != segments[:-1], torch.ones(1, dtype=torch.bool)))
    return float(is_last.sum() + (1 - accepted)[~is_last].sum())


@torch.no_grad()
def measure(model: Any, tokenizer: Any, run: Path) -> dict[str, float]:
    recipe: Any = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    data = read_text(Path(recipe["data"]["validation_dataset"]), run).encode()[:LENGTH]
    size = model.config.max_position_embeddings - 1  # and the begin token
    entropy_model = model.model.levels[0].entropy_model
    total, overlap = 0.0, 0.0
    for begin in range(0, len(data), size):
        ids = torch.tensor([[model.config.bos_token_id, *data[begin : begin + size]]], device=model.device)
        compressed = model.model.read(ids)[1].levels[0]
        drafts = entropy_model.head.digit_logits(compressed.entropy_states, None, 0)[0, : ids.shape[1] - 1]
        logits = model(ids, use_cache=False).logits[0, :-1, : drafts.shape[-1]]
        accepted = torch.minimum(drafts.float().softmax(-1), logits.float().softmax(-1)).sum(-1)
        total += passes(accepted, compressed.segments.index[0, 1 : ids.shape[1]])
        overlap += accepted.sum().item()
    return {"draft_passes_a_byte": total / len(data), "draft_acceptance": overlap / len(data)}
