"""The training text and the noise tables of `hub_configs/encodzall-wikitext2`: WikiText-2, every other article with
punctuation as people write it, each of its commoner words by itself, words of misspelling lists, pieces of OCR.

python eval/experiments/encodzall/repair_data.py FOLDER        # writes repair-{train.jsonl,validation.txt,tables.json}
python eval/experiments/encodzall/repair_data.py FOLDER 16 1   # sixteen copies of the lists, more often misspelled

`LATENTLM_TEXT` names the corpora, as for `measures/repair.py`, whose texts are not trained on: no word that a
misspelling there stands for is in a list here, and OCR is of one book alone, without the pieces there.
"""

import json
import re
import shutil
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from datasets import load_dataset
from measures.repair import TEXTS, read_rows
from records import corpora

from latentlm.models.encodzall_dictionary import LETTERS
from latentlm.training.noise import WORD, NoiseTables, default_tables
from latentlm.training.noise_tables import learn, read_pairs

BOOK = "eng_monograph/81"  # two thirds of the OCR pieces; all other documents are held out
COPIES_OF_WORDS, COPIES_OF_OCR = 4, 3  # WikiText-2 is far larger
MOST_STAYS = 9.0  # for one misspelling of a common word
COMMON = 4  # occurrences of a word that is read by itself as well, with the noise of running text

COMMON_IN_BOOKS = 20  # occurrences of a word of books that the dictionary has


def words_of_dictionary(data: Path) -> list[str]:
    """The words of WikiText-2's training text, and the commoner ones of 100 MB of books: what a text knows that has
    rarer words than WikiText-2, which has `<unk>` for them."""
    wiki = (data / "wikitext2" / "wiki.train.txt").read_text(encoding="utf-8").replace("<unk>", "")
    words = set(LETTERS.findall(wiki.lower()))
    counts: Counter[str] = Counter()
    books: Any = load_dataset("parquet", data_files=str(data / "books" / "train-*.parquet"), split="train")
    for book in books:
        counts.update(LETTERS.findall(book["text"].lower()))
    words |= {word for word, count in counts.items() if count >= COMMON_IN_BOOKS}
    return sorted(word for word in words if len(word) > 1)


def detokenise(text: str) -> str:
    """WikiText without the spaces that its tokenizer put before and after punctuation."""
    text = re.sub(r" @(\W)@ ", r"\1", text)
    text = re.sub(r" ([,.;:!?)\]%]|'s\b|n't\b)", r"\1", text)
    return re.sub(r"([(\[$£]) ", r"\1", text)


def prepare(data: Path, folder: Path, copies: int = COPIES_OF_WORDS, most_stays: float = MOST_STAYS) -> None:
    wiki = (data / "wikitext2" / "wiki.train.txt").read_text(encoding="utf-8")
    documents = re.split(r"(?m)^(?= = [^=].* = $)", wiki)
    documents = [detokenise(text) if number % 2 else text for number, text in enumerate(documents)]

    lists = [("misspellings_human.jsonl", "correction"), ("misspellings_codespell.jsonl", "corrections")]
    held_out = {word.lower() for name, clean in lists for word in read_rows(data, name, "misspelling", clean, TEXTS)[1]}
    misspelled: dict[str, dict[str, float]] = defaultdict(dict)
    for name, _ in lists:
        for noisy, clean, count in read_pairs(data / "noise" / name):
            word, noisy = clean.lower(), noisy.lower()
            if word not in held_out and WORD.fullmatch(word) and noisy != word:
                misspelled[word][noisy] = misspelled[word].get(noisy, 0) + count
    counts = Counter(match[0].lower() for match in WORD.finditer(wiki))
    for word, targets in misspelled.items():
        # The commoner a word in running text, the more often it stays.
        stays = sum(targets.values()) * min(most_stays, counts[word] / 10)
        if stays:
            targets[word] = stays
    documents += copies * sorted(misspelled)
    documents += sorted(word for word, count in counts.items() if count >= COMMON)

    pieces = [json.loads(line) for line in (data / "noise" / "ocr_icdar2017_en.jsonl").read_bytes().splitlines()]
    tested = set(read_rows(data, "ocr_icdar2017_en.jsonl", "ocr", "gt", TEXTS)[0])
    pieces = [piece for piece in pieces if piece["doc"] == BOOK and piece["ocr"] not in tested]
    documents += COPIES_OF_OCR * [piece["gt"] for piece in pieces]
    own = default_tables()
    learned = learn(((piece["ocr"], piece["gt"], 1.0) for piece in pieces), 3)
    ocr = {key: own.ocr.get(key, {}) | learned.get(key, {}) for key in sorted({*own.ocr, *learned})}

    tables = {"ocr": ocr, "keyboard": own.keyboard, "misspelling": own.misspelling, "words": misspelled}
    NoiseTables(**tables)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(data / "wikitext2" / "wiki.valid.txt", folder / "repair-validation.txt")
    (folder / "repair-tables.json").write_text(json.dumps(tables, ensure_ascii=False), encoding="utf-8")
    with open(folder / "repair-train.jsonl", "w", encoding="utf-8") as file:
        for document in documents:
            if document.strip():
                file.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
    print(f"{len(misspelled):,} words of lists, {len(pieces):,} pieces of OCR, {len(learned):,} confusions learned")


if __name__ == "__main__":
    prepare(corpora(), Path(sys.argv[1]), *map(int, sys.argv[2:]))
