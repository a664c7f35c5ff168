"""LearnedDropout by itself: rounding and its gradients, penalties, schedules, what is logged of it."""

import json
import math

import pytest
import torch
from architectures import CAUSAL, Case, gradients, parameters, token_ids
from training_setup import Rows, make_model, make_trainer, metrics_of
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from latentlm import (
    AREncoderDecoderConfig,
    AREncoderDecoderForCausalLM,
    DecoderOnlyConfig,
    DecoderOnlyForCausalLM,
    DecoderOnlyModel,
    ParallelEncoderDecoderConfig,
    ParallelEncoderDecoderForCausalLM,
)
from latentlm.models.block_learned_dropout import LearnedDropout, mask_entropy, mask_loss_weight, record_masks
from latentlm.runs import RecipeError

SHIFTS = [0.0, math.pi / 2, math.pi]
ROUNDINGS = ["bernoulli", "sigmoid", "sigmoid_detached"]


def config(**fields) -> DecoderOnlyConfig:
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    made = DecoderOnlyConfig(**sizes | {"learned_dropout": "bernoulli", "max_position_embeddings": 32} | fields)
    made._attn_implementation = "sdpa"
    return made


def on_given_attention(rounding: str, shift: float = 0.0) -> LearnedDropout:
    """A module whose A is given by the caller."""
    module = LearnedDropout(config(learned_dropout=rounding, learned_dropout_input="embedding"), 0)
    torch.nn.init.constant_(module.shift, shift)
    return module


def learned_dropout_cases() -> list:
    """Those whose masks lie at the tokens of rows."""
    return [
        case
        for case in parameters(CAUSAL)
        if hasattr(case.values[0].config(), "num_learned_dropouts")
        and case.values[0].config().learned_dropout != "none"
    ]


# --- rounding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_values_and_gradients_of_the_rounding(rounding: str, training: bool):
    module = on_given_attention(rounding, 0.4).train(training)
    attention = torch.randn(3, 50, 32, requires_grad=True)
    factor = torch.randn(3, 50, 32)
    mask, probability = module(torch.zeros(3, 50, 32), attention)
    angle = attention.detach() + 0.4
    expected = (1 + angle.cos()) / 2
    torch.testing.assert_close(probability, expected)
    smooth = 1 / (1 + torch.exp(-60 * (expected - 0.5)))
    if rounding == "bernoulli":
        assert set(mask.unique().tolist()) == {0.0, 1.0}  # exactly
        if not training:
            assert torch.equal(mask, (probability >= 0.5).float())
    else:
        torch.testing.assert_close(mask, smooth)
    (mask * factor).sum().backward()
    slope = factor * -angle.sin() / 2  # of M
    if rounding == "sigmoid":
        slope = slope * 60 * smooth * (1 - smooth)
    torch.testing.assert_close(attention.grad, slope, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module.shift.grad, slope.sum((0, 1)), rtol=1e-4, atol=1e-4)


def test_bernoulli_draws_ones_with_probability_m_anew_at_each_step():
    module = on_given_attention("bernoulli", 1.0).train()
    attention = torch.linspace(-1, 2, 32).expand(1, 20_000, 32)
    mask, probability = module(torch.zeros(()), attention)
    error = 5 * (probability[0, 0] * (1 - probability[0, 0]) / 20_000).sqrt() + 1e-6
    assert ((mask.mean(1)[0] - probability[0, 0]).abs() < error).all()
    assert not torch.equal(module(torch.zeros(()), attention)[0], mask)
    module.eval()
    assert torch.equal(module(torch.zeros(()), attention)[0], module(torch.zeros(()), attention)[0])


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("shift", SHIFTS)
def test_fraction_of_ones_at_initialisation(shift: float, training: bool):
    """A of a document's first token is normal with variance D std^2 where the input has unit variance. Then M has the
    mean (1 + cos(shift) exp(-variance / 2)) / 2, and M >= 0.5 where |A + shift| is below pi / 2 (mod 2 pi)."""
    std, width = 0.1, 64
    model = DecoderOnlyModel(
        config(hidden_size=width, initializer_range=std, learned_dropout_shift=shift, num_hidden_layers=1)
    )
    module = model.layers[0].mlp.learned_dropout.train(training)
    assert (module.shift == shift).all()
    inputs = torch.randn(4000, 1, width)
    inputs = inputs / inputs.square().mean(-1, keepdim=True).sqrt()
    ones = module(inputs)[0].mean().item()
    variance = width * std**2
    if training:
        expected = (1 + math.cos(shift) * math.exp(-variance / 2)) / 2
    else:  # the neighbouring arcs, 2 pi away, hold less than 1e-6

        def below(x: float) -> float:
            return (1 + math.erf(x / math.sqrt(2 * variance))) / 2

        arcs = [(2 * k * math.pi - math.pi / 2 - shift, 2 * k * math.pi + math.pi / 2 - shift) for k in (0, 1)]
        expected = sum(below(end) - below(start) for start, end in arcs)
    assert ones == pytest.approx(expected, abs=0.02)  # the weights are one draw of D values per channel


# --- penalties --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shift", SHIFTS)
def test_penalties_have_finite_gradients_everywhere(shift: float, dtype: torch.dtype):
    """Also where M is exactly 0, 1/2 or 1."""
    made = config(learned_dropout_input="embedding", mask_entropy_loss_weight=1.0)
    module = LearnedDropout(made, 0)
    torch.nn.init.constant_(module.shift, shift)
    module = module.to(dtype)
    attention = torch.cat([torch.zeros(1, 4, 32), 1e-3 * torch.randn(1, 4, 32)], 1).to(dtype).requires_grad_()
    _, probability = module(torch.zeros((), dtype=dtype), attention)
    assert probability.dtype == torch.float32 and probability.min() >= 0 and probability.max() <= 1
    penalties = module.penalise(probability)
    assert penalties.isfinite().all() and penalties.min() >= 0
    penalties.sum().backward()
    assert attention.grad.isfinite().all() and module.shift.grad.isfinite().all()
    at_rest = {0.0: 0.0, math.pi / 2: 0.5, math.pi: 0.0}[shift]  # -M log2 M
    assert penalties[0, 0, 0].item() == pytest.approx(at_rest, abs=0.01)


def test_entropy_is_the_formula():
    m = torch.tensor([0.0, 0.01, 0.25, 0.5, 1.0])
    expected = [0.0, 0.01 * math.log2(100), 0.25 * 2, 0.5, 0.0]
    assert mask_entropy(m).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("case", learned_dropout_cases())
def test_penalties_are_means_over_modules_channels_and_predicted_tokens(case: Case):
    """With padding and ignored labels, against a loop; and in evaluation they are reported but not part of the loss."""
    model = case.model(mask_entropy_loss_weight=0.7, mask_l1_loss_weight=0.3)
    ids = token_ids(2, 10)
    attention_mask = torch.ones_like(ids)
    attention_mask[0, :3] = 0
    labels = ids.masked_fill(attention_mask == 0, -100)
    labels[0, 3] = labels[1, 6] = -100
    with record_masks(model) as masks:
        output = model(ids, attention_mask=attention_mask, labels=labels)
    assert len(masks) == model.config.num_learned_dropouts
    squared = model.config.mask_l1_loss == "squared"
    entropies, norms = [], []
    for mask in masks.values():
        ones = (mask >= 0.5).float().mean()
        assert 0.02 < ones < 0.98  # the shared tests see masks that matter
        for row, t in [(0, t) for t in range(3, 9)] + [(1, t) for t in range(9) if t != 5]:
            values = mask[row, t].tolist()
            entropies.append(sum(-m * math.log2(m) if m > 0 else 0 for m in values) / len(values))
            norms.append(sum(m * m / 2 if squared else m for m in values) / len(values))
    assert output.mask_entropy_loss.item() == pytest.approx(sum(entropies) / len(entropies), rel=1e-4)
    assert output.mask_l1_loss.item() == pytest.approx(sum(norms) / len(norms), rel=1e-4)
    assert output.loss.item() == output.lm_loss.item()
    model.train()
    output = model(ids, attention_mask=attention_mask, labels=labels)
    expected = output.lm_loss + 0.7 * output.mask_entropy_loss + 0.3 * output.mask_l1_loss
    if model.config.__dict__.get("embedding_loss", "none") != "none":
        expected = expected + model.config.embedding_loss_weight * output.embedding_loss
    for name in ("byte_loss", "reconstruction_loss"):
        if getattr(output, name, None) is not None:
            expected = expected + getattr(model.config, f"{name}_weight") * getattr(output, name)
    torch.testing.assert_close(output.loss, expected)


def test_weights_changed_after_loading_choose_the_penalties():
    model = DecoderOnlyForCausalLM(config(learned_dropout_shift=1.0)).eval()
    ids = token_ids(1, 6)
    l1 = model(ids, labels=ids).mask_l1_loss
    model.config.mask_entropy_loss_weight = 1.0
    both = model(ids, labels=ids)
    assert both.mask_l1_loss == l1 and both.mask_entropy_loss != l1
    model.config.mask_l1_loss_weight = 0.0
    assert model(ids, labels=ids).mask_entropy_loss == both.mask_entropy_loss


def test_a_penalty_of_weight_zero_is_not_computed():
    ids = token_ids(1, 6)
    output = DecoderOnlyForCausalLM(config(mask_l1_loss_weight=0.0))(ids, labels=ids)
    assert output.mask_entropy_loss is None and output.mask_l1_loss is None
    assert DecoderOnlyForCausalLM(config(learned_dropout="none"))(ids, labels=ids).mask_l1_loss is None


def test_weights_follow_their_schedule():
    made = config(mask_l1_loss_weight=0.5, mask_l1_loss_weight_min=0.1, mask_l1_loss_rate=0.01)
    steps = [0, 1, 10, 33, 34, 100, 1_000_000]
    expected = [min(math.exp(min(0.01 * step, 700)) - 1 + 0.1, 0.5) for step in steps]
    weights = [float(mask_loss_weight(made, "mask_l1_loss", torch.tensor(float(step)))) for step in steps]
    assert weights == pytest.approx(expected, rel=1e-6)
    assert made.mask_loss_steps("mask_l1_loss") == 34  # exp(0.34) - 1 is the first above 0.4
    assert mask_loss_weight(made, "mask_l1_loss", None) == 0.5
    assert mask_loss_weight(config(), "mask_l1_loss", torch.tensor(0.0)) == 0.1  # constant
    model = DecoderOnlyForCausalLM(made).train()
    ids = token_ids(1, 6)
    output = model(ids, labels=ids, training_step=torch.tensor(10.0))
    weight = (output.loss - output.lm_loss) / output.mask_l1_loss
    assert weight.item() == pytest.approx(math.exp(0.1) - 0.9, rel=1e-3)


def test_a_schedule_without_steps_is_a_warning_in_training():
    """Once, as every step would give it."""
    made = config(mask_l1_loss_weight=0.5, mask_l1_loss_rate=0.0123)
    model, ids = DecoderOnlyForCausalLM(made).eval(), token_ids(1, 6)
    with CaptureLogger(logging.get_logger("latentlm.models.block_learned_dropout")) as captured:
        model(ids, labels=ids)
        model.train()(ids, labels=ids, training_step=torch.tensor(3.0))
        DecoderOnlyForCausalLM(config(mask_l1_loss_weight=0.5)).train()(ids, labels=ids)
        assert not captured.out
        for _ in range(2):
            model(ids, labels=ids)
    assert captured.out.count("`mask_l1_loss_rate` is 0.0123, but the forward gets no `training_step`") == 1


# --- where masks come from and where they act -------------------------------------------------------------------------


def test_stacks_choose_the_blocks_with_a_mask():
    for config_class, model_class in (
        (AREncoderDecoderConfig, AREncoderDecoderForCausalLM),
        (ParallelEncoderDecoderConfig, ParallelEncoderDecoderForCausalLM),
    ):
        for stacks, expected in (
            ("both", {"encoder_layers.0", "encoder_layers.1", "decoder_layers.0"}),
            ("encoder", {"encoder_layers.0", "encoder_layers.1"}),
            ("decoder", {"decoder_layers.0"}),
        ):
            made = config_class(
                **{"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 2, "learned_dropout": "bernoulli"},
                **{"num_encoder_layers": 2, "num_decoder_layers": 1, "learned_dropout_stacks": stacks},
            )
            model = model_class(made)
            names = {name for name, module in model.named_modules() if isinstance(module, LearnedDropout)}
            assert names == {f"model.{layer}.mlp.learned_dropout" for layer in expected}
            attentions = 2 + 2 * 1
            assert len(made.per_layer_config) == attentions + len(expected)


def test_one_attention_on_the_embedding_serves_all_layers():
    made = config(learned_dropout_input="embedding", learned_dropout_shift=1.0)
    model = DecoderOnlyForCausalLM(made).eval()
    names = [name for name, _ in model.named_parameters() if "mask_attention" in name]
    assert names == ["model.mask_attention.qkv_proj.weight"]
    assert len(made.per_layer_config) == 2 + 1
    ids = token_ids(1, 6)
    with record_masks(model) as masks:
        model(ids)
    first, second = masks.values()
    assert torch.equal(first, second)  # the same attention and, so far, the same shift
    torch.nn.init.constant_(model.model.layers[1].mlp.learned_dropout.shift, 2.0)
    with record_masks(model) as masks:
        model(ids)
    assert torch.equal(masks["model.layers.0.mlp.learned_dropout"], first)
    assert not torch.allclose(masks["model.layers.1.mlp.learned_dropout"], first, atol=0.1)


@pytest.mark.parametrize("detach", [True, False])
def test_detached_masks_send_no_gradient_to_the_embedding(detach: bool):
    fields = {"learned_dropout_input": "embedding", "learned_dropout_shift": 1.0, "learned_dropout_detach": detach}
    model = DecoderOnlyForCausalLM(config(**fields)).train()
    ids = token_ids(1, 6)
    model(ids, labels=ids).mask_l1_loss.backward()
    reached = {name for name, gradient in gradients(model).items() if gradient.any()}
    shifts = {f"model.layers.{i}.mlp.learned_dropout.shift" for i in range(2)}
    assert ("model.mask_attention.qkv_proj.weight" in dict(model.named_parameters())) is not detach
    assert "model.mask_attention.qkv_proj.weight" in model.state_dict()
    rest = {"model.mask_attention.qkv_proj.weight", "model.embed_tokens.weight", "model.embed_positions.weight"}
    assert reached == (shifts if detach else shifts | rest)


def test_checkpointing_draws_the_same_masks_again():
    model = DecoderOnlyForCausalLM(config(learned_dropout_shift=1.5)).train()  # with real draws
    ids = token_ids(2, 12)
    found = []
    for use_reentrant in (None, True, False):
        if use_reentrant is not None:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
        torch.manual_seed(3)
        output = model(ids, labels=ids)
        output.loss.backward()
        found.append((output.loss.item(), gradients(model)))
    for loss, grads in found[1:]:
        assert loss == found[0][0]
        for name, gradient in grads.items():
            torch.testing.assert_close(gradient, found[0][1][name], msg=lambda m, n=name: f"{n}: {m}")


# --- training ---------------------------------------------------------------------------------------------------------

SCHEDULED = {
    "learned_dropout": "bernoulli",
    "learned_dropout_shift": 1.3,
    "mask_entropy_loss_weight": 0.5,
    "mask_l1_loss_weight": 0.3,
    "mask_l1_loss_weight_min": 0.1,
    "mask_l1_loss_rate": 0.05,
}


def test_logged_statistics_are_those_of_the_validation_masks(tmp_path):
    trainer = make_trainer(tmp_path, make_model(**SCHEDULED), learning_rate=0.05, max_steps=5, logging_steps=1)
    trainer.train()
    logs = metrics_of(tmp_path)
    assert [entry["mask_l1_loss_weight"] for entry in logs] == pytest.approx(
        [min(math.exp(0.05 * step) - 0.9, 0.3) for step in range(5)]  # that of the loss beside it
    )
    assert all(entry["mask_entropy_loss_weight"] == 0.5 for entry in logs)
    rows = Rows(11, seed=1)
    chosen = [rows[i * 11 // 4] for i in range(4)]
    with torch.no_grad(), record_masks(trainer.model.eval()) as masks:
        trainer.model(
            torch.stack([row["input_ids"] for row in chosen]),
            position_ids=torch.stack([row["position_ids"] for row in chosen]),
        )
    values = torch.cat([mask.flatten() for mask in masks.values()])
    last = logs[-1]
    assert last["mask_density"] == pytest.approx((values >= 0.5).double().mean().item())
    assert last["mask_near_0"] == pytest.approx((values < 0.1).double().mean().item())
    assert last["mask_near_1"] == pytest.approx((values > 0.9).double().mean().item())
    assert last["mask_entropy"] == pytest.approx(mask_entropy(values).mean().item(), rel=1e-5)
    for name, mask in masks.items():
        layer = name.removeprefix("model.").removesuffix(".mlp.learned_dropout")
        assert last[f"mask_density_{layer}"] == pytest.approx((mask >= 0.5).double().mean().item())
    assert any(entry["mask_change"] > 0 for entry in logs) and all(0 <= entry["mask_change"] <= 1 for entry in logs)
    assert {"eval_mask_entropy_loss", "eval_mask_l1_loss"} <= trainer.evaluate().keys()


def test_measuring_masks_leaves_the_run_as_it_was(tmp_path):
    runs = {}
    for steps in (1, 4):
        trainer = make_trainer(tmp_path / str(steps), make_model(**SCHEDULED), max_steps=8, logging_steps=steps)
        trainer.train()
        runs[steps] = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    for name, value in runs[1].items():
        assert torch.equal(value, runs[4][name]), name


@pytest.mark.parametrize(
    "arguments",
    [{}, {"activation_checkpointing": True}, {"torch_compile": True, "torch_compile_backend": "eager"}],
    ids=["plain", "checkpointing", "compiled"],
)
def test_a_resumed_run_goes_on_with_masks_and_schedules(tmp_path, arguments):
    """Draws, scheduled weights and `mask_change` too, to the last digit."""
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "logging_steps": 1, **arguments}
    whole = make_trainer(tmp_path / "whole", make_model(**SCHEDULED), **options)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", make_model(**SCHEDULED), **options)
    resumed.train(resume_from_checkpoint=tmp_path / "whole" / "checkpoint-3")
    assert metrics_of(tmp_path / "resumed") == metrics_of(tmp_path / "whole")
    first = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[0])
    assert {"mask_entropy_loss", "mask_l1_loss", "mask_density"} <= first.keys()


def test_a_schedule_that_the_run_does_not_finish_is_an_error(tmp_path):
    """The last step has number max_steps - 1, and is the first that has to use the maximum."""
    steps = make_model(**SCHEDULED).config.mask_loss_steps("mask_l1_loss")
    assert steps == 4
    trainer = make_trainer(tmp_path / "short", make_model(**SCHEDULED), max_steps=steps)
    with pytest.raises(RecipeError, match=r"mask_l1_loss_rate 0.05 .* maximum 0.3 after 4 steps, .* run has 4"):
        trainer.train()
    assert trainer.state.global_step == 0
    make_trainer(tmp_path / "enough", make_model(**SCHEDULED), max_steps=steps + 1).train()
    assert metrics_of(tmp_path / "enough")[-1]["mask_l1_loss_weight"] == pytest.approx(0.3)


def test_without_validation_rows_no_mask_is_measured(tmp_path):
    trainer = make_trainer(tmp_path, make_model(**SCHEDULED), evaluation=Rows(0), max_steps=5)
    trainer.train()
    entry = metrics_of(tmp_path)[-1]
    assert "mask_l1_loss" in entry and "mask_l1_loss_weight" in entry and "mask_density" not in entry
