"""EncodZall's `text_embeds`: weighted n-grams beside the whitened mean of the words' vectors."""

import re

import numpy as np
import pytest
import torch
from encodzall_setup import EQUAL, build, encode, tokenizer
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoModel

from latentlm import EncodzallConfig, EncodzallForMaskedDenoising, EncodzallModel, EncodzallTokenizer

TEXTS = ["A text, and A Text; a", "", "   ", "\ud800 alone", "日本 and\tmore words of a longwordthatiscutintosomeparts"]
FITTED = [*TEXTS, *(f"Sentence {i} of {i * i} about {'abcdefgh'[i % 8] * 3} things." for i in range(40))]
NGRAMS, PREFIXES, BUCKETS, SHARE = [3, 1, 2], [4, 1], 37, 0.3
FIELDS = {"text_ngrams": NGRAMS, "text_prefixes": PREFIXES, "text_ngram_buckets": BUCKETS, "text_context_share": SHARE}


@pytest.fixture(scope="module")
def model():
    made = build(model_class=EncodzallModel, **FIELDS)
    made.fit_text_embedding(FITTED, smoothing=0.01, batch_size=7)
    return made


def counts_of(text: str) -> np.ndarray:
    """Of a text, one n-gram after the other."""
    counts = np.zeros(BUCKETS)
    data = text.encode("utf-8", "surrogatepass")
    for word in data.lower().split():
        symbols = [0, *(byte + 1 for byte in word), 0]
        ngrams = [symbols[i : i + n] for n in NGRAMS for i in range(len(symbols) - n + 1)]
        ngrams += [symbols[: n + 1] for n in PREFIXES if len(word) >= n]
        for ngram in ngrams:
            if ngram != [0]:
                value = len(ngram)
                for symbol in ngram:
                    value = (value * 1_000_003 + symbol) % (2**31 - 1)
                counts[value % BUCKETS] += 1
    return counts


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def test_embeddings_and_their_fit_are_what_a_slow_count_gives(model):
    with torch.no_grad():
        means = np.stack([model(**encode([text])).pooler_output[0].double().numpy() for text in FITTED])
        found = model(**encode(FITTED)).text_embeds
    total = np.sum([counts_of(text) for text in FITTED], axis=0)
    weights = 0.01 / (0.01 + total / total.sum())
    mean = means.mean(0)
    variances, directions = np.linalg.eigh(np.cov((means - mean).T))
    scales = (variances.clip(min=0) + 0.01 * variances.mean()) ** -0.5
    context = unit((means - mean) @ directions @ np.diag(scales) @ directions.T)
    ngrams = unit(np.stack([np.sqrt(counts_of(text)) for text in FITTED]) * weights)
    expected = np.concatenate([SHARE**0.5 * context, (1 - SHARE) ** 0.5 * ngrams], 1)
    assert found.shape[1] == model.config.projection_dim
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


@torch.no_grad()
def test_neighbours_and_padding_change_nothing(model):
    together = model(**encode(TEXTS)).text_embeds
    left = EncodzallTokenizer(padding_side="left")(TEXTS, padding=True, return_tensors="pt")
    filled = left["input_ids"].masked_fill(left["attention_mask"] == 0, ord("a"))  # whatever the padding ids are
    for others in (model(**left).text_embeds, model(filled, left["attention_mask"]).text_embeds):
        torch.testing.assert_close(others, together, **EQUAL)
    for row, text in enumerate(TEXTS):
        torch.testing.assert_close(model(**encode([text])).text_embeds[0], together[row], **EQUAL)


EMBED = """
import sys, torch
from sentence_transformers import SentenceTransformer
texts = ["A text, and A Text; a", "", "   ", "\\ud800 alone"]
model = SentenceTransformer(sys.argv[1], trust_remote_code=True)
model.save_pretrained("again")
again = SentenceTransformer("again", trust_remote_code=True)
vectors = {size: torch.from_numpy(model.encode(texts, batch_size=size)) for size in (1, 4)}
vectors["again"] = torch.from_numpy(again.encode(texts))
torch.save({"vectors": vectors, "size": model.get_embedding_dimension()}, sys.argv[2])
"""


@torch.no_grad()
def test_a_checkpoint_carries_the_fit_also_to_sentence_transformers(model, run_without_latentlm, tmp_path):
    full = EncodzallForMaskedDenoising(model.config).eval()
    full.model.load_state_dict(model.state_dict())
    full.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    expected = model(**encode(TEXTS)).text_embeds
    torch.testing.assert_close(AutoModel.from_pretrained(tmp_path / "model")(**encode(TEXTS)).text_embeds, expected)
    pytest.importorskip("sentence_transformers")
    run_without_latentlm(EMBED, tmp_path / "model", tmp_path / "vectors")
    found = torch.load(tmp_path / "vectors", weights_only=True)
    assert found["size"] == expected.shape[1]
    for vectors in found["vectors"].values():
        torch.testing.assert_close(vectors, expected[:4], **EQUAL)


@torch.no_grad()
def test_an_older_checkpoint_starts_unfitted(tmp_path):
    old = build(model_class=EncodzallModel)
    assert old(**encode(TEXTS)).text_embeds is None
    old.save_pretrained(tmp_path)
    new = EncodzallModel.from_pretrained(tmp_path, **FIELDS)
    assert new.text_embedding is not None
    buffers = dict(new.text_embedding.named_buffers())
    assert (buffers["weights"] == 1).all() and not buffers["mean"].any()
    assert torch.equal(buffers["whitening"], torch.eye(old.config.hidden_size))
    torch.testing.assert_close(new(**encode(TEXTS)).pooler_output, old(**encode(TEXTS)).pooler_output)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text_ngrams", []),
        ("text_ngrams", [0, 2]),
        ("text_ngrams", [2, 2]),
        ("text_prefixes", [3]),
        ("text_ngram_buckets", 0),
        ("text_context_share", 1.5),
        ("text_context_share", -0.1),
    ],
)
def test_bad_fields_are_named(field, value):
    with pytest.raises(StrictDataclassClassValidationError, match=rf"`{field}` is {re.escape(str(value))}"):
        EncodzallConfig(**{field: value})


def test_bad_calls_say_what_is_missing(model):
    with pytest.raises(ValueError, match="`text_ngrams` is None, so there is nothing to fit"):
        build(model_class=EncodzallModel).fit_text_embedding(FITTED)
    with pytest.raises(ValueError, match="`texts` are 1, of which 1 differ, but a covariance needs at least two"):
        model.fit_text_embedding(["one"])
    with pytest.raises(ValueError, match="`texts` are 3, of which 1 differ, but a covariance"):
        model.fit_text_embedding(["one"] * 3)
    for training in (True, False):
        with pytest.raises(ValueError, match="max_position_embeddings"):
            model.train(training).fit_text_embedding(["one", "a " * 999])
        assert model.training == training
    with pytest.raises(ValueError, match="`smoothing` is 0, but it must be above 0"):
        model.fit_text_embedding(FITTED, smoothing=0)
