"""Measures of eval/experiments on toy models."""

import json
import math
import sys

import pytest
import torch
import yaml
from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "eval" / "experiments"))
from measures import robustness

from latentlm.models.configuration_decoder_only import DecoderOnlyConfig
from latentlm.models.modeling_decoder_only import DecoderOnlyForCausalLM
from latentlm.models.tokenization_byte import ByteTokenizer


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = DecoderOnlyConfig(
        vocab_size=260,
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    return DecoderOnlyForCausalLM(config).eval()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder whose recipe names held-out text, beside a corpus of two languages."""
    text = "The river flows to the sea, and the sea is never full. " * 12
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
    data = {"context_length": 16, "validation_dataset": str(tmp_path / "held_out.jsonl")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"data": data}), encoding="utf-8")
    articles = [
        {"lang": "eng", "script": "Latn", "text": "All human beings are born free"},
        {"lang": "eng", "script": "Latn", "text": "and equal."},
        {"lang": "deu_1996", "script": "Latn", "text": "Alle Menschen sind frei"},
        {"lang": "ell", "script": "Grek", "text": "Όλοι οι άνθρωποι"},
    ]
    (tmp_path / "udhr").mkdir()
    lines = "".join(json.dumps(one) + "\n" for one in articles)
    (tmp_path / "udhr" / "udhr_articles.jsonl").write_text(lines, encoding="utf-8")
    monkeypatch.setenv("LATENTLM_TEXT", str(tmp_path))
    return tmp_path


def test_every_byte_but_a_texts_first_is_predicted_after_those_before_it_in_its_row(model):
    texts, length = ["Straße, und weiter " * 3, "kurz"], 7
    nats, count = 0.0, 0
    for text in texts:
        data = text.encode()
        for i in range(1, len(data)):
            begin = (i - 1) // (length - 1) * (length - 1)
            with torch.no_grad():
                logits = model(torch.tensor([list(data[begin:i])])).logits[0, -1]
            nats -= logits.log_softmax(-1)[data[i]].item()
            count += 1
    expected = nats / math.log(2) / count
    assert robustness.bits_per_byte(model, ByteTokenizer(), texts, length) == pytest.approx(expected, rel=1e-5)


def test_robustness_of_a_toy_model(model, run):
    metrics = robustness.measure(model, ByteTokenizer(), run)
    assert {"noise_0", "noise_30", "languages", "languages_latin", "languages_other", "language_ell"} <= metrics.keys()
    assert metrics["languages_latin"] == metrics["language_deu_1996"]  # English is apart
    assert metrics["languages_other"] == metrics["language_ell"]
    three = [metrics[f"language_{name}"] for name in ("eng", "deu_1996", "ell")]
    assert metrics["languages"] == pytest.approx(sum(three) / 3)
    assert robustness.read_languages(run)["eng"] == ("Latn", "All human beings are born free\nand equal.\n")


def test_noise_hits_as_many_characters_as_its_rate_says():
    text = "The river flows to the sea and the sea is never full. " * 40
    assert robustness.with_noise(text, 0) == text
    letters = sum(not letter.isspace() for letter in text)
    kinds = {"drop": 1.0}  # the kind that always changes what it hits
    few, many = (len(text) - len(robustness.with_noise(text, rate, kinds)) for rate in (3, 30))
    assert few / letters == pytest.approx(0.03, abs=0.01) and many / letters == pytest.approx(0.3, abs=0.03)
