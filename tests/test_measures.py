"""Measures of eval/experiments on toy models."""

import argparse
import json
import math
import random
import sys

import pytest
import torch
import yaml
from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "eval" / "experiments"))
import context_cost
import measure
from measures import drafts, generation, masks, operations, probes, realistic, robustness, segments
from peers.gpt2 import GPT2Peer
from records import read_page, write_record
from test_abstractinator import BYTES, build
from test_experiments import make_record
from transformers import AutoConfig, AutoModelForCausalLM

from latentlm import EncodzallForMaskedDenoising
from latentlm.evaluation.segments import inspect
from latentlm.models.configuration_decoder_only import DecoderOnlyConfig
from latentlm.models.modeling_decoder_only import DecoderOnlyForCausalLM
from latentlm.models.tokenization_byte import ByteTokenizer
from latentlm.runs import load_recipe
from latentlm.training.run import train


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


# ---- Probes ----


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("ar_encoder_decoder", ["embedding_0", "encoder_1", "encoder_2", "decoder_3", "decoder_4"]),
        ("parallel_encoder_decoder", ["embedding_0", "encoder_1", "decoder_2", "encoder_2", "decoder_3"]),
        ("decoder_only", ["embedding_0", "layer_1", "layer_2"]),
    ],
)
def test_states_are_named_by_stack_and_depth(architecture, expected):
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "vocab_size": 260, "max_position_embeddings": 8}
    sizes |= (
        {"num_hidden_layers": 2}
        if architecture == "decoder_only"
        else {"num_encoder_layers": 2, "num_decoder_layers": 2}
    )
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **sizes)).eval()
    ids = torch.arange(6).view(1, 6)
    states = probes.layer_states(model, ids)
    assert list(states) == expected
    assert not any(layer._forward_hooks for layer in model.model.modules())  # none stays behind
    hidden = model(ids, output_hidden_states=True).hidden_states
    for state, one in zip(list(states.values())[:-1], hidden, strict=False):  # the last one there is after the norm
        torch.testing.assert_close(state, one)


def test_a_probe_is_least_squares_over_all_batches():
    torch.manual_seed(0)
    vocab_size, size, length = 5, 12, 9
    table = torch.randn(vocab_size, size)
    ids = torch.randint(vocab_size, (40, length))
    states = table[ids] + 0.3 * torch.randn(40, length, size)
    states[..., 0] += torch.arange(length)  # the position, on top of one channel
    probe = probes.Probe(size, vocab_size)
    for part in range(0, 20, 5):
        probe.fit(states[part : part + 5], ids[part : part + 5])
    probe.solve()
    inputs = torch.cat((states[:20, :-1].reshape(-1, size), torch.ones(20 * (length - 1), 1)), 1).double()
    current = torch.nn.functional.one_hot(ids[:20, :-1].reshape(-1), vocab_size).double()
    expected = torch.linalg.lstsq(inputs, current).solution
    torch.testing.assert_close(probe.map[:, :vocab_size], expected, rtol=1e-2, atol=2e-3)
    probe.score(states[20:], ids[20:])
    results = probe.results()
    assert results["current"] > 0.95 and results["position"] > 0.9
    assert results["next"] < 0.4  # drawn by chance: a fifth


def test_probes_of_a_toy_model_join_the_record_of_its_run(model, run, tmp_path):
    for half in "ab":
        text = json.dumps({"text": f"Half {half} has a river, and the river flows. " * 20})
        (run / f"validation-{half}.jsonl").write_text(text + "\n", encoding="utf-8")
    folder = tmp_path / "runs" / "page" / "one-0"
    model.save_pretrained(folder)
    ByteTokenizer().save_pretrained(folder)
    (folder / "recipe.yaml").write_text((run / "recipe.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    write_record(make_record(), tmp_path / "records")
    measure.main(["page", "probes", "--runs", str(tmp_path / "runs"), "--records", str(tmp_path / "records")])
    [record] = read_page("page", tmp_path / "records")
    assert record.metrics["eval_bits_per_byte"] == 2.0  # what it was before
    assert record.metrics["probe_current_embedding_0"] > 0.8
    assert {"probe_next_layer_2", "probe_position_layer_1"} <= record.metrics.keys()


@pytest.fixture
def own_class_again():
    """A peer takes the place of a class for good."""
    yield
    AutoModelForCausalLM.register(DecoderOnlyConfig, DecoderOnlyForCausalLM, exist_ok=True)


def test_what_is_measured_is_the_model_that_was_trained(tmp_path, own_class_again):
    """A peer, or a model with another head, and never one with weights by chance."""
    tiny = {"vocab_size": 260, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    peer = GPT2Peer(DecoderOnlyConfig(**tiny, max_position_embeddings=32))
    denoiser = EncodzallForMaskedDenoising(AutoConfig.from_pretrained(REPOSITORY / "hub_configs" / "encodzall-tiny"))
    for model, recipe, name in ((peer, "decoder-only-tiny", "gpt2"), (denoiser, "encodzall-tiny", None)):
        folder = tmp_path / recipe
        model.save_pretrained(folder)
        (folder / "recipe.yaml").write_bytes((REPOSITORY / "hub_configs" / recipe / "recipe.yaml").read_bytes())
        record = make_record(configuration={"model": {}, "data": {}, "training": {}, "peer": name})
        if name:
            with pytest.raises(ValueError, match=r"no weights for .*lm_head.* of DecoderOnlyForCausalLM"):
                measure.load(make_record(), folder)
        loaded = measure.load(record, folder)
        assert type(loaded) is type(model) and not loaded.training
        torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


# ---- Segments ----


@pytest.mark.parametrize(("context", "prompt", "new"), [(16, 8, 8), (100, 86, 14), (300, 86, 128)])
def test_speed_is_measured_in_any_context(context, prompt, new, monkeypatch):
    """Whether the prompt, or the prompt and what follows it, is longer."""
    sizes = {"vocab_size": 259, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    model, calls = DecoderOnlyForCausalLM(DecoderOnlyConfig(**sizes, max_position_embeddings=context)), []
    generate = model.generate

    def count(ids, max_new_tokens, **limits):
        calls.append((ids.shape[1], max_new_tokens))
        return generate(ids, max_new_tokens=max_new_tokens, **limits)

    monkeypatch.setattr(model, "generate", count)
    assert generation.measure(model, ByteTokenizer(), None)["generation_bytes_per_second"] > 0
    assert calls == [(prompt, new)] * generation.REPEATS


def test_operations_of_a_model_without_a_longest_context(monkeypatch):
    """A recurrent one, say."""

    class Recurrent(torch.nn.Linear):
        config = argparse.Namespace()

        def forward(self, ids, **options):
            return argparse.Namespace(loss=super().forward(ids.unsqueeze(-1).float()).sum())

    monkeypatch.setattr(operations, "read_metrics", lambda run: [])
    assert operations.measure(Recurrent(1, 3), None, None)["mflop_a_byte_forward"] == pytest.approx(6e-6)


def test_cuts_are_counted_against_units_in_bytes():
    text = "Élan, isn't it: “Yes. No”"
    pieces = segments.learn_pieces("isn't it it it is " * 50)
    found = segments.units(text, pieces)
    data = text.encode()
    words = {"Élan", "isn't", "it", "Yes", "No"}
    assert {data[i:].decode().split()[0].strip(",:.”") for i in found["words"]} == words
    assert [data[i:].decode()[:2] for i in sorted(found["after_punctuation"])] == ["is", "“Y", "No"]
    data = b"ab, cd (e) f"
    assert [data[i : i + 1] for i in sorted(segments.after_spaces(data))] == [b"c", b"(", b"f"]
    # SpaceByte cuts after a separator that follows a word, whatever else comes.
    assert [data[i - 2 : i] for i in sorted(segments.by_spacebyte(data))] == [b"b,", b"d ", b"e)"]


def test_chance_is_the_mean_of_random_cuts():
    places, begins = set(range(1, 200)), set(range(1, 200, 7))
    draw = random.Random(0)
    found = [segments.scores(set(draw.sample(sorted(places), 50)), begins) for _ in range(400)]
    for what, value in segments.by_chance(50, len(begins), len(places)).items():
        assert sum(one[what] for one in found) / len(found) == pytest.approx(value, abs=0.01)


@pytest.mark.parametrize("count", [3, 20])
def test_as_many_cuts_as_the_model_makes(count):
    cuts, places = set(range(0, 100, 10)), set(range(100))
    chosen = segments.to_count(cuts, count, places)
    assert len(chosen) == count and (chosen <= cuts or cuts <= chosen <= places)


def test_cuts_of_a_model_are_where_its_segments_begin():
    model = build(**{**BYTES, "max_position_embeddings": 24})
    text = "The river flows, and the sea is never full. Été."
    pieces = segments.learn_pieces(text)
    metrics = segments.measure_text(model, text, pieces)
    cuts, nats = segments.read(model, text.encode(), 23)
    data = text.encode()
    expected = set()
    for begin in range(0, len(data), 23):
        end = begin
        for piece, _ in inspect(model, data[begin : begin + 23]).pieces(0):
            expected.add(end)
            end += len(piece)
    assert cuts[0] == {place for place in expected if place % 23}
    places = len(data) - len(range(0, len(data), 23))
    assert metrics["level_1_length"] == pytest.approx(places / len(cuts[0]))
    mean = sum(nats[place] for place in cuts[0]) / len(cuts[0])
    every = sum(nats[place] for place in range(len(data)) if place % 23) / places
    assert metrics["level_1_surprise"] == pytest.approx(mean / every)
    ids = torch.tensor([[257, *data[:23]]])
    with torch.no_grad():
        assert sum(nats[:23]) / 23 == pytest.approx(model(ids, labels=ids).lm_loss.item(), rel=1e-4)


# ---- Cost against context ----


def test_attention_is_counted_by_the_pairs_that_are_read():
    query = torch.randn(1, 2, 8, 16)
    with context_cost.count_operations() as causal:
        torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
    with context_cost.count_operations() as masked:
        torch.nn.functional.scaled_dot_product_attention(query, query, query, torch.ones(8, 8).tril().bool())
    pair = 2 * 2 * 2 * 16  # a product of two numbers each for scores and values, in two heads
    assert (causal.get_total_flops(), masked.get_total_flops()) == (36 * pair, 64 * pair)


def test_live_bytes_are_those_of_tensors_in_use():
    with context_cost.LiveBytes() as memory:
        first = torch.ones(1000)
        for _ in range(3):
            first = first + 1  # the sum lives beside what it is made of
        first.view(10, 100).add_(1)
    assert memory.peak == 8000


def test_cost_of_a_toy_model_after_a_context():
    length = 16
    config = DecoderOnlyConfig(
        vocab_size=260,
        hidden_size=16,
        num_attention_heads=1,
        num_hidden_layers=2,
        max_position_embeddings=64,
        position_embedding_type="rotary",
    )
    model = DecoderOnlyForCausalLM(config).eval()
    ids = torch.randint(0, 256, (1, length + context_cost.STEPS))
    costs = context_cost.measure_context(model, ids, 1, steps=True)
    weights = sum(one.weight.numel() for one in model.modules() if isinstance(one, torch.nn.Linear))
    width, layers = 16, 2
    pairs = length * (length + 1) / 2
    assert costs["mflop"] == pytest.approx((2 * weights + layers * 4 * width * pairs / length) / 1e6)
    assert costs["cache_mb"] == layers * 2 * width * length * 4 / 1e6
    seen = length + (context_cost.STEPS // 2 + 1) / 2  # at the mean step
    assert costs["step_mflop"] == pytest.approx((2 * weights + layers * 4 * width * seen) / 1e6)
    abstractinator = build(**{**BYTES, "max_position_embeddings": 64})
    costs = context_cost.measure_context(abstractinator, ids[:, :40].clamp(max=255), 1, steps=True)
    assert all(value > 0 for value in costs.values())


def test_a_draft_is_read_once_and_again_after_each_byte_that_is_not_accepted():
    accepted, ends = torch.rand(12, generator=torch.Generator().manual_seed(0)), [3, 4, 9, 12]
    segments_of = torch.tensor([sum(i >= end for end in ends) for i in range(12)])
    generator, rounds, total = random.Random(0), 4000, 0
    for _ in range(rounds):
        place = 0
        while place < 12:  # a pass: to the first byte that is not accepted, or to the end of the segment
            total += 1
            end = next(end for end in ends if end > place)
            while generator.random() < accepted[place] and place < end - 1:
                place += 1
            place += 1
    assert drafts.passes(accepted, segments_of) == pytest.approx(total / rounds, rel=0.02)


def test_runs_of_either_noise_are_scored_on_the_same_noise(tmp_path):
    """A run with realistic noise has the scores of its own evaluation; one with masks leaves its loss as it was."""
    (tmp_path / "text.txt").write_text("The river flows to the sea, and the sea is never full. " * 40, encoding="utf-8")
    (tmp_path / "held_out.txt").write_text("A river is full, and flows to the sea of text. " * 9, encoding="utf-8")
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 64}
    layers = {f"num_{stack}_layers": 1 for stack in ("word_encoder", "context_encoder", "decoder")}
    recipe = {
        "model": {"model_type": "encodzall", **sizes, **layers},
        "data": {
            name: str(tmp_path / f"{file}.txt")
            for name, file in (("dataset", "text"), ("validation_dataset", "held_out"))
        }
        | {"context_length": 64},
        "training": {
            "max_steps": 2,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "report_to": "none",
            "sample_prompts": 0,
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    noises = {
        "realistic": {"noise": "realistic", "word_decoder": "none", "sequence_loss_weight": 1.0},
        "mask": {"noise": "mask", "word_loss_weight": 0.25},
    }
    for noise, fields in noises.items():
        trainer = train(load_recipe(tmp_path / "recipe.yaml", fields | {"output_dir": str(tmp_path / noise)}))
        scores = realistic.measure(trainer.model, trainer.processing_class, tmp_path / noise)
        own = next(entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry)
        same = [
            scores[f"realistic_{name}"] == pytest.approx(own[f"eval_{name}"])
            for name in ("bits_per_byte", "corrupted_loss")
        ]
        assert same == [noise == "realistic"] * 2
        assert trainer.model.config.word_loss_weight == 0.25


def test_gradients_below_masks_of_a_toy_model(model, run):
    (run / "held_out.jsonl").rename(run / "validation-b.jsonl")
    config = {**model.config.to_dict(), "learned_dropout": "bernoulli", "learned_dropout_shift": 0.6}
    masked = DecoderOnlyForCausalLM(DecoderOnlyConfig(**config)).eval()
    masked.load_state_dict(model.state_dict(), strict=False)
    metrics = masks.measure(masked, ByteTokenizer(), run)
    plain = masks.measure(model.requires_grad_(), ByteTokenizer(), run)
    assert metrics["open_stream_gradient"] == pytest.approx(plain["open_stream_gradient"], rel=1e-4)
    assert metrics["scaled_stream_gradient"] != pytest.approx(metrics["open_stream_gradient"], rel=1e-3)
    assert 0 < metrics["mask_between"] < 1 and "mask_between" not in plain
    assert not any("round" in vars(module) for module in masks.mask_modules(masked))
