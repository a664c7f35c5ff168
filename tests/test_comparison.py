"""`latentlm compare`: one page from records, what is missing is named or trained, and nothing is trained twice."""

import csv
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from latentlm.cli import compare as command

sys.path.insert(0, str(REPOSITORY / "eval" / "experiments"))
import compare
import run
from entries import ListError, read_list, read_mapping
from records import MEASURED, Record, read_page, write_record
from significance import welch
from tables import group_records

EXPERIMENTS = REPOSITORY / "eval" / "experiments"
PAGE = REPOSITORY / "docs" / "results" / "index.md"


def make_record(entry: str, seed: int, bits: float, **fields) -> Record:
    known = {
        "configuration": {"model": {}, "data": {}, "training": {}},
        "metrics": {"eval_bits_per_byte": bits, "in_training": 20.0},
        "curve": {"lm_loss": [[1, 2.0], [2, 1.5]]},
        "parameters": {"total": 3_000_000, "embedding": 1_000_000, "body": 2_000_000},
        **{"steps": 2, "seconds": 10.0, "flops": 2.0, "flops_method": "6 N D", "tokens_seen": 40_000},
        **{"bytes_seen": 40_000, "versions": {}, "revision": "0123456789", "dirty": False, "machine": {"cpu": "A CPU"}},
    }
    return Record("track", entry, entry, seed=seed, **known | fields)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Lists with the report of the comparison, records of a few entries, and the page with its blocks empty."""
    folders = {name: tmp_path / name for name in ("lists", "records", "results")}
    shutil.copytree(EXPERIMENTS / "compare", folders["lists"] / "compare")
    folders["results"].mkdir()
    shutil.copy(PAGE, folders["results"])
    for entry, values in (("decoder-only", [1.78, 1.79]), ("fsq", [1.90, 1.92]), ("own.mine", [1.70])):
        for seed, bits in enumerate(values):
            write_record(make_record(entry, seed, bits), folders["records"])
    speed = {"generation_bytes_per_second": 321.0}
    for entry in ("fsq", "abstractinator"):  # the second has no run
        write_record(
            Record("generation", entry, entry, source=MEASURED, metrics=speed, revision="abcdef01234"),
            folders["records"],
        )
    return folders


def make(folders: dict[str, Path], *arguments: str) -> str:
    compare.main([*arguments, *(text for name, path in folders.items() for text in (f"--{name}", str(path)))])
    return (folders["results"] / "index.md").read_text(encoding="utf-8")


def test_the_page_says_what_the_records_say(folders: dict[str, Path]):
    page = make(folders)
    row = "| fsq | 1.910 ± 0.014 | 2 | 0.021 | 2.00 | 1.00 | 20.0 | 0.04 | 4.0 | 321 |"
    assert row in page and "| own.mine ¹ | 1.700 | 1 | – |" in page
    missing = (
        "decoder-only-start, ar-encoder-decoder, parallel-encoder-decoder, abstractinator, shared-trunk, blt, ngram, xz"
    )
    assert f"Not run yet: {missing}." in page
    assert "| own.mine | `latentlm compare --add own.mine.yaml` | 0 |" in page
    assert "| fsq | `python eval/experiments/run.py track --only fsq` | 0, 1 | `0123456` | A CPU |" in page
    speed = "| speed of generation | `python eval/experiments/generation_speed.py` | – | `abcdef0` | – |"
    assert speed in page
    assert page.count("No records yet.") == 2  # EncodZall, and where its numbers come from
    with (folders["results"] / "comparison.csv").open(encoding="utf-8") as file:
        rows = {row["entry"]: row for row in csv.DictReader(file)}
    assert float(rows["fsq"]["eval_bits_per_byte"]) == pytest.approx(1.91) and rows["own.mine"]["num_seeds"] == "1"
    assert float(rows["fsq"]["bytes_seen / seconds"]) == 4000 and rows["fsq"]["revision"] == "0123456789"
    assert {path.name for path in (folders["results"] / "figures").iterdir()} == {
        "compare-learning.svg",
        "compare-speed.svg",
    }


def test_every_number_of_the_page_has_a_source():
    """Entries of the tables are those of the tables of commands, whose files and lists exist."""
    report = read_mapping(EXPERIMENTS / "compare" / "report.yaml")
    for name, sources in report["sources"].items():
        assert sources["entries"] == report["tables"][name]["entries"]
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]* \| `python ([^\s`]+)(?: (\S+) --only ([^`]+))?[^`]*` \| ", text, re.MULTILINE)
    assert len(rows) > 10
    for script, page, entry in rows:
        assert (REPOSITORY / script).is_file() and (not page or entry in read_list(page).entries)


def test_what_the_records_do_not_give_is_seen(folders: dict[str, Path]):
    make(folders)
    make(folders, "--check")
    path = folders["results"] / "comparison.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("1.91", "1.71"), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"comparison\.csv is not what the records give"):
        make(folders, "--check")
    make(folders)
    record = folders["records"] / "track" / "fsq-0.json"
    content = json.loads(record.read_text(encoding="utf-8"))
    content["metrics"]["in_training"] = 40.0  # moves the curve over arithmetic, and the table
    record.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"(?s)table models is not .*compare-learning\.svg was not drawn"):
        make(folders, "--check")


def test_what_is_added_is_trained_once_by_the_rules_of_the_track(folders: dict[str, Path], monkeypatch, tmp_path):
    started = []

    def train(runner: run.Runner, job: run.Job, edge: bool | None, lock: int) -> None:
        started.append(job.name)
        data = runner.overrides(job)
        assert data["validation_dataset"].endswith("validation-b.jsonl") and data["num_train_epochs"] == 1
        assert "learning_rate" not in data  # the recipe's own
        assert data["eval_strategy"] == "steps" and data["eval_steps"] > 1e5  # half B is scored at the end, and once
        assert data["load_best_model_at_end"] is False
        write_record(make_record(job.entry.name, job.seed, 1.6), folders["records"])

    monkeypatch.setattr(run.Runner, "start", train)
    text = {"dataset": "train.txt", "validation_dataset": "valid.txt"}
    for name in text.values():
        (tmp_path / name).write_text("The river flows to the sea .\n" * 40, encoding="utf-8")
    (folders["lists"] / "track").mkdir()
    entries = {"decoder-only": {"recipe": "hub_configs/decoder-only-tiny"}}
    (folders["lists"] / "track" / "rows.yaml").write_text(
        json.dumps({"text": text, "budget_bytes": 500, "halves": True, "entries": entries}), encoding="utf-8"
    )
    places = ["--text", str(tmp_path), "--runs", str(tmp_path / "runs")]
    shutil.copytree(REPOSITORY / "hub_configs" / "decoder-only-tiny", tmp_path / "Mine")
    page = make(folders, "--add", str(tmp_path / "Mine"), "decoder-only", *places)
    assert started == ["own.mine-1", "own.mine-2"]  # the others have records
    assert "| own.mine | 1.633 ± 0.058 | 3 |" in page
    make(folders, "--add", str(tmp_path / "Mine"), *places)
    assert len(started) == 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nothing.yaml"], "neither an entry of track"),
        ([str(EXPERIMENTS / "track" / "fsq.yaml"), "hub_configs/fsq.yaml"], "neither an entry"),
        ([str(EXPERIMENTS / "track" / "fsq.yaml")] * 2, "two recipes called own.fsq"),
        ([str(REPOSITORY / "hub_configs" / "encodzall-tiny")], "encodzall is no language model"),
    ],
)
def test_a_name_that_is_neither_entry_nor_recipe_is_an_error(names: list[str], message: str):
    with pytest.raises(ListError, match=message):
        compare.add(read_list("track"), names, 3)


def test_without_a_clone_the_command_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert command.experiments_folder() == EXPERIMENTS  # that of an editable installation
    monkeypatch.setattr(command, "__file__", str(tmp_path / "a" / "b" / "c" / "compare.py"))
    with pytest.raises(SystemExit, match="needs a clone of the repository"):
        command.experiments_folder()


def test_the_readme_says_who_won():
    """Its sentence is no block: it has to be written anew when an architecture beats the plain transformer."""
    groups = group_records([*read_page("track"), *read_page("pyramid")])
    ours = ("ar-encoder-decoder", "parallel-encoder-decoder", "abstractinator", "fsq")
    pairs = [(name, "decoder-only") for name in ours] + [("shared-trunk", "decoder-only-start")]
    values = [[groups[name].values("eval_bits_per_byte") for name in pair] for pair in pairs]
    tests = {pair[0]: welch(*both) for pair, both in zip(pairs, values, strict=True)}
    better = [name for name, one in tests.items() if one is not None and one.difference < 0 and one.p < 0.05]
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert better == ["shared-trunk"]
    assert "one architecture here beats the plain transformer" in readme
