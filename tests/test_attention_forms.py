"""Attention of the Abstractinator: every form, mask and backend equals the eager one and is causal."""

import pytest
import torch

from latentlm import AbstractinatorConfig
from latentlm.models.block_attention import FORMS
from latentlm.models.block_masks import sequence_mask
from latentlm.models.block_stack import CausalStack

T, SEGMENTS = 19, [0, 0, 1, 1, 1, 2, 3, 3, 3, 3, 4, 4, 5, 5, 5, 5, 5, 6, 6]
MASKS = {
    "causal": {"window": None},
    "window": {"window": 4},
    "wide": {"window": 50},
    "segments": {"window": None, "local": True},
    "segments_window": {"window": 2, "local": True},
    "look_back": {"window": 4, "lookback": 2},
    "own_row": {"window": None, "lookback": 0},
}


def build(form: str, backend: str, window: int | None, lookback: int | None = None, local: bool = False):
    config = AbstractinatorConfig(
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=16,
        attention_form=form,
        query_latent_size=12,
        key_value_latent_size=8,
        latent_rope_size=4,
    )
    config._attn_implementation = backend
    torch.manual_seed(0)
    stack = CausalStack(config, 2, window, lookback).eval()
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    generator = torch.Generator().manual_seed(1)
    segments = torch.tensor([SEGMENTS, SEGMENTS])
    rows = (torch.randn(2, 6, 32, generator=generator), torch.randn(2, 7, 32, generator=generator))
    inputs = {}
    if local:
        inputs["segments"] = segments
    if lookback is not None:
        inputs |= {"memory": rows, "memory_segments": segments}
    return stack, inputs


def states(seed: int = 2) -> torch.Tensor:
    return torch.randn(2, T, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", ["sdpa", "flex_attention"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("form", FORMS)
def test_every_backend_equals_eager(form, mask, backend):
    with torch.no_grad():  # flex has no backward on CPU
        stack, inputs = build(form, "eager", **mask)
        expected, *_ = stack(states(), **inputs)
        stack, inputs = build(form, backend, **mask)
        with torch.compiler.set_stance("force_eager"):
            found, *_ = stack(states(), **inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("form", FORMS)
def test_the_second_half_moves_nothing_in_the_first(form, mask, backend):
    stack, inputs = build(form, backend, **mask)
    changed = torch.cat((states()[:, :10], states(3)[:, 10:]), 1)
    later = dict(inputs)
    if "memory" in inputs:  # also the rows of segments that begin later, and as current ones of what is over
        past, current = (rows.clone() for rows in inputs["memory"])
        past[:, 4:], current[:, 4:] = 9.0, 9.0
        later["memory"] = (past, current)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        found, again = stack(states(), **inputs)[0], stack(changed, **later)[0]
    torch.testing.assert_close(again[:, :10], found[:, :10], rtol=1e-5, atol=1e-5)
    assert (again[:, 10:] - found[:, 10:]).abs().amax((0, 2)).min() > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_a_window_sees_its_last_symbols_and_no_others(form):
    """One layer with a window of 4 at position 12: 9 to 12, or with segments 10 and 11 less."""
    for mask, seen in (({"window": 4}, {9, 10, 11, 12}), ({"window": 4, "local": True}, {12})):
        stack, inputs = build(form, "sdpa", **mask)
        stack.layers = stack.layers[:1]
        given = states().requires_grad_()
        stack(given, **inputs)[0][0, 12].sum().backward()
        assert set(given.grad[0].abs().sum(-1).nonzero()[:, 0].tolist()) == seen


def test_memory_rows_that_a_symbol_sees():
    """Position 12 is in segment 5: with a lookback of 2 it sees the rows 3 and 4 of the past and its current row."""
    stack, inputs = build("regular", "sdpa", window=4, lookback=2)
    past, current = (rows.requires_grad_() for rows in inputs["memory"])
    stack(states(), memory=(past, current), memory_segments=inputs["memory_segments"])[0][0, 12].sum().backward()
    stack.layers = stack.layers[:1]
    past.grad = current.grad = None
    stack(states(), memory=(past, current), memory_segments=inputs["memory_segments"])[0][0, 12].sum().backward()
    assert past.grad[0].abs().sum(-1).nonzero()[:, 0].tolist() == [3, 4]
    assert current.grad[0].abs().sum(-1).nonzero()[:, 0].tolist() == [5]


@pytest.mark.parametrize("lookback", [0, 1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_gathered_rows_equal_a_dense_mask_in_gradients_too(form, lookback):
    found = {}
    for backend in ("eager", "sdpa"):
        stack, inputs = build(form, backend, window=4, lookback=lookback)
        given = states().requires_grad_()
        rows = [row.requires_grad_() for row in inputs["memory"]]
        stack(given, **inputs)[0].square().sum().backward()
        past, current = (row.grad for row in rows)
        assert lookback or not past.any()
        found[backend] = [given.grad, past, current, *(p.grad for p in stack.parameters())]
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("window", [1, 2, 3, 7, 9])
def test_a_band_equals_a_dense_mask_in_gradients_too(window):
    stack, _ = build("regular", "sdpa", window=window)
    assert sequence_mask(stack.config, states(), window=window).band == window
    found = {}
    for backend in ("eager", "sdpa"):
        stack, _ = build("regular", backend, window=window)
        given = states().requires_grad_()
        stack(given)[0].square().sum().backward()
        found[backend] = [given.grad, *(p.grad for p in stack.parameters())]
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("form", FORMS)
def test_symbols_one_at_a_time_equal_whole_rows(form, mask):
    """Two rows that advance at their own pace: the second waits at every third symbol."""
    stack, inputs = build(form, "sdpa", **mask)
    segments = torch.tensor(SEGMENTS)
    with torch.no_grad():
        expected, *_ = stack(states(), **inputs)
        cache = stack.new_cache(2, states())
        at, found = torch.zeros(2, dtype=torch.long), torch.zeros_like(expected)
        for turn in range(3 * T):
            active = torch.tensor([True, turn % 3 > 0]) & (at < T)
            now, both = at.clamp(max=T - 1), torch.arange(2)
            opening = active & ((now == 0) | (segments[now] != segments[now - 1]))
            if "local" in mask:
                cache.segment_starts = torch.where(opening, now, cache.segment_starts)
            if "memory" in inputs:
                past, current = inputs["memory"]
                segment = segments[now]
                stack.open_row(cache, opening, current[both, segment], past[both, segment - 1])
            output = stack.step(cache, active, states()[both, now])
            found[both[active], now[active]] = output[active]
            at += active
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
