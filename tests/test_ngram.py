"""Counts of n-grams: against a slow implementation, as probabilities, across documents; the choice of an order."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from latentlm.data import DataConfig, prepare_data
from latentlm.evaluation.ngram import NGram, choose_order, documents, longest_order, score_ngram

V = 11


def text(size, seed=0, length=50):
    """Ids that repeat themselves, and how many of their document stand before each."""
    rng = np.random.default_rng(seed)
    pieces = [rng.integers(0, V - 2, rng.integers(1, 6)) for _ in range(8)]
    ids = np.concatenate([pieces[i] for i in rng.integers(0, 8, size)])[:size]
    return ids, np.arange(size) % length


def count_slowly(ids, history, order):
    """How often each token follows each context, with dictionaries."""
    counts = defaultdict(Counter)
    for place, token in enumerate(ids.tolist()):
        for size in range(min(order - 1, history[place]) + 1):
            counts[tuple(ids[place - size : place].tolist())][token] += 1
    return counts


def probability_slowly(counts, context, token, order):
    """The formula, from the shortest context to the longest."""
    result = 1 / V
    for size in range(min(order - 1, len(context)) + 1):
        followers = counts.get(tuple(context[len(context) - size :]))
        if followers:
            kinds = len(followers)
            result = (followers[token] + kinds * result) / (followers.total() + kinds)
    return result


@pytest.mark.parametrize("order", [1, 2, 4, 7])
def test_it_is_the_slow_implementation(order):
    ids, history = text(400)
    counts = count_slowly(ids, history, order)
    model = NGram(V, order).fit(ids, history)
    assert model.num_counts == sum(map(len, counts.values()))
    held_out, before = text(150, seed=0, length=31)
    held_out[60:] = np.random.default_rng(1).integers(0, V, 90)  # mostly unseen
    expected = [
        probability_slowly(counts, held_out[i - before[i] : i].tolist(), int(held_out[i]), order) for i in range(150)
    ]
    np.testing.assert_allclose(model.probabilities(held_out, before), expected, rtol=1e-12)
    for shorter, result in enumerate(model.by_order(held_out, before), 1):
        np.testing.assert_array_equal(result, NGram(V, shorter).fit(ids, history).probabilities(held_out, before))


@pytest.mark.parametrize("order", [1, 3, 7])
def test_probabilities_sum_to_one(order):
    ids, history = text(500)
    model = NGram(V, order).fit(ids, history)
    for context in ([], [3], ids[:5], ids[100:120], [V - 1] * 6):
        distribution = model.distribution(np.array(context, dtype=np.int64))
        assert distribution.shape == (V,) and distribution.min() > 0
        assert distribution.sum() == pytest.approx(1, abs=1e-12)
    nothing = NGram(V, order).fit(ids[:0], history[:0])
    np.testing.assert_allclose(nothing.distribution(ids[:5]), 1 / V)


def test_every_bit_of_a_number_may_be_needed():
    """255 tokens: eight of them fill 64 bits, and the highest is all ones."""
    ids = np.array([254] * 9 + [0, 254] * 3)
    model = NGram(255, 7).fit(ids, np.arange(len(ids)))
    assert model.distribution(ids[:8]).argmax() == 254
    assert model.distribution(np.array([254] * 7)).sum() == pytest.approx(1, abs=1e-12)


def test_the_formula_and_no_document_sees_another():
    ids = np.array([0, 1, 0, 1, 0, 2])
    model = NGram(3, 2).fit(ids, np.array([0, 1, 2, 3, 0, 1]))  # the documents 0101 and 02
    unigram = (np.array([3, 2, 1]) + 3 * np.full(3, 1 / 3)) / (6 + 3)
    np.testing.assert_allclose(model.distribution(np.array([], dtype=np.int64)), unigram)
    np.testing.assert_allclose(model.distribution(np.array([0])), (np.array([0, 2, 1]) + 2 * unigram) / (3 + 2))
    np.testing.assert_allclose(model.distribution(np.array([1])), (np.array([1, 0, 0]) + 1 * unigram) / (1 + 1))
    assert model.probabilities(ids, np.array([0, 1, 2, 3, 0, 1]))[4] == pytest.approx(unigram[0])


def test_the_order_is_the_one_that_is_best_for_the_end():
    ids, history = text(600)
    tail = 60
    nats = []
    for order in range(1, 8):
        model = NGram(V, order).fit(ids[:-tail], history[:-tail])
        end = np.minimum(history[-tail:], np.arange(tail))
        nats.append(-np.log(model.probabilities(ids[-tail:], end))[end > 0].sum())
    assert choose_order(V, ids, history) == int(np.argmin(nats)) + 1 > 1
    noise = np.random.default_rng(0).integers(0, V, 600)
    assert choose_order(V, noise, history) == 1


@pytest.mark.parametrize("options", [{"tokenizer": "bytes"}, {"tokenizer": "bpe", "tokenizer_vocab_size": 300}])
def test_a_corpus_is_scored_in_whole_documents(tmp_path, options):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(f'{{"text": "the text of the document {i % 7} and {i} é"}}\n' for i in range(60)))
    data = prepare_data(
        DataConfig(
            dataset=str(path), validation_fraction=0.2, context_length=16, cache_dir=str(tmp_path / "cache"), **options
        )
    )
    ids, history = documents(data.train)
    begins = np.flatnonzero(history == 0)
    assert data.tokenizer.bos_token_id is not None and (ids[begins] == data.tokenizer.bos_token_id).all()
    score = score_ngram(data)
    model = NGram(len(data.tokenizer), score.order).fit(ids, history)
    held_out, before = documents(data.validation)
    nats = -np.log(model.probabilities(held_out, before))[before > 0]
    assert score.num_counts == model.num_counts
    assert score.bits_per_byte == pytest.approx(nats.sum() / np.log(2) / data.info["validation"]["bytes"])
    assert score.nats_per_token == pytest.approx(nats.mean()) and score.bits_per_byte < 4


def test_what_cannot_be_counted(tmp_path):
    assert [longest_order(size) for size in (11, 256, 259, 8192, 50257)] == [7, 7, 7, 4, 4]
    for order in (0, 8):
        with pytest.raises(ValueError, match=f"order is {order}, but must lie in 1 to 7 with 259 tokens"):
            NGram(259, order)
    stream = DataConfig(streaming=True, max_validation_rows=2, cache_dir=str(tmp_path), context_length=16)
    with pytest.raises(ValueError, match="streaming: n-grams are counted of text that is there as a whole"):
        score_ngram(prepare_data(stream))
