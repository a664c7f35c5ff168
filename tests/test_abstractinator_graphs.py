"""The Abstractinator's shapes: few, changing nothing, so that its parts compile as one graph each."""

import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import token_ids
from test_abstractinator import BYTES, LONG, build
from transformers import CompileConfig
from transformers.utils import logging

from latentlm.models.abstractinator_base import AbstractinatorCache
from latentlm.models.block_compiled_row import CompiledRow
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


# ---- Compiled steps ----


GREEDY = {"max_new_tokens": 90, "min_new_tokens": 90, "do_sample": False, "return_dict_in_generate": True}


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
def test_generation_with_a_compile_config_writes_the_same_text():
    """By inductor, with few graphs: with and without memory, and one for all sizes of the ring that grows."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    model, ids = build("default", **LONG), token_ids(1, 9)
    expected = model.generate(ids, **GREEDY).sequences
    output = model.generate(ids, compile_config=CompileConfig(), **GREEDY)
    assert output.sequences.tolist() == expected.tolist()
    cache = output.past_key_values
    stacks = [cache.levels[0].entropy, cache.levels[0].expander, cache.top]
    assert all(isinstance(stack.single, CompiledRow) for stack in stacks)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4


def test_a_disabled_compile_config_compiles_nothing():
    model, ids = build("default", **LONG), token_ids(1, 9)
    config = CompileConfig(backend="no such backend")
    cache = model.generate(ids, compile_config=config, disable_compile=True, **GREEDY).past_key_values
    assert cache.compile_options is None


def test_an_empty_cache_of_the_caller_compiles_too():
    model, ids, cache = build("default", **LONG), token_ids(1, 9), AbstractinatorCache()
    output = model.generate(ids, past_key_values=cache, compile_config=CompileConfig(backend="eager"), **GREEDY)
    assert output.past_key_values is cache and isinstance(cache.top.single, CompiledRow)


def test_steps_that_cannot_be_compiled_say_so(monkeypatch):
    told = []
    monkeypatch.setattr(logging.get_logger("latentlm.models.block_stack"), "warning_once", told.append)
    model, ids = build("default", **LONG), token_ids(2, 9)
    options = {"compile_config": CompileConfig(backend="eager"), **GREEDY}
    model.generate(ids[:1], **options)
    assert not told
    output = model.generate(ids, **options)
    assert told and "`compile_config`" in told[0]
    assert output.sequences.tolist() == model.generate(ids, **GREEDY).sequences.tolist()
    monkeypatch.setattr(logging.get_logger("transformers.generation.utils"), "warning_once", told.append)
    model.generate(ids[:1], use_cache=False, **options)
    assert len(told) > 1 and "`compile_config`" in told[-1]


@pytest.mark.parametrize(("begin", "most"), [(9, 0.8), (200, 1.2)])
@torch.no_grad()
def test_compiled_steps_of_bfloat16_weights_sum_in_float32(begin, most):
    """They are nearer to the same weights in float32 than the layers are, which round after each operation. After a
    prompt of 200, which the layers read, they are as near: positions are not rounded."""
    torch.compiler.reset()
    model, ids = build("default", **LONG).bfloat16(), token_ids(1, begin + 31)
    logits = []
    for options in (None, {"backend": "eager"}, "float32"):
        if options == "float32":
            model, options = model.float(), None
        cache = AbstractinatorCache(options)
        model(ids[:, :begin], past_key_values=cache)
        steps = [model(ids[:, t : t + 1], past_key_values=cache).logits.float() for t in range(begin, begin + 31)]
        logits.append(torch.cat(steps, 1))
        assert isinstance(cache.top.single, CompiledRow) == (options is not None)
    layers, compiled, expected = logits
    assert (compiled - expected).square().mean() < most * (layers - expected).square().mean()
