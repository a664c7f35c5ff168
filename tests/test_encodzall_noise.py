"""Masks, noise and the PID loop: what they do, how often, and that they can be repeated."""

import json
import math
import random

import numpy as np
import pytest
import torch

from latentlm import EncodzallTokenizer
from latentlm.cli.noise import main
from latentlm.models.encodzall_words import find_words
from latentlm.training import PIDCallback
from latentlm.training.masking import ANY, CONSONANT, NONSPACE, VOWEL, WORD_MASK, mask_texts
from latentlm.training.noise import KINDS, NoiseTables, check_mixture, corrupt_text, corrupt_texts, default_tables
from latentlm.training.noise_tables import read_pairs
from latentlm.training.randomness import row_keys, splitmix64, uniforms

tokenizer = EncodzallTokenizer()
TEXT = "Some words, more words; a naïve café in Zürich, 日本 and 3 others. "
EOS, PAD = 258, 256


def batch(*texts: str) -> tuple[torch.Tensor, torch.Tensor]:
    encoded = tokenizer(list(texts), padding=True, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"].bool()


def keys_of(ids: torch.Tensor, real: torch.Tensor, step: int = 1) -> np.ndarray:
    return row_keys((row[kept].numpy() for row, kept in zip(ids, real, strict=True)), 0, step)


def mask(*texts: str, strength: float = 0.5, step: int = 1):
    ids, real = batch(*texts)
    return ids, mask_texts(ids, real, strength, keys_of(ids, real, step), 16)


# ---- Random numbers ----


def test_random_numbers_are_uniform_and_their_own():
    keys = np.arange(50, dtype=np.uint64)
    draws = np.stack([uniforms(keys, 2000, stream) for stream in range(3)])
    assert draws.min() >= 0 and draws.max() < 1
    counts = np.histogram(draws, 20, (0, 1))[0] / draws.size
    assert np.abs(counts - 0.05).max() < 0.002
    assert abs(np.corrcoef(draws.reshape(3, -1))[np.triu_indices(3, 1)]).max() < 0.02
    assert len(np.unique(draws)) == draws.size
    assert np.array_equal(uniforms(keys[7:8], 2000, 1)[0], draws[1, 7])


def test_splitmix_is_the_published_one():
    # The first outputs of the reference implementation for seed 1234567.
    state = np.array([1234567, 1234567 + 0x9E3779B97F4A7C15], np.uint64)
    assert splitmix64(state).tolist() == [6457827717110365317, 3203168211198807973]


# ---- Masks ----


def test_masks_come_as_often_as_they_should():
    text = "consonants and vowels 1234 5678 " * 60
    ids, found = mask(text, strength=0.5)
    letters = (ids[0] < 256) & (ids[0] != 32)
    in_words = torch.tensor([[*text.encode(), EOS]])
    words = find_words(in_words, 16)[0]
    whole = [found.corrupted[0][(words == k) & letters].all().item() for k in range(int(words.max()))]
    # 0.1 of the words as a whole; of the others 0.4 of the characters, so that hardly one is masked by chance.
    share_of_words = found.input_ids.eq(WORD_MASK).sum() / int(words.max())
    assert share_of_words == pytest.approx(0.1, abs=0.03) and sum(whole) >= found.input_ids.eq(WORD_MASK).sum()
    expected = 1 - (1 - 0.1) * (1 - 0.4)
    assert found.corrupted[0][letters].float().mean() == pytest.approx(expected, abs=0.03)
    masks = found.input_ids[found.input_ids >= VOWEL]
    assert masks.eq(ANY).float().mean() == pytest.approx(0.5, abs=0.04)


def test_every_mask_stands_for_a_character_of_its_class():
    ids, found = mask(TEXT, strength=0.7)
    aligned = align(ids[0].tolist(), found)
    assert {VOWEL, CONSONANT, NONSPACE, ANY, WORD_MASK} <= {mask for mask, _ in aligned}
    for mask_id, clean in aligned:
        kind = "vowel" if clean in "aeiouAEIOU" else "consonant" if clean.isascii() and clean.isalpha() else "other"
        wanted = {VOWEL: ["vowel"], CONSONANT: ["consonant"], NONSPACE: ["other"]}.get(mask_id)
        assert wanted is None or kind in wanted


def align(clean: list[int], found) -> list[tuple[int, str]]:
    """Each mask with the character (or the whole word's characters) it stands for, in order."""
    noisy = [id_ for id_ in found.input_ids[0].tolist() if id_ != PAD]
    changed = found.corrupted[0].tolist()
    pairs, place = [], 0
    words = find_words(torch.tensor([clean]), 16)[0].tolist()
    for id_ in noisy:
        if id_ < PAD or id_ == EOS:
            assert clean[place] == id_ and not changed[place]
            place += 1
            continue
        word, letters = words[place], []
        while True:
            assert changed[place]
            letters.append(clean[place])
            place += 1
            more_of_character = clean[place] & 0xC0 == 0x80 and clean[place] < 256
            more_of_word = id_ == WORD_MASK and words[place] == word and clean[place] not in b" \n"
            if not (more_of_character or more_of_word):
                break
        pairs.append((id_, bytes(letters).decode()))
    assert place == len(clean)
    return pairs


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_masks_leave_spaces_ends_and_the_number_of_words(strength):
    ids, found = mask(TEXT, "", "   ", "two words", strength=strength)
    for row in range(len(ids)):
        clean = [id_ for id_ in ids[row].tolist() if id_ != PAD]
        noisy = found.input_ids[row][found.attention_mask[row].bool()].tolist()
        assert [id_ for id_ in clean if id_ in (32, EOS)] == [id_ for id_ in noisy if id_ in (32, EOS)]
        words = find_words(torch.tensor([clean]), 16)[0]
        assert found.word_ids[row].max() == words.max()
        assert sorted(set(found.word_ids[row].tolist()) - {-1}) == list(range(int(words.max()) + 1))
        if strength == 0:
            assert clean == noisy and not found.corrupted[row].any()


def test_masks_depend_on_row_seed_and_step_alone():
    _, together = mask(TEXT, "another row of text", strength=0.5)
    _, alone = mask("another row of text", strength=0.5)
    kept = together.attention_mask[1].bool()
    assert torch.equal(together.input_ids[1][kept], alone.input_ids[0][alone.attention_mask[0].bool()])
    _, later = mask("another row of text", strength=0.5, step=2)
    assert later.input_ids.shape != alone.input_ids.shape or not torch.equal(later.input_ids, alone.input_ids)


# ---- Noise ----


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_changes_what_it_says(kind):
    text = "The information about different people will be found there, and running there is easy. " * 5
    noisy, changed = corrupt_text(text, 1.0, 7, {kind: 1.0})
    assert noisy != text and changed
    clean_words, noisy_words = text.split(), noisy.split()
    if kind == "case":
        assert noisy.lower() == text.lower()
    elif kind == "space":
        assert noisy.replace(" ", "") == text.replace(" ", "") and len(clean_words) != len(noisy_words)
    else:
        assert len(clean_words) == len(noisy_words) or kind == "drop"
    if kind == "drop":
        assert len(noisy) == len(text) - len(changed)
    if kind == "double":
        assert len(noisy) == len(text) + len(changed)
    if kind == "swap":
        assert sorted(noisy) == sorted(text)
    if kind == "keyboard":
        table = default_tables().keyboard
        for before, after in zip(text, noisy, strict=True):
            assert before == after or after in table[before]


def test_noise_hits_as_many_characters_as_it_should():
    text = "abcdefghij " * 2000
    _, changed = corrupt_text(text, 0.5, 3, {"drop": 1.0})
    assert len(changed) / (10 / 11 * len(text)) == pytest.approx(0.15, abs=0.01)
    kinds = {kind: len(corrupt_text(text, 0.5, 3, {kind: 1.0, "drop": 0.0})[1]) for kind in ("double", "case")}
    assert min(kinds.values()) > 2000
    assert corrupt_text(text, 0.0, 3) == (text, [])


@pytest.mark.parametrize("kind", KINDS)
def test_noise_changes_no_character_behind_the_end(kind):
    """The last characters match short entries of a table alone."""
    for text in ("e", "ee", "rn", "a rn"):
        for key in range(40):
            _, changed = corrupt_text(text, 1.0, key, {kind: 1.0})
            assert all(place < len(text) for place in changed)


def test_noise_is_reproducible_and_follows_its_key():
    assert corrupt_text(TEXT, 1.0, 5) == corrupt_text(TEXT, 1.0, 5) != corrupt_text(TEXT, 1.0, 6)


def test_noise_marks_the_bytes_that_it_changed():
    ids, real = batch(TEXT, "", "second text, with more", "\udcff broken")
    found = corrupt_texts(ids, real, 1.0, keys_of(ids, real), 16)
    assert found.corrupted[0].any() and not found.corrupted[1].any()
    for row in range(len(ids)):
        data = bytes(i for i in ids[row].tolist() if i < 256)
        text = data.decode("utf-8", "surrogateescape")
        noisy, changed = corrupt_text(text, 1.0, int(keys_of(ids, real)[row]))
        sent = bytes(i for i in found.input_ids[row].tolist() if i < 256)
        assert sent == noisy.encode("utf-8", "surrogateescape")[: ids.shape[1] - 1]
        flags = [i in changed for i, letter in enumerate(text) for _ in letter.encode("utf-8", "surrogateescape")]
        assert found.corrupted[row].tolist() == flags + [False] * (ids.shape[1] - len(flags))
        kept = found.attention_mask[row].bool()
        assert found.input_ids[row][kept][-1] == EOS
        assert torch.equal(found.word_ids[row][kept], find_words(found.input_ids[row][kept][None], 16)[0])


def test_tables_are_checked(tmp_path):
    tables = {"ocr": {"rn": {"m": 1.0}}, "keyboard": {}, "misspelling": {}}
    assert NoiseTables(**tables).ocr == {"rn": {"m": 1.0}}
    for bad in ({"toolong": {"x": 1.0}}, {"a": {}}, {"a": {"a": 1.0}}, {"a": {"b": 0.0}}):
        with pytest.raises(ValueError, match="ocr: the entry"):
            NoiseTables(**{**tables, "ocr": bad})
    for bad in ({"the": ["teh"]}, {"the": {}}, {"the": {"teh": "1"}}, {"The": {"teh": 1.0}}):
        with pytest.raises(ValueError, match="words: the entry"):
            NoiseTables(**tables, words=bad)
    for kind in ("ocr", "words"):
        with pytest.raises(ValueError, match=rf"{kind} is \[\], but must map strings"):
            NoiseTables(**{**tables, kind: []})
    (tmp_path / "tables.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no noise tables"):
        NoiseTables.load(tmp_path / "tables.json")
    for mixture in ({}, {"typo": 1.0}, {"ocr": -1.0}, {"ocr": 0.0}):
        with pytest.raises(ValueError, match="noise_mixture"):
            check_mixture(mixture)


# ---- The PID loop ----


def plant(strength: float, gain: float = 2.0) -> float:
    """A model whose loss rises with the noise."""
    return 0.3 + gain * strength


def run(pid: PIDCallback, steps: int, loss, noise: float = 0.0, seed: int = 0) -> list[float]:
    chance = random.Random(seed)
    return [pid.step(loss(pid.strength) + chance.gauss(0, noise)) for _ in range(steps)]


@pytest.mark.parametrize("start", [0.1, 0.9])
def test_the_loop_settles_where_the_set_point_is(start):
    pid = PIDCallback(start, set_point=1.3)  # strength 0.5
    path = run(pid, 400, plant)
    assert max(abs(strength - 0.5) for strength in path[-100:]) < 0.02 * 0.5
    noisy = run(PIDCallback(start, set_point=1.3), 600, plant, noise=0.1)
    assert np.mean(noisy[-200:]) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(("gain", "target"), [(4.0, 0.25), (1.25, 0.8)])
def test_the_loop_recovers_from_a_step_in_either_direction(gain, target):
    pid = PIDCallback(0.5, set_point=1.3)
    run(pid, 300, plant)
    path = run(pid, 400, lambda strength: plant(strength, gain))
    assert path[-1] == pytest.approx(target, rel=0.02)


def test_a_slow_plant_settles_too():
    class Learner:
        loss = 3.0

        def __call__(self, strength: float) -> float:
            self.loss += 0.05 * (plant(strength) - self.loss)
            return self.loss

    path = run(PIDCallback(0.2, set_point=1.3), 2000, Learner())
    assert max(abs(strength - 0.5) for strength in path[-300:]) < 0.02 * 0.5


def test_changes_are_limited_alike_in_both_directions():
    up = PIDCallback(0.5, set_point=100.0, max_change=0.03)
    down = PIDCallback(0.5, set_point=0.1, max_change=0.03, ki=10)
    assert up.step(1.0) == pytest.approx(0.53) and down.step(90.0) == pytest.approx(0.47)


def test_nothing_winds_up_at_a_limit():
    pid = PIDCallback(0.5, set_point=1.3, minimum=0.1, maximum=0.9)
    assert run(pid, 1000, lambda strength: 0.0)[-1] == 0.9
    assert pid.logs()["noise_saturated"] == 1.0
    left = run(pid, 60, lambda strength: 5.0)
    assert left[30] < 0.9 and left[-1] < 0.4
    assert pid.logs()["noise_saturated"] == 0.0
    assert run(pid, 500, lambda strength: 9.0)[-1] == 0.1


def test_the_terms_are_those_of_the_velocity_form():
    pid = PIDCallback(0.5, set_point=2.0, kp=0.1, ki=0.01, kd=0.05, smoothing=0.0, max_change=1.0)
    losses = [1.5, 1.9, 1.2]
    errors = [2.0 - loss for loss in losses]
    for loss in losses:
        pid.step(loss)
    e2, e1, e0 = errors
    assert pid.terms == pytest.approx([0.1 * (e0 - e1), 0.01 * e0, 0.05 * (e0 - 2 * e1 + e2)])
    moved = sum(0.01 * e for e in errors) + 0.1 * (e0 - e2) + 0.05 * ((e1 - e2) + (e0 - 2 * e1 + e2))
    assert pid.strength == pytest.approx(0.5 + moved)
    assert pid.logs() == pytest.approx(
        {
            "noise_strength": pid.strength,
            "noise_set_point": 2.0,
            "noise_error": e0,
            "noise_p": pid.terms[0],
            "noise_i": pid.terms[1],
            "noise_d": pid.terms[2],
            "noise_saturated": 0.0,
        }
    )


def test_without_a_set_point_nothing_moves():
    assert PIDCallback(0.0).strength == 0.0
    pid = PIDCallback(0.4)
    assert run(pid, 10, lambda strength: 9.0) == [0.4] * 10 and pid.logs() == {"noise_strength": 0.4}


def test_a_loss_that_is_not_finite_is_skipped():
    pid, other = PIDCallback(0.3, set_point=1.0), PIDCallback(0.3, set_point=1.0)
    for loss in (1.2, math.nan, math.inf, 0.7):
        pid.step(loss)
    for loss in (1.2, 0.7):
        other.step(loss)
    assert pid.state() == other.state() and math.isfinite(pid.strength)


def test_a_restored_loop_goes_on_as_if_nothing_had_happened():
    pid = PIDCallback(0.2, set_point=1.3, kd=0.1)
    run(pid, 37, plant, noise=0.2)
    restored = PIDCallback.from_state(pid.state())
    assert run(restored, 50, plant, noise=0.2, seed=1) == run(pid, 50, plant, noise=0.2, seed=1)
    assert restored.state() == pid.state()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strength": 1.5}, "strength is 1.5"),
        ({"strength": 0.2, "set_point": 1.0, "minimum": 0.3}, "minimum 0.3"),
        ({"strength": 0.2, "set_point": -1.0}, "set_point is -1.0"),
        ({"strength": 0.2, "set_point": 1.0, "minimum": 0.0}, "nothing to measure"),
        ({"strength": 0.2, "ki": -1.0}, "ki is -1.0"),
        ({"strength": 0.2, "max_change": 0.0}, "max_change is 0.0"),
        ({"strength": 0.2, "smoothing": 1.0}, "smoothing is 1.0"),
    ],
)
def test_the_loop_refuses_what_makes_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        PIDCallback(**fields)


# ---- Learning tables from pairs ----


def write_pairs(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_tables_are_learned_from_pairs(tmp_path, capsys):
    ocr = write_pairs(
        tmp_path / "ocr.jsonl", [{"ocr": "bum the house", "gt": "burn the house"}] * 3 + [{"ocr": "x", "gt": "y"}]
    )
    spelled = [
        {"misspelling": "recieve", "corrections": ["receive"], "count": 4},
        {"noisy": "helllo", "clean": "hello"},
    ]
    spelled = write_pairs(tmp_path / "spelled.jsonl", spelled)
    out = tmp_path / "tables.json"
    main([str(out), "--ocr", ocr, "--misspelling", spelled, "--min_count", "3"])
    tables = NoiseTables.load(out)
    assert tables.ocr == {"rn": {"m": 3.0}}
    assert set(tables.misspelling) <= {"e", "i", "ei", "ie", "c"} and "l" not in tables.misspelling
    assert tables.keyboard == default_tables().keyboard
    noisy, _ = corrupt_text("burn corn barn " * 9, 1.0, 3, {"ocr": 1.0}, tables)
    assert "m" in noisy and set(noisy) == set("burn corn barn m")


def test_separators_inside_of_texts_end_no_line(tmp_path):
    """JSON need not escape them; and white space between its parts may be a carriage return."""
    texts = [f"a{separator}b" for separator in "\u2028\u2029\x85\x7f"]
    path = tmp_path / "pairs.jsonl"
    rows = [json.dumps({"noisy": text, "clean": text, "count": 2}, ensure_ascii=False) for text in texts]
    lines = [*rows, '{"noisy": "c",\r "clean": ["d"]}\r']
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    assert list(read_pairs(path)) == [(text, text, 2.0) for text in texts] + [("c", "d", 1.0)]


def test_pairs_that_are_none_are_named(tmp_path):
    for row in ({"noisy": "a"}, {"clean": "a", "noisy": "b", "count": "many"}):
        path = write_pairs(tmp_path / "pairs.jsonl", [{"noisy": "a", "clean": "b"}, row])
        with pytest.raises(SystemExit, match=r"pairs.jsonl, line 2: no pair"):
            main([str(tmp_path / "out.json"), "--ocr", path])
    assert not (tmp_path / "out.json").exists()
