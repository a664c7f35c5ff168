"""EncodZall loaded by others: without this package, from a Hub, by sentence-transformers."""

import pytest
import torch
from architectures import gradients, loss_terms
from encodzall_setup import EQUAL, build, encode, labels_of, tokenizer
from transformers import AutoModel, AutoModelForSeq2SeqLM

from latentlm import (
    EncodzallForMaskedDenoising,
    EncodzallForSequenceClassification,
    EncodzallForTokenClassification,
)
from latentlm.hub.card import make_card

# ---- Loading ----

STRANGER = """
import sys, torch
from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers import AutoModelForTokenClassification
torch.set_grad_enabled(False)
where = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=True)
inputs = tokenizer(["A text, and", "another"], padding=True, return_tensors="pt")
model = AutoModelForSeq2SeqLM.from_pretrained(where, trust_remote_code=True)
results = {"generated": model.generate(**inputs, max_length=16)}
results["pooled"] = AutoModel.from_pretrained(where, trust_remote_code=True)(**inputs).pooler_output
for auto_class in (AutoModelForSequenceClassification, AutoModelForTokenClassification):
    assert "Encodzall" in type(auto_class.from_pretrained(where, trust_remote_code=True)).__name__
torch.save(results, sys.argv[2])
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    model = build()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    inputs = encode(["A text, and", "another"])
    with torch.no_grad():
        return folder, {
            "generated": model.generate(**inputs, max_length=16),
            "pooled": model.model(**inputs).pooler_output,
        }


def assert_same(path, expected):
    found = torch.load(path, weights_only=True)
    assert torch.equal(found["generated"], expected["generated"])
    assert torch.equal(found["pooled"], expected["pooled"])


def test_a_stranger_loads_from_a_folder(saved, run_without_latentlm, tmp_path):
    folder, expected = saved
    run_without_latentlm(STRANGER, folder, tmp_path / "results")
    assert_same(tmp_path / "results", expected)


def test_a_stranger_loads_from_a_hub(saved, run_without_latentlm, mini_hub, tmp_path):
    folder, expected = saved
    push = "import sys; from huggingface_hub import HfApi; a = HfApi(); a.create_repo('me/encodzall'); "
    push += "a.upload_folder(repo_id='me/encodzall', folder_path=sys.argv[1])"
    run_without_latentlm(push, folder, env=mini_hub.environment)
    run_without_latentlm(STRANGER, "me/encodzall", tmp_path / "results", env=mini_hub.environment)
    assert_same(tmp_path / "results", expected)


def test_the_encoders_of_a_saved_model_load_by_themselves(saved):
    folder, expected = saved
    inputs = encode(["A text, and", "another"])
    with torch.no_grad():
        assert torch.equal(AutoModel.from_pretrained(folder)(**inputs).pooler_output, expected["pooled"])
    assert isinstance(AutoModelForSeq2SeqLM.from_pretrained(folder), EncodzallForMaskedDenoising)


def test_accumulated_micro_batches_are_one_big_batch():
    model = build(contrastive_loss_weight=0.0).train()
    texts = ["one text", "another, longer text of words", "x", "the last one"]
    whole = model(**encode(texts), labels=labels_of(texts))
    count = (labels_of(texts) != -100).sum()
    whole.loss.backward()
    expected = gradients(model)
    parts = {}
    for pair in (texts[:2], texts[2:]):
        output = model(**encode(pair), labels=labels_of(pair), num_items_in_batch=count)
        output.loss.backward()
        for name, value in loss_terms(output).items():
            parts[name] = parts.get(name, 0) + value
    for name, value in loss_terms(whole).items():
        torch.testing.assert_close(parts[name], value)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("head", "pipeline"),
    [
        (EncodzallForMaskedDenoising, "feature-extraction"),
        (EncodzallForSequenceClassification, "text-classification"),
        (EncodzallForTokenClassification, "token-classification"),
    ],
)
def test_a_card_is_about_the_class_that_was_saved(head, pipeline, tmp_path):
    build(model_class=head).save_pretrained(tmp_path)
    (tmp_path / "trainer_state.json").write_text('{"log_history": []}')
    card = make_card(tmp_path, "me/mine", [], {})
    auto_class = head.__name__.replace("Encodzall", "AutoModel").replace("MaskedDenoising", "Seq2SeqLM")
    assert f"model = {auto_class}.from_pretrained" in card.text
    data = card.data.to_dict()
    assert data["pipeline_tag"] == pipeline and "sentence-transformers" in data["tags"] and "language" not in data


EMBED = """
import sys, torch
from sentence_transformers import SentenceTransformer
texts = ["A text, and", "", "   ", "\\ud800 alone", "日本 and more words of a text"]
model = SentenceTransformer(sys.argv[1], trust_remote_code=True)
vectors = {size: torch.from_numpy(model.encode(texts, batch_size=size)) for size in (1, 2, 5)}
model.save_pretrained("again")
again = SentenceTransformer("again", trust_remote_code=True)
vectors["again"] = torch.from_numpy(again.encode(texts))
words = {i: words for i, words in enumerate(model.encode(texts, output_value="token_embeddings", batch_size=2))}
torch.save({"vectors": vectors, "words": words}, sys.argv[2])
"""


def test_sentence_transformers_gives_the_same_vectors(saved, run_without_latentlm, tmp_path):
    pytest.importorskip("sentence_transformers")
    folder, _ = saved
    run_without_latentlm(EMBED, folder, tmp_path / "vectors")
    texts = ["A text, and", "", "   ", "\ud800 alone", "日本 and more words of a text"]
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folder)(**encode(texts))
    found = torch.load(tmp_path / "vectors", weights_only=True)
    for vectors in found["vectors"].values():
        torch.testing.assert_close(vectors, expected.pooler_output, **EQUAL)
    for row, words in found["words"].items():  # of the text's words alone, its end the last
        torch.testing.assert_close(words, expected.last_hidden_state[row, expected.word_mask[row]], **EQUAL)
