"""Cutting by entropy: equal to the rule written out, causal, and adapted to a length."""

import math

import pytest
import torch

from latentlm.models.block_segmentation import SegmentRule, adapt_delta, find_segments, opens_segment, segment_index

RULES = {
    "delta": SegmentRule(0.2, None, 1, 1000),
    "min_max": SegmentRule(0.2, None, 3, 5),
    "equal": SegmentRule(0.2, None, 4, 4),
    "every": SegmentRule(-1e9, None, 1, 7),
    "threshold": SegmentRule(1e9, 1.0, 1, 6),
    "both": SegmentRule(torch.tensor(0.5), 1.4, 2, 9),
}


def rows(kind: str, length: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(kind))
    if kind == "plateaus":
        return torch.randint(0, 3, (4, length), generator=generator).float()
    if kind == "equal":
        return torch.ones(2, length)
    return 2 * torch.rand(5, length, generator=generator)


def written_out(entropies: list[float], closes: list[bool], rule: SegmentRule) -> list[bool]:
    opens, begin = [], 0
    for t, entropy in enumerate(entropies):
        length = t - begin
        rise = t >= 2 and entropy > torch.tensor(entropies[t - 1]) + rule.delta
        wanted = rise or (rule.threshold is not None and entropy > rule.threshold) or length >= rule.max_length
        is_open = t == 0 or closes[t - 1] or bool(wanted and length >= rule.min_length)
        begin = t if is_open else begin
        opens.append(is_open)
    return opens


@pytest.mark.parametrize("ends", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("kind", ["random", "plateaus", "equal"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_segments_equal_the_rule_written_out_and_step_by_step(rule, kind, ends):
    entropies = rows(kind)
    closes = torch.rand(entropies.shape, generator=torch.Generator().manual_seed(1)) < ends
    opens = find_segments(entropies, closes, rule)
    assert opens.tolist() == [
        written_out(row, closed, rule) for row, closed in zip(entropies.tolist(), closes.tolist(), strict=True)
    ]
    length = torch.ones(len(entropies), dtype=torch.long)
    before = torch.full_like(entropies[:, 0], torch.inf)
    for t in range(1, entropies.shape[1]):
        step = opens_segment(entropies[:, t], before, length, closes[:, t - 1], rule)
        assert torch.equal(step, opens[:, t])
        before, length = entropies[:, t], torch.where(step, 1, length + 1)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_what_comes_later_moves_no_boundary(rule):
    entropies, closes = rows("random"), torch.zeros(5, 40, dtype=torch.bool)
    opens = find_segments(entropies, closes, rule)
    for t in (1, 7, 39):
        changed, ended = entropies.clone(), closes.clone()
        changed[:, t + 1 :] = 9 * torch.rand(5, 39 - t)
        ended[:, t:] = True  # a symbol's end is seen by the next one
        assert torch.equal(find_segments(changed, ended, rule)[:, : t + 1], opens[:, : t + 1])
        assert torch.equal(find_segments(entropies[:, : t + 1], closes[:, : t + 1], rule), opens[:, : t + 1])


@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_rows(length):
    opens = find_segments(torch.zeros(2, length), torch.zeros(2, length, dtype=torch.bool), RULES["delta"])
    assert opens.tolist() == [[True] + [False] * (length - 1)] * 2
    assert segment_index(opens).tolist() == [[0] * length] * 2


@pytest.mark.parametrize("start", [-1.0, 0.2, 4.0])
@pytest.mark.parametrize("target", [1.5, 3.0, 6.0])
def test_delta_settles_where_segments_have_the_target_length(target, start):
    generator = torch.Generator().manual_seed(0)
    delta, lengths = torch.tensor(start), []
    for _ in range(400):
        entropies = 2 * torch.rand(4, 500, generator=generator)
        rule = SegmentRule(delta, None, 1, 32)
        opens = find_segments(entropies, torch.zeros(4, 500, dtype=torch.bool), rule)
        lengths.append(opens.numel() / opens.double().sum())
        delta = adapt_delta(delta, lengths[-1], target)
    assert math.isclose(sum(lengths[-100:]) / 100, target, rel_tol=0.05)
