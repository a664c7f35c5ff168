"""Bits per byte by how often pieces are in the training text, of a toy model and of counts."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "eval" / "experiments"))
from measures import pieces, robustness
from peers import ngram

from latentlm.models.configuration_decoder_only import DecoderOnlyConfig
from latentlm.models.modeling_decoder_only import DecoderOnlyForCausalLM
from latentlm.models.tokenization_byte import ByteTokenizer
from latentlm.runs import load_recipe


def write(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def test_bits_by_times_seen_are_those_of_an_obvious_sum(tmp_path):
    torch.manual_seed(0)
    config = DecoderOnlyConfig(
        vocab_size=260,
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    model = DecoderOnlyForCausalLM(config).eval()
    training = ["ab" * 40 + "The river rose. " * 3, "to the sea"]
    text, length = "The river flows to the sea, and the sea is never full. " * 12, 16
    write(tmp_path / "train.jsonl", training)
    write(tmp_path / "held_out.jsonl", [text])
    fields = {"dataset": str(tmp_path / "train.jsonl"), "validation_dataset": str(tmp_path / "held_out.jsonl")}
    recipe = yaml.safe_dump({"data": {**fields, "context_length": length}})
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    data = text.encode()
    sums: dict[tuple[str, int], tuple[float, int]] = {}  # of each bin: nats and bytes
    for i in range(1, len(data)):
        begin = (i - 1) // (length - 1) * (length - 1)
        with torch.no_grad():
            nats = -model(torch.tensor([list(data[begin:i])])).logits[0, -1].log_softmax(-1)[data[i]].item()
        for name, piece in (("piece", data[i]), ("after", data[i - 1])):
            seen = sum(one.encode().count(piece) for one in training)
            low = max(least for least in pieces.BINS if least <= seen)
            total, count = sums.get((name, low), (0.0, 0))
            sums[name, low] = total + nats, count + 1
    metrics = pieces.measure(model, ByteTokenizer(), tmp_path)
    assert {name for name in metrics if name.endswith("_bits")} == {f"{name}_{low}_bits" for name, low in sums}
    assert len(sums) >= 8
    for (name, low), (total, count) in sums.items():
        assert metrics[f"{name}_{low}_bits"] == pytest.approx(total / count / math.log(2), rel=1e-4)
        assert metrics[f"{name}_{low}_share"] == pytest.approx(count / (len(data) - 1))
    assert metrics["noise_0"] == pytest.approx(robustness.bits_per_byte(model, ByteTokenizer(), [text], length))


def test_counts_know_which_piece_is_read_and_which_is_predicted(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTLM_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "train.jsonl", ["aaaab" * 60])
    write(tmp_path / "held_out.jsonl", ["abz" * 20])
    fields = {"dataset": str(tmp_path / "train.jsonl"), "validation_dataset": str(tmp_path / "held_out.jsonl")}
    recipe = load_recipe(
        REPOSITORY / "hub_configs" / "decoder-only-tiny" / "recipe.yaml", {**fields, "context_length": 16}
    )
    metrics = ngram.fit(recipe)["metrics"]
    shares = {name: round(60 * value) for name, value in metrics.items() if name.endswith("_share")}
    # `a` is seen 240 times, `b` 60, `z` never, and no more the beginning, after which the first `a` stands.
    assert shares == {f"{name}_{low}_share": 20 for name in ("piece", "after") for low in (0, 16, 64)}
    total = sum(metrics[f"after_{low}_bits"] * metrics[f"after_{low}_share"] for low in (0, 16, 64))
    assert total == pytest.approx(metrics["eval_bits_per_byte"])
