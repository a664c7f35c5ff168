"""EncodZall: packed against one word a row; what may depend on what; generating, options, errors."""

import pytest
import torch
from architectures import NGRAMS, gradients
from encodzall_setup import (
    BACKENDS,
    CLOSE,
    EQUAL,
    TEXTS,
    build,
    each_variant,
    encode,
    labels_of,
    tokenizer,
)
from torch import nn
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from latentlm import (
    EncodzallForMaskedDenoising,
    EncodzallForSequenceClassification,
    EncodzallForTokenClassification,
    EncodzallModel,
    EncodzallTokenizer,
)
from latentlm.models import encodzall_encoders
from latentlm.models.encodzall_masking import WordPattern
from latentlm.models.encodzall_packing import pack_batch, pack_words
from latentlm.models.encodzall_words import find_words

# ---- Packing ----


@each_variant
def test_distinct_words_are_encoded_once_and_exactly(variant):
    """Vectors and gradients are those of a model that encodes every word; dropout that training draws prevents it."""
    model = build(variant, EncodzallModel)
    inputs = encode(["the cat and the dog and the end", "the end the end"])
    seen = []
    model.word_encoder[0].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].numel()))

    def run(**packed) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        memory = model(**inputs, **packed).last_hidden_state
        (memory * torch.linspace(-1, 1, memory.numel()).view_as(memory)).sum().backward()
        grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        return memory.detach(), {name: grad.clone() for name, grad in grads.items()}

    every, gradients = run(**pack_batch(model.config, **inputs))
    once, found = run()
    torch.testing.assert_close(once, every, **EQUAL)
    torch.testing.assert_close(found, gradients, rtol=1e-3, atol=2e-4)
    assert seen[1] < seen[0]
    model.config.hidden_dropout = 0.1
    for training in (True, False):
        packing = model.train(training).pack(**inputs)["packing"]
        own = torch.arange(packing["vector"].numel()).view_as(packing["vector"])
        real = packing["lengths"] > 0
        assert torch.equal(packing["vector"][real], own[real]) == training


@each_variant
def test_a_few_rows_at_a_time_are_encoded_as_all_at_once(variant, monkeypatch):
    """Without a gradient a CPU does so: texts of like length together, without the padding of the longest."""
    model = build(variant, EncodzallModel, packed_row_length=64)
    texts = [*TEXTS, "one more", "a word and " * 4, "", "b"]
    whole = model(**encode(texts))
    monkeypatch.setattr(encodzall_encoders, "SLOTS_TOGETHER", 40)  # texts by three, and rows of words one by one
    lengths = []
    hook = model.context_norm.register_forward_hook(lambda module, args, output: lengths.append(len(output)))
    with torch.no_grad():
        found = model(**encode(texts))
        assert lengths == [3, 3, 2]
        recorded = model(**encode(texts), output_hidden_states=True)
    hook.remove()
    assert recorded.hidden_states[0].shape == whole.last_hidden_state.shape and lengths[-1] == 8
    for name in ("last_hidden_state", "pooler_output", "mask_penalties"):
        if name in whole:
            torch.testing.assert_close(found[name], whole[name], **EQUAL)
            torch.testing.assert_close(recorded[name], whole[name], **EQUAL)


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # flex attention would compile for each shape
@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_words_are_those_of_one_word_a_row(backend):
    ids = encode()["input_ids"]
    word_ids = find_words(ids, 8).masked_fill(ids == tokenizer.pad_token_id, -1)
    model = build(model_class=EncodzallModel, backend=backend, **NGRAMS)
    expected = torch.zeros(*pack_words(word_ids, 8)["lengths"].shape, 64)
    for text, word in (pack_words(word_ids, 8)["lengths"] > 0).nonzero().tolist():
        letters = ids[text, word_ids[text] == word][None]
        expected[text, word] = model.encode_words(letters, pack_words(torch.zeros_like(letters), 1))[0]
    for length, bucketed in ((8, False), (24, True), (1000, False)):
        found = model.encode_words(ids, pack_words(word_ids, length, bucketed))[0]
        torch.testing.assert_close(found[:, : expected.shape[1]], expected, **EQUAL)
        assert not found[:, expected.shape[1] :].any()


@each_variant
def test_neither_buckets_nor_padding_change_a_loss_or_a_gradient(variant):
    model = build(variant, contrastive_loss_weight=0.5).train()
    texts = ["the same words!", "a b a c " * 11, ""]  # 45 words, in a bucket of 46
    inputs = {**encode(texts), "labels": labels_of(texts), "clean_input_ids": encode(texts)["input_ids"]}
    fills = {"input_ids": 256, "clean_input_ids": 256, "attention_mask": 0, "labels": -100, "word_ids": -1}
    wider = {name: nn.functional.pad(values, (0, 9), value=fills[name]) for name, values in inputs.items()}
    results = []
    for batch, packed in ((inputs, {}), *((batch, model.pack(**batch, bucketed=True)) for batch in (inputs, wider))):
        model.zero_grad()
        output = model(**batch, **packed)
        output.loss.backward()
        results.append((output, gradients(model)))
    (exact, expected), *others = results
    assert exact.encoder_last_hidden_state.shape[1] == 45
    for output, found in others:
        assert output.encoder_last_hidden_state.shape[1] == 46
        torch.testing.assert_close(output.loss, exact.loss, **EQUAL)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
        if variant != "plain":
            count = len(exact.word_logits)
            assert len(output.word_logits) > count
            torch.testing.assert_close(output.word_logits[:count], exact.word_logits, **CLOSE)


HEADS = [EncodzallForMaskedDenoising, EncodzallForSequenceClassification, EncodzallForTokenClassification]


@pytest.mark.parametrize("head", HEADS)
@torch._dynamo.config.patch(error_on_recompile=True)
def test_a_training_forward_compiles_as_one_graph(head):
    """Only tensors of it depend on the texts: other texts, packed in the same sizes, find it compiled."""
    fields = {"num_word_encoder_layers": 1, "num_context_encoder_layers": 1, "num_decoder_layers": 1}
    # transformers would write down the kind of the labels after the first batch
    fields |= {"num_labels": 3, "problem_type": "single_label_classification"} | NGRAMS
    model = build(model_class=head, contrastive_loss_weight=0.5, **fields).train()

    def batch(texts):
        inputs = dict(encode(texts))
        if head is EncodzallForMaskedDenoising:
            inputs |= {"labels": labels_of(texts), "clean_input_ids": inputs["input_ids"]}
        packed = model.pack(**inputs, bucketed=True)
        if head is EncodzallForSequenceClassification:
            inputs["labels"] = torch.arange(len(texts))
        elif head is EncodzallForTokenClassification:
            inputs["labels"] = inputs["input_ids"] % 3
        return {**inputs, **packed}

    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for texts in (["the same words", "a b c d"], ["other texts no", "x y z w"]):
        inputs = batch(texts)
        results = []
        for run in (compiled, model):
            model.zero_grad()
            output = run(**inputs)
            output.loss.backward()
            results.append((output.loss, output.logits, gradients(model)))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    with pytest.raises(torch._dynamo.exc.RecompileError):
        compiled(**batch(["texts of another size"] * 3))
    torch.compiler.reset()


@each_variant
def test_gradients_reach_every_parameter_and_every_mask(variant):
    model = build(variant).train()
    text = "<mask> a<vowel><consonant> b<nonspace><any> <mask>and words of several bytes"
    clean = "word ace b!c moreand words of several bytes"
    labels = labels_of([clean])
    model(**encode([text]), labels=labels).loss.backward()
    embeddings = model.model.embed_tokens.weight.grad
    assert (embeddings[259:264].abs().sum(-1) > 0).all()
    found = gradients(model)
    missing = [name for name, _ in model.named_parameters() if name not in found or not found[name].any()]
    assert not missing


@pytest.mark.parametrize("variant", ["default", "grouped", "plain"])
@pytest.mark.parametrize("scored", [True, False], ids=["labels", "no labels"])
@pytest.mark.parametrize("weight", [0.25, 0.0])
def test_every_trainable_parameter_gets_a_gradient(variant, scored, weight, tmp_path):
    """DDP waits for each of them: where the words have no loss, where a batch has no labels, after loading too."""
    model = build(variant, word_loss_weight=weight)
    model.save_pretrained(tmp_path)
    labels = labels_of() if scored else torch.full_like(labels_of(), -100)
    for trained in (model, type(model).from_pretrained(tmp_path)):
        trained.train()(**encode(), labels=labels, num_items_in_batch=9).loss.backward()
        trainable = {name for name, p in trained.named_parameters() if p.requires_grad}
        assert trainable == set(gradients(trained))
        spells = any(name.startswith("word_decoder") for name in trainable)
        assert spells == (variant == "default" and weight > 0)


# ---- What may depend on what ----


@each_variant
def test_neighbours_and_padding_change_nothing(variant):
    model = build(variant, EncodzallModel)
    together = model(**encode())
    left = EncodzallTokenizer(padding_side="left")(TEXTS, padding=True, return_tensors="pt")
    other_side = model(**left)
    ids = encode()["input_ids"]
    bucketed = model(ids, **model.pack(ids, bucketed=True))
    for row, text in enumerate(TEXTS):
        alone = model(**encode([text]))
        count = alone.last_hidden_state.shape[1]
        for output in (together, other_side, bucketed):
            torch.testing.assert_close(output.last_hidden_state[row, :count], alone.last_hidden_state[0], **EQUAL)
            torch.testing.assert_close(output.pooler_output[row], alone.pooler_output[0], **EQUAL)
            assert torch.equal(output.word_positions[row, :count], alone.word_positions[0])
        assert not together.last_hidden_state[row, count:].any() and not together.word_mask[row, count:].any()


def test_padding_ids_need_no_mask_and_words_are_found():
    model = build(model_class=EncodzallModel)
    inputs = encode()
    assert torch.equal(model(**inputs).last_hidden_state, model(inputs["input_ids"]).last_hidden_state)


LEFT = EncodzallTokenizer(padding_side="left")


@torch.no_grad()
@pytest.mark.parametrize("pad", [256, 0, 32])
@pytest.mark.parametrize("text_padding", ["right", "left"])
@pytest.mark.parametrize("label_padding", ["right", "left"])
def test_no_loss_depends_on_the_side_of_padding_and_words_are_found(text_padding, label_padding, pad):
    """As code for T5 or ByT5 gives it: ids, mask and labels alone, whatever fills them up."""
    model = build()
    expected = model(**encode(), labels=labels_of())
    inputs = (LEFT if text_padding == "left" else tokenizer)(TEXTS, padding=True, return_tensors="pt")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    labels = LEFT(TEXTS, padding=True, return_tensors="pt")["input_ids"] if label_padding == "left" else labels_of()
    labels = labels.masked_fill(labels == 256, -100)
    found = model(ids.masked_fill(mask == 0, pad), mask, labels=labels)
    for name in ("sequence_loss", "word_loss"):
        torch.testing.assert_close(found[name], expected[name], **EQUAL)
    torch.testing.assert_close(found.logits[labels != -100], expected.logits[labels_of() != -100], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("pad", [256, 0, 32])
def test_tags_do_not_depend_on_the_side_of_padding(pad):
    model = build(model_class=EncodzallForTokenClassification)
    right, left = encode(), LEFT(TEXTS, padding=True, return_tensors="pt")
    expected, mask = model(**right), left["attention_mask"]
    found = model(left["input_ids"].masked_fill(mask == 0, pad), mask)
    torch.testing.assert_close(found.word_logits, expected.word_logits, **EQUAL)
    torch.testing.assert_close(found.logits[mask > 0], expected.logits[right["attention_mask"] > 0], **EQUAL)


def test_decoders_see_no_future_and_no_other_word():
    model = build(**NGRAMS)
    inputs, labels = encode(["some words in a row"]), labels_of(["some words in a row"])
    changed = labels.clone()
    changed[0, 11:13] = torch.tensor([*b"of"])
    with torch.no_grad():
        before, after = (model(**inputs, labels=target) for target in (labels, changed))
    assert torch.equal(before.logits[:, :12], after.logits[:, :12])
    assert not torch.equal(before.logits[:, 12], after.logits[:, 12])
    # "some " and its end, "words " and its end; then the first byte of the word, of which nothing is known yet.
    start = 6 + 7
    assert torch.equal(before.word_logits[: start + 1], after.word_logits[: start + 1])
    assert not torch.equal(before.word_logits[start + 1], after.word_logits[start + 1])
    assert torch.equal(before.word_logits[start + 4 :], after.word_logits[start + 4 :])


def test_a_word_in_encoder_1_sees_no_other():
    model = build(model_class=EncodzallModel, num_context_encoder_layers=0, **NGRAMS)
    one, other = (model(**encode([text])).last_hidden_state for text in ("this word stays", "that word goes!"))
    torch.testing.assert_close(one[0, 1], other[0, 1])
    assert not torch.allclose(one[0, 0], other[0, 0])


# ---- Generation ----


@each_variant
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True}], ids=["greedy", "beams", "sampling"])
def test_the_cache_changes_nothing(variant, options):
    model = build(variant)
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        outputs.append(model.generate(**encode(), max_length=24, use_cache=use_cache, **options))
    assert torch.equal(*outputs) and outputs[0].shape[1] > 3


def test_the_cache_has_the_layers_of_the_decoder():
    """They may be more than those over words, which `num_hidden_layers` counts."""
    fields = {"num_context_encoder_layers": 1, "num_decoder_layers": 3, "num_key_value_heads": 2}
    model = build(**fields)
    outputs = [model.generate(**encode(), max_length=24, use_cache=use_cache) for use_cache in (True, False)]
    assert torch.equal(*outputs) and outputs[0].shape[1] > 3


def test_batched_generation_is_that_of_each_text():
    model = build(**NGRAMS)
    together = model.generate(**encode(), max_length=24)
    for row, text in enumerate(TEXTS):
        alone = model.generate(**encode([text]), max_length=24)[0]
        assert torch.equal(together[row, : len(alone)], alone)


def test_generation_ends_at_the_end_symbol():
    model = build()
    model.lm_head.register_forward_hook(
        lambda module, inputs, logits: logits.index_fill(-1, torch.tensor([258]), 100.0)
    )
    assert model.generate(**encode(["a"]), max_length=24)[0].tolist() == [257, 258]


@pytest.mark.parametrize(
    "options", [{"max_length": 200}, {"max_new_tokens": 200}, {"max_length": 200, "num_beams": 2}], ids=str
)
def test_generation_ends_where_the_context_ends(options):
    model = build(max_position_embeddings=16)
    model.generation_config.eos_token_id = None
    logger = logging.get_logger("latentlm.models.block_positions")
    with CaptureLogger(logger) as captured:
        generated = model.generate(**encode(["a b", "some"]), **options)
    assert generated.shape == (2, 17)  # the begin, and as many ids as a text may have
    assert "Generation stops after 16 new tokens, at `max_position_embeddings` 16" in captured.out
    with CaptureLogger(logger) as captured:
        within = {"max_length": 17, "num_beams": options.get("num_beams", 1)}
        assert torch.equal(model.generate(**encode(["a b", "some"]), **within), generated)
    assert "stops" not in captured.out
    with pytest.raises(ValueError, match="17 tokens does not fit"):
        model.generate(**encode(["a"]), decoder_input_ids=torch.full((1, 17), 257))


# ---- Word probabilities, heads, options, errors ----


def test_log_probabilities_of_words_add_up():
    model = build(**NGRAMS)
    output = model(**encode(["ab cd"]), labels=labels_of(["ab cd"]))
    memory = output.encoder_last_hidden_state[0]
    spelled = torch.tensor([[*b"ab "], [*b"cd", -1], [258, -1, -1]])
    log_p = output.word_logits.log_softmax(-1)
    wanted = torch.tensor([*b"ab ", 258, *b"cd", 258, 258])
    each = log_p.gather(1, wanted[:, None])[:, 0].split([4, 3, 1])
    expected = torch.stack([part.sum() for part in each])
    torch.testing.assert_close(model.word_log_probabilities(memory, spelled), expected.detach(), **EQUAL)


@torch.no_grad()
def test_masked_words_are_the_likeliest_that_fit():
    model = build(**NGRAMS)
    text = "a c<vowel>t b<any>"
    [[first, second]] = model.fill_mask([text], tokenizer, top_k=3, num_beams=300)
    inputs = encode([text])
    memory = model.model(**inputs).last_hidden_state[0]

    def best(word: int, candidates: list[bytes], closing: int) -> list[tuple[str, float]]:
        scores = []
        for candidate in candidates:
            logits, _, _ = model.spell_words(memory[word][None], torch.tensor([[*candidate]]))
            log_p = logits.log_softmax(-1)
            symbols = torch.tensor([*candidate, closing])
            scores.append((candidate.decode(), log_p.gather(1, symbols[:, None]).sum().item()))
        return sorted(scores, key=lambda found: -found[1])[:3]

    vowels = [b"c" + bytes([vowel]) + b"t" for vowel in b"aeiouAEIOU"]
    assert first == [(word, pytest.approx(score, rel=1e-4)) for word, score in best(1, vowels, 32)]
    letters = [b"b" + bytes([letter]) for letter in range(128) if letter not in b" \t\n\v\f\r"]
    ascii_only = [found for found in second if found[0].isascii()]
    expected = dict(best(2, letters, 258))
    assert ascii_only and all(found in expected or score < min(expected.values()) for found, score in ascii_only)


def test_whole_words_are_filled_with_words():
    model = build()
    [[found], []] = model.fill_mask(["one <mask> two", "nothing masked"], tokenizer, top_k=4)
    assert len(found) == 4 and [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    assert all(word and not any(letter in word for letter in " \t\n") for word, _ in found)
    with pytest.raises(ValueError, match="fills no masks"):
        build("plain").fill_mask(["<mask>"], tokenizer)
    assert model.fill_mask([], tokenizer) == []
    for name in ("top_k", "num_beams"):
        with pytest.raises(ValueError, match=f"`{name}` is 0, but it must be at least 1"):
            model.fill_mask(["<mask>"], tokenizer, **{name: 0})


@pytest.mark.parametrize(
    ("pattern", "fits", "does_not"),
    [
        ("c<vowel>t", ["cat", "cOt"], ["cst", "ct", "caat", "cäa"]),
        ("<consonant>a", ["ba", "Za"], ["aa", "1a"]),
        ("a<nonspace>", ["a1", "a!", "aé", "a日", "a😀"], ["ab", "a ", "a"]),
        ("<any><any>", ["ab", "日😀", "é1"], ["a", "abc"]),
        ("x<mask>y", ["xay", "xabcy", "x日y", "xyyy"], ["xy", "x y", "ay"]),
        ("日<mask>", ["日本", "日a"], ["日", "本日"]),
    ],
)
def test_patterns_of_masked_words(pattern, fits, does_not):
    compiled = WordPattern(tokenizer(pattern, add_special_tokens=False)["input_ids"])

    def matches(word: str) -> bool:
        states = compiled.start
        for byte in word.encode():
            assert (byte in compiled.following(states)) == bool(compiled.advance(states, byte))
            states = compiled.advance(states, byte)
        return compiled.is_complete(states)

    assert all(map(matches, fits)) and not any(map(matches, does_not))


def test_denoise_is_generate():
    model = build()
    expected = model.generate(**encode(), max_length=2 * encode()["input_ids"].shape[1] + 16)
    assert model.denoise(TEXTS, tokenizer) == tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert len(model.denoise(["abc"], tokenizer, max_length=4)[0].encode()) <= 9
    assert model.denoise([], tokenizer) == []


def test_classification_heads():
    inputs = encode(["one text", "another text here"])
    sequence = build(model_class=EncodzallForSequenceClassification, num_labels=3)
    output = sequence(**inputs, labels=torch.tensor([0, 2]))
    pooled = sequence.model(**inputs).pooler_output
    torch.testing.assert_close(output.logits, sequence.classifier.out_proj(pooled))
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits, torch.tensor([0, 2])))


def test_an_id_has_the_logits_of_its_word():
    inputs = encode(["one text", "another text here"])
    model = build(model_class=EncodzallForTokenClassification, num_labels=2)
    ids, words = inputs["input_ids"], inputs["word_ids"]
    labels = torch.full_like(ids, -100)
    labels[0, [0, 4]] = torch.tensor([0, 1])
    labels[1, [0, 8, 13]] = torch.tensor([1, 0, 1])
    output = model(**inputs, labels=labels)
    assert output.logits.shape == (*ids.shape, 2) and output.word_logits.shape == (2, 4, 2)
    torch.testing.assert_close(output.word_logits, model.classifier(model.model(**inputs).last_hidden_state))
    for row, column in (words >= 0).nonzero().tolist():
        assert torch.equal(output.logits[row, column], output.word_logits[row, words[row, column]])
    assert not output.logits[words < 0].any()
    of_words = output.word_logits[[0, 0, 1, 1, 1], [0, 1, 0, 1, 2]]
    expected = nn.functional.cross_entropy(of_words, torch.tensor([0, 1, 1, 0, 1]))
    torch.testing.assert_close(output.loss, expected)
    by_word = torch.tensor([[0, 1, -100, -100], [1, 0, 1, -100]])
    torch.testing.assert_close(model(**inputs, labels=by_word).loss, expected)
    with pytest.raises(ValueError, match=r"`labels` are \(2, 3\), but must be \(2, 18\), .* or \(2, 4\), one per word"):
        model(**inputs, labels=torch.zeros(2, 3).long())


def test_bad_input_is_refused():
    model = build()
    with pytest.raises(ValueError, match="max_position_embeddings"):
        model.model(torch.full((1, 129), 97))
    with pytest.raises(ValueError, match="has no words"):
        model.model(torch.full((2, 4), 256))
    with pytest.raises(ValueError, match="3 words, the input 4"):
        model(**encode(["a b c"]), labels=labels_of(["a bc"]))
    with pytest.raises(ValueError, match=r"Give `labels`.*fill_mask"):
        model(**encode(["a <mask>"]))
    with pytest.raises(ValueError, match="`inputs_embeds` is given, but words are found"):
        model.model(inputs_embeds=torch.zeros(1, 4, 64))
    with pytest.raises(ValueError, match="`decoder_inputs_embeds` is given"):
        model(**encode(["a"]), decoder_inputs_embeds=torch.zeros(1, 4, 64))


def test_a_text_that_is_alone_in_its_batch_has_no_contrastive_loss():
    model = build(word_decoder="none", contrastive_loss_weight=1.0, contrastive_symmetric=True).train()
    one = model(**encode(["a"]), labels=labels_of(["a"]), clean_input_ids=encode(["a"])["input_ids"])
    assert one.contrastive_loss == 0
    torch.testing.assert_close(one.loss, 0.75 * one.sequence_loss)
    one.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_the_default_device_changes_nothing():
    model, inputs, labels = build().eval(), encode(), labels_of()
    packed, expected = model.pack(**inputs, labels=labels), model.model(**inputs).pooler_output
    with torch.device("meta"), torch.no_grad():
        found = model.pack(**inputs, labels=labels)
        assert tokenizer("some words")["word_ids"] == [0] * 5 + [1] * 5 + [2]
        assert torch.equal(model.model(**inputs).pooler_output, expected)
    for part, tensors in packed.items():
        assert all(torch.equal(found[part][name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("word_decoder", ["own", "shared"])
@pytest.mark.parametrize("form", ["regular", "latent"])
def test_without_the_sequence_loss_what_is_not_trained_is_frozen(word_decoder, form):
    """DDP would wait for the gradient of a weight that the loss does not use."""
    model = build(gate_loss_weight=1.0, sequence_loss_weight=0.0, word_decoder=word_decoder, attention_form=form)
    inputs = tokenizer(["teh funtion returns"], return_tensors="pt")
    labels = tokenizer(["the function returns"], return_tensors="pt")["input_ids"]
    outputs = model.train()(**inputs, labels=labels, target_word_ids=find_words(labels, 16))
    assert outputs.sequence_loss is None
    outputs.loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert any(name.startswith("decoder.") for name in trained) == (word_decoder == "shared")
