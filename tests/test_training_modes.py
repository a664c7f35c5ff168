"""Ways to run a model that must not change what it computes: checkpointing, precision, compiling, backends, PEFT."""

import warnings

import pytest
import torch
from accelerate import cpu_offload
from architectures import (
    CAUSAL,
    PAD,
    Batch,
    Case,
    each_architecture,
    each_case,
    each_causal_case,
    gradients,
    loss_terms,
    token_ids,
    typical_causal_case,
)
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from transformers import TorchAoConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from latentlm.models.block_chunked_loss import LARGE_VOCABULARY, number_of_items

PACKED = torch.tensor([[*range(5), *range(7)], [*range(9), *range(3)]])


def training_batch(case: Case, packed: bool = False) -> Batch:
    """Two examples; `packed` into rows of several documents where the model is a causal language model."""
    if not packed or not case.architecture.causal:
        return {**case.batch(), "num_items_in_batch": torch.tensor(22)}
    ids = token_ids(2, 12)
    return {
        "input_ids": ids,
        "position_ids": PACKED,
        "labels": ids.masked_fill(PACKED == 0, -100),
        "num_items_in_batch": torch.tensor(20),
    }


def step(model, **batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    output = model(**batch)
    output.loss.backward()
    return output.loss.detach(), gradients(model)


def assert_same_step(one, other, rtol: float = 1e-4, atol: float = 1e-6) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=rtol, atol=atol)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("use_reentrant", [True, False])
@each_case
def test_gradient_checkpointing_changes_nothing(case: Case, use_reentrant: bool):
    """With dropout on: the second forward of a checkpoint draws the same masks."""
    case.skip_if_excepted("gradient_checkpointing")
    model = case.model(hidden_dropout=0.1, attention_dropout=0.1).train()
    torch.manual_seed(0)
    plain = step(model, **training_batch(case, packed=True))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    calls = []
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):  # whose own hooks stay outside of what is run again
            next(layer.children()).register_forward_pre_hook(lambda *_: calls.append(1))
    torch.manual_seed(0)
    output = model(**training_batch(case, packed=True))
    once = len(calls)
    output.loss.backward()
    assert len(calls) == 2 * once > 0, "forward did not run again in backward"
    checkpointed = output.loss.detach(), gradients(model)
    assert_same_step(checkpointed, plain)


@pytest.mark.parametrize("autocast", [False, True], ids=["bf16_weights", "autocast"])
@each_case
def test_bf16_is_finite_and_near_float32(case: Case, autocast: bool):
    model = case.model().train()
    exact = model(**training_batch(case, packed=True))
    _, exact_gradients = step(model, **training_batch(case, packed=True))
    if not autocast:
        model = model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(**training_batch(case, packed=True))
    near = "near_float32" not in case.architecture.exceptions
    for name, value in loss_terms(output).items():
        assert value.isfinite(), name
        if near:
            torch.testing.assert_close(
                value.float(), exact[name], rtol=0.05, atol=0.02, msg=lambda m, n=name: f"{n}: {m}"
            )
    output.loss.backward()
    found = gradients(model)
    assert found.keys() == exact_gradients.keys()
    for name, gradient in found.items():
        assert gradient.isfinite().all(), name
    whole, exact_whole = (torch.cat([g.flatten().float() for g in gs.values()]) for gs in (found, exact_gradients))
    if near:
        assert torch.cosine_similarity(whole, exact_whole, dim=0) > 0.98
    if "embedding_loss" in loss_terms(output):
        assert output.embedding_loss.dtype == torch.float32


@each_case
def test_evaluation_under_autocast_is_near_float32(case: Case):
    model, batch = case.model(), case.batch()
    with torch.no_grad():
        exact = model(**batch).logits
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(**batch).logits.float()
    assert logits.isfinite().all()
    case.skip_if_excepted("near_float32")
    bound = 0.95 if getattr(case.config(), "learned_dropout", "none") == "bernoulli" else 0.999  # hard masks turn over
    assert torch.cosine_similarity(logits.flatten(), exact.flatten(), dim=0) > bound


@each_case
def test_offloaded_weights_give_the_same_logits(case: Case):
    """Accelerate keeps them elsewhere until a layer is called: nothing may read them past the layer."""
    model, batch = case.model(), case.batch()
    with torch.no_grad():
        expected = model(**batch).logits
        cpu_offload(model, execution_device="cpu")
        torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-4, atol=1e-4)


def put_on_another_device(module: torch.nn.Module) -> None:
    """Put a module on the device `meta`. It takes its inputs there, as accelerate's hooks do."""

    def move(_, args, kwargs):
        return tree_map(lambda value: value.to("meta") if torch.is_tensor(value) else value, (args, kwargs))

    module.to("meta").register_forward_pre_hook(move, with_kwargs=True)


@pytest.mark.parametrize("vocab_size", [64, LARGE_VOCABULARY])  # with logits, and in chunks
@pytest.mark.parametrize("name", ["ar_encoder_decoder", "parallel_encoder_decoder"])
def test_layers_on_several_devices_give_all_losses(name, vocab_size):
    """Only devices are looked at: from `meta` nothing can come back, so an operand that stays behind is an error."""
    [architecture] = [row for row in CAUSAL if row.name == name]
    options = {"position_subtraction": "plain", "add_next_position": True, "embedding_loss": "mse"}
    masks = {"learned_dropout": "sigmoid", "learned_dropout_stacks": "decoder", "mask_l1_loss_rate": 0.1}
    case = Case(architecture, "default")
    model = case.model(vocab_size=vocab_size, tie_word_embeddings=False, **options, **masks).train()
    inner, ids = model.model, token_ids(2, 12)
    for module in (inner.bridge, *inner.decoder_layers, inner.norm, model.lm_head):
        put_on_another_device(module)
    numbers = {"num_items_in_batch": torch.tensor([20]), "training_step": torch.tensor([3.0])}
    output = model(ids, labels=ids, attention_mask=torch.ones_like(ids), **numbers)
    assert {term.device.type for term in loss_terms(output).values()} == {"meta"} == {output.loss.device.type}
    model(ids, labels=ids)  # without numbers
    assert number_of_items(torch.ones(3, device="meta"), torch.tensor(2)).device.type == "meta"


def assert_compiles_as_one_graph(case: Case, batch: Batch) -> None:
    case.skip_if_excepted("torch_compile")
    model = case.model().train()
    expected = step(model, **batch)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")  # fullgraph: a graph break is an error
    output = compiled(**batch)
    output.loss.backward()
    assert_same_step((output.loss.detach(), gradients(model)), expected)


@each_case
def test_compiles_as_one_graph(case: Case):
    assert_compiles_as_one_graph(case, training_batch(case))


@typical_causal_case
def test_packed_rows_compile_as_one_graph(case: Case):
    assert_compiles_as_one_graph(case, training_batch(case, packed=True))


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@typical_causal_case
def test_compiled_by_inductor_equals_eager(case: Case, packed: bool):
    case.skip_if_excepted("torch_compile")
    model = case.model().train()
    batch = training_batch(case, packed)
    expected = step(model, **batch)
    torch._dynamo.reset()
    output = torch.compile(model, fullgraph=True)(**batch)
    output.loss.backward()
    assert_same_step((output.loss.detach(), gradients(model)), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "backend, rates",
    [
        ("sdpa", {"hidden_dropout": 0.3}),  # the same code with any backend
        ("sdpa", {"attention_dropout": 0.3}),
        ("eager", {"attention_dropout": 0.3}),
    ],
    ids=str,
)
@each_case
def test_dropout_is_active_in_training_only(case: Case, backend: str, rates: dict):
    case.skip_if_excepted("attention")
    model, plain, batch = case.model(backend, **rates), case.model(backend), case.batch()
    assert torch.equal(model(**batch).logits, plain(**batch).logits)
    model.train()
    first, second = model(**batch).logits, model(**batch).logits
    assert not torch.allclose(first, second)


def assert_backends_agree(case: Case, batch: Batch, scored: torch.Tensor) -> None:
    """In a step; with flex attention, whose CPU kernel has no backward, in the logits that are `scored`."""
    case.skip_if_excepted("attention")
    eager, sdpa = (step(case.model(backend).train(), **batch) for backend in ("eager", "sdpa"))
    assert_same_step(sdpa, eager, rtol=1e-3, atol=1e-5)
    if "flex_attention" not in case.architecture.exceptions:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # its kernels take half a minute to compile
            flex, expected = (case.model(backend)(**batch).logits for backend in ("flex_attention", "eager"))
        torch.testing.assert_close(flex[scored], expected[scored], rtol=1e-4, atol=1e-4)


@each_case
def test_sdpa_and_flex_equal_eager(case: Case):
    batch = case.batch()
    assert_backends_agree(case, batch, batch["labels"] != -100)


@each_causal_case
def test_sdpa_and_flex_equal_eager_with_left_padding(case: Case):
    ids = token_ids(2, 12)
    real = torch.ones_like(ids).bool()
    real[0, :4] = False
    labels = ids.masked_fill(~real, -100)
    labels[0, 4] = -100
    ids = ids.masked_fill(~real, PAD)
    assert_backends_agree(case, {"input_ids": ids, "attention_mask": real.long(), "labels": labels}, real)


class LargestSquare(TorchDispatchMode):
    """Records the size of the largest tensor made whose last two sides are both T."""

    def __init__(self, length: int):
        super().__init__()
        self.length, self.largest = length, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.shape[-2:] == (self.length, self.length):
                self.largest = max(self.largest, tensor.numel())
        return result


@each_causal_case
def test_sdpa_builds_no_square_of_the_context_per_head(case: Case):
    """Without padding neither forward nor backward makes a (B, heads, T, T) tensor, and no mask (B, 1, T, T) either."""
    ids = token_ids(2, 29)
    largest = {}
    for backend in ("eager", "sdpa"):
        model = case.model(backend).train()
        with LargestSquare(29) as watched:
            model(ids, labels=ids).loss.backward()
        largest[backend] = watched.largest
    assert largest["eager"] >= 2 * model.config.num_attention_heads * 29 * 29  # the watch sees what it should
    mixing = (
        getattr(model.config, "embedding_loss_aggregation", None) == "mixing"
    )  # (T, T) weights, not per head or row
    if any(level["compressor_attention"] == "segment" for level in getattr(model.config, "levels", ())):
        return  # segments need a mask
    assert largest["sdpa"] <= (29 * 29 if mixing else 0)


@each_case
def test_lora_trains_the_adapter_alone_and_merges(case: Case, tmp_path):
    model, batch = case.model(), case.batch()
    before = model(**batch).logits.detach()
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type=case.architecture.task))
    torch.testing.assert_close(adapted.eval()(**batch).logits, before)  # a new adapter adds nothing
    frozen = {name: p.clone() for name, p in adapted.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        output = adapted.train()(**batch)
        main_loss = next(name for name in ("lm_loss", "sequence_loss", "reconstruction_loss") if name in output)
        output[main_loss].backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output[main_loss].item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, frozen[name]) for name, p in adapted.named_parameters() if name in frozen)
    after = adapted.eval()(**batch).logits.detach()
    assert not torch.allclose(after, before, atol=1e-3)
    adapted.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    torch.testing.assert_close(adapted.merge_and_unload()(**batch).logits, after, rtol=1e-4, atol=1e-4)


@each_causal_case
def test_trainable_tokens(case: Case):
    """PEFT looks rows up by itself: a new adapter changes nothing, a trained one is what it is when merged."""
    model = case.model()
    ids = token_ids(2, 10)
    before = model(ids).logits.detach()
    options = {"target_modules": "all-linear", "trainable_token_indices": ids[0, :3].tolist()}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    torch.testing.assert_close(adapted.eval()(input_ids=ids).logits, before, rtol=1e-5, atol=case.tolerance)
    adapted.train()(input_ids=ids, labels=ids).lm_loss.backward()
    trained = {name: p for name, p in adapted.named_parameters() if "trainable_tokens_delta" in name}
    assert trained and all(p.grad.abs().sum() > 0 for p in trained.values())
    torch.optim.SGD(trained.values(), lr=1.0).step()
    after = adapted.eval()(input_ids=ids).logits.detach()
    assert not torch.allclose(after, before, atol=1e-3)
    torch.testing.assert_close(adapted.merge_and_unload()(ids).logits, after, rtol=1e-4, atol=1e-4)


@each_causal_case
def test_prompt_tuning_embeds_tokens_as_the_model_does(case: Case):
    case.skip_if_excepted("inputs_embeds")
    model = case.model()
    ids = token_ids(2, 10)
    embeddings = model.get_input_embeddings()
    tuned = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
    assert tuned.word_embeddings is embeddings
    embedded = torch.cat((tuned.get_prompt(batch_size=2), embeddings(ids)), 1)
    logits = tuned(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(logits, model(inputs_embeds=embedded).logits, rtol=1e-5, atol=1e-5)


@each_causal_case
def test_int8_dynamic_quantization_on_cpu(case: Case):
    """Linear layers in int8, the rest in float32: near the exact logits, and it generates."""
    case.skip_if_excepted("quantization")
    model = case.model()
    ids = token_ids(2, 10)
    exact = model(ids).logits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch moves this to torchao
        quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    assert not any(type(module) is torch.nn.Linear for module in quantized.modules())
    logits = quantized(ids).logits
    # A hard mask turns over where M crosses 0.5.
    case.skip_if_excepted("near_float32")
    bound = 0.95 if getattr(case.config(), "learned_dropout", "none") == "bernoulli" else 0.99
    assert torch.cosine_similarity(logits.flatten(), exact.flatten(), dim=0) > bound
    generated = quantized.generate(ids, max_new_tokens=5, do_sample=False)
    assert generated.shape == (2, 15)


@each_causal_case
def test_loading_in_int8_through_torchao(case: Case, tmp_path):
    """`from_pretrained(..., quantization_config=...)`; torchao is not among the development packages."""
    case.skip_if_excepted("quantization")
    quantization = pytest.importorskip("torchao.quantization", reason="torchao (docs/limits.md)")
    model = case.model()
    model.save_pretrained(tmp_path)
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    quantized = type(model).from_pretrained(tmp_path, quantization_config=config)
    ids = token_ids(2, 10)
    cosine = torch.cosine_similarity(quantized(ids).logits.flatten(), model(ids).logits.flatten(), dim=0)
    assert 0.999 < cosine < 0.9999999
    assert quantized.generate(ids, max_new_tokens=5, do_sample=False).shape == (2, 15)


@pytest.mark.parametrize("size", [50, 80])
@each_causal_case
def test_resizing_the_token_embeddings(case: Case, size: int):
    model = case.model()
    ids = token_ids(2, 10, vocab_size=50)
    if case.variant == "factorised":
        with pytest.raises(ValueError, match="factorised"):
            model.resize_token_embeddings(size)
        return
    before = model(ids).logits
    model.resize_token_embeddings(size)
    assert model.config.vocab_size == size
    output = model(ids, labels=ids)
    assert output.logits.shape == (2, 10, size)
    kept = min(size, 64)
    if size > 64 or "smaller_vocabulary" not in case.architecture.exceptions:
        torch.testing.assert_close(output.logits[..., :kept], before[..., :kept])
    if model._tied_weights_keys and model.config.tie_word_embeddings:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight  # still tied
    assert output.loss.isfinite()


@each_case
def test_no_parameter_is_a_scalar(case: Case):
    """FSDP2 shards parameters along their first dimension."""
    gates = {"cross_attention_gate": True} if "cross_attention_gate" in case.architecture.own_fields else {}
    assert [name for name, p in case.model(**gates).named_parameters() if p.ndim == 0] == []


@each_architecture
def test_every_parameter_gets_a_gradient(architecture):
    """What gets none breaks DDP (`find_unused_parameters`) and is not trained."""
    for variant in architecture.variants:
        case = Case(architecture, variant)
        model = case.model().train()
        _, reached = step(model, **training_batch(case))
        assert reached.keys() == {name for name, p in model.named_parameters() if p.requires_grad}, variant
