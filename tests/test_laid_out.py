"""Cached steps of one token of one row, for which weights are laid out anew."""

import copy
import gc
import pickle
from typing import Any

import pytest
import torch
from architectures import randomise, token_ids
from peft import LoraConfig, get_peft_model

from latentlm import (
    AREncoderDecoderConfig,
    AREncoderDecoderForCausalLM,
    DecoderOnlyConfig,
    DecoderOnlyForCausalLM,
    ParallelEncoderDecoderConfig,
    ParallelEncoderDecoderForCausalLM,
)
from latentlm.models.block_laid_out import LaidOutLayers

SIZES: dict[str, Any] = {"vocab_size": 61, "hidden_size": 24, "num_attention_heads": 2, "max_position_embeddings": 32}
STACKS = {"num_encoder_layers": 2, "num_decoder_layers": 1}
ROTARY = {"position_embedding_type": "rotary"}
DECODER_ONLY = (DecoderOnlyConfig, DecoderOnlyForCausalLM, {"num_hidden_layers": 2})
AUTO_REGRESSIVE = (AREncoderDecoderConfig, AREncoderDecoderForCausalLM, STACKS)
PARALLEL = (ParallelEncoderDecoderConfig, ParallelEncoderDecoderForCausalLM, STACKS)


def laid_out_weights(subject: tuple, options: dict[str, Any], **inputs: Any) -> list:
    """The weights that are laid out while a row is continued by a new model."""
    config_class, model_class, fields = subject
    model = model_class(config_class(**SIZES, **fields, **options)).eval()
    randomise(model)
    return weights_of_continuing(model, **inputs)


@torch.no_grad()
def weights_of_continuing(model: Any, **inputs: Any) -> list:
    """The same, of a model, which gives of the row what it gives of it as a whole."""
    ids = token_ids(1, 20)
    expected, start = model(ids, **inputs).logits, 8
    cache = model(
        ids[:, :start], **{k: v[:, :start] if torch.is_tensor(v) else v for k, v in inputs.items()}, use_cache=True
    )
    cache = cache.past_key_values
    for t in range(start, 20):
        now = {name: value[:, : t + 1] if torch.is_tensor(value) else value for name, value in inputs.items()}
        logits = model(ids[:, t : t + 1], past_key_values=cache, **now).logits[:, 0]
        torch.testing.assert_close(logits, expected[:, t], rtol=1e-4, atol=1e-4)
    laid_out = LaidOutLayers.of_cache.get(cache)
    return [] if laid_out is None else [weights for weights in laid_out.weights.values() if weights]


@pytest.mark.parametrize("options", [{}, ROTARY | {"num_key_value_heads": 1}, {"hidden_act": "relu2"}])
@pytest.mark.parametrize("subject", [DECODER_ONLY, AUTO_REGRESSIVE, PARALLEL])
def test_a_row_is_continued_with_weights_laid_out_as_without(subject, options):
    assert len(laid_out_weights(subject, options)) == sum(subject[2].values())


@pytest.mark.parametrize(
    "options",
    [
        {"use_bias": True},
        {"attention_form": "latent", "key_value_latent_size": 8},
        {"learned_dropout": "bernoulli"},
    ],
)
def test_layers_that_are_not_simple_are_called(options):
    assert not laid_out_weights(DECODER_ONLY, options)


@pytest.mark.parametrize("options", [{"cross_attention_gate": True}, {"decoder_order": "cross_first"}])
def test_decoder_layers_that_are_not_simple_are_called(options):
    assert len(laid_out_weights(AUTO_REGRESSIVE, options)) == 2  # those of the encoder


def test_layers_are_called_where_padding_is_masked_or_more_is_asked_for():
    mask = torch.ones(1, 20)
    mask[0, :3] = 0
    assert not laid_out_weights(DECODER_ONLY, {}, attention_mask=mask)
    assert not laid_out_weights(AUTO_REGRESSIVE, {}, output_hidden_states=True)


def test_an_adapter_is_not_bypassed():
    model = DecoderOnlyForCausalLM(DecoderOnlyConfig(**SIZES, num_hidden_layers=2))
    lora = LoraConfig(target_modules=["0.self_attn.qkv_proj", "0.mlp.down_proj"], init_lora_weights=False)
    assert len(weights_of_continuing(get_peft_model(model, lora).eval())) == 1


def begun(subject: tuple, **options: Any) -> tuple[Any, Any]:
    """A model, and the cache of a row that it has continued with weights laid out."""
    config_class, model_class, fields = subject
    model = model_class(config_class(**SIZES, **fields, **options)).eval()
    randomise(model)
    with torch.no_grad():
        cache = model(token_ids(1, 8), use_cache=True).past_key_values
        model(token_ids(1, 1), past_key_values=cache)
    assert LaidOutLayers.of_cache[cache].weights
    return model, cache


COPIES = [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))]


@torch.no_grad()
@pytest.mark.parametrize("copied", COPIES, ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("subject", [DECODER_ONLY, AUTO_REGRESSIVE, PARALLEL])
def test_a_copied_cache_has_no_weights_and_continues(subject, copied):
    model, cache = begun(subject)
    other = copied(cache)
    assert len(pickle.dumps(cache)) < 4 * model.get_input_embeddings().weight.shape[1] ** 2 * 12  # a layer's
    assert other not in LaidOutLayers.of_cache
    one, two = (model(token_ids(1, 1), past_key_values=store).logits for store in (cache, other))
    assert torch.equal(one, two)
    gc.collect()
    kept = len(LaidOutLayers.of_cache)
    del cache
    gc.collect()
    assert len(LaidOutLayers.of_cache) == kept - 1  # weights go with their cache


@torch.no_grad()
def test_a_hook_that_is_registered_after_the_first_step_runs():
    model, cache = begun(DECODER_ONLY)
    called = []
    handle = model.model.layers[1].mlp.up_proj.register_forward_hook(lambda *_: called.append("after"))
    model.model.layers[0].self_attn_norm.register_forward_pre_hook(lambda *_: called.append("before"))
    model(token_ids(1, 1), past_key_values=cache)
    assert called == ["before", "after"]
    handle.remove()
    model(token_ids(1, 1), past_key_values=cache)
    assert called == ["before", "after", "before"]


@torch.no_grad()
@pytest.mark.parametrize("whole", [False, True], ids=["dropout", "model"])
def test_dropout_that_is_switched_on_drops(whole):
    """That of a module alone, as for Monte Carlo dropout, and that of the whole model, also after the first step."""
    model, cache = begun(DECODER_ONLY, hidden_dropout=0.5)
    layer = model.model.layers[1]
    if whole:
        model.train()
    else:
        cache = model(token_ids(1, 8), use_cache=True).past_key_values
        layer.dropout.train()
    model(token_ids(1, 1), past_key_values=cache)
    first, second = (LaidOutLayers.of_cache[cache].of_layer(layer) for layer in model.model.layers)
    assert second is None and (first is None) == whole


@torch.no_grad()
def test_tensors_among_the_options_are_no_error():
    model, cache = begun(DECODER_ONLY)
    other = copy.deepcopy(cache)
    expected = model(token_ids(1, 1), past_key_values=cache).logits
    logits = model(token_ids(1, 1), past_key_values=other, of_a_backend=torch.ones(2)).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert other not in LaidOutLayers.of_cache
