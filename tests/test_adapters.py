"""PEFT on every architecture: each kind of adapter trains and generates, or is refused with the reason."""

import copy

import encodzall_setup
import pytest
import torch
from architectures import ARCHITECTURES, Case, token_ids
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, TaskType, get_peft_model

from latentlm import EncodzallForSequenceClassification, EncodzallForTokenClassification, EncodzallModel

NO_IDS = "Prompt tuning and P-tuning have no ids"
OWN_CACHE = "has a cache of its own kind"
UNEQUAL = r"layers, of \[2, 2, 2, 2\] heads, but this model's cache has 6, of \[2, 2, 2, 4, 2, 4\]"
KINDS = {
    "lora": LoraConfig(r=4, target_modules="all-linear"),
    "prompt": PromptTuningConfig(num_virtual_tokens=3),
    "p-tuning": PromptEncoderConfig(num_virtual_tokens=3),
    "prefix": PrefixTuningConfig(num_virtual_tokens=3),
}
# Why an architecture cannot have an adapter: rows of docs/limits.md.
REFUSED = {
    ("abstractinator", "prompt"): NO_IDS,
    ("abstractinator", "p-tuning"): NO_IDS,
    ("abstractinator", "prefix"): OWN_CACHE,
    ("ar_encoder_decoder", "prefix"): UNEQUAL,
    ("parallel_encoder_decoder", "prefix"): UNEQUAL,
    ("encodzall", "prompt"): NO_IDS,
    ("encodzall", "p-tuning"): NO_IDS,
}
GENERATING = {row.name: row for row in ARCHITECTURES if row.generates}
each_kind = pytest.mark.parametrize("kind", KINDS)


def adapt(model: torch.nn.Module, kind: str, task: str, **fields):
    torch.manual_seed(0)
    config = copy.deepcopy(KINDS[kind])
    config.task_type = TaskType(task)
    for name, value in fields.items():
        setattr(config, name, value)
    return get_peft_model(model, config).train()


def assert_trains_and_generates(adapted, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> None:
    """Every weight of the adapter gets a gradient, which moves the loss; generation is the greedy path of the
    forward."""
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.03)
    losses = []
    for _ in range(3):
        loss = adapted(**inputs, labels=labels).loss
        loss.backward()
        missing = [name for name, p in adapted.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    adapted.eval()
    generated = adapted.generate(**inputs, max_new_tokens=5, do_sample=False)
    with torch.no_grad():
        if adapted.config.is_encoder_decoder:
            logits = adapted(**inputs, decoder_input_ids=generated[:, :-1]).logits
        else:
            seen = generated[:, :-1]
            logits = adapted(input_ids=seen, attention_mask=torch.ones_like(seen)).logits
    assert torch.equal(logits[:, -5:].argmax(-1), generated[:, -5:])


@each_kind
@pytest.mark.parametrize("name", GENERATING)
def test_adapters_of_models_that_generate(name, kind):
    architecture = GENERATING[name]
    case = Case(architecture, "default")
    single = {"num_decoder_layers": 1} if architecture.config_class.is_encoder_decoder else {}
    model = case.model(**single)
    model.generation_config.eos_token_id = None  # so that generation has a known length
    adapted = adapt(model, kind, architecture.task, **({"num_layers": 1} if single and kind == "prefix" else {}))
    batch = case.batch()
    labels = batch.pop("labels")
    inputs = {"attention_mask": torch.ones_like(batch["input_ids"])} | case.prompt()
    if reason := REFUSED.get((name, kind)):
        with pytest.raises(ValueError, match=reason):
            adapted(**inputs, labels=labels)
        return
    assert_trains_and_generates(adapted, inputs, labels)


@pytest.mark.parametrize("name", ["ar_encoder_decoder", "parallel_encoder_decoder"])
def test_prefix_tuning_fits_where_all_heads_are_equal(name):
    case = Case(GENERATING[name], "default")
    adapted = adapt(case.model(num_cross_attention_heads=2), "prefix", "CAUSAL_LM", num_layers=6)
    ids = token_ids(2, 8)
    assert_trains_and_generates(adapted, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids)


@each_kind
def test_generation_ends_where_virtual_tokens_and_text_fill_the_context(kind):
    adapted = adapt(Case(GENERATING["decoder_only"], "default").model(), kind, "CAUSAL_LM").eval()
    limit, virtual = adapted.config.max_position_embeddings, 0 if kind == "lora" else 3
    ids = token_ids(1, limit - 5)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    generated = adapted.generate(**inputs, max_new_tokens=100, do_sample=False, eos_token_id=-1)
    assert generated.shape[1] == limit - virtual


def test_prefix_tuning_of_masks_is_refused():
    """LearnedDropout has attentions, and so layers of the cache, of its own."""
    adapted = adapt(Case(GENERATING["decoder_only"], "learned_dropout").model(), "prefix", "CAUSAL_LM")
    ids = token_ids(2, 8)
    with pytest.raises(ValueError, match=r"has 2 layers, of \[2, 2\] heads, but this model's cache has 4"):
        adapted(input_ids=ids, attention_mask=torch.ones_like(ids))


@pytest.mark.parametrize(
    ("model_class", "task"),
    [
        (EncodzallModel, "FEATURE_EXTRACTION"),
        (EncodzallForSequenceClassification, "SEQ_CLS"),
        (EncodzallForTokenClassification, "TOKEN_CLS"),
    ],
)
@each_kind
def test_adapters_of_the_encoders(model_class, task, kind):
    model = encodzall_setup.build(model_class=model_class, num_labels=2)
    inputs = encodzall_setup.encode(["some words", "of a text"])
    labels = {"SEQ_CLS": torch.tensor([0, 1]), "TOKEN_CLS": torch.ones_like(inputs["input_ids"])}.get(task)
    given = dict(inputs) if labels is None else {**inputs, "labels": labels}
    adapted = adapt(model, kind, task)
    if kind == "lora":
        output = adapted(**given)
        (output.pooler_output.square().mean() if labels is None else output.loss).backward()
        assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
    else:  # the encoders have no cache that a prefix could fill
        with pytest.raises(ValueError, match="past.key.values" if kind == "prefix" else NO_IDS):
            adapted(**given)
