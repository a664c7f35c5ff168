"""Generating with a cache equals generating without, in every way of searching; contexts that do not fit are errors."""

import importlib
from pathlib import Path

import pytest
import torch
from architectures import PAD, Case, each_causal_architecture, each_causal_case, randomise, token_ids
from conftest import REPOSITORY
from transformers import AutoConfig, AutoModelForCausalLM, TextStreamer, pipeline, set_seed
from transformers.configuration_utils import get_head_shapes
from transformers.modeling_outputs import ModelOutput
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

import latentlm
from latentlm import ByteTokenizer

MODELS = Path(latentlm.__file__).parent / "models"
NEW = 8
PROMPT = 6


def left_padded(prompts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    length = max(prompt.shape[1] for prompt in prompts)
    rows = [torch.nn.functional.pad(prompt, (length - prompt.shape[1], 0), value=PAD) for prompt in prompts]
    masks = [torch.nn.functional.pad(torch.ones_like(p), (length - p.shape[1], 0)) for p in prompts]
    return {"input_ids": torch.cat(rows), "attention_mask": torch.cat(masks)}


@pytest.mark.parametrize("cached", [{}, {"cache_implementation": "static"}, {"prefill_chunk_size": 4}], ids=str)
@pytest.mark.parametrize("search", [{}, {"do_sample": True, "top_k": 0}, {"num_beams": 3}], ids=str)
@each_causal_case
def test_cached_equals_uncached(case: Case, search: dict, cached: dict):
    for capability in ("cache", *cached):
        case.skip_if_excepted(capability)
    model = case.model()
    ids = token_ids(2, PROMPT)
    options = {"do_sample": False, "max_new_tokens": NEW, "return_dict_in_generate": True, "output_logits": True}
    set_seed(1)
    uncached = model.generate(ids, **options | search, use_cache=False)
    set_seed(1)
    with_cache = model.generate(ids, **options | search | cached)
    assert uncached.sequences.shape == (2, PROMPT + NEW)
    assert torch.equal(with_cache.sequences, uncached.sequences)
    assert with_cache.past_key_values is not None and uncached.past_key_values is None
    for one, other in zip(with_cache.logits, uncached.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("same", [True, False], ids=["same_assistant", "other_assistant"])
@each_causal_case
def test_assisted_equals_greedy(case: Case, same: bool):
    """The other assistant proposes tokens that are rejected, so that the cache has to be cropped."""
    case.skip_if_excepted("assisted_decoding")
    model = case.model()
    assistant = case.model()
    if not same:
        with torch.no_grad():
            assistant.get_input_embeddings().weight.add_(
                0.1 * torch.randn_like(assistant.get_input_embeddings().weight)
            )
    ids = token_ids(1, PROMPT)
    greedy = model.generate(ids, max_new_tokens=NEW, do_sample=False, use_cache=False)
    assert torch.equal(model.generate(ids, max_new_tokens=NEW, do_sample=False, assistant_model=assistant), greedy)
    assert torch.equal(model.generate(ids, max_new_tokens=NEW, do_sample=False, prompt_lookup_num_tokens=3), greedy)


@each_causal_case
def test_the_configuration_describes_the_cache_layers(case: Case):
    """Number of layers, heads and head sizes: what transformers allocates a static cache by."""
    case.skip_if_excepted("cache_layers")
    model = case.model()
    layers = model(token_ids(2, PROMPT), use_cache=True).past_key_values.layers
    heads, sizes = (
        values if isinstance(values, list) else [values] * len(layers) for values in get_head_shapes(model.config)
    )
    assert [layer.keys.shape for layer in layers] == [
        (2, head, PROMPT, size) for head, size in zip(heads, sizes, strict=True)
    ]


@pytest.mark.parametrize("padding", [3, None], ids=["left_padding", "no_mask"])
@pytest.mark.parametrize("steps", [[PROMPT + NEW], [5, 1, 1, 4, 3], [1] * 8 + [6]], ids=str)
@each_causal_case
def test_a_cache_fed_in_pieces_equals_one_forward(case: Case, steps: list[int], padding: int | None):
    """The positions of a step follow from the mask, and without one from the length of the cache."""
    case.skip_if_excepted("cache")
    model = case.model()
    ids = token_ids(2, PROMPT + NEW)
    mask = None
    if padding:
        mask = torch.ones_like(ids)
        mask[0, :padding] = 0
    whole = model(ids, attention_mask=mask).logits
    pieces, cache, seen = [], None, 0
    for step in steps:
        seen += step
        mask_seen = None if mask is None else mask[:, :seen]
        output = model(ids[:, seen - step : seen], attention_mask=mask_seen, past_key_values=cache, use_cache=True)
        pieces.append(output.logits)
        cache = output.past_key_values
    assert cache.get_seq_length() == PROMPT + NEW
    together = torch.cat(pieces, 1)
    torch.testing.assert_close(together[0, padding:], whole[0, padding:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together[1], whole[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}], ids=str)
@pytest.mark.parametrize("use_cache", [True, False])
@each_causal_case
def test_a_left_padded_batch_equals_one_by_one(case: Case, use_cache: bool, search: dict):
    model = case.model()
    prompts = [token_ids(1, length, seed=length) for length in (3, 9, 5)]
    options = {"max_new_tokens": NEW, "do_sample": False, "use_cache": use_cache, **search}
    batch = model.generate(**left_padded(prompts), **options)
    for row, prompt in zip(batch, prompts, strict=True):
        assert torch.equal(row[-NEW:], model.generate(prompt, **options)[0, -NEW:])


@each_causal_case
def test_generating_from_embeddings_equals_generating_from_ids(case: Case):
    case.skip_if_excepted("inputs_embeds")
    if getattr(case.config(), "ngram_embedding", None) is not None:
        pytest.skip("embeddings have no n-grams (docs/limits.md)")
    model = case.model()
    ids = token_ids(2, PROMPT)
    from_ids = model.generate(ids, max_new_tokens=NEW, do_sample=False)
    from_embeddings = model.generate(
        inputs_embeds=model.get_input_embeddings()(ids), max_new_tokens=NEW, do_sample=False
    )
    assert torch.equal(from_embeddings, from_ids[:, PROMPT:])
    with pytest.raises(ValueError, match="exactly one of `input_ids` and `inputs_embeds`"):
        model(ids, inputs_embeds=model.get_input_embeddings()(ids))


@each_causal_case
def test_generation_goes_on_from_a_given_cache(case: Case):
    case.skip_if_excepted("cache")
    model = case.model()
    ids = token_ids(2, PROMPT)
    options = {"do_sample": False, "return_dict_in_generate": True}
    first = model.generate(ids, max_new_tokens=3, **options)
    options["attention_mask"] = torch.ones_like(first.sequences)  # one of the generated tokens may be the padding
    second = model.generate(first.sequences, max_new_tokens=NEW - 3, past_key_values=first.past_key_values, **options)
    assert torch.equal(second.sequences, model.generate(ids, max_new_tokens=NEW, do_sample=False))


@pytest.mark.parametrize("padded", [False, True])
@each_causal_case
def test_labels_with_a_cache(case: Case, padded: bool):
    """The loss of a text whose cache is kept, and of its continuation, with the mask of all tokens or none."""
    model = case.model()
    ids = token_ids(2, 10)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :3] = 0
    labels = ids.masked_fill(mask == 0, -100)
    whole = model(ids, attention_mask=mask, labels=labels)
    kept = model(ids, attention_mask=mask, labels=labels, use_cache=True)
    assert kept.loss.item() == pytest.approx(whole.loss.item(), rel=1e-5)
    assert kept.past_key_values.get_seq_length() == 10

    cross_entropy = torch.nn.functional.cross_entropy
    expected = cross_entropy(whole.logits[:, 6:-1].flatten(0, 1), ids[:, 7:].flatten()).item()
    for later_mask in (mask,) if padded else (mask, None):
        cache = model(ids[:, :6], attention_mask=mask[:, :6], use_cache=True).past_key_values
        later = model(ids[:, 6:], attention_mask=later_mask, labels=ids[:, 6:], past_key_values=cache)
        assert later.loss.item() == pytest.approx(expected, rel=1e-4)
        # The embeddings of the text so far are not in a cache.
        assert getattr(later, "embedding_loss", None) is None


@each_causal_case
def test_logits_to_keep(case: Case):
    model = case.model()
    ids = token_ids(2, 9)
    logits = model(ids).logits
    assert torch.equal(model(ids, logits_to_keep=0).logits, logits)
    for kept, expected in ((1, logits[:, -1:]), (4, logits[:, -4:]), (torch.tensor([0, 3, 8]), logits[:, [0, 3, 8]])):
        torch.testing.assert_close(model(ids, logits_to_keep=kept).logits, expected, rtol=1e-5, atol=1e-5)


@each_causal_case
def test_hidden_states_and_attentions_have_one_entry_per_real_layer(case: Case):
    case.skip_if_excepted("attention_outputs")
    model = case.model("eager")
    ids = token_ids(2, 7)
    output = model(ids, output_hidden_states=True, output_attentions=True)
    layers = model.config.num_hidden_layers
    assert [state.shape for state in output.hidden_states] == [(2, 7, 32)] * (layers + 1)
    if not getattr(model.config, "decoder_self_attention", True):
        layers = model.config.num_encoder_layers
    assert [a.shape for a in output.attentions] == [(2, model.config.num_attention_heads, 7, 7)] * layers
    logits = model.compute_logits(output.hidden_states[-1])
    torch.testing.assert_close(logits, output.logits)  # the last is what the head reads
    for attention in (*output.attentions, *(getattr(output, "cross_attentions", None) or ())):
        torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention.sum(-1)))
        assert (attention.triu(1) == 0).all()
    assert model(ids).hidden_states is None and model(ids).attentions is None
    assert isinstance(model(ids, return_dict=False), tuple)


def test_cross_attentions_have_one_entry_per_decoder_layer_and_their_own_heads():
    from latentlm import AREncoderDecoderConfig, AREncoderDecoderForCausalLM

    config = AREncoderDecoderConfig(
        vocab_size=64, hidden_size=32, num_attention_heads=2, num_encoder_layers=1, num_decoder_layers=3
    )
    config._attn_implementation = "eager"
    output = AREncoderDecoderForCausalLM(config)(token_ids(2, 7), output_attentions=True)
    assert [a.shape for a in output.cross_attentions] == [(2, 4, 7, 7)] * 3
    assert len(output.attentions) == 4
    # Encoder self, decoder self and decoder cross: one cache layer each, grown by one position a step.
    cache = output.past_key_values
    assert [layer.keys.shape[:3] for layer in cache.layers] == [(2, 2, 7), *[(2, 2, 7), (2, 4, 7)] * 3]


def test_cross_attention_keys_are_projected_once_per_position():
    """A cached step gives the cross-attention the newest encoder position alone."""
    from latentlm import AREncoderDecoderConfig, AREncoderDecoderForCausalLM

    config = AREncoderDecoderConfig(
        vocab_size=64, hidden_size=32, num_attention_heads=2, num_encoder_layers=1, num_decoder_layers=1
    )
    model = AREncoderDecoderForCausalLM(config).eval()
    lengths = []
    projection = model.model.decoder_layers[0].cross_attn.kv_proj
    projection.register_forward_hook(lambda module, args, output: lengths.append(args[0].shape[1]))
    model.generate(token_ids(1, PROMPT), max_new_tokens=4, do_sample=False)
    assert lengths == [PROMPT, 1, 1, 1]


# --- the end of the context -------------------------------------------------------------------------------------------


@each_causal_case
def test_a_context_that_does_not_fit_is_an_error(case: Case):
    model = case.model()
    limit = model.config.max_position_embeddings
    message = rf"({limit + 1}|{limit + 2}) tokens does not fit: `max_position_embeddings` is {limit}\. .*truncat"
    ids = token_ids(2, limit + 1)
    assert model(ids[:, :limit]).logits.shape == (2, limit, 64)
    if "inputs_embeds" not in case.architecture.exceptions:
        with pytest.raises(ValueError, match=message):
            model(inputs_embeds=model.get_input_embeddings()(ids))
    for attempt in (
        lambda: model(ids),
        lambda: model(ids, attention_mask=torch.ones_like(ids)),
        lambda: model(ids, labels=ids),
        lambda: model(ids[:, :2], position_ids=torch.tensor([[0, limit]] * 2)),
        lambda: model.generate(ids, max_new_tokens=1),
        lambda: model.generate(ids[:, :limit], max_new_tokens=1),  # a full context has no room for a token
        lambda: model.generate(ids[:, :limit], max_new_tokens=1, use_cache=False),
    ):
        with pytest.raises(ValueError, match=message):
            attempt()
    cache = model(ids[:, :limit], use_cache=True).past_key_values
    with pytest.raises(ValueError, match=message):
        model(ids[:, -1:], past_key_values=cache)


@pytest.mark.parametrize(
    "options", [{}, {"use_cache": False}, {"num_beams": 2}, {"cache_implementation": "static"}], ids=str
)
@each_causal_case
def test_generation_ends_where_the_context_ends(case: Case, options: dict):
    for capability in options:
        case.skip_if_excepted(capability)
    model = case.model()
    limit = model.config.max_position_embeddings
    ids = token_ids(2, limit - 3)
    logger = logging.get_logger("latentlm.models.block_positions")
    with CaptureLogger(logger) as captured:
        generated = model.generate(ids, max_new_tokens=100, do_sample=False, **options)
    assert generated.shape == (2, limit)
    assert (
        "Generation stops after 3 new tokens" in captured.out and f"`max_position_embeddings` {limit}" in captured.out
    )
    with CaptureLogger(logger) as captured:
        assert model.generate(ids, max_new_tokens=3, do_sample=False, **options).shape == (2, limit)
    assert not captured.out


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str)
@each_causal_case
def test_generation_from_embeddings_ends_where_the_context_ends(case: Case, options: dict):
    case.skip_if_excepted("inputs_embeds", *options)
    model = case.model(ngram_embedding=None) if "ngram_embedding" in case.architecture.own_fields else case.model()
    limit = model.config.max_position_embeddings
    ids = token_ids(2, limit - 3)
    embeddings = model.get_input_embeddings()(ids)
    expected = model.generate(ids, max_new_tokens=3, do_sample=False)
    logger = logging.get_logger("latentlm.models.block_positions")
    with CaptureLogger(logger) as captured:
        for given in ({}, {"input_ids": ids}):  # with ids these come first in what is returned
            generated = model.generate(
                inputs_embeds=embeddings, max_new_tokens=100, do_sample=False, **given, **options
            )
            assert torch.equal(generated, expected[:, -generated.shape[1] :])
            assert generated.shape[1] == (limit if given else 3)
    assert captured.out.count("Generation stops after 3 new tokens") == 2
    with CaptureLogger(logger) as captured:
        assert model.generate(inputs_embeds=embeddings, max_new_tokens=3, do_sample=False, **options).shape == (2, 3)
        assert model.generate(inputs_embeds=embeddings, max_length=limit, do_sample=False, **options).shape == (2, 3)
    assert not captured.out
    with pytest.raises(ValueError, match=f"{limit + 1} tokens does not fit"):
        model.generate(inputs_embeds=model.get_input_embeddings()(token_ids(2, limit)), max_new_tokens=1)


@each_causal_case
def test_use_cache_of_the_configuration(case: Case):
    ids = token_ids(1, 4)
    assert case.model()(ids).past_key_values is not None
    assert case.model()(ids, labels=ids).past_key_values is None  # nobody continues from a training batch
    assert case.model(use_cache=False)(ids).past_key_values is None
    assert case.model(use_cache=False)(ids, use_cache=True).past_key_values is not None


# --- what users call --------------------------------------------------------------------------------------------------


@pytest.fixture
def byte_tokenizer() -> ByteTokenizer:
    return ByteTokenizer(padding_side="left")


BYTES = {"vocab_size": 259, "pad_token_id": 256, "bos_token_id": 257, "max_position_embeddings": 64}


@each_causal_architecture
def test_text_generation_pipeline(architecture, byte_tokenizer):
    model = Case(architecture, next(iter(architecture.variants))).model(**BYTES)
    generator = pipeline("text-generation", model=model, tokenizer=byte_tokenizer)
    options = {"max_new_tokens": 8, "do_sample": False}
    prompts = ["The", "A longer prompt"]
    alone = [generator(prompt, **options)[0]["generated_text"] for prompt in prompts]
    batched = generator(prompts, batch_size=2, **options)
    assert [row[0]["generated_text"] for row in batched] == alone
    assert all(text.startswith(prompt) for text, prompt in zip(alone, prompts, strict=True))
    ids = model.generate(**byte_tokenizer("The", return_tensors="pt"), **options)
    assert alone[0] == byte_tokenizer.decode(ids[0], skip_special_tokens=True)


@each_causal_architecture
def test_text_streamer_prints_what_is_generated(architecture, byte_tokenizer, capsys):
    model = Case(architecture, next(iter(architecture.variants))).model(**BYTES)
    inputs = byte_tokenizer("Words and words", return_tensors="pt")
    streamer = TextStreamer(byte_tokenizer, skip_prompt=True, skip_special_tokens=True)
    ids = model.generate(**inputs, max_new_tokens=10, do_sample=False, streamer=streamer)
    new = ids[0, inputs["input_ids"].shape[1] :]
    assert capsys.readouterr().out.rstrip("\n") == byte_tokenizer.decode(new, skip_special_tokens=True).rstrip("\n")


@each_causal_architecture
def test_a_published_configuration_generates(architecture):
    """hub_configs hold end-of-sequence and padding ids, which the tiny models here do not have."""
    config = AutoConfig.from_pretrained(REPOSITORY / "hub_configs" / architecture.tiny)
    model = AutoModelForCausalLM.from_config(config).eval()
    randomise(model)
    ids = torch.tensor([[257, 72, 105], [257, 72, 111]])
    endless = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)
    model.generation_config.eos_token_id = end = int(endless[0, 5])
    ended = model.generate(ids, max_new_tokens=8, do_sample=False)
    for short, long in zip(ended.tolist(), endless.tolist(), strict=True):
        length = long.index(end, 3) + 1 if end in long[3:] else len(long)  # the end itself is kept
        assert short == (long[:length] + [config.pad_token_id] * len(long))[: len(short)]
    assert ended.shape[1] < endless.shape[1] or config.pad_token_id in ended[0]


# ---- The cache under both names that transformers has for it ----


@each_causal_case
def test_the_cache_is_taken_under_both_names(case: Case):
    """`cache` since transformers 5.24; taken for something else, each cached token would see itself alone."""
    case.skip_if_excepted("cache")
    model = case.model()
    ids = token_ids(2, PROMPT)
    whole = model(ids, use_cache=False).logits[:, -1]
    for name in ("past_key_values", "cache"):
        seen = model(ids[:, :-1], use_cache=True).past_key_values
        torch.testing.assert_close(model(ids[:, -1:], **{name: seen}).logits[:, -1], whole, rtol=1e-4, atol=1e-4)


def test_outputs_leave_the_name_of_the_cache_to_transformers():
    """A field of our own of the old name cannot be filled since 5.24."""
    modules = [importlib.import_module(f"latentlm.models.{path.stem}") for path in MODELS.glob("*.py")]
    outputs = {
        value for module in modules for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, ModelOutput) and value.__module__ == module.__name__
    }  # fmt: skip
    assert len(outputs) > 8
    assert not [output for output in outputs if "past_key_values" in output.__annotations__]
