"""`eval/experiments/short_training.py` at toy size."""

import sys

import pytest
import torch
from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "eval" / "experiments"))

import records
import short_training

STEPS = short_training.WARM_UP + 1


@pytest.fixture(autouse=True)
def small(monkeypatch):
    ids = torch.randint(0, 256, (STEPS, 2, 8), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(short_training, "batches", lambda: iter(ids))
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 8}
    monkeypatch.setattr(short_training, "SIZES", short_training.SIZES | sizes)
    monkeypatch.setattr(short_training, "LENGTH", 8)


@pytest.mark.parametrize("name", short_training.MASKS)
def test_outputs_are_multiplied_by_the_mask_that_is_asked_for(name: str):
    _, model, metrics = short_training.masks(name, STEPS, 0)
    mlp = model.eval().model.layers[0].mlp
    states = torch.randn(1, 5, 16, requires_grad=True)  # as the hooks of the script need
    output, _ = mlp(states)
    plain = mlp.down_proj(mlp.activate(states))
    mask = torch.ones(())
    if mlp.learned_dropout is not None:
        attended, _ = mlp.learned_dropout.attention(plain)
        mask = 0.5 * torch.cos(attended + mlp.learned_dropout.shift) + 0.5
    torch.testing.assert_close(output, plain * (mask if "scaled" in name else (mask >= 0.5).float()))
    assert all(metrics[size] > 0 for size in ("stream_gradient", "block_gradient", "weight_gradient"))


def test_tables_of_every_variant_are_described(monkeypatch, tmp_path):
    monkeypatch.setattr(short_training, "write_record", lambda record: records.write_record(record, tmp_path))
    monkeypatch.setattr(short_training, "REPOSITORY", tmp_path)
    short_training.main(["embeddings", "--steps", str(STEPS)])
    written = {record.entry: record for record in records.read_page(short_training.PAGE, tmp_path)}
    assert written.keys() == {f"embeddings-{name}" for name in short_training.EMBEDDINGS}
    reached = {name: record.metrics["positions_reached"] for name, record in written.items()}
    # Of eight positions the last predicts nothing; subtracted, positions 1 to 7 are, and read 0 to 6.
    assert reached["embeddings-plain"] == pytest.approx(7 / 8)
    assert reached["embeddings-subtraction"] == pytest.approx(8 / 9)
