"""Pooling of segments: equal to softmax over each segment alone, whole and one symbol at a time."""

import pytest
import torch

from latentlm.models.abstractinator_pooling import SegmentPooling

LENGTHS = torch.tensor([9, 6, 1])
SEGMENTS = torch.tensor([[0, 0, 0, 1, 2, 2, 2, 2, 3], [0, 1, 1, 1, 1, 2, -1, -1, -1], [0] + [-1] * 8])


@pytest.fixture(params=[1, 3])
def pooling(request) -> SegmentPooling:
    torch.manual_seed(0)
    module = SegmentPooling(16, 2, request.param, 1e-6)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


@pytest.fixture
def states() -> torch.Tensor:
    return torch.randn(3, 9, 16, generator=torch.Generator().manual_seed(1))


def written_out(module: SegmentPooling, states: torch.Tensor) -> torch.Tensor:
    """The vector of one segment `(T, D)`, by softmax."""
    key, value = module.kv_proj(states).chunk(2, -1)
    read = []
    for query in module.queries.weight.unflatten(1, (2, 8)):
        for head in range(2):
            part = slice(8 * head, 8 * head + 8)
            scores = module.key_norm(key[:, part]) @ query[head] / 8**0.5
            read.append(scores.softmax(0) @ value[:, part])
    return module.norm(module.out_proj(torch.cat(read)))


def test_pooling_equals_softmax_over_each_segment(pooling, states):
    pooled = pooling(states, SEGMENTS, 5)
    for row in range(3):
        for segment in range(5):
            own = states[row][SEGMENTS[row] == segment]
            expected = written_out(pooling, own) if len(own) else torch.zeros(16)
            torch.testing.assert_close(pooled[row, segment], expected, rtol=1e-5, atol=1e-6)


def test_one_symbol_at_a_time_equals_the_whole(pooling, states):
    state = pooling.start(3, states)
    pooled = pooling(states, SEGMENTS, 4)
    for t in range(9):
        fresh = torch.ones(3, dtype=torch.bool) if t == 0 else SEGMENTS[:, t] != SEGMENTS[:, t - 1]
        state = state.updated(t < LENGTHS, pooling.add(state, states[:, t], fresh))
    last = SEGMENTS.max(1).values
    expected = pooled[torch.arange(3), last]
    torch.testing.assert_close(pooling.finish(state), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(pooling.finish(pooling.state_of_open(states, SEGMENTS, LENGTHS)), expected)


def test_a_segment_sees_itself_alone_and_padding_moves_nothing(pooling, states):
    pooled = pooling(states, SEGMENTS, 4)
    changed = states.clone()
    changed[0, 3:] += 1
    changed[SEGMENTS < 0] += 1e4
    again = pooling(changed, SEGMENTS, 4)
    assert torch.equal(again[0, 0], pooled[0, 0]) and torch.equal(again[1:], pooled[1:])
    assert (again[0, 1:] != pooled[0, 1:]).any(-1).all()


def test_gradients_are_those_of_softmax(pooling, states):
    states = states.requires_grad_()
    pooling(states, SEGMENTS, 4)[0, 2].sum().backward()
    found = {name: p.grad.clone() for name, p in pooling.named_parameters()} | {"states": states.grad[0, 4:8].clone()}
    pooling.zero_grad()
    own = states[0, 4:8].detach().requires_grad_()
    written_out(pooling, own).sum().backward()
    expected = {name: p.grad for name, p in pooling.named_parameters()} | {"states": own.grad}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
        assert value.abs().sum() > 0
    assert states.grad[1:].abs().sum() == 0


def test_large_scores_and_half_precision_stay_finite(pooling, states):
    with torch.no_grad():
        pooling.queries.weight.mul_(1000)
    with torch.autocast("cpu", torch.bfloat16):
        assert pooling(1e3 * states, SEGMENTS, 4).isfinite().all()


def test_norms_of_projected_states_compute_in_float32_under_autocast():
    torch.manual_seed(0)
    pooling, states = SegmentPooling(16, 2, 1, 1e-6), torch.randn(2, 5, 16)
    seen = []
    for norm in (pooling.key_norm, pooling.norm):
        norm.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        vectors = pooling(states, torch.tensor([[0, 0, 1, 1, 1]] * 2), 2)
    assert seen == [(torch.bfloat16, torch.float32)] * 2 and vectors.dtype == torch.float32
