"""The peers of eval/experiments/peers: as many parameters, the same rows, and nothing seen that should not be."""

import importlib
import sys

import pytest
import torch
from conftest import REPOSITORY

from latentlm import DecoderOnlyConfig, EncodzallForMaskedDenoising, EncodzallTokenizer
from latentlm.runs import load_recipe

sys.path.insert(0, str(REPOSITORY / "eval" / "experiments"))
import yardsticks
from peers.blt import BltPeer
from peers.causal import body_parameters, count_body
from peers.convolutions import ConvolutionPeer
from peers.frozen import FrozenWordEncoder
from peers.gpt2 import GPT2Peer
from peers.sub_words import PieceDenoiser, learn_pieces
from peers.t5 import T5Peer
from peers.word_convolutions import ConvolutionDenoiser
from records import read_record

EXPERIMENTS = REPOSITORY / "eval" / "experiments"
CAUSAL = [GPT2Peer, ConvolutionPeer, BltPeer]
ENCODERS = [PieceDenoiser, ConvolutionDenoiser]
TEXTS = ["The first text, and", "", "日本語 of the second  ", "word"]
PIECES = learn_pieces(b"The first text and the second of all words, " * 20).to_str()
TINY = {
    "vocab_size": 259,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
}


def test_every_file_is_a_peer_or_shared():
    files = {path.stem for path in (EXPERIMENTS / "peers").glob("*.py")}
    shared = {"__init__", "causal", "word_encoders"}
    for name in files - shared:
        module = importlib.import_module(f"peers.{name}")
        assert hasattr(module, "prepare") != hasattr(module, "fit")


# ---- Causal models ----


@pytest.mark.parametrize("peer", CAUSAL)
def test_the_future_moves_nothing_and_every_parameter_learns(peer):
    torch.manual_seed(0)
    model = peer(DecoderOnlyConfig(**TINY))
    ids = torch.randint(0, 256, (2, 48))
    output = model.train()(ids, labels=ids)
    output.loss.backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not idle and not model.can_generate()
    model.eval()
    changed = ids.clone()
    changed[:, 30:] = torch.randint(0, 256, (2, 18))
    with torch.no_grad():
        before, after = model(ids).logits, model(changed).logits
    torch.testing.assert_close(after[:, :30], before[:, :30], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after[:, 30:], before[:, 30:], atol=1e-3)


@pytest.mark.parametrize("peer", CAUSAL)
def test_the_loss_is_the_share_of_a_batch_and_in_evaluation_the_next_token_alone(peer):
    torch.manual_seed(0)
    model = peer(DecoderOnlyConfig(**TINY)).eval()
    ids = torch.randint(0, 256, (2, 32))
    labels = ids.clone()
    labels[:, :8] = -100
    output = model(ids, labels=labels)
    wanted = torch.nn.functional.cross_entropy(output.logits[:, 7:-1].flatten(0, 1), ids[:, 8:].flatten())
    torch.testing.assert_close(output.lm_loss, wanted)
    torch.testing.assert_close(output.loss, output.lm_loss)
    torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=2).lm_loss, wanted * 24)


@pytest.mark.parametrize(("peer", "tolerance"), [(GPT2Peer, 0.02), (ConvolutionPeer, 0.02)])
def test_a_causal_peer_has_as_many_parameters_in_its_body(peer, tolerance):
    recipe = load_recipe(REPOSITORY / "hub_configs" / "decoder-only-tiny" / "recipe.yaml", {"output_dir": "unused"})
    config = DecoderOnlyConfig(**{"vocab_size": 259, **recipe.model})
    assert abs(count_body(peer(config)) / body_parameters(config) - 1) < tolerance


def test_blt_has_as_many_parameters_as_the_flat_model_of_its_page():
    recipe = load_recipe(EXPERIMENTS / "abstractinator" / "flat.yaml", {"output_dir": "unused"})
    config = DecoderOnlyConfig(**{"vocab_size": 259, **recipe.model})
    total = sum(parameter.numel() for parameter in BltPeer(config).parameters())
    assert abs(total / 3_424_320 - 1) < 0.02


# ---- Denoisers ----


@pytest.fixture
def config():
    config = load_recipe(EXPERIMENTS / "encodzall" / "realistic.yaml", {"output_dir": "unused"}).build_config(
        EncodzallTokenizer()
    )
    config.pieces = PIECES
    return config


def batch_of(texts):
    batch = EncodzallTokenizer()(texts, padding=True, return_tensors="pt")
    return batch, batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)


@pytest.mark.parametrize("peer", [*ENCODERS, T5Peer])
def test_a_denoiser_has_as_many_parameters_and_each_learns(peer, config):
    ours = EncodzallForMaskedDenoising(config)
    model = peer(config)
    assert abs(sum(p.numel() for p in model.parameters()) / ours.num_parameters() - 1) < 0.03
    batch, labels = batch_of(TEXTS)
    output = model.train()(**batch, labels=labels, clean_input_ids=batch["input_ids"])
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("peer", [*ENCODERS, T5Peer])
def test_labels_do_not_leak(peer, config):
    """A clean byte is predicted from the noisy text and the clean bytes before it, never from itself or later ones."""
    torch.manual_seed(0)
    model = peer(config).eval()
    batch, labels = batch_of(["The first text, and more"])
    changed = labels.clone()
    changed[:, 10:] = 65
    with torch.no_grad():
        before, after = (model(**batch, labels=one).logits for one in (labels, changed))
    torch.testing.assert_close(after[:, :11], before[:, :11], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after[:, 11:], before[:, 11:], atol=1e-3)


@pytest.mark.parametrize("peer", ENCODERS)
def test_neither_neighbours_nor_padding_move_an_embedding(peer, config):
    model = peer(config).eval()
    with torch.no_grad():
        together = model.model(**batch_of(TEXTS)[0]).pooler_output
        alone = [model.model(**EncodzallTokenizer()(text, return_tensors="pt")).pooler_output for text in TEXTS]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_a_frozen_encoder_gets_no_gradient(config):
    model = EncodzallForMaskedDenoising(config)
    FrozenWordEncoder().on_train_begin(None, None, None, model=model)
    idle = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert idle and all(name.startswith("model.word_encoder.") for name in idle)


# ---- Counts ----


# ---- Yardsticks ----


def test_yardsticks_leave_records(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LATENTLM_CACHE", str(tmp_path / "cache"))
    text = "".join(f"line {i} of the same text\n" for i in range(400))
    (tmp_path / "train.txt").write_text(text)
    (tmp_path / "held_out.txt").write_text(text[3000:4000])
    fields = ["--dataset", str(tmp_path / "train.txt"), "--validation_dataset", str(tmp_path / "held_out.txt")]
    yardsticks.main([*fields, "--records", str(tmp_path), "--page", "tiny"])
    ngram, xz = (read_record(tmp_path / "tiny" / f"train-{name}-0.json") for name in ("ngram-bytes", "xz"))
    assert ngram.metrics["eval_bits_per_byte"] < 1.5 and ngram.bytes_seen == xz.bytes_seen == len(text)
    assert 0 < xz.metrics["eval_bits_per_byte"] < 1  # it has read the very text
    assert f"order {ngram.metrics['order']:.0f}: " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="'datset' is unknown; did you mean 'dataset'"):
        yardsticks.main(["--datset", "x"])
