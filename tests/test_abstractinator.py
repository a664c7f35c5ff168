"""The Abstractinator by itself: proper likelihoods, decoding from codes, its options, and hard input."""

import copy
import itertools
import math
import pickle
from fractions import Fraction

import pytest
import torch
from architectures import ARCHITECTURES, LEVEL, NGRAM_CHANGES, NGRAM_NEEDS, Case, gradients, randomise, token_ids
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from latentlm import AbstractinatorConfig, AbstractinatorForCausalLM
from latentlm.evaluation.segments import inspect
from latentlm.models.abstractinator_base import AbstractinatorCache
from latentlm.models.block_compiled_row import CompiledRow
from latentlm.models.block_single_row import SingleRow
from latentlm.models.block_stack import CausalStack
from latentlm.models.generation_abstractinator import CodeSampler

[ROW] = [row for row in ARCHITECTURES if row.config_class is AbstractinatorConfig]
LONG = {"max_position_embeddings": 4096}
BYTES = LONG | {"vocab_size": 259, "pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258}
CODED = ["default", "two_levels", "latent", "learned_dropout"]  # variants with a categorical top model
VARIANTS = list(ROW.variants)


def build(variant: str = "two_levels", **changes) -> AbstractinatorForCausalLM:
    return Case(ROW, variant).model(**changes)


def mean_lengths(model, ids: torch.Tensor) -> list[float]:
    found = model.model.read(ids)[1].levels
    return [float(c.segments.lengths.sum() / c.segments.count.sum()) for c in found]


# ---- Likelihoods ----


@pytest.mark.parametrize("variant", VARIANTS)
def test_next_byte_probabilities_of_all_continuations_sum_to_one(variant):
    model = build(variant, vocab_size=4, pad_token_id=None)
    every = torch.tensor([[1, *rest] for rest in itertools.product(range(4), repeat=4)])
    with torch.no_grad():
        logs = model(every).logits.double().log_softmax(-1)
    total = logs[:, :-1].gather(2, every[:, 1:, None]).sum((1, 2)).exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-5)


class Interval:
    """An arithmetic coder: the interval of a message, and the shortest bits inside of it."""

    def __init__(self):
        self.low, self.size = Fraction(0), Fraction(1)

    def narrow(self, counts: torch.Tensor, symbol: int) -> None:
        counts = counts.tolist()
        total = sum(counts)
        self.low += self.size * Fraction(sum(counts[:symbol]), total)
        self.size *= Fraction(counts[symbol], total)

    def bits(self) -> tuple[int, int]:
        length = 0
        while Fraction(1, 2**length) > self.size / 2:
            length += 1
        return math.ceil(self.low * 2**length), length


def counts_of(logits: torch.Tensor) -> torch.Tensor:
    """Integer counts of a distribution `(V,)`, so that sender and receiver agree on it to the last bit."""
    return (logits.double().softmax(-1) * 2**40).round().long() + 1


@pytest.mark.parametrize("variant", CODED)
def test_the_two_part_code_length_is_what_an_arithmetic_coder_needs(variant):
    """Sender and receiver walk through the model alike: codes first, then what is expanded from them. Where segments
    end is not sent."""
    model = build(variant)
    ids = token_ids(1, 24)
    pyramid = model.model.read(ids)[1]
    # What the sender tells, level by level: the symbols to come.
    truth = [iter(c.symbols[0, 1:].tolist()) for c in pyramid.levels]
    truth.append(iter(pyramid.levels[-1].quantized.codes[0].tolist()))
    interval, digits = Interval(), []

    def sender(part: int):
        def choose(logits: torch.Tensor) -> torch.Tensor:
            if not digits:
                digits.extend(next(truth[part]))
            digit = digits.pop(0)
            interval.narrow(counts_of(logits[0]), digit)
            return torch.tensor([digit])

        return choose

    walk(model, ids, sender)
    number, length = interval.bits()
    nats = sum(part.item() for part in model.code_lengths(ids).values())
    assert length - 2 <= nats / math.log(2) + 0.5 and nats / math.log(2) <= length + 0.5
    message = Fraction(number, 2**length)
    reading = Interval()

    def receiver(part: int):
        def choose(logits: torch.Tensor) -> torch.Tensor:
            counts = counts_of(logits[0])
            place = (message - reading.low) / reading.size * int(counts.sum())
            digit = int(torch.searchsorted(counts.cumsum(0), math.floor(place), right=True))
            reading.narrow(counts, digit)
            return torch.tensor([digit])

        return choose

    assert walk(model, ids, receiver) == ids[0].tolist()


def begin(sampler: CodeSampler, ids: torch.Tensor) -> None:
    """Fill the cache with only the first id of each row, `(B,)`, and choose the codes of its segments."""
    model, everywhere = sampler.model, torch.ones_like(ids, dtype=torch.bool)
    model.new_cache(sampler.cache, len(ids), model.levels[0].input_embedding.table.weight.detach())
    sampler.top_states = model.top.stack.step(sampler.cache.top, everywhere, model.top.begin(torch.zeros_like(ids)))
    for i in reversed(range(len(model.levels))):
        level, state = model.levels[i], sampler.cache.levels[i]
        sampler.open(i, everywhere)
        first = ids if i == 0 else torch.full_like(ids, level.alphabet.begin)
        first = first.unsqueeze(1).expand(-1, level.alphabet.num_digits)
        level.notice(state, everywhere, first, model.ends_text(ids) if i == 0 else ~everywhere)


@torch.no_grad()
def walk(model: AbstractinatorForCausalLM, ids: torch.Tensor, chooser) -> list[int]:
    """Decode as many symbols as `ids` `(1, T)` has, of which the first is known; what is chosen comes from `chooser`
    of the level whose symbol it is."""
    levels = len(model.model.levels)
    sampler = CodeSampler(model.model, chooser(levels), None, ids.device)
    symbol_choosers = [chooser(i) for i in range(levels)]
    for level, choose in zip(model.model.levels, symbol_choosers, strict=True):
        head = level.head
        head.sample = lambda states, _, head=head, choose=choose: type(head).sample(head, states, choose)
    begin(sampler, ids[:, 0])
    decoded = [ids[0, 0].item()]
    for _ in range(ids.shape[1] - 1):
        decoded.append(sampler.next_symbols(0, torch.tensor([True]))[0, 0].item())
    for level in model.model.levels:
        del level.head.sample
    return decoded


def test_two_part_code_lengths_need_a_categorical_top_model():
    for variant in ("no_top", "continuous"):
        with pytest.raises(ValueError, match="`top_head` 'categorical'"):
            build(variant).code_lengths(token_ids(1, 9))


def test_codes_that_are_shuffled_or_zeroed_say_something_else():
    model = build()
    found = {name: nats.sum().item() for name, nats in model.reconstruction_nats(token_ids(2, 30)).items()}
    assert len(set(found.values())) == 3
    own = model.code_lengths(token_ids(2, 30))["level_1"].sum().item()
    assert found["own"] == pytest.approx(own, rel=1e-5)


# ---- Losses ----


@pytest.mark.parametrize("variant", ["two_levels", "latent", "no_top"])
def test_losses_are_sums_over_levels_and_reconstruction_a_mean(variant):
    model = build(variant).train()
    ids = token_ids(2, 30)
    output = model(ids, labels=ids)
    for name in ("reconstruction_loss", "vq_loss", "entropy_loss"):
        terms = [value.item() for key, value in output.level_losses.items() if key.endswith(name)]
        assert len(terms) == (1 if variant == "latent" and name == "vq_loss" else 2)  # fsq has none
        expected = sum(terms) / (len(terms) if name == "reconstruction_loss" else 1)
        assert output[name].item() == pytest.approx(expected, rel=1e-6), name
    terms = ("reconstruction_loss", "vq_loss", "entropy_loss", "code_lm_loss", "lm_loss")
    assert output.loss.item() == pytest.approx(sum(output[name].item() for name in terms if name in output), rel=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_labels_give_the_loss_with_a_cache_too(variant):
    """A new one, an empty one, and one that goes on; the cache then is the one that there is without labels."""
    model = build(variant)
    ids = token_ids(2, 24)
    expected = model(ids, labels=ids)
    for options in ({"use_cache": True}, {"past_key_values": AbstractinatorCache()}):
        for now in (model.train(), model.eval()):
            output = now(ids, labels=ids, **options)
            assert (output.loss - now(ids, labels=ids).loss).abs() < 1e-5 and output.past_key_values.seen == 24
            options["past_key_values"] = AbstractinatorCache()
        assert torch.equal(output.logits, expected.logits)
    first = model(ids[:, :20], labels=ids[:, :20], use_cache=True)
    rest = model(ids[:, 20:], labels=ids[:, 20:], past_key_values=first.past_key_values)
    torch.testing.assert_close(rest.logits, expected.logits[:, 20:], rtol=1e-3, atol=1e-4)
    nats = nn.functional.cross_entropy(rest.logits[:, :-1].flatten(0, 1), ids[:, 21:].flatten())
    assert rest.loss.item() == rest.lm_loss.item() == pytest.approx(nats.item(), rel=1e-5)
    with pytest.raises(ValueError, match="`past_key_values` of 24 ids in training"):
        model.train()(ids, labels=ids, past_key_values=rest.past_key_values)


@pytest.mark.parametrize("end", [None, 0, [5, 0]])
def test_padding_needs_no_mask_also_where_its_id_ends_texts(end):
    model, ids = build(eos_token_id=end), token_ids(2, 20)
    ids[0, 6], ids[0, 13:] = 0, 0
    mask = (ids != 0).long()
    if end is not None:
        mask[0, 6] = mask[0, 13] = 1  # they end texts
    labels = ids.masked_fill(mask == 0, -100)
    for now in (model.train(), model.eval()):
        assert now(ids, labels=labels).loss.item() == now(ids, mask, labels=labels).loss.item()
    for nats in (model.code_lengths, model.reconstruction_nats):
        expected = nats(ids, mask)
        assert all(torch.equal(value, expected[name]) for name, value in nats(ids).items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_norms_read_the_dtype_of_their_weights_under_autocast(variant, monkeypatch):
    """For another there is no fused kernel; and sums of layers are in float32."""
    dtypes = set()
    rms_norm = nn.functional.rms_norm

    def noticed(values: torch.Tensor, shape, weight: torch.Tensor, eps=None) -> torch.Tensor:
        dtypes.add((values.dtype, weight.dtype))
        return rms_norm(values, shape, weight, eps)

    monkeypatch.setattr(nn.functional, "rms_norm", noticed)
    model, ids = build(variant), token_ids(2, 20)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model.train()(ids, labels=ids)
        model.eval().generate(ids, max_new_tokens=8)
    assert dtypes == {(torch.float32, torch.float32)}


@pytest.mark.parametrize("num_rows", [1, 2])
@pytest.mark.parametrize("window", [None, 7])
def test_a_stack_remembers_one_symbol_at_a_time_what_it_reads_at_once(window, num_rows):
    """Without a window the cache grows twice here, also from where a forward has filled it."""
    stack = CausalStack(build().config, 2, window).eval()
    randomise(stack)
    inputs = torch.randn(num_rows, 150, 32, generator=torch.Generator().manual_seed(0))
    rows = torch.ones(num_rows, dtype=torch.bool)
    with torch.no_grad():
        expected, items, *_ = stack(inputs)
        for start in (0, 60):
            cache = stack.new_cache(num_rows, inputs)
            if start:
                begins = [tuple(part[:, :, :start] for part in pair) for pair in items]
                stack.fill_cache(cache, begins, torch.full((num_rows,), start))
            states = [stack.step(cache, rows, inputs[:, t]) for t in range(start, 150)]
            torch.testing.assert_close(torch.stack(states, 1), expected[:, start:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [None, {"backend": "eager"}], ids=["laid_out", "compiled"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_single_row_decodes_as_one_of_several(variant, options):
    """It takes a chain of fewer operations, or compiled layers, where nothing has to see the modules called."""
    torch.compiler.reset()
    model, ids = build(variant, **LONG), token_ids(2, 40)
    single = AbstractinatorCache(options)
    several = model(ids[:, :9], use_cache=True).past_key_values
    model(ids[:1, :9], past_key_values=single)
    mask = torch.ones(1, 9)
    for t in range(9, 40):
        expected = model(ids[:, t : t + 1], past_key_values=several).logits[:1]
        if t == 20:  # a step of padding changes nothing
            mask = nn.functional.pad(mask, (0, 1))
            model(ids[:1, :1], attention_mask=mask, past_key_values=single)
        if t == 30:  # rings that are copied take the place of those that steps have read
            single.reorder_cache(torch.tensor([0]))
        mask = nn.functional.pad(mask, (0, 1), value=1)
        logits = model(ids[:1, t : t + 1], attention_mask=mask, past_key_values=single).logits
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
    stacks = [stack for level in single.levels for stack in (level.entropy, level.compressor, level.expander)]
    simple = not variant.startswith("l")  # as latent attention and LearnedDropout do
    kind = CompiledRow if options else SingleRow
    assert all(isinstance(stack.single, kind) == (simple and bool(stack.items)) for stack in stacks)
    assert all(stack.single is None for level in several.levels for stack in (level.entropy, level.expander))


@pytest.mark.parametrize("alone", [{"max_segment_length": 1}, {"threshold": 0.0}], ids=str)
@pytest.mark.parametrize("levels", [2, 3])
def test_an_empty_prompt_in_a_padded_batch_goes_on_with_a_cache_as_without(levels, alone):
    """Also where the begin of a level above is a segment by itself."""
    model, ids = build(levels=[LEVEL] + [LEVEL | alone] * (levels - 1)), token_ids(2, 20)
    mask = torch.ones_like(ids)
    mask[0, :9] = mask[1, :2] = 0
    expected = model(ids, attention_mask=mask).logits
    cache = model(ids[:, :9], attention_mask=mask[:, :9], use_cache=True).past_key_values
    for t in range(9, 20):
        logits = model(ids[:, t : t + 1], attention_mask=mask[:, : t + 1], past_key_values=cache).logits[:, 0]
        torch.testing.assert_close(logits, expected[:, t], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_ring_without_a_window_has_places_for_the_longest_row_alone():
    """Rows that take turns: none of them sees a quarter of the steps."""
    model = build(**LONG)
    stack, like = model.model.top.stack, torch.zeros(1, model.config.hidden_size)
    cache, alone = stack.new_cache(4, like), stack.new_cache(1, like)
    states = torch.randn(200, model.config.hidden_size)
    for t in range(200):
        active = torch.arange(4) == t % 4
        seen = stack.step(cache, active, states[t].expand(4, -1))
        assert cache.longest >= cache.lengths.max() and cache.capacity >= cache.lengths.max()
        if t % 4 == 0:
            expected = stack.step(alone, torch.ones(1, dtype=torch.bool), states[t][None])
            torch.testing.assert_close(seen[:1], expected, rtol=1e-4, atol=1e-5)
    assert cache.lengths.tolist() == [50] * 4 and cache.capacity == 128


def test_empty_rows_move_no_codebook():
    one, other = build().train(), build().train()
    ids, mask = token_ids(2, 20), torch.ones(2, 20).long()
    mask[1] = 0
    one(ids, attention_mask=mask, use_cache=True)
    other(ids[:1])
    for model in (one, other):
        model.model.update()
    for name, value in one.named_buffers():
        assert torch.equal(value, other.get_buffer(name)), name


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
@torch.no_grad()
def test_a_copied_cache_has_no_weights_and_continues(copied):
    model, ids = build(**LONG), token_ids(1, 40)
    cache = model(ids[:, :9], use_cache=True).past_key_values
    for t in range(9, 30):
        model(ids[:, t : t + 1], past_key_values=cache)
    other = copied(cache)
    stacks = [kept.levels[0].entropy for kept in (cache, other)]
    assert isinstance(stacks[0].single, SingleRow) and stacks[1].single is None
    for t in range(30, 40):
        one, two = (model(ids[:, t : t + 1], past_key_values=kept).logits for kept in (cache, other))
        assert torch.equal(one, two)
    assert isinstance(stacks[1].single, SingleRow)


@torch.no_grad()
def test_a_hook_on_a_layer_runs_in_the_steps_of_a_single_row():
    """Also one that comes after the first step."""
    model, ids, called = build(**LONG), token_ids(1, 14), []
    layer = model.model.levels[0].entropy_model.stack.layers[0]
    cache = model(ids[:, :9], use_cache=True).past_key_values
    expected = [model(ids[:, t : t + 1], past_key_values=cache).logits for t in range(9, 12)]
    handle = layer.register_forward_hook(lambda *_: called.append("layer"))
    layer.mlp.down_proj.register_forward_hook(lambda *_: called.append("part"))
    model(ids[:, 12:13], past_key_values=cache)
    assert called == ["part", "layer"]
    called.clear()
    cache = model(ids[:, :9], use_cache=True).past_key_values
    for t, logits in zip(range(9, 12), expected, strict=True):
        found = model(ids[:, t : t + 1], past_key_values=cache).logits
        torch.testing.assert_close(found, logits, rtol=1e-3, atol=1e-4)
    assert called == 4 * ["part", "layer"]
    handle.remove()


@torch.no_grad()
@pytest.mark.parametrize("whole", [False, True], ids=["dropout", "model"])
def test_dropout_that_is_switched_on_drops_in_the_steps_of_a_single_row(whole):
    """That of a module alone, as for Monte Carlo dropout, and that of the whole model, also after the first step."""
    model, ids = build(hidden_dropout=0.5, **LONG), token_ids(1, 14)
    level = model.model.levels[0]
    cache = model(ids[:, :9], use_cache=True).past_key_values
    if whole:
        model(ids[:, 9:10], past_key_values=cache)
        model.train()
    else:
        level.expander.layers[-1].dropout.train()
    model(ids[:, 10:11], past_key_values=cache)
    states = torch.ones(1, 32)
    assert level.expander.single_row(cache.levels[0].expander, states) is None
    assert (level.entropy_model.stack.single_row(cache.levels[0].entropy, states) is None) == whole


@torch.no_grad()
def test_a_step_under_autocast_leaves_the_steps_after_it_fast():
    model, ids = build(**LONG), token_ids(1, 12)
    cache = model(ids[:, :9], use_cache=True).past_key_values
    with torch.autocast("cpu", torch.bfloat16):
        model(ids[:, 9:10], past_key_values=cache)
    assert cache.levels[0].entropy.single is None
    model(ids[:, 10:11], past_key_values=cache)
    assert isinstance(cache.levels[0].entropy.single, SingleRow)


# ---- The cache as transformers uses it ----


@pytest.mark.parametrize("rows", [1, 2])
def test_a_cache_that_is_reset_begins_anew(rows):
    model, ids = build(**LONG), token_ids(rows, 20)
    cache = AbstractinatorCache()
    assert cache.batch_size == -1 and cache.get_max_length() == -1 and not cache.is_croppable
    cache.batch_repeat_interleave(2)
    model.generate(ids[:, :9], past_key_values=cache, max_new_tokens=4)
    assert cache.batch_size == rows
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.batch_size == -1
    arguments = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(
        model.generate(ids[:, 5:], past_key_values=cache, **arguments), model.generate(ids[:, 5:], **arguments)
    )


@pytest.mark.parametrize("rows", [1, 2])
def test_a_cache_of_inference_mode_goes_on_outside(rows):
    model, ids = build(**LONG), token_ids(rows, 20)
    with torch.inference_mode():
        cache = model(ids[:, :9], use_cache=True).past_key_values
        model(ids[:, 9:10], past_key_values=cache)
    with torch.no_grad():
        logits = model(ids[:, 10:], past_key_values=cache).logits
        torch.testing.assert_close(logits, model(ids).logits[:, 10:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@torch.no_grad()
def test_the_default_dtype_does_not_matter(dtype):
    model, ids = build(**LONG), token_ids(1, 12)
    expected = model(ids).logits[:, 9:]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        cache = model(ids[:, :9], use_cache=True).past_key_values
        logits = torch.cat([model(ids[:, t : t + 1], past_key_values=cache).logits for t in range(9, 12)], 1)
    finally:
        torch.set_default_dtype(before)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)


def test_offloaded_weights_sample_the_same_bytes(tmp_path):
    model = build(**BYTES)
    model.save_pretrained(tmp_path / "model")
    offloaded = AbstractinatorForCausalLM.from_pretrained(
        tmp_path / "model", device_map={"": "disk"}, offload_folder=str(tmp_path / "offloaded")
    )
    assert offloaded.device.type == "meta"
    texts = []
    for one in (model, offloaded):
        torch.manual_seed(0)
        texts.append(one.generate_bytes([b"abc", b""], 12))
    assert texts[0] == texts[1]


# ---- Shapes ----


@pytest.mark.parametrize("shape", [(2, 5), (2, 30), (1, 20), (3, 20)])
def test_other_shapes_than_those_of_the_ids_are_errors(shape):
    model, ids, other = build(**LONG), token_ids(2, 20), torch.ones(shape, dtype=torch.long)
    message = rf"has the shape \({shape[0]}, {shape[1]}\), but `input_ids` have \(2, 20\)"
    with pytest.raises(ValueError, match="`attention_mask` " + message):
        model(ids, attention_mask=other)
    with pytest.raises(ValueError, match="`labels` " + message):
        model(ids, labels=other)


@torch.no_grad()
def test_a_mask_that_is_shorter_than_what_goes_on_is_an_error():
    model, ids = build(**LONG), token_ids(2, 20)
    cache = model(ids[:, :9], use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"has the shape \(2, 2\), but `input_ids` have \(2, 11\)"):
        model(ids[:, 9:], attention_mask=torch.ones(2, 2), past_key_values=cache)
    assert cache.seen == 9


@pytest.mark.parametrize("prompts", ["The ", b"The ", ["The "]])
def test_prompts_are_byte_strings(prompts):
    with pytest.raises(ValueError, match=r"`prompts` is .*, but it must be a list of byte strings"):
        build(**BYTES).generate_bytes(prompts, 5)


# ---- Other tools ----


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_output_layer_gives_the_logits_of_the_last_hidden_state(variant):
    """What TRL's trainers do, which compute the loss by its weight alone."""
    model = build(variant).train()
    ids = token_ids(2, 20)
    output = model(ids, labels=ids)
    head = model.get_output_embeddings()
    assert head.bias is None and head.weight.shape == (64, 32)
    states = model.model(ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(states @ head.weight.T, output.logits, rtol=1e-4, atol=1e-4)
    output.lm_loss.backward()
    expected = gradients(model)
    logits = model.model(ids, use_cache=False).last_hidden_state[:, :-1] @ head.weight.T
    nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)


def test_a_backend_without_masks_says_so():
    AttentionInterface.register("maskless", sdpa_attention_forward)
    model = build()
    model.set_attn_implementation("maskless")
    with pytest.raises(ValueError, match=r"`attn_implementation` is 'maskless'.*AttentionMaskInterface"):
        model(token_ids(1, 9))


# ---- Segments ----


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_work_follows_segments_and_gradients_cross_levels(levels):
    model = build("default", levels=[LEVEL] * levels).train()
    ids = token_ids(2, 30)
    output = model(ids, labels=ids)
    output.code_lm_loss.backward()
    first = model.model.levels[0].compressor.layers[0].mlp.up_proj.weight
    assert first.grad.abs().sum() > 0
    lengths = mean_lengths(model.eval(), ids)
    assert len(lengths) == levels and all(1 < length <= 5 for length in lengths)
    assert model.generate(ids[:, :5], max_new_tokens=4).shape == (2, 9)


def test_the_end_of_a_text_closes_its_segment_at_every_level():
    model = build(eos_token_id=5)
    ids = token_ids(1, 20).masked_fill(token_ids(1, 20) == 5, 6)
    ids[0, 9] = 5
    first, second = (c.segments for c in model.model.read(ids)[1].levels)
    assert first.opens[0, 10]
    code = first.index[0, 9] + 1  # its place among the symbols of the second level, which begin with a begin
    assert second.opens[0, code + 1]


def test_begin_and_padding_are_no_codes():
    for level in build("latent").model.levels[1:]:
        assert level.alphabet.begin >= level.alphabet.num_codes
        assert level.embedding.num_ids == level.alphabet.num_codes + 3


def test_delta_follows_the_target_length_and_is_fixed_in_evaluation():
    level = LEVEL | {"target_segment_length": 3.0, "delta": 0.0, "max_segment_length": 30}
    model = build("default", levels=[level]).train()
    randomise(model)
    for step in range(60):
        ids = token_ids(4, 30, seed=step)
        model(ids, labels=ids)
        model.model.update()
    delta = model.training_statistics()["level_1_delta"]
    assert mean_lengths(model.eval(), token_ids(8, 30, seed=99))[0] == pytest.approx(3, rel=0.15)
    model(token_ids(2, 30))
    model.model.update()
    assert model.training_statistics()["level_1_delta"] == delta


OPTIONS = {
    "num_entropy_layers": 2,
    "entropy_window": 2,
    "delta": 0.5,
    "threshold": 3.0,
    "min_segment_length": 3,
    "max_segment_length": 2,
    "num_compressor_layers": 2,
    "compressor_window": 2,
    "compressor_attention": "segment",
    "num_queries": 2,
    "quantizer": "fsq",
    "num_codes": 17,
    "code_dim": 5,
    "num_expander_layers": 2,
    "expander_window": None,
    "lookback": 1,
    "shares_trunk": True,
    "commitment": 0.5,
    "entropy_head": "gaussian",
    **NGRAM_CHANGES,
}
ALONE = {"depth": {"quantizer": "rvq"}, "fsq_levels": {"quantizer": "fsq"}, **NGRAM_NEEDS}
OTHERS = {"depth": 2, "fsq_levels": [3, 5]}
ELSEWHERE = {"target_segment_length", "codebook_decay"}  # above; test_quantizer.py


@pytest.mark.parametrize("name", [*OPTIONS, *OTHERS])
def test_every_option_of_a_level_changes_the_training_step(name):
    from latentlm.models.configuration_abstractinator import LevelConfig

    assert set(LevelConfig.__dataclass_fields__) == OPTIONS.keys() | OTHERS.keys() | ELSEWHERE
    base = LEVEL | ALONE.get(name, {})
    ids = token_ids(2, 30)
    losses = []
    for level in (base, base | {name: (OPTIONS | OTHERS)[name]}):
        losses.append(build("default", levels=[level]).train()(ids, labels=ids).loss.item())
    assert losses[0] != losses[1]


def test_the_middle_code_of_odd_levels_has_a_gradient_as_others_have():
    """Its vector is zero, and its memory row stays so."""
    level = build("default", levels=[LEVEL | {"quantizer": "fsq", "fsq_levels": [3, 5]}]).model.levels[0].train()
    weight = torch.randn(32, generator=torch.Generator().manual_seed(0))
    sizes = []
    for vectors in (torch.zeros(32), torch.ones(32)):
        rows = level.code_rows(vectors.requires_grad_())
        assert torch.equal(rows, level.memory_norm(vectors))
        (rows * weight).sum().backward()
        sizes.append(vectors.grad.norm().item())
    assert 0.5 < sizes[0] / sizes[1] < 2


def test_ngrams_tell_every_digit_of_the_symbols_before():
    embedding = build("learned_dropout").model.levels[1].embedding
    symbols = token_ids(1, 6, 2, vocab_size=18)
    before = embedding.of_rows(symbols)
    for digit in range(2):
        changed = symbols + nn.functional.one_hot(torch.tensor(digit), 2) * (torch.arange(6) == 1)[:, None]
        moved = (embedding.of_rows(changed) != before).any(-1)
        assert moved.tolist() == [[False, True, True, True, True, False]]  # the longest n-gram has four


# ---- What is frozen ----


@pytest.mark.parametrize(
    ("field", "part"),
    [("freeze_entropy", ".entropy_model."), ("freeze_base", ".levels."), ("num_frozen_levels", ".levels.0.")],
)
def test_what_is_frozen_stays_as_it_is(field, part):
    model = build(**{field: True if field.startswith("freeze") else 1}).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    ids = token_ids(2, 30)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    model.model.update()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    frozen = {name for name in before if part in name}
    assert not moved & frozen
    parameters = {name for name, _ in model.named_parameters()}
    assert parameters - frozen <= moved
    first, second = model.model.levels
    assert not first.entropy_model.training and first.training == (field == "freeze_entropy")
    assert second.training == (field != "freeze_base")


# ---- Decoding from codes ----


@pytest.mark.parametrize("variant", CODED)
def test_bytes_of_a_batch_equal_those_of_one_prompt(variant):
    model = build(variant, **BYTES)
    prompts = [b"a longer prompt", b"", b"word ", bytes(range(200, 230))]
    options = {"max_new_bytes": 12, "temperature": 0, "byte_temperature": 0}
    together = model.generate_bytes(prompts, **options)
    assert together == [model.generate_bytes([prompt], **options)[0] for prompt in prompts]
    assert all(text.startswith(prompt) for text, prompt in zip(together, prompts, strict=True))


def test_sampling_codes_follows_its_options():
    model = build(**BYTES)
    torch.manual_seed(0)
    free = model.generate_bytes([b"text"] * 3, 20)
    assert len(set(free)) == 3
    greedy = model.generate_bytes([b"text"], 20, temperature=0, byte_temperature=0)
    assert model.generate_bytes([b"text"], 20, top_k=1, byte_temperature=0) == greedy
    assert model.generate_bytes([b"text"], 20, top_p=1e-6, byte_temperature=0) == greedy
    assert model.generate_bytes([], 5) == []
    with pytest.raises(ValueError, match="`temperature` is -1"):
        model.generate_bytes([b""], 5, temperature=-1)
    with pytest.raises(ValueError, match="`top_head` 'categorical'"):
        build("no_top", **BYTES).generate_bytes([b"text"], 5)


@pytest.mark.parametrize(
    ("changes", "likely", "continuation"),
    [
        ({}, 258, b""),
        ({}, 256, b"AAAAA"),  # padding and begins are not sampled
        ({}, 257, b"AAAAA"),
        ({"vocab_size": 260}, 259, b"AAAAA"),
        ({"eos_token_id": [256, 258]}, 256, b""),
    ],
)
def test_decoding_from_codes_gives_bytes_until_the_text_ends(changes, likely, continuation):
    model = build("default", **(BYTES | changes))
    head = model.model.levels[0].head.out[0]
    with torch.no_grad():
        head.weight.zero_()

    def logits(module, args, output: torch.Tensor) -> torch.Tensor:
        return output.index_fill(-1, torch.tensor([65]), 5.0).index_fill(-1, torch.tensor([likely]), 9.0)

    head.register_forward_hook(logits)
    found = model.generate_bytes([b"text", b""], 5, byte_temperature=0)
    assert found == [b"text" + continuation, continuation]


def test_without_a_begin_there_is_no_first_byte_to_predict():
    model = build("default", **(BYTES | {"bos_token_id": None}))
    for use in (lambda: model.generate_bytes([b"text"], 5), lambda: inspect(model, b"text")):
        with pytest.raises(ValueError, match="`bos_token_id` is None"):
            use()


# ---- Hard input ----


@pytest.mark.parametrize(
    "text", [b"a", b"aaaa" * 60, bytes(torch.randint(0, 256, (240,)).tolist()), "日本語".encode() * 9, b"\x00\xff\xfe"]
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_any_bytes_give_defined_results(variant, text):
    model = build(variant, **BYTES)
    ids = torch.tensor([[257, *text]])
    with torch.no_grad():
        output = model(ids, labels=ids)
    assert output.logits.isfinite().all() and output.loss.isfinite()
    model.train()(ids, labels=ids).loss.backward()
    model.model.update()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model.eval().generate(ids, max_new_tokens=3, do_sample=False).shape[1] <= ids.shape[1] + 3


def test_a_codebook_larger_than_the_batch_fills_and_a_prompt_too_long():
    model = build("default", levels=[LEVEL | {"num_codes": 4096}], **BYTES).train()
    ids = token_ids(1, 20)
    for _ in range(3):
        model(ids, labels=ids).loss.backward()
        model.model.update()
    assert model.model.levels[0].quantizer.codebook.isfinite().all()
    long = torch.zeros(1, 1_000_000, dtype=torch.long)
    with pytest.raises(ValueError, match="1000000 tokens does not fit: `max_position_embeddings` is 4096"):
        model(long)
    with pytest.raises(ValueError, match="does not fit"):
        model.generate_bytes([bytes(1_000_000)])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"levels": []}, "`levels` is empty"),
        ({"levels": [{"codes": 5}]}, r"`levels\[0\]` has no field \['codes'\]"),
        ({"levels": [{"num_codes": 1}]}, r"`levels\[0\].num_codes` is 1"),
        (
            {"levels": [{}, {"min_segment_length": 9, "max_segment_length": 5}]},
            r"`levels\[1\].max_segment_length` is 5",
        ),
        ({"levels": [{"target_segment_length": 99.0}]}, r"`levels\[0\].target_segment_length` is 99"),
        ({"levels": [{"depth": 2}]}, r"`levels\[0\].depth` is 2"),
        ({"levels": [{"quantizer": "fsq", "fsq_levels": [1]}]}, r"`levels\[0\].fsq_levels`"),
        ({"levels": [{"quantizer": "none"}, {}]}, r"`levels\[0\].quantizer` is 'none'"),
        ({"levels": [{"quantizer": "none"}]}, "'continuous'"),
        ({"levels": [{"expander_window": 0}]}, r"`levels\[0\].expander_window` is 0"),
        ({"levels": [{"quantizer": "lfq"}]}, "quantizer"),
        ({"levels": [{"codebook_decay": 1.5}]}, r"`levels\[0\].codebook_decay` is 1.5, but it must be below 1"),
        ({"levels": [{"codebook_decay": -0.1}]}, r"`levels\[0\].codebook_decay` is -0.1, but it must be at least 0"),
        ({"levels": [{"commitment": -1}]}, r"`levels\[0\].commitment` is -1"),
        ({"levels": [{"commitment": math.nan}]}, r"`levels\[0\].commitment` is nan"),
        ({"levels": [{}, {"codebook_decay": math.nan}]}, r"`levels\[1\].codebook_decay` is nan"),
        ({"levels": [{}, {"delta": math.nan}]}, r"`levels\[1\].delta` is nan, but it must be a finite number"),
        ({"levels": [{"threshold": math.inf}]}, r"`levels\[0\].threshold` is inf"),
        ({"levels": [{}, {"delta": "x"}]}, r"`levels\[1\]`: .*delta"),
        ({"levels": [{}, {"ngram_embedding": [1]}]}, r"`levels\[1\]`: `ngram_embedding` is \[1\]"),
        ({"lm_loss_weight": math.nan}, "`lm_loss_weight` is nan"),
        ({"initializer_range": -1.0}, "`initializer_range` is -1.0"),
        ({"byte_code_dim": 0}, "`byte_code_dim` is 0, but it must be at least 1"),
        ({"levels": [{"ngram_embedding": [1, 2]}]}, r"`ngram_embedding` is \[1, 2\], .* at least 2"),
        ({"levels": [{"ngram_buckets": 0}]}, "`ngram_buckets` is 0"),
        ({"num_frozen_levels": 2}, r"`num_frozen_levels` is 2, but must lie between 0 and the number of `levels`, 1"),
        ({"num_attention_heads": 3}, "`num_attention_heads` is 3"),
        ({"latent_rope_size": 3}, "`latent_rope_size` is 3"),
        ({"vq_loss_weight": -1.0}, "`vq_loss_weight` is -1.0"),
        ({"num_top_layers": -1}, "`num_top_layers` is -1"),
    ],
)
def test_bad_configurations_say_what_is_wrong(fields, message):
    with pytest.raises(Exception, match=message):
        AbstractinatorConfig(**fields)


def test_initial_weights():
    """What makes codes keeps the size of what it reads; with small weights all vectors become alike."""
    torch.manual_seed(0)
    model = AbstractinatorForCausalLM(
        AbstractinatorConfig(hidden_size=64, initializer_range=0.05, **{"num_top_layers": 2})
    )
    level = model.model.levels[0]
    keeping = (level.pooling.kv_proj, level.pooling.out_proj, level.quantizer.down, level.quantizer.up)
    for module in keeping:
        assert module.weight.std().item() == pytest.approx(module.in_features**-0.5, rel=0.05)
    assert level.compressor.layers[0].self_attn.qkv_proj.weight.std().item() == pytest.approx(0.05, rel=0.05)
    quantizer = model.model.levels[0].quantizer
    assert quantizer.counts.eq(1).all() and quantizer.codebook.std().item() == pytest.approx(1, rel=0.05)
    assert model.model.levels[0].embedding.table.weight.std().item() == pytest.approx(0.05, rel=0.1)
