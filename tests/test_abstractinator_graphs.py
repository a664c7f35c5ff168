"""The Abstractinator's shapes: few, changing nothing, so that its parts compile as one graph each."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import token_ids
from test_abstractinator import BYTES, build

from latentlm.models.block_ragged import bucket

PACKED = torch.cat((torch.arange(12), torch.arange(18))).expand(2, -1)


# ---- Buckets ----


def test_buckets_are_few_and_near():
    sizes = [bucket(size, 4096) for size in range(1, 4097)]
    assert all(size <= rounded <= max(8, 1.125 * size + 8) for size, rounded in enumerate(sizes, 1))
    assert len(set(sizes)) < 64 and bucket(13, 14) == 14 and bucket(9, 100, 1) == 9


@pytest.mark.parametrize("variant", ["two_levels", "latent", "no_top", "continuous"])
@pytest.mark.parametrize("packed", [False, True])
def test_nothing_depends_on_the_bucket(variant, packed, monkeypatch):
    """Losses, gradients, and what moves codebooks."""
    from latentlm.models import abstractinator_base, abstractinator_level

    ids = token_ids(2, 30)
    results = []
    for round_up in (bucket, lambda size, limit, least=8: size, lambda size, limit, least=8: size + 5):
        for module in (abstractinator_base, abstractinator_level):
            monkeypatch.setattr(module, "bucket", round_up)
        model = build(variant, **BYTES).train()
        output = model(ids, labels=ids, **({"position_ids": PACKED} if packed else {}))
        output.loss.backward()
        model.model.update()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append({"loss": output.loss} | gradients | dict(model.named_buffers()))
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        for name, value in results[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


# ---- Compiled ----


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """As one graph; code is generated for none, which takes minutes."""
    return torch.compile(function, fullgraph=True, dynamic=False, backend="aot_eager")


@pytest.mark.parametrize(("variant", "training"), [("two_levels", True), ("latent", False)])
def test_each_part_is_one_graph(variant, training):
    """Cutting, coding and expanding, for sizes that are known: equal to eager, and compiled once for a bucket."""
    torch.compiler.reset()
    model = build(variant, **BYTES).train(training).model
    level, size = model.levels[0], 16
    cut, encode, expand = compiled(level.cut), compiled(level.encode), compiled(level.expand)
    top = compiled(model.top)
    lengths = torch.tensor([30, 27])
    for seed in (0, 1):
        ids = token_ids(2, 30, seed=seed)
        keys = ids if training else None
        with torch._dynamo.config.patch(error_on_recompile=True):
            found = cut(ids.unsqueeze(-1), lengths, model.ends_text(ids))
            codes = encode(found, None, size, keys)
            rows = level.code_rows(codes.quantized.vectors)
            states, *_ = top(rows)
            memory = (rows, model.top.to_row(states))
            expanded = expand(level.expander_inputs(codes), memory, found.segments.index)[0]
        statistics, level.quantizer.gathered = getattr(level.quantizer, "gathered", None), None
        expected = level.cut(ids.unsqueeze(-1), lengths, model.ends_text(ids))
        assert torch.equal(found.segments.opens, expected.segments.opens)
        assert found.segments.count.max() <= size
        again = level.encode(expected, None, size, keys)
        torch.testing.assert_close(codes.quantized.vectors, again.quantized.vectors, rtol=1e-4, atol=1e-5)
        assert torch.equal(codes.quantized.codes, again.quantized.codes)
        reference = level.expand(level.expander_inputs(again), memory, expected.segments.index)[0]
        torch.testing.assert_close(expanded, reference, rtol=1e-4, atol=1e-5)
        if training:
            expanded.sum().backward()
            if statistics is not None:
                assert torch.equal(statistics.counts, level.quantizer.gathered.counts)
            level.quantizer.gathered = None
