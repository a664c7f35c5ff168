"""EncodZall loaded by others: its cards, and sentence-transformers."""

import pytest
import torch
from encodzall_setup import EQUAL, build, encode, tokenizer
from transformers import AutoModel, pipeline

from latentlm import (
    EncodzallForMaskedDenoising,
    EncodzallForMaskedLM,
    EncodzallForSequenceClassification,
    EncodzallForTokenClassification,
)
from latentlm.hub.card import make_card


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    build().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("head", "task"),
    [
        (EncodzallForMaskedDenoising, "feature-extraction"),
        (EncodzallForMaskedLM, "fill-mask"),
        (EncodzallForSequenceClassification, "text-classification"),
        (EncodzallForTokenClassification, "token-classification"),
    ],
)
def test_a_card_is_about_the_class_that_was_saved(head, task, tmp_path):
    build(model_class=head).save_pretrained(tmp_path)
    (tmp_path / "trainer_state.json").write_text('{"log_history": []}')
    card = make_card(tmp_path, "me/mine", [], {})
    auto_class = head.__name__.replace("Encodzall", "AutoModel").replace("MaskedDenoising", "Seq2SeqLM")
    assert f"model = {auto_class}.from_pretrained" in card.text
    assert ("SentenceTransformer(" in card.text) == (head is EncodzallForMaskedDenoising)
    data = card.data.to_dict()
    assert data["pipeline_tag"] == task and "sentence-transformers" in data["tags"] and "language" not in data


@torch.no_grad()
def test_the_pipeline_of_the_card_gives_the_vectors_of_the_words(saved):
    vectors = pipeline("feature-extraction", str(saved), trust_remote_code=True)("A text, and")
    expected = build().model(**encode(["A text, and"])).last_hidden_state
    torch.testing.assert_close(torch.tensor(vectors), expected, **EQUAL)


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
    run_without_latentlm(EMBED, saved, tmp_path / "vectors")
    texts = ["A text, and", "", "   ", "\ud800 alone", "日本 and more words of a text"]
    with torch.no_grad():
        expected = AutoModel.from_pretrained(saved)(**encode(texts))
    found = torch.load(tmp_path / "vectors", weights_only=True)
    for vectors in found["vectors"].values():
        torch.testing.assert_close(vectors, expected.pooler_output, **EQUAL)
    for row, words in found["words"].items():  # of the text's words alone, its end the last
        torch.testing.assert_close(words, expected.last_hidden_state[row, expected.word_mask[row]], **EQUAL)
