"""Cutting sequences where the entropy of a language model jumps (Byte Latent Transformer, 2412.09871, section 2.3).

Rows are aligned to the left. The entropy of symbol t, in nats, is that of the distribution that predicts it, so that a
boundary is known before its symbol is: nothing here sees the future, other rows or padding.
"""

from dataclasses import dataclass

import torch

DELTA_RANGE = (-2.0, 20.0)


@dataclass(frozen=True)
class SegmentRule:
    """The rule that opens segments.

    Symbol t > 0 opens a segment if its entropy is more than `delta` nats above that of symbol t - 1, or above
    `threshold` nats, or if the open segment has `max_length` symbols; but never while that has fewer than `min_length`.
    After the end of a text a segment opens in any case.
    """

    delta: float | torch.Tensor
    threshold: float | None
    min_length: int
    max_length: int


def surprising(entropy: torch.Tensor, before: torch.Tensor, rule: SegmentRule) -> torch.Tensor:
    """Return whether entropies, in nats, open a segment: of each symbol and of the one before it, of one shape."""
    rises = entropy > before + rule.delta
    return rises if rule.threshold is None else rises | (entropy > rule.threshold)


def find_segments(entropies: torch.Tensor, closes: torch.Tensor, rule: SegmentRule) -> torch.Tensor:
    """Return whether each symbol opens a segment, `(R, T)`, bool; the first does.

    The rule goes from segment to segment. Here the next opening is computed for every place where a segment may begin,
    and then those places that are reached from the first are found in log T rounds of doubling.

    Args:
        entropies: `(R, T)`, float32; the value at the first symbol does not matter, since nothing predicts that one.
        closes: `(R, T)`, bool, whether a symbol ends a text.
    """
    length = entropies.shape[1]
    places = torch.arange(length, device=entropies.device)
    unknown = torch.full_like(entropies[:, :2], torch.inf)  # of what comes before the first two symbols
    before = torch.cat((unknown, entropies[:, 1:-1]), 1)[:, :length]
    candidate = next_true(surprising(entropies, before, rule))  # (R, T + 1), at or after
    after_close = next_true(torch.nn.functional.pad(closes[:, :-1], (1, 0)))
    following = torch.minimum(candidate[:, (places + rule.min_length).clamp(max=length)], after_close[:, places + 1])
    following = torch.minimum(following, (places + rule.max_length).clamp(max=length))
    following = torch.nn.functional.pad(following, (0, 1), value=length)  # the place behind the row follows itself
    reached = torch.zeros_like(following)
    reached[:, 0] = 1
    for _ in range(max(length - 1, 1).bit_length()):
        reached = reached.scatter_reduce(1, following, reached, "amax")
        following = following.gather(1, following)
    return reached[:, :length].bool()


def next_true(flags: torch.Tensor) -> torch.Tensor:
    """Return the first place of a true value at or after each place of `(R, T)`, and after the last one: `(R, T + 1)`,
    T for none."""
    length = flags.shape[1]
    places = torch.where(flags, torch.arange(length, device=flags.device), length)
    places = torch.nn.functional.pad(places, (0, 1), value=length)
    return places.flip(1).cummin(1).values.flip(1)


def segment_index(opens: torch.Tensor) -> torch.Tensor:
    """Return the segment of each symbol, `(R, T)`, int64, from 0 on."""
    return opens.long().cumsum(1) - 1


def opens_segment(
    entropy: torch.Tensor, before: torch.Tensor, length: torch.Tensor, closed: torch.Tensor, rule: SegmentRule
) -> torch.Tensor:
    """Apply the rule to one more symbol of `n` rows: return whether it opens a segment `(n,)`, bool.

    Args:
        entropy, before: `(n,)` of the symbol and of the one before; infinity where that one was the first.
        length: `(n,)` symbols of the open segment.
        closed: `(n,)`, bool, whether the symbol before ended a text.
    """
    wanted = surprising(entropy, before, rule) | (length >= rule.max_length)
    return closed | (wanted & (length >= rule.min_length))


def adapt_delta(delta: torch.Tensor, mean_length: torch.Tensor, target: float, rate: float = 0.1) -> torch.Tensor:
    """Return `delta` after one step towards segments of `target` symbols: higher where they are too short. Both are
    scalars; the mean length is float64."""
    step = rate * torch.log(target / mean_length)
    return (delta + step.to(delta.dtype)).clamp(*DELTA_RANGE)
