"""EncodZall loaded by others: its cards, and sentence-transformers."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from encodzall_setup import EQUAL, build, encode, tokenizer
from huggingface_hub import ModelCard
from transformers import AutoModel, modeling_utils, pipeline
from transformers.utils import PushToHubMixin

from latentlm import (
    EncodzallForMaskedDenoising,
    EncodzallForMaskedLM,
    EncodzallForSequenceClassification,
    EncodzallForTokenClassification,
)
from latentlm.hub.card import make_card
from latentlm.models.encodzall_base import sentence_transformers_files


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


def test_what_is_pushed_while_saving_has_the_files_of_sentence_transformers(monkeypatch, tmp_path):
    uploaded = []

    def upload(self, folder, repo_id, timestamps, **kwargs):  # transformers uploads what is newer than the call
        uploaded.extend(path.name for path in Path(folder).iterdir() if path.name not in timestamps)

    monkeypatch.setattr(PushToHubMixin, "_upload_modified_files", upload)
    repository = SimpleNamespace(repo_id="me/mine")
    monkeypatch.setattr(modeling_utils, "hf_api", lambda: SimpleNamespace(create_repo=lambda *_, **__: repository))
    monkeypatch.setattr(modeling_utils, "create_and_tag_model_card", lambda *_, **__: ModelCard("---\n---\n"))
    build().save_pretrained(tmp_path, push_to_hub=True, repo_id="me/mine")
    assert {*sentence_transformers_files(build().config), "config.json", "model.safetensors"} <= {*uploaded}


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
