"""EncodZall's repairs: a gate that keeps words to the byte, spellings by the noisy channel, noise aligned with its
words."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from encodzall_setup import TEXTS, build, encode, labels_of, tokenizer
from huggingface_hub.errors import StrictDataclassClassValidationError
from test_encodzall_training import make_trainer
from torch import nn

from latentlm.models import encodzall_repair
from latentlm.models.encodzall_dictionary import count_edits, pack_words, read_words
from latentlm.models.encodzall_words import EOS, find_words
from latentlm.training.noise import NoiseTables, corrupt_texts, default_tables, draw_noise
from latentlm.training.randomness import row_keys

ODD = [
    *TEXTS,
    "\ud800 alone",
    "a\tb\r\n\n c\u3000d",
    "<mask> and <eos>",
    "\0\x7f",
    "e\u0301 👩‍👩‍👧 " + "x" * 40,
    " \n ",
    "\u3000",
]


def gated(bias: float = 40.0, **fields):
    """A model whose gate is open where `bias` is large."""
    model = build(**{"gate_loss_weight": 1.0, "edit_cost": 0.5, **fields})
    with torch.no_grad():
        model.gate.weight.mul_(0.1)
        model.gate.bias.fill_(bias)
    return model


# ---- Repairs ----


def test_an_infinite_threshold_copies_to_the_byte():
    generator = np.random.default_rng(0)
    letters = [*"ab \n\t.", "é", "日", "👩", "\ud83d", "\0"]
    texts = ODD + ["".join(generator.choice(letters, 30)) for _ in range(30)]
    assert gated().denoise(texts, threshold=math.inf) == texts
    assert gated(bias=-40.0).denoise(texts) == texts
    assert gated().denoise(["", "  ", "\n"]) == ["", "  ", "\n"]


@pytest.mark.parametrize("fields", [{}, {"word_decoder": "shared", "ngram_embedding": [2, 3]}])
def test_words_that_are_not_repaired_are_copied_and_no_neighbour_changes_anything(fields):
    model = gated(**fields)
    together = model.find_repairs(ODD, num_beams=2)
    scores = [repair.score for repairs in together for repair in repairs]
    threshold = sorted(scores)[len(scores) // 2]
    repaired = model.denoise(ODD, threshold=threshold, num_beams=2)
    changed = 0
    for text, repairs, found in zip(ODD, together, repaired, strict=True):
        data, alone = text.encode("utf-8", "surrogatepass"), model.find_repairs([text], num_beams=2)[0]
        assert [(r.start, r.end, r.new) for r in alone] == [(r.start, r.end, r.new) for r in repairs]
        assert [r.score for r in alone] == pytest.approx([r.score for r in repairs], abs=1e-3)
        words = find_words(torch.tensor([[*data, EOS]]), 16)[0]
        starts = [0, *(torch.diff(words).nonzero()[:, 0] + 1).tolist()]
        pieces = []
        for start, end in pairwise(starts):
            [new] = [r.new for r in repairs if r.start == start and r.score > threshold] or [data[start:end]]
            assert all(r.end == end and r.new != data[start:end] for r in repairs if r.start == start)
            pieces.append(new)
            changed += new != data[start:end]
        assert b"".join(pieces) == found.encode("utf-8", "surrogatepass")
    assert changed == sum(score > threshold for score in scores) > 3


def test_scores_are_those_of_the_noisy_channel():
    model = gated()
    text = "some words here to be read"
    repairs = model.find_repairs([text], num_beams=3)[0]
    assert repairs
    with torch.no_grad():
        encoded = model.model(**encode([text]))
        odds = model.gate(encoded.last_hidden_state)[0, :, 0]
    for repair in repairs:
        word = encoded.word_positions[0].tolist().index(repair.start)
        spelled = torch.tensor([[*repair.new]]).long().reshape(1, -1)
        log_p = model.word_log_probabilities(encoded.last_hidden_state[0, word : word + 1], spelled)
        edits = count_edits(text[repair.start : repair.end], repair.new.decode())
        assert repair.score == pytest.approx((odds[word] + log_p[0]).item() - 0.5 * edits, abs=1e-3)


def test_a_higher_threshold_finds_the_same_or_nothing():
    model = gated()
    low = model.find_repairs(TEXTS, 0.0)
    threshold = sorted(repair.score for repairs in low for repair in repairs)[3]
    high = model.find_repairs(TEXTS, threshold)
    assert [[r.new for r in repairs] for repairs in high] == [
        [r.new for r in repairs if r.score > threshold] for repairs in low
    ]
    model.config.denoise_threshold = threshold
    assert model.denoise(TEXTS) == model.denoise(TEXTS, threshold=threshold) != model.denoise(TEXTS, threshold=0)


def test_the_default_device_changes_no_repair():
    model, texts = with_dictionary(), ["some wrds here", "and othres"]
    repairs = model.find_repairs(texts)
    with torch.device("meta"):
        assert model.find_repairs(texts) == repairs
    assert any(repairs)


def test_offloaded_weights_make_the_same_repairs(tmp_path):
    model, texts = with_dictionary(), ["some wrds here", "and othres"]
    model.save_pretrained(tmp_path / "model")
    offloaded = type(model).from_pretrained(
        tmp_path / "model", device_map={"": "disk"}, offload_folder=str(tmp_path / "offloaded")
    )
    assert offloaded.device.type == "meta"
    assert offloaded.find_repairs(texts) == model.find_repairs(texts)


def test_edits_are_counted_as_they_are_made():
    for one, other, edits in (
        ("", "abc", 3),
        ("teh", "the", 1),
        ("kitten", "sitting", 3),
        ("ca", "abc", 3),
        ("a", "a", 0),
    ):
        assert count_edits(one, other) == count_edits(other, one) == edits


def test_repairs_refuse_what_makes_no_sense():
    for threshold in (-0.1, math.nan):
        with pytest.raises(ValueError, match=r"`threshold` is .*, but it must be at least 0"):
            gated().denoise(["a"], threshold=threshold)
    with pytest.raises(ValueError, match="`edit_cost` None, but repairs need a gate and the noisy channel"):
        gated(edit_cost=None).denoise(["a"])
    with pytest.raises(ValueError, match="`num_beams` is 0, but it must be at least 1"):
        gated().find_repairs(["a"], num_beams=0)
    with pytest.raises(ValueError, match="this model has no gate"):
        build().denoise(["a"], tokenizer, threshold=1.0)
    with pytest.raises(ValueError, match=r"max_position_embeddings"):
        gated().denoise(["a " * 100])
    with pytest.raises(StrictDataclassClassValidationError, match=r"`gate_loss_weight` is 1.0, but `word_decoder`"):
        gated(word_decoder="none")
    with pytest.raises(StrictDataclassClassValidationError, match=r"`denoise_threshold` is -1.0"):
        gated(denoise_threshold=-1.0)


# ---- The dictionary ----

WORDS = ["are", "bad", "bride", "bridge", "bridges", "her", "here", "read", "some", "there", "where", "words", "würde"]


def with_dictionary(bias: float = 20.0, odds: float = 20.0, **fields):
    model = gated(bias, **fields)
    model.set_dictionary(WORDS, odds)
    return model


def test_a_dictionary_packs_knows_and_finds_its_words():
    generator = np.random.default_rng(0)
    many = {"".join(generator.choice([*"abcé"], generator.integers(1, 7))) for _ in range(300)} | {"a" * 40, "a" * 60}
    words = read_words(pack_words(many))
    assert words.words == sorted(many)
    for word in [*sorted(many)[::20], "abcd", "zzz"]:
        for most in (1, 2):
            assert words.near(word, most) == [other for other in sorted(many) if count_edits(word, other) <= most]
    words = read_words(pack_words(WORDS))
    for known in ("Some words", "HERE,", "x2-of 12", "", "würde\n", "bridge's"):
        assert words.knows(known)
    for unknown in ("Somme", "words whrds", "wurde"):
        assert not words.knows(unknown)
    assert words.respell("(Brigde), ") == ["(Bride), ", "(Bridge), ", "(Bridges), "]
    assert words.respell("WRDS") == ["WORDS"]
    assert words.respell("brigde wrods") == words.respell("12") == words.respell("hxxe") == []


def test_the_words_of_a_dictionary_are_scored_as_if_each_was_tried_alone(monkeypatch):
    odds, text = 60.0, "som Brigde to BAAD, whers I read\n"
    model = with_dictionary(odds=odds * math.sqrt(7))  # its words
    with torch.no_grad():
        encoded = model.model(**encode([text]))
        gate = model.gate(encoded.last_hidden_state)[0, :, 0]
    starts = encoded.word_positions[0].tolist()

    def log_p(word: int, new: str) -> float:
        vector = encoded.last_hidden_state[0, word : word + 1]
        return model.word_log_probabilities(vector, torch.tensor([[*new.encode()]]).long().reshape(1, -1)).item()

    for repair in model.find_repairs([text])[0]:  # with those of the beam search
        word, old, new = starts.index(repair.start), text[repair.start : repair.end], repair.new.decode()
        known = read_words(pack_words(WORDS))
        score = gate[word].item() + odds * (known.knows(new) - known.knows(old)) - 0.5 * count_edits(old, new)
        assert repair.score == pytest.approx(score + log_p(word, new), abs=1e-3)
    expected, costs = [], []

    def search_nothing(words, odds, best, score, cost, *others):
        costs.extend(cost(words.index(b"som "), new) for new in ("somme ", "some ", "so "))
        return best

    monkeypatch.setattr(encodzall_repair, "search_repairs", search_nothing)
    for old, letters, case in (
        ("som ", "som", str),
        ("Brigde ", "Brigde", str.capitalize),
        ("BAAD, ", "BAAD", str.upper),
    ):
        word = starts.index(text.index(old))
        near = [new for new in WORDS if count_edits(letters.lower(), new) <= 1 + (len(letters) >= 5)]
        spelled = [old.replace(letters, case(new)) for new in near]
        scores = [gate[word].item() + odds + log_p(word, new) - 0.5 * count_edits(old, new) for new in spelled]
        best = max(range(len(near)), key=scores.__getitem__)
        expected.append((text.index(old), spelled[best].encode(), pytest.approx(scores[best], abs=1e-3)))
    found = [(repair.start, repair.new, repair.score) for repair in model.find_repairs([text])[0]]
    assert costs == pytest.approx([1.0 + odds, 0.5, 0.5])  # what is not known costs as much as it would gain
    assert found[:3] == expected and [start for start, _, _ in found[3:]] == [text.index("whers")]


def test_without_odds_a_dictionary_changes_nothing_and_it_never_touches_what_it_knows():
    texts = [*ODD, "Some words here, bridges", "brigde"]
    assert with_dictionary(odds=0.0).find_repairs(texts) == gated(20.0).find_repairs(texts)
    assert with_dictionary().denoise(texts, threshold=math.inf) == texts
    model = with_dictionary(bias=-5.0, odds=60.0)  # closed, but for unknown words
    kept = ["Some words here, BRIDGES", "a 12 x.", "", "  ", "read\nwhere "]
    assert model.denoise(kept, threshold=0.0) == kept
    low = model.find_repairs(texts)
    scores = sorted(repair.score for repairs in low for repair in repairs)
    threshold = scores[len(scores) // 2]
    assert [[r.new for r in repairs] for repairs in model.find_repairs(texts, threshold + 1e-3)] == [
        [r.new for r in repairs if r.score > threshold + 1e-3] for repairs in low
    ]
    assert scores[0] < threshold < scores[-1]
    long = "internationalisation of some"  # cut into parts, which are no words
    assert not any(repair.start < long.index("of") for repair in model.find_repairs([long])[0])


def test_a_dictionary_travels_with_the_checkpoint_and_refuses_other_words(tmp_path):
    model = with_dictionary()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert again.dictionary.read().words == WORDS and again.config.unknown_word_odds == 20.0
    texts = ["brigde and wrods"]
    assert type(model).from_pretrained(tmp_path).find_repairs(texts) == model.find_repairs(texts)
    for words, message in ((["Big"], "`words` have 'Big'"), (["a b"], "letters alone"), ([], "`words` are none")):
        with pytest.raises(ValueError, match=message):
            model.set_dictionary(words, 1.0)
    for odds in (-1.0, math.nan):
        with pytest.raises(ValueError, match=r"`unknown_word_odds` is .*, but it must be at least 0"):
            model.set_dictionary(["a"], odds)
    with pytest.raises(StrictDataclassClassValidationError, match=r"`unknown_word_odds` is -1.0"):
        gated(unknown_word_odds=-1.0)
    with pytest.raises(ValueError, match="`dictionary_bytes` has no words"):
        gated(dictionary_bytes=8).denoise(["a"])


REPAIR = """
import sys
from transformers import AutoModelForSeq2SeqLM
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], trust_remote_code=True)
print(ascii(model.denoise(["some words here", "", " a  text\\n"])))
"""


def test_repairs_need_no_package(run_without_latentlm, tmp_path):
    model = gated()
    model.save_pretrained(tmp_path)
    expected = model.denoise(["some words here", "", " a  text\n"])
    assert run_without_latentlm(REPAIR, tmp_path).strip() == ascii(expected) and expected[0] != "some words here"


# ---- The loss ----


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_loss_is_that_of_each_word_and_of_the_spelling_of_changed_ones(weight):
    model = gated(0.0, sequence_loss_weight=weight, word_loss_weight=0.7, word_loss_gamma=0.0, gate_loss_weight=0.3)
    clean, noisy = ["one more word here", "and two"], ["one mroe word  hre", "and two"]
    inputs, labels = encode(noisy), labels_of(clean)
    found = model.train()(**inputs, labels=labels)
    encoded = model.model(**inputs)
    odds, symbols = model.gate(encoded.last_hidden_state)[..., 0], (labels != -100).sum()
    changed = torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0], [0.0] * 5])  # the fifth word is the end
    each = nn.functional.binary_cross_entropy_with_logits(odds, changed, reduction="none")
    gate_loss = (each[0].sum() + each[1, :3].sum()) / symbols
    torch.testing.assert_close(found.gate_loss, gate_loss)
    words = encoded.last_hidden_state[0, 1:4]
    spelled = torch.tensor([[*b"more "], [*b"word "], [*b"here", -1]])
    logits, targets, word = model.spell_words(words, spelled)
    share = torch.tensor([5 / 6, 5 / 6, 4 / 5])[word]
    word_loss = (nn.functional.cross_entropy(logits, targets, reduction="none") * share).sum() / symbols
    torch.testing.assert_close(found.word_loss, word_loss)
    total = 0.3 * gate_loss + 0.7 * word_loss
    assert (found.logits is None) == (found.sequence_loss is None) == (weight == 0)
    torch.testing.assert_close(found.loss, total + (weight * found.sequence_loss if weight else 0))
    found.gate_loss.backward()
    assert all(model.gate.weight.grad.flatten()) and model.model.embed_tokens.weight.grad.abs().sum() > 0
    assert all(p.requires_grad == (weight > 0) for p in model.decoder.parameters())
    evaluated = model.eval()(**inputs, labels=labels).loss
    torch.testing.assert_close(evaluated, found.sequence_loss if weight else total)


def test_a_text_without_changes_has_no_word_to_spell():
    found = gated()(**encode(), labels=labels_of())
    assert found.word_loss == 0 and found.gate_loss > 0 and len(found.word_logits) == 0


# ---- Noise, and the words that it makes ----


def test_clean_bytes_belong_to_the_word_that_they_became():
    tables = NoiseTables(**{**vars_of(default_tables()), "words": {"alot": {"a lot": 1.0}, "words": {"wrods": 3.0}}})
    texts = ["of the alot of Words , a bc in longwordslikethisonehere", "a", "", "Words " * 9, "to be", "or not"]
    ids = encode(texts)["input_ids"]
    real = ids != tokenizer.pad_token_id
    for step in range(40):
        keys = row_keys((row[mask].numpy() for row, mask in zip(ids, real, strict=True)), 0, step)
        found = corrupt_texts(ids, real, 1.0, keys, 16, tables=tables, aligned=True)
        assert found.target_word_ids is not None
        for row, text in enumerate(texts):
            targets, length = found.target_word_ids[row], len(text) + 1
            words, sent = found.word_ids[row], found.input_ids[row]
            assert (targets[length:] == -1).all() and targets[length - 1] == words.max()
            edits = draw_noise(text, 1.0, int(keys[row]), tables=tables)
            edited = {place for start, end, _ in edits for place in range(start, end)}
            size = len(text) + sum(len(new.encode()) - (end - start) for start, end, new in edits)
            assert not 0 < size < ids.shape[1] or (targets[: length - 1] >= 0).all()  # not cut: all have a word
            aligned = targets[: length - 1][targets[: length - 1] >= 0]
            assert (aligned.diff() >= 0).all() and (len(sent[words >= 0]) == 1 or (aligned < words.max()).all())
            for word in range(int(words.max())):
                places = (targets[: length - 1] == word).nonzero()[:, 0].tolist()
                if places and not edited & {*places, places[0] - 1, places[-1] + 1}:
                    assert ids[row][places].tolist() == sent[words == word].tolist()
        clean = corrupt_texts(ids, real, 0.0, keys, 16, tables=tables, aligned=True)
        assert clean.target_word_ids is not None and torch.equal(clean.target_word_ids, clean.word_ids)


def vars_of(tables: NoiseTables) -> dict:
    return {"ocr": tables.ocr, "keyboard": tables.keyboard, "misspelling": tables.misspelling}


def test_whole_words_become_what_the_tables_say():
    tables = NoiseTables(**{**vars_of(default_tables()), "words": {"their": {"thier": 1.0, "there": 1.0}}})
    text = "Their words and theirs, their " * 200
    edits = draw_noise(text, 1.0, 3, {"ocr": 0.0, "case": 1.0}, tables)
    whole = [(text[start:end], new) for start, end, new in edits if end - start > 1]
    assert {*whole} == {("Their", "Thier"), ("Their", "There"), ("their", "thier"), ("their", "there")}
    assert len(whole) > 300  # of 400; the others' first letter changed before
    for words in ({"a b": {"c": 1.0}}, {"A": {"b": 1.0}}, {"a": {}}, {"a": {"b": 0.0}}):
        with pytest.raises(ValueError, match="words: the entry"):
            NoiseTables(**{**vars_of(default_tables()), "words": words})


def test_a_run_trains_and_evaluates_the_gate(tmp_path):
    model = gated(0.0, sequence_loss_weight=0.0)
    trainer = make_trainer(
        tmp_path,
        model,
        ["some words here and there", "more of them"] * 4,
        noise="realistic",
        sample_prompts=1,
        sample_new_tokens=16,
        max_steps=3,
        report_to="none",
    )
    trainer.train()
    found = trainer.evaluate()
    assert all(
        "gate_loss" in entry and "sequence_loss" not in entry for entry in trainer.state.log_history if "loss" in entry
    )
    assert 0 <= found["eval_gate_recall"] <= 1 and 0 <= found["eval_gate_precision"] <= 1
    total = found["eval_gate_loss"] + model.config.word_loss_weight * found["eval_word_loss"]
    assert found["eval_loss"] == pytest.approx(total, rel=1e-5)
