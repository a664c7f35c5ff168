"""Two-part code lengths in lm-eval and in bits per byte."""
# ruff: noqa: E402  (lm-eval and evaluate are an optional extra: skip before importing from them)

import math
from pathlib import Path

import pytest
import torch
from test_abstractinator import BYTES, build

pytest.importorskip("lm_eval", reason="needs the eval extra: pip install 'latentlm[eval]'")
evaluate = pytest.importorskip("evaluate", reason="needs the eval extra: pip install 'latentlm[eval]'")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from latentlm import ByteTokenizer
from latentlm.evaluation import adapters  # noqa: F401  (registers the model)

METRIC = Path(__file__).parents[1] / "eval" / "metrics" / "bits_per_byte"


@pytest.fixture(scope="module")
def model():
    return build(**BYTES)


def score(model, kind: str, *arguments: tuple, batch_size: int = 4):
    adapter = get_model("abstractinator")(
        pretrained=model, tokenizer=ByteTokenizer(model_max_length=4096), batch_size=batch_size
    )
    requests = [Instance(kind, {}, argument, i) for i, argument in enumerate(arguments)]
    return getattr(adapter, kind)(requests, disable_tqdm=True)


def nats(model, text: bytes) -> float:
    return sum(model.code_lengths(torch.tensor([[257, *text]])).values()).item()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_scores_are_differences_of_code_lengths(model, batch_size):
    pairs = [("The cat", " sat down"), ("A much longer context, then", " é"), ("", "word")]
    found = score(model, "loglikelihood", *pairs, batch_size=batch_size)
    for (context, continuation), (value, greedy) in zip(pairs, found, strict=True):
        expected = (nats(model, context.encode()) if context else 0) - nats(model, (context + continuation).encode())
        assert value == pytest.approx(expected, rel=1e-4, abs=1e-3) and greedy is False


def test_a_whole_text_costs_its_code_length_and_bits_per_byte_follow(model):
    texts = ["A text of some length.", "Another."]
    found = score(model, "loglikelihood_rolling", *[(text,) for text in texts])
    expected = [nats(model, text.encode()) for text in texts]
    assert found == pytest.approx([-value for value in expected], rel=1e-4)
    sizes = [len(text) for text in texts]
    metric = evaluate.load(str(METRIC)).compute(nats=expected, bytes=sizes)
    assert metric["bits_per_byte"] == pytest.approx(sum(expected) / math.log(2) / sum(sizes))
