"""How well a run of `hub_configs/encodzall-wikitext2` repairs, and the figure of it; gives it a dictionary, and chooses
`edit_cost`, `unknown_word_odds` and `denoise_threshold`.

python eval/experiments/encodzall/repair.py runs/encodzall-wikitext2

They are chosen on 200 validation sentences with the noise of training, 100 pieces of OCR of documents that were not
trained on, and 400 misspelled words by themselves, of the lists that were trained on, all of them other texts than
those that are scored. The threshold is the lowest at which at most 0.2 % of the correct characters of sentences and of
OCR change and at least five of the words are mended for each that is broken. The cost is that with which, without a
dictionary, most wrong characters of the sentences are mended; the odds those with which most are mended in sentences
and words, on average. All is saved with the model in the run, and all numbers in `eval/records/encodzall`.
"""

import json
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).parents[1]))
from figures import COLOURS
from measures.repair import (
    TEXTS,
    DictionarySpeller,
    edit_distance,
    error_rate,
    noisy_of,
    read_pairs,
    read_rows,
    read_sentences,
)
from one_run import CURVES, FLOPS_METHOD, last_evaluation, last_logged, seen
from records import Record, circumstances, corpora, count_parameters, curves, portable, write_record
from repair_data import BOOK, words_of_dictionary

from latentlm import EncodzallForMaskedDenoising
from latentlm.models.encodzall_repair import Repair, apply_repairs
from latentlm.runs import load_recipe
from latentlm.runs.run_folder import read_metrics

FIGURE = Path(__file__).parents[3] / "docs" / "results" / "figures" / "encodzall-repair.png"
MOST_CHANGED = 0.002  # of the characters of running text that are right
LEAST_MENDED = 5  # words by themselves, for each that is broken
COSTS = (0.0, 1.0)
UNKNOWN_WORD_ODDS = (4.0, 6.0, 8.0, 10.0)
VALIDATION_PIECES = 100  # of OCR
MISSPELLINGS = (
    ("cer_misspelled_words_by_people", "misspellings_human.jsonl", "correction"),
    ("cer_misspelled_words_codespell", "misspellings_codespell.jsonl", "corrections"),
)
THRESHOLDS = np.arange(0, 8, 0.05)
BATCH = 32

Pairs = tuple[list[str], list[str]]  # noisy texts and clean ones


@dataclass
class Judged:
    """The repairs of some texts: what each alone does to the distance from the clean text.

    Attributes:
        scores, edits: `(R,)`: of each repair its score, and by how many edits the text is then further away.
        errors: edits between the noisy and the clean texts.
        right: characters of the noisy texts that are right.
    """

    scores: np.ndarray
    edits: np.ndarray
    errors: int
    right: int

    @classmethod
    def of(cls, repairs: list[list[Repair]], noisy: list[str], clean: list[str]) -> "Judged":
        scores, edits, errors = [], [], 0
        for found, text, goal in zip(repairs, noisy, clean, strict=True):
            before = edit_distance(text, goal)
            errors += before
            for repair in found:
                after = apply_repairs(text.encode(), [repair], -np.inf).decode()
                scores.append(repair.score)
                edits.append(edit_distance(after, goal) - before)
        return cls(np.array(scores), np.array(edits), errors, sum(map(len, noisy)) - errors)

    def recall(self, threshold: float) -> float:
        """Share of the wrong characters that repairs above the threshold mend."""
        edits = self.edits[self.scores > threshold]
        return float(-edits[edits < 0].sum() / max(self.errors, 1))

    def precision(self, threshold: float) -> float | None:
        """Share of these repairs that bring the text nearer to the clean one."""
        edits = self.edits[self.scores > threshold]
        return float((edits < 0).mean()) if len(edits) else None

    def changed(self, threshold: float) -> float:
        """Share of the right characters that repairs make wrong."""
        edits = self.edits[self.scores > threshold]
        return float(edits[edits > 0].sum() / self.right)

    def mended_per_broken(self, threshold: float) -> float:
        """Words that come nearer for each that comes further away; as if at least one were broken."""
        edits = self.edits[self.scores > threshold]
        return float((edits < 0).sum() / max((edits > 0).sum(), 1))


def repairs_of(model: Any, texts: list[str]) -> list[list[Repair]]:
    """Those above 0, text by text."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found: dict[int, list[Repair]] = {}
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        found |= dict(zip(part, model.find_repairs([texts[i] for i in part]), strict=True))
    return [found[i] for i in range(len(texts))]


def choose(model: Any, sentences: Pairs, ocr: Pairs, words: Pairs) -> dict[str, float]:
    """Sets the cost of an edit, the odds of unknown words and the threshold; the recall with each that was tried."""
    config, tried = model.config, {}

    def attempt(*kinds: Pairs) -> tuple[list[float], float]:
        judged = [Judged.of(repairs_of(model, noisy), noisy, clean) for noisy, clean in kinds]
        running, alone = judged[:2], judged[2:]
        threshold = next(
            float(t)
            for t in THRESHOLDS
            if all(one.changed(t) <= MOST_CHANGED for one in running)
            and all(one.mended_per_broken(t) >= LEAST_MENDED for one in alone)
        )
        recalls = [one.recall(threshold) for one in judged]
        print(f"{config.edit_cost=} {config.unknown_word_odds=} {threshold=:.2f} {recalls=}", flush=True)
        return recalls, threshold

    config.unknown_word_odds = 0.0
    for config.edit_cost in COSTS:
        [recall], _ = attempt(sentences)
        tried[f"edit_cost_{config.edit_cost:g}"] = recall, config.edit_cost
    _, config.edit_cost = max(tried.values())
    by_odds = {}
    for config.unknown_word_odds in UNKNOWN_WORD_ODDS:
        recalls, threshold = attempt(sentences, ocr, words)
        by_odds[f"unknown_word_odds_{config.unknown_word_odds:g}"] = (
            (recalls[0] + recalls[-1]) / 2,
            config.unknown_word_odds,
            round(threshold, 2),
        )
    _, config.unknown_word_odds, config.denoise_threshold = max(by_odds.values())
    return {f"validation_mended_with_{name}": values[0] for name, values in (tried | by_odds).items()}


def repairs_of_speller(speller: DictionarySpeller, texts: list[str]) -> list[list[Repair]]:
    def words(text: str) -> list[Repair]:
        found = [(match.span(), speller.correct(match[0]), match[0]) for match in re.finditer(r"[A-Za-z]+", text)]
        places = (
            (len(text[: span[0]].encode()), len(text[: span[1]].encode()), new)
            for span, new, old in found
            if new != old
        )
        return [Repair(start, end, new.encode(), 1.0) for start, end, new in places]

    return [words(text) for text in texts]


def ocr_pieces(data: Path, of_book: bool) -> dict[str, str]:
    """OCR and its clean text: of the book that others of its pieces were trained on, or of all other documents."""
    lines = (data / "noise" / "ocr_icdar2017_en.jsonl").read_bytes().splitlines()
    pieces = map(json.loads, lines)
    return {piece["ocr"]: piece["gt"] for piece in pieces if (piece["doc"] == BOOK) == of_book}


def validation(data: Path) -> list[Pairs]:
    """Sentences with noise, OCR of documents that were not trained on, and misspelled words of the lists; none that is
    scored, nor another misspelling of a word that is."""
    sentences = read_sentences(data, 2 * TEXTS)[1::2]
    noisy = [noisy_of(sentence, 10_000 + key) for key, sentence in enumerate(sentences)]
    texts = read_pairs(data, TEXTS)
    scored = {*texts["cer_ocr_english_icdar_2017"][0]}
    pieces = [(ocr, clean) for ocr, clean in ocr_pieces(data, of_book=False).items() if ocr not in scored]
    spread = [pieces[i * len(pieces) // VALIDATION_PIECES] for i in range(VALIDATION_PIECES)]
    goals = {goal.lower() for kind, _, _ in MISSPELLINGS for goal in texts[kind][1]}
    words: Pairs = [], []
    for _, name, clean in MISSPELLINGS:
        rows = zip(*read_rows(data, name, "misspelling", clean, 3 * TEXTS), strict=True)
        rows = [row for row in rows if row[1].lower() not in goals]
        for misspelled, goal in (rows[i * len(rows) // TEXTS] for i in range(TEXTS)):
            words[0].append(misspelled)
            words[1].append(goal)
    return [(noisy, sentences), ([ocr for ocr, _ in spread], [clean for _, clean in spread]), words]


def seconds(function: Any) -> float:
    """Of the CPU, the lesser of two."""
    times = []
    for _ in range(2):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def plot(judged: dict[str, Judged], spelled: dict[str, Judged], threshold: float) -> None:
    """Precision over recall of every kind of text, with the default threshold and the speller marked."""
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for colour, (kind, of_model) in zip(COLOURS, judged.items(), strict=False):
        marks = {"-": (of_model, THRESHOLDS), "o": (of_model, [threshold]), "x": (spelled[kind], [0.0])}
        for style, (one, thresholds) in marks.items():
            points = [(one.recall(t), y) for t in thresholds if (y := one.precision(t)) is not None]
            label = kind.removeprefix("cer_").replace("_", " ") if style == "-" else None
            axis.plot([x for x, _ in points], [y for _, y in points], style, color=colour, label=label)
    axis.set(
        xlabel="share of the wrong characters that are mended", ylabel="share of repairs that mend", ylim=(0, 1.02)
    )
    axis.legend(title="line: thresholds; dot: the default; cross: dictionary speller", fontsize=8, title_fontsize=8)
    axis.grid(alpha=0.3)
    figure.savefig(FIGURE, dpi=110)
    plt.close(figure)


@torch.no_grad()
def main() -> None:
    started, run, data = time.perf_counter(), Path(sys.argv[1]), corpora()
    torch.set_num_threads(1)
    model: Any = EncodzallForMaskedDenoising.from_pretrained(run).eval()
    words = words_of_dictionary(data)
    model.set_dictionary(words, 0.0)
    tried = choose(model, *validation(data))
    model.save_pretrained(run)
    names = "edit_cost", "unknown_word_odds", "denoise_threshold", "dictionary_bytes"
    threshold = model.config.denoise_threshold
    metrics: dict[str, float] = {name: getattr(model.config, name) for name in names} | tried
    metrics["words_in_dictionary"] = len(words)

    pairs = read_pairs(data, TEXTS)
    speller = DictionarySpeller((data / "wikitext2" / "wiki.train.txt").read_text(encoding="utf-8"))
    judged, spelled, curve = {}, {}, {}
    for kind, (texts, clean) in pairs.items():
        repairs = repairs_of(model, texts)
        repaired = [
            apply_repairs(text.encode(), found, threshold).decode() for text, found in zip(texts, repairs, strict=True)
        ]
        judged[kind] = of_model = Judged.of(repairs, texts, clean)
        spelled[kind] = of_speller = Judged.of(repairs_of_speller(speller, texts), texts, clean)
        name = kind.removeprefix("cer_")
        metrics |= {
            kind: error_rate(repaired, clean),
            f"copying_{kind}": error_rate(texts, clean),
            f"speller_{kind}": error_rate(speller(texts), clean),
            f"mended_per_broken_{name}": of_model.mended_per_broken(threshold),
            f"speller_mended_per_broken_{name}": of_speller.mended_per_broken(0.0),
            f"changed_{name}": of_model.changed(threshold),
            f"recall_{name}": of_model.recall(threshold),
        }
        curve[f"recall_{name}"] = [[round(float(t), 2), round(of_model.recall(t), 4)] for t in THRESHOLDS[::10]]
        points = ((t, of_model.precision(t)) for t in THRESHOLDS[::10])
        curve[f"precision_{name}"] = [[round(float(t), 2), round(y, 4)] for t, y in points if y is not None]
        if kind == "cer_ocr_english_icdar_2017":
            book = ocr_pieces(data, of_book=True)
            other = [i for i, text in enumerate(texts) if text not in book]
            goals = [clean[i] for i in other]
            metrics["cer_ocr_of_other_documents"] = error_rate([repaired[i] for i in other], goals)
            metrics["copying_cer_ocr_of_other_documents"] = error_rate([texts[i] for i in other], goals)
            metrics["ocr_texts_of_other_documents"] = len(other)
        print(kind, {name: value for name, value in metrics.items() if kind[4:] in name}, flush=True)
    clean = pairs["cer_sentences_with_the_noise_of_training"][1]
    untouched = Judged.of(repairs_of(model, clean), clean, clean)
    metrics["changed_clean_sentences"] = untouched.changed(threshold)

    texts = pairs["cer_ocr_english_icdar_2017"][0]
    size = sum(len(text.encode()) for text in texts[:BATCH])
    metrics["bytes_per_text_timed"] = size / BATCH
    metrics["ms_per_text"] = 1e3 / BATCH * seconds(lambda: [model.denoise([text]) for text in texts[:BATCH]])
    metrics["kb_per_second"] = size / 1e3 / seconds(lambda: model.denoise(texts[:BATCH]))
    plot(judged, spelled, threshold)

    recipe = load_recipe(run / "recipe.yaml")
    logged = read_metrics(run)
    parameters, tokens = count_parameters(model), seen(logged, "tokens")
    record = Record(
        page="encodzall",
        entry="repair",
        label="gate and noisy channel",
        seed=recipe.training.seed,
        configuration=portable(recipe.to_dict()),
        curve=curves(logged, [*CURVES, "eval_gate_*", "eval_word_loss"]) | curve,
        metrics={**last_logged(logged, []), **last_evaluation(logged), **metrics},
        steps=logged[-1]["step"],
        seconds=[line for line in logged if "training_seconds" in line][-1]["training_seconds"],
        wall_seconds=time.perf_counter() - started,
        flops=6.0 * parameters["body"] * tokens,
        flops_method=FLOPS_METHOD,
        parameters=parameters,
        tokens_seen=tokens,
        bytes_seen=seen(logged, "bytes"),
        **circumstances(),
    )
    print(write_record(record))


if __name__ == "__main__":
    main()
