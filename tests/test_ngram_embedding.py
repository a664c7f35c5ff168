"""Hashed n-gram embeddings beyond what the shared tests ask of the rows with n-grams: the block, and its edges."""

import pytest
import torch
from architectures import CAUSAL, Case, token_ids
from huggingface_hub.errors import StrictDataclassClassValidationError
from test_reference import ngram_rows
from transformers import DynamicCache, QuantizedCache, StaticCache

from latentlm import DecoderOnlyConfig, DecoderOnlyForCausalLM
from latentlm.models.block_ngram_embedding import NgramEmbedding, count_ngram_parameters, previous_ids

DECODER_ONLY = Case(CAUSAL[0], "ngrams")
LARGE = 50257


def block(**fields) -> NgramEmbedding:
    config = DecoderOnlyConfig(hidden_size=16, num_attention_heads=2, vocab_size=LARGE, **fields)
    return NgramEmbedding(config)


@pytest.mark.parametrize("multiplier", [5, 1_000_000_007, 2**31 - 3])
def test_rows_are_those_of_a_loop_over_windows(multiplier: int):
    """Exact, with depths inside of a row (packing, words), and with ids before it."""
    fields = {"ngram_embedding": [2, 3, 7], "ngram_buckets": 37, "ngram_multiplier": multiplier}
    embedding = block(**fields)
    config = DecoderOnlyConfig(**fields)
    ids = token_ids(3, 20, vocab_size=LARGE)
    depth = torch.arange(20).repeat(3, 1)
    depth[1] %= 4  # documents of 4
    depth[2] += 100  # more than there is
    for seen in (0, 1, 6, 15):
        previous = torch.cat((torch.full((3, 6), -1), ids[:, :seen]), 1)[:, -6:] if seen else None
        rows = embedding.rows(ids[:, seen:], depth[:, seen:], previous)
        for b in range(3):
            for t in range(seen, 20):
                start = max(0, t - int(depth[b, t]), t - 6)
                assert rows[b, t - seen].tolist() == ngram_rows(ids[b, start : t + 1].tolist(), config)


def test_negative_ids_are_none():
    embedding = block(ngram_embedding=[3])
    ids = token_ids(2, 6)
    hidden = torch.cat((torch.full((2, 2), -1), ids), 1)
    far = torch.full((1, 8), 100)
    assert torch.equal(embedding.rows(hidden, far)[:, 2:], embedding.rows(ids, far[:, :6]))


def test_a_new_model_is_the_one_without():
    """The table is zero at the start, whatever draws the other weights; every row that is read learns."""
    config = DECODER_ONLY.config()
    torch.manual_seed(0)
    model = DecoderOnlyForCausalLM(config)
    table = model.model.embed_ngrams.table.weight
    assert not table.any()
    plain = DecoderOnlyForCausalLM(DECODER_ONLY.config(ngram_embedding=None))
    assert count_ngram_parameters(model) == table.numel() == model.num_parameters() - plain.num_parameters()
    missing = plain.load_state_dict(model.state_dict(), strict=False)
    assert missing.unexpected_keys == ["model.embed_ngrams.table.weight"] and not missing.missing_keys
    ids = token_ids(2, 9)
    assert torch.equal(model(ids).logits, plain(ids).logits)
    model(ids, labels=ids).loss.backward()
    rows = model.model.embed_ngrams.rows(ids[:, :8], torch.arange(8).unsqueeze(0)).unique()  # the last predicts nothing
    assert torch.equal(table.grad.abs().sum(1).nonzero().squeeze(1), rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("static", [False, True])
def test_ids_come_out_of_a_cache_as_they_went_in(dtype: torch.dtype, static: bool):
    """In every type, with a cache that was allocated before its first use as well, as exporting does."""
    config = DecoderOnlyConfig(vocab_size=LARGE, num_hidden_layers=1, ngram_embedding=[4], num_attention_heads=2)
    ids = torch.tensor([[0, 255, 256, LARGE - 1, -1, 65535 % LARGE, 1, 2]])
    cache = StaticCache(config=config, max_cache_len=12) if static else DynamicCache(config=config)
    if static:
        shapes = [(layer.num_key_value_heads, layer.head_dim) for layer in config.per_layer_config[-1:]]
        cache.early_initialization(1, [2, shapes[0][0]], [4, shapes[0][1]], dtype, torch.device("cpu"))
    padded = torch.cat((torch.full((1, 3), -1), ids), 1)
    for start, end in ((0, 1), (1, 2), (2, 6), (6, 8)):
        previous = previous_ids(ids[:, start:end], cache, 1, config, dtype)
        assert torch.equal(previous, padded[:, start : start + 3])


def test_an_enlarged_vocabulary_leaves_the_table_alone():
    """From ids of one digit to ids of two, also while a cache is read."""
    model = DECODER_ONLY.model()
    before = model.model.embed_ngrams.table.weight.clone()
    ids = token_ids(2, 10)
    logits = model(ids).logits
    model.resize_token_embeddings(400)
    assert torch.equal(model.model.embed_ngrams.table.weight, before)
    torch.testing.assert_close(model(ids).logits[..., :64], logits)
    ids[:, 5] = 399
    cached = model(ids[:, :6], use_cache=True)
    continued = model(ids[:, 6:], past_key_values=cached.past_key_values).logits
    torch.testing.assert_close(continued, model(ids).logits[:, 6:], rtol=1e-4, atol=1e-5)


def test_embeddings_have_no_ngrams():
    """Neither themselves nor as what ids after them look back at."""
    model, plain = DECODER_ONLY.model(), DECODER_ONLY.model(ngram_embedding=None)
    ids = token_ids(2, 10)
    embeddings = model.get_input_embeddings()(ids)
    first, plain_first = (m(inputs_embeds=embeddings[:, :6], use_cache=True) for m in (model, plain))
    assert torch.equal(first.logits, plain_first.logits)
    step = model(ids[:, 6:8], past_key_values=first.past_key_values).logits
    with torch.no_grad():
        ngrams = model.model.embed_ngrams(ids[:, 6:8], torch.tensor([[0, 1]]))
    expected = plain(inputs_embeds=embeddings[:, 6:8] + ngrams, past_key_values=plain_first.past_key_values).logits
    torch.testing.assert_close(step, expected)


def test_padding_inside_of_a_row_is_no_id():
    model = DECODER_ONLY.model()
    ids, mask = token_ids(1, 8), torch.tensor([[1, 1, 1, 0, 0, 1, 1, 1]])
    changed = ids.clone()
    changed[0, 3:5] = 7
    real = mask[0].bool()
    outputs = [model(row, attention_mask=mask).logits[0, real] for row in (ids, changed)]
    assert torch.equal(*outputs)


def test_prefix_tuning_is_refused():
    from peft import PrefixTuningConfig, get_peft_model

    adapted = get_peft_model(DECODER_ONLY.model(), PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    ids = token_ids(2, 8)
    with pytest.raises(ValueError, match=r"has 2 layers, of \[2, 2\] heads, but this model's cache has 3.*holds ids"):
        adapted(input_ids=ids, attention_mask=torch.ones_like(ids))


def test_a_cache_that_rounds_is_refused():
    model = DECODER_ONLY.model()
    cache = QuantizedCache.__new__(QuantizedCache)  # its packages are optional
    with pytest.raises(ValueError, match=r"QuantizedCache, which would round the ids that `ngram_embedding` \[2, 4\]"):
        previous_ids(token_ids(1, 3), cache, 2, model.config, model.dtype)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"ngram_embedding": [1, 2]}, r"`ngram_embedding` is \[1, 2\]"),
        ({"ngram_embedding": []}, r"`ngram_embedding` is \[\]"),
        ({"ngram_embedding": [3, 3]}, r"`ngram_embedding` is \[3, 3\]"),
        ({"ngram_embedding_size": 0}, "`ngram_embedding_size` is 0"),
        ({"ngram_buckets": 0}, "`ngram_buckets` is 0"),
        ({"ngram_multiplier": 1}, "`ngram_multiplier` is 1"),
    ],
)
def test_bad_fields_are_named(fields, match):
    with pytest.raises(StrictDataclassClassValidationError, match=match):
        DecoderOnlyConfig(**fields)
