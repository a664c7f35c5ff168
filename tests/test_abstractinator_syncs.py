"""How often the Abstractinator makes the host wait for the device, counted as operations that read values; and that its
parts compile as one graph each."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import token_ids
from test_abstractinator import BYTES, build
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from latentlm.models.block_ragged import bucket

READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "repeat_interleave"}
READS |= {"_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"}
MASKED = {"index", "index_put", "index_put_", "_index_put_impl_"}


class CountReads(TorchDispatchMode):
    """Counts operations whose result or shape the host must know, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.lists = CountLists(self.counts)

    def __enter__(self) -> "CountReads":
        self.lists.__enter__()
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        self.lists.__exit__(*args)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        is_mask = name in MASKED and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if name in READS or is_mask:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class CountLists(TorchFunctionMode):
    """Counts what is read without an operation."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("tolist", "numpy", "__array__"):
            self.counts[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def reads(function: Callable[[], Any]) -> int:
    with CountReads() as count:
        function()
    return count.counts.total()


def test_what_reads_is_counted():
    values = torch.arange(4)
    assert reads(lambda: values[values > 1]) and reads(lambda: values.tolist()) and reads(lambda: bool(values.any()))
    assert reads(lambda: values.nonzero()) and not reads(lambda: values[values].where(values > 1, 0))


PACKED = torch.cat((torch.arange(12), torch.arange(18))).expand(2, -1)
TRAINING = {
    # The number of segments, a read for each level: without it all that is above would work on as many places as there
    # are symbols.
    ("default", "plain"): 1,
    ("two_levels", "plain"): 2,
    ("latent", "plain"): 2,
    ("no_top", "plain"): 2,
    ("continuous", "plain"): 1,
    # And how many documents there are, with the length of the longest: a bound would be a row for every symbol.
    ("default", "packed"): 2,
    ("two_levels", "packed"): 3,
}


@pytest.mark.parametrize(("variant", "rows"), TRAINING)
def test_reads_of_a_training_step(variant, rows):
    """None in the backward pass, and none where codebooks move."""
    level = {"target_segment_length": 3.0}
    model = build(variant, **BYTES).train()
    model = build(variant, levels=[level | each for each in model.config.levels], **BYTES).train()
    ids = token_ids(2, 30).masked_fill(torch.arange(30) < torch.tensor([[0], [4]]), 256)
    inputs = {"input_ids": ids, "labels": ids} | ({"position_ids": PACKED} if rows == "packed" else {})
    outputs = []
    assert reads(lambda: outputs.append(model(**inputs))) == TRAINING[variant, rows]
    assert reads(lambda: outputs[0].loss.backward()) == 0
    assert reads(model.model.update) == 0


@pytest.mark.parametrize("variant", ["default", "two_levels", "latent", "no_top"])
def test_reads_of_a_decoding_step(variant):
    """One a symbol of a level, whether a segment closes: a step takes 2.3 times as long where what is above is never
    skipped (docs/abstractinator.md, Generating). None for the code of a segment, but where it is the symbol of a level
    that has its own segments."""
    model = build(variant, **BYTES)
    ids, mask = token_ids(2, 40), torch.ones(2, 40, dtype=torch.long)
    mask[0, :3] = 0
    counts = set()
    with torch.no_grad():
        cache = model(ids[:, :20], attention_mask=mask[:, :20], use_cache=True).past_key_values
        for t in range(20, 40):
            place = torch.full((2, 1), t)
            step = {"input_ids": ids[:, t : t + 1], "attention_mask": mask[:, : t + 1], "position_ids": place}
            counts.add(reads(lambda step=step: model(**step, past_key_values=cache)))
    assert counts == set(range(1, len(model.model.levels) + 1))


def test_reads_of_decoding_from_codes():
    model = build("default", **BYTES)
    prompts = [b"a text", b"another one"]
    counts = [reads(lambda n=n: model.generate_bytes(prompts, n)) for n in (1, 5, 9)]
    assert counts[1] - counts[0] == counts[2] - counts[1] == 4


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
            expanded = expand(found.symbols, memory, found.segments.index)[0]
        statistics, level.quantizer.gathered = getattr(level.quantizer, "gathered", None), None
        expected = level.cut(ids.unsqueeze(-1), lengths, model.ends_text(ids))
        assert torch.equal(found.segments.opens, expected.segments.opens)
        assert found.segments.count.max() <= size
        again = level.encode(expected, None, size, keys)
        torch.testing.assert_close(codes.quantized.vectors, again.quantized.vectors, rtol=1e-4, atol=1e-5)
        assert torch.equal(codes.quantized.codes, again.quantized.codes)
        reference = level.expand(expected.symbols, memory, expected.segments.index)[0]
        torch.testing.assert_close(expanded, reference, rtol=1e-4, atol=1e-5)
        if training:
            expanded.sum().backward()
            if statistics is not None:
                assert torch.equal(statistics.counts, level.quantizer.gathered.counts)
            level.quantizer.gathered = None
