"""Tagging words with EncodZall as with a BERT: words in, words out, with the tools of transformers."""

import json
import math

import encodzall_setup
import pytest
import torch
from encodzall_setup import EQUAL, tokenizer
from torch import nn
from transformers import (
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    pipeline,
)
from transformers.pipelines.base import PipelineException

from latentlm import (
    EncodzallForMaskedDenoising,
    EncodzallForMaskedLM,
    EncodzallForTokenClassification,
    EncodzallTokenizer,
)
from latentlm.models.encodzall_pipelines import WordTaggingPipeline

LABELS = ["O", "B-PER", "I-PER", "B-LOC"]
WORDS = ["Guido", "van", "Rossum", "visits", "Köln", "日本"]
TAGS = ["B-PER", "I-PER", "I-PER", "O", "B-LOC", "B-LOC"]
TEXT = " ".join(WORDS)
ENTITIES = [("PER", "Guido van Rossum"), ("LOC", "Köln"), ("LOC", "日本")]


class Tags(nn.Module):
    """A head that gives the words of `WORDS`, in their order, the labels of `TAGS`."""

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        wanted = torch.tensor([LABELS.index(tag) for tag in [*TAGS, "O"]])  # the last word is the end of the text
        return 9.0 * nn.functional.one_hot(wanted, len(LABELS)).float().expand(len(words), -1, -1)


@pytest.fixture
def tagger() -> EncodzallForTokenClassification:
    names = dict(enumerate(LABELS))
    model = encodzall_setup.build(
        model_class=EncodzallForTokenClassification, id2label=names, label2id={name: i for i, name in names.items()}
    )
    model.classifier = Tags()
    return model


@pytest.mark.parametrize("strategy", ["first", "max", "average"])
@pytest.mark.parametrize("space", [" ", "  ", "\n", " \t"])
def test_the_pipeline_shows_whole_words_with_offsets(tagger, strategy, space):
    kinds = {"tokenizer": tokenizer, "pipeline_class": WordTaggingPipeline}
    tag = pipeline("token-classification", tagger, aggregation_strategy=strategy, **kinds)
    text = space.join(WORDS)
    [given] = tag(WORDS, is_split_into_words=True)
    for found, whole, between in ((tag(text), text, space), (given, TEXT, " ")):
        shown = [(part["entity_group"], whole[part["start"] : part["end"]]) for part in found]
        assert shown == [(label, words.replace(" ", between)) for label, words in ENTITIES]
        assert all(part["score"] > 0.99 for part in found)
    assert [part["word"] for part in tag("Guido van Rossum visits Köln 日本")][1:] == ["Köln", "日本"]


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_the_stock_pipeline_is_right_for_words_in_ascii_between_spaces(tagger):
    """As far as it goes: docs/limits.md."""
    tag = pipeline("token-classification", tagger, tokenizer=tokenizer, aggregation_strategy="first")
    text = "Guido van Rossum visits Koln Rome"
    shown = [(part["entity_group"], text[part["start"] : part["end"]]) for part in tag(text)]
    assert shown == [("PER", "Guido van Rossum"), ("LOC", "Koln"), ("LOC", "Rome")]


def test_masked_words_are_filled_by_a_pipeline(tmp_path):
    model = encodzall_setup.build()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    [[words]] = model.fill_mask(["the c<vowel>t  sat"], tokenizer, top_k=3)
    fill = pipeline("fill-mask", str(tmp_path), trust_remote_code=True)
    expected = [
        {
            "score": pytest.approx(math.exp(score), rel=1e-4),
            "token": [*word.encode()],
            "token_str": word,
            "sequence": f"the {word}  sat",
        }
        for word, score in words
    ]
    assert fill("the c<vowel>t  sat", top_k=3) == expected
    first, second = fill("a<any> and <mask>", top_k=2)
    assert first[0]["sequence"] == f"{first[0]['token_str']} and <mask>"
    assert second[1]["sequence"] == f"a<any> and {second[1]['token_str']}"
    assert len(fill(["<mask>", "so <mask>"])) == 2
    with pytest.raises(PipelineException, match="no mask in 'nothing'"):
        fill("nothing")
    assert type(fill.model).__name__ == "EncodzallForMaskedLM"
    fill.model.save_pretrained(tmp_path / "again")  # `pipeline` leaves no classes in the configuration


# ---- AutoModelForMaskedLM ----


@pytest.fixture(params=["own", "shared"])
def denoising(request, tmp_path) -> EncodzallForMaskedDenoising:
    model = encodzall_setup.build(word_decoder=request.param)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return model


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_of_masked_characters_are_those_of_the_word_decoder(denoising, tmp_path, side):
    """Byte by byte: each from the vector of its word and the bytes before it."""
    model = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert type(model) is EncodzallForMaskedLM
    texts = ["b<vowel>t <any>x<nonspace>é  and", "no mask", ""]
    inputs = EncodzallTokenizer(padding_side=side)(texts, padding=True, return_tensors="pt")
    logits = model(**inputs).logits
    memory = denoising.model(**inputs).last_hidden_state
    for row, ids in enumerate(inputs["input_ids"]):
        for place in range(len(ids)):
            word = int(inputs["word_ids"][row, place])
            if word < 0:
                assert not logits[row, place].any()
                continue
            beginning = []
            for before in range(place):
                if inputs["word_ids"][row, before] == word:
                    taken = int(ids[before])
                    beginning.append(taken if taken < 256 else int(logits[row, before, :256].argmax()))
            of_word, _, _ = denoising.spell_words(memory[row, word][None], torch.tensor([beginning]).long())
            torch.testing.assert_close(logits[row, place], of_word[-1], **EQUAL)


def test_the_usual_collator_masks_characters_and_the_loss_is_theirs(denoising, tmp_path):
    model = AutoModelForMaskedLM.from_pretrained(tmp_path).train()
    characters = EncodzallTokenizer()
    characters.mask_token = "<any>"
    collate = DataCollatorForLanguageModeling(characters, mlm_probability=0.5)
    texts = ["Some words of a text", "and others"]
    batch = collate([characters(text, return_special_tokens_mask=True) for text in texts])
    assert (batch["input_ids"] == 263).any() and (batch["labels"] >= 0).sum() > 4
    output = model(**batch)
    clean = encodzall_setup.encode(texts)["input_ids"]
    memory = model.model(**{name: batch[name] for name in characters.model_input_names}).last_hidden_state
    losses = []
    for row, place in (batch["labels"] >= 0).nonzero().tolist():
        word = batch["word_ids"][row, place]
        beginning = [
            id_ for id_, of in zip(clean[row, :place], batch["word_ids"][row, :place], strict=True) if of == word
        ]
        logits, _, _ = model.spell_words(memory[row, word][None], torch.tensor([beginning]).long())
        losses.append(nn.functional.cross_entropy(logits[-1], batch["labels"][row, place]))
    torch.testing.assert_close(output.loss, torch.stack(losses).mean(), **EQUAL)
    output.loss.backward()
    assert model.model.embed_tokens.weight.grad[263].any()


@torch.no_grad()
def test_the_stock_pipeline_fills_single_characters_and_refuses_whole_words(tmp_path):
    model = encodzall_setup.build(model_class=EncodzallForMaskedLM)
    characters = EncodzallTokenizer()
    characters.mask_token = "<any>"
    [best, *_] = pipeline("fill-mask", model, tokenizer=characters)("the c<any>t sat", top_k=2)
    place = len("the c")
    wanted = model(**encodzall_setup.encode(["the c<any>t sat"])).logits[0, place].softmax(-1)
    assert best["token"] == int(wanted.argmax()) and best["score"] == pytest.approx(float(wanted.max()), rel=1e-5)
    assert best["sequence"] == tokenizer.decode([*b"the c", best["token"], *b"t sat"])
    with pytest.raises(ValueError, match=r"`<mask>`, which stands for a whole word.*`fill_mask`"):
        pipeline("fill-mask", model, tokenizer=tokenizer)("the <mask> sat")
    with pytest.raises(ValueError, match="`word_decoder` is 'none': this model fills no masks"):
        encodzall_setup.build(model_class=EncodzallForMaskedLM, word_decoder="none")


STRANGER = """
import json, sys
from transformers import pipeline
tag = pipeline("token-classification", sys.argv[1], trust_remote_code=True, aggregation_strategy="first")
print(json.dumps([part["word"] for part in tag("é e\\nè")]))
"""


def test_a_saved_tagger_brings_its_pipeline(tmp_path, run_without_latentlm):
    labels = {0: "B-ONE", 1: "B-OTHER"}  # each word is then shown by itself
    encodzall_setup.build(model_class=EncodzallForTokenClassification, id2label=labels).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert json.loads(run_without_latentlm(STRANGER, tmp_path)) == ["é", "e", "è"]


def test_single_ids_are_shown_with_the_tag_of_their_word(tagger):
    found = pipeline("token-classification", tagger, tokenizer=tokenizer, ignore_labels=[])(TEXT)
    tags = [tag for word, tag in zip(WORDS, TAGS, strict=True) for _ in word.encode()]  # not of the space between
    assert [part["entity"] for part in found] == tags


def test_white_space_is_marked_as_no_word_of_its_own():
    encoded = tokenizer(" a\tb <mask>", return_special_tokens_mask=True)
    assert encoded["special_tokens_mask"] == [1, 0, 1, 0, 1, 0, 1]
    mask = tokenizer.get_special_tokens_mask([256, *b"a b", 258], already_has_special_tokens=True)
    assert mask == [1, 0, 1, 0, 1]


def test_the_usual_recipe_trains_on_the_first_id_of_each_word():
    """Words in, `word_ids()` of the encoding, -100 at all but the first id of each, the stock collator: the loss is the
    mean over the words, and the words are the model's."""
    sentences = [(WORDS, TAGS), (["a", "longwordthatiscut"], ["B-LOC", "O"])]
    rows = []
    for words, tags in sentences:
        encoded = tokenizer(words, is_split_into_words=True)
        previous, labels = None, []
        for word in encoded.word_ids():
            labels.append(-100 if word is None or word == previous else LABELS.index(tags[word]))
            previous = word
        assert sum(label != -100 for label in labels) == len(words)
        rows.append({**encoded, "labels": labels})
    model = encodzall_setup.build(model_class=EncodzallForTokenClassification, num_labels=len(LABELS))
    batch = DataCollatorForTokenClassification(tokenizer)(rows)
    output = model(**batch)
    wanted = torch.tensor([LABELS.index(tag) for _, tags in sentences for tag in tags])
    of_words = torch.cat((output.word_logits[0, :6], output.word_logits[1, :2]))  # "longwordthatiscut" is cut in two
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(of_words, wanted), **EQUAL)


def test_labels_inside_of_a_word_do_not_contend_with_its_first():
    """The course of transformers labels B-PER at the first id of a word, I-PER at the others; here a word has one."""
    encoded = tokenizer(WORDS, is_split_into_words=True)
    of_ids = [None if word is None else LABELS.index(TAGS[word]) for word in encoded.word_ids()]
    previous, labels = None, []
    for word, label in zip(encoded.word_ids(), of_ids, strict=True):
        inside = word == previous and label is not None and LABELS[label] == "B-PER"
        labels.append(-100 if label is None else LABELS.index("I-PER") if inside else label)
        previous = word
    wanted = [-100 if label is None else label for label in of_ids]
    assert labels != wanted
    model = encodzall_setup.build(model_class=EncodzallForTokenClassification, num_labels=len(LABELS))
    for padded in (tokenizer, EncodzallTokenizer(padding_side="left")):
        rows = [
            {**encoded, "labels": labels},
            {**tokenizer(["a"] * 30, is_split_into_words=True), "labels": [-100] * 60},
        ]
        output = model(**DataCollatorForTokenClassification(padded)(rows))
        logits = model(**tokenizer(TEXT, return_tensors="pt")).logits[0]
        torch.testing.assert_close(output.loss, nn.functional.cross_entropy(logits, torch.tensor(wanted)), **EQUAL)
