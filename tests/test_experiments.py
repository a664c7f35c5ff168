"""The harness of eval/experiments: lists, runs, records, reports."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import REPOSITORY
from scipy import stats
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

sys.path.insert(0, str(REPOSITORY / "eval"))
sys.path.insert(0, str(REPOSITORY / "eval" / "experiments"))
import one_run
import report
import run
import speedrun
from entries import ListError, at_edge, extend_grid, read_list
from figures import contents, layer_lines, seen_lines
from one_run import last_evaluation, last_logged
from records import (
    FORMER,
    MAX_BYTES,
    RECORDS,
    TUNING,
    Record,
    RecordError,
    portable,
    read_page,
    read_record,
    thin,
    write_record,
)
from significance import paired, welch
from tables import Group, difference, results_table
from texts import first_bytes, locate_text, prepare_text, read_documents, split_in_halves, write_documents

from latentlm.data import DataConfig, prepare_data
from latentlm.runs import load_recipe
from latentlm.training.run import build_trainer, load_data

EXPERIMENTS = REPOSITORY / "eval" / "experiments"
TINY = {"warmup_steps": 1, "eval_steps": 3, "logging_steps": 3, "save_steps": 3, "eval_on_start": False}
SIZES = {"model.hidden_size": 16, "num_hidden_layers": 1, "context_length": 64}
PAGES = sorted(path.parent.name for path in EXPERIMENTS.glob(f"*/{report.REPORT_FILE}"))
LISTS = sorted(path.parent.name for path in EXPERIMENTS.glob("*/rows.yaml"))


@pytest.fixture
def text(tmp_path):
    """Eight documents of 1 kB, and four to hold out."""
    for name, count in (("train", 8), ("valid", 4)):
        documents = [f" = {name} {i} = \n" + f"The {i} river of {name} flows to the sea .\n" * 25 for i in range(count)]
        (tmp_path / f"{name}.txt").write_text("".join(documents), encoding="utf-8")
    return {"dataset": "train.txt", "validation_dataset": "valid.txt", "document_start": "^ = "}


@pytest.fixture
def make_runner(tmp_path, text, monkeypatch):
    monkeypatch.setenv("LATENTLM_CACHE", str(tmp_path / "cache"))

    def make(entries, **options):
        defaults = {"recipe": "hub_configs/decoder-only-tiny", "overrides": {**TINY, **SIZES}}
        content = {"text": text, "budget_bytes": 5000, "halves": True, "defaults": defaults, "entries": entries}
        (tmp_path / "lists" / "tiny").mkdir(parents=True, exist_ok=True)
        (tmp_path / "lists" / "tiny" / "rows.yaml").write_text(
            yaml.safe_dump(content, sort_keys=False), encoding="utf-8"
        )
        experiments = read_list("tiny", tmp_path / "lists")
        return run.Runner(experiments, tmp_path / "runs", tmp_path / "records", tmp_path, **options)

    return make


@pytest.fixture
def in_this_process(monkeypatch):
    """Runs start as functions here: a process of its own takes seconds to begin."""
    started = []

    def start(command, log_path, environment, lock):
        started.append(Path(command[2]).stem)
        with monkeypatch.context() as context:
            context.setattr(sys, "argv", command[1:])
            one_run.main()
        return 0

    monkeypatch.setattr(run, "run_process", start)
    return started


def make_record(**fields):
    known = {
        "configuration": {"model": {}, "data": {}, "training": {}},
        **{
            "seed": 0,
            "steps": 3,
            "seconds": 1.0,
            "flops": 2.0,
            "flops_method": "6 N D",
            "tokens_seen": 9,
            "bytes_seen": 9,
        },
        "parameters": {"total": 2, "embedding": 1, "body": 1},
        **{"versions": {}, "dirty": False, "machine": {}, "metrics": {"eval_bits_per_byte": 2.0}},
    }
    return Record(**{"page": "page", "entry": "one", "label": "One"} | known | fields)


# ---- End to end ----


def test_two_entries_with_two_seeds_leave_records_from_which_a_page_is_made(make_runner, in_this_process, tmp_path):
    entries = {"ours": {"seeds": 2}, "counts": {"peer": "ngram", "seeds": 2}}
    runner = make_runner(entries)
    runner.run_all()
    assert in_this_process == ["ours-0", "ours-1", "counts-0", "counts-1"]
    records = read_page("tiny", tmp_path / "records")
    assert {(one.entry, one.seed) for one in records} == {(e, s) for e in entries for s in (0, 1)}
    ours = next(one for one in records if one.entry == "ours")
    counts = next(one for one in records if one.entry == "counts")
    # One pass over the budget, the same bytes for both.
    assert 4500 < ours.bytes_seen <= 5000 and abs(ours.bytes_seen - counts.bytes_seen) < 64
    assert ours.flops == 6 * ours.parameters["body"] * ours.tokens_seen
    assert ours.configuration["model"]["hidden_size"] == 16
    assert ours.configuration["data"]["validation_dataset"] == "validation-b.jsonl"
    assert ours.curve["eval_bits_per_byte"][-1][1] == pytest.approx(ours.metrics["eval_bits_per_byte"], rel=1e-5)
    assert counts.metrics["eval_bits_per_byte"] < ours.metrics["eval_bits_per_byte"]
    written = (tmp_path / "records" / "tiny" / "ours-0.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in written and len(written) < 16_000
    # A second round finds nothing to do.
    make_runner(entries).run_all()
    assert len(in_this_process) == 4
    # The page, from the records alone.
    columns = [{"heading": "bits", "value": "eval_bits_per_byte"}]
    panels = [{"value": "eval_bits_per_byte", "x": "bytes", "yardsticks": ["counts"]}]
    specification = {
        "tables": {"all": {"entries": list(entries), "columns": columns}},
        "figures": {"curves": {"alt": "Curves", "entries": ["ours"], "panels": panels}},
    }
    folder = tmp_path / "lists" / "tiny"
    (folder / "report.yaml").write_text(yaml.safe_dump(specification), encoding="utf-8")
    page = folder / "page.md"
    page.write_text(
        "# A\n\n<!-- table all -->\n<!-- end -->\n\n<!-- figure curves -->\n<!-- end -->\n", encoding="utf-8"
    )
    arguments = ["--lists", str(folder.parent), "--records", str(tmp_path / "records")]
    report.main(arguments)
    report.main([*arguments, "--check"])
    assert "| ours |" in page.read_text(encoding="utf-8") and (folder / "figures" / "tiny-curves.png").exists()
    # What does not follow from the records is seen: a number, and a figure of other records.
    page.write_text(page.read_text(encoding="utf-8").replace("| ours | ", "| ours | 1"), encoding="utf-8")
    with pytest.raises(SystemExit, match="table all is not what the records give"):
        report.main([*arguments, "--check"])
    report.main(arguments)
    path = tmp_path / "records" / "tiny" / "ours-0.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["curve"]["eval_bits_per_byte"][0][1] += 1
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"tiny-curves\.png was not drawn from these records"):
        report.main([*arguments, "--check"])


def test_a_killed_run_goes_on_from_its_checkpoint_and_its_lock_is_free(make_runner, tmp_path):
    overrides = {**TINY, **SIZES, "max_steps": 60, "eval_steps": 60}
    runner = make_runner({"long": {"overrides": overrides}}, only=["long"])
    [job] = runner.results(runner.entries[0], None)
    with run.locked(runner.runs / f"{job.name}.lock") as lock:
        assert lock is not None
        assert runner.run(job, None) is False  # another one works on it
    arguments = ["tiny", "--lists", tmp_path / "lists", "--records", tmp_path / "records", "--runs", tmp_path / "runs"]
    command = [sys.executable, str(EXPERIMENTS / "run.py"), *map(str, arguments), "--text", str(tmp_path)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    checkpoint = runner.runs / job.name / "checkpoint-6"
    until = time.monotonic() + 200
    while not (checkpoint / "checkpoint.json").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoint.exists() and not runner.record_path(job).exists()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    record = read_record(runner.record_path(job))
    assert record.steps == 60
    assert "Continuing from" in (runner.runs / f"{job.name}.log").read_text(encoding="utf-8")


def test_a_grid_is_extended_until_the_optimum_lies_inside(make_runner, monkeypatch, tmp_path):
    runner = make_runner({"tuned": {"learning_rates": [1e-3, 2e-3, 4e-3]}, "other": {"tuned_with": "tuned"}})
    tried = []

    def start(job, edge, lock):
        tried.append((job.entry.name, job.purpose, job.learning_rate, edge))
        score = abs(job.learning_rate - best)
        fields = {"purpose": job.purpose, "learning_rate": job.learning_rate, "seed": job.seed}
        record = make_record(**fields, metrics={"eval_bits_per_byte": score})
        write_record(dataclasses.replace(record, page="tiny", entry=job.entry.name), tmp_path / "records")

    monkeypatch.setattr(runner, "start", start)
    best = 8e-3
    runner.run_all()
    assert [rate for _, purpose, rate, _ in tried if purpose == TUNING] == [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]
    assert tried[-2:] == [("tuned", "result", 8e-3, False), ("other", "result", 8e-3, False)]


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Runs only leave a record here; their entries, seeds and learning rates in order."""
    jobs = []

    def start(runner, job, edge, lock):
        jobs.append((job.entry.name, job.seed, job.learning_rate))
        scored = {"eval_bits_per_byte": 2.0 + abs((job.learning_rate or 0.0) - 2e-3)}
        fields = {"purpose": job.purpose, "learning_rate": job.learning_rate, "seed": job.seed, "metrics": scored}
        record = make_record(page="tiny", entry=job.entry.name, **fields)
        write_record(record, tmp_path / "records")

    monkeypatch.setattr(run.Runner, "start", start)
    return jobs


def test_what_a_run_starts_from_is_run_before_it(make_runner, started):
    """Also with `--only`, for seeds that the other entry does not report, and with the rate that its trials choose."""
    rates = [1e-3, 2e-3, 4e-3]
    entries = {
        "third": {"start_from": "second", "seeds": [1]},
        "tuned": {"learning_rates": rates, "seeds": 0, "budget_bytes": 3000},
        "first": {"tuned_with": "tuned", "budget_bytes": 4000},
        "second": {"start_from": "first"},
        "unasked": {},
    }
    runner = make_runner(entries, only=["third"])
    assert [(job.entry.name, job.seed) for job in runner.open_jobs()] == [
        *[("tuned", 0)] * 3,
        ("first", 1),
        ("second", 1),
        ("third", 1),
    ]
    runner.run_all()
    assert started == [
        *(("tuned", 0, rate) for rate in rates),
        ("first", 1, 2e-3),
        ("second", 1, None),
        ("third", 1, None),
    ]
    assert runner.open_jobs() == []
    runner.run_all()
    assert len(started) == 6
    # Trials start from it too.
    runner = make_runner({"first": {}, "later": {"start_from": "first", "learning_rates": rates}}, only=["later"])
    started.clear()
    assert runner.rate(runner.entries[0]) == (2e-3, False)
    assert started == [("first", 0, None), *(("later", 0, rate) for rate in rates)]


def test_what_a_run_starts_from_is_waited_for_where_another_process_runs_it(
    make_runner, started, monkeypatch, tmp_path
):
    runner = make_runner({"first": {}, "second": {"start_from": "first"}}, only=["second"])

    def sleep(seconds):  # meanwhile the other one ends
        write_record(make_record(page="tiny", entry="first"), tmp_path / "records")

    monkeypatch.setattr(run.time, "sleep", sleep)
    with run.locked(runner.runs / "first-0.lock"):
        runner.run_all()
    assert started == [("second", 0, None)]


def test_an_optimum_that_stays_at_the_edge_is_marked():
    rates = [1e-3, 2e-3, 4e-3]
    while (more := extend_grid(rates, max(rates))) is not None:
        rates.append(more)
    assert len(rates) == 7 and at_edge(rates, max(rates)) and not at_edge(rates, 4e-3)
    assert extend_grid([1e-3, 2e-3, 4e-3], 1e-3) == 5e-4 and extend_grid([1e-3, 2e-3, 4e-3], 2e-3) is None


def test_tuning_reads_half_a_and_results_half_b(make_runner):
    runner = make_runner({"a": {"learning_rates": [1e-3, 2e-3, 4e-3]}})
    [trial, *_], [result] = runner.trials(runner.entries[0]), runner.results(runner.entries[0], 1e-3)
    paths = [Path(runner.overrides(job)["validation_dataset"]) for job in (trial, result)]
    documents = [set(path.read_text(encoding="utf-8").splitlines()) for path in paths]
    assert documents[0] and documents[1] and not documents[0] & documents[1]


def test_the_best_checkpoint_of_many_passes_on_half_a_is_scored_on_half_b(make_runner, in_this_process, tmp_path):
    """At rates that rise until the model forgets: the last checkpoint is not the best one."""
    rates = [1e-3, 0.1, 0.3]
    many = {"num_train_epochs": 2, "eval_steps": 5, "save_steps": 5, "logging_steps": 5, "save_total_limit": 9}
    rising = {"learning_rate": 300.0, "lr_scheduler_type": "linear", "lr_scheduler_kwargs": {}, "warmup_steps": 1000}
    entries = {"many": {"best_checkpoint": True, "overrides": {**many, **rising}}}
    make_runner(entries).run_all()
    [record] = read_page("tiny", tmp_path / "records")
    curve = record.curve["eval_bits_per_byte"]
    step, lowest = min(curve, key=lambda point: point[1])
    assert record.metrics["best_step"] == step != curve[-1][0]
    assert record.metrics["lowest_bits_per_byte"] == pytest.approx(lowest, rel=1e-5)
    assert record.configuration["data"]["validation_dataset"] == "validation-a.jsonl"
    folder = tmp_path / "runs" / "tiny" / "many-0"
    weights = [(path / "model.safetensors").read_bytes() for path in (folder, folder / f"checkpoint-{step:.0f}")]
    assert weights[0] == weights[1]
    # Half B, scored by hand.
    half_b = tmp_path / "runs" / "tiny" / "text" / "validation-b.jsonl"
    recipe = load_recipe(folder / "recipe.yaml", {"validation_dataset": str(half_b)})
    data: Any = load_data(recipe)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    nats = count = 0.0
    for i in range(len(data.validation)):
        row = data.validation[i]
        predicted = row["labels"][1:] != -100
        with torch.no_grad():
            logits = model(row["input_ids"][None], position_ids=row["position_ids"][None]).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, row["input_ids"][1:].long(), reduction="none")
        nats += losses[predicted].sum().item()
        count += data.token_bytes[row["input_ids"][1:][predicted]].sum()
    assert record.metrics["eval_bits_per_byte"] == pytest.approx(nats / np.log(2) / count, rel=1e-4)
    # Trials count by their best score too.
    runner = make_runner({"many": {"best_checkpoint": True, "learning_rates": rates}})
    for rate, last, best in zip(rates, (2.0, 3.0, 4.0), (2.0, 1.0, 3.0), strict=True):
        metrics = {"eval_bits_per_byte": last, "lowest_bits_per_byte": best}
        trial = make_record(purpose=TUNING, learning_rate=rate, metrics=metrics)
        write_record(dataclasses.replace(trial, page="tiny", entry="many"), tmp_path / "records")
    assert runner.tune(runner.entries[0]) == (0.1, False)


def test_a_trial_that_diverges_is_not_chosen(make_runner, tmp_path):
    logged: list[dict[str, Any]] = [
        {"loss": 2.0},
        {"eval_loss": 1.5, "eval_bits_per_byte": 2.0},
        {"loss": float("nan"), "lm_loss": float("nan")},
        {"eval_loss": float("nan"), "eval_bits_per_byte": float("nan")},
    ]
    assert last_logged(logged, []) == {"diverged": 1.0}
    assert last_evaluation(logged) == {"diverged": 1.0, "lowest_bits_per_byte": 2.0}  # after a last finite loss, too
    assert last_evaluation(logged[:2]) == {"eval_loss": 1.5, "eval_bits_per_byte": 2.0, "lowest_bits_per_byte": 2.0}
    assert last_logged(logged[:2], []) == {"train_loss": 2.0}
    rates = [1e-3, 2e-3, 4e-3]
    runner = make_runner({"one": {"learning_rates": rates}})
    for rate in rates:
        metrics = {"diverged": 1.0, "lowest_bits_per_byte": 1.0} if rate == 4e-3 else {"eval_bits_per_byte": 2.0 - rate}
        trial = make_record(purpose=TUNING, learning_rate=rate, metrics=metrics)
        write_record(dataclasses.replace(trial, page="tiny", entry="one"), tmp_path / "records")
    assert runner.tune(runner.entries[0]) == (2e-3, False)


def test_the_plan_trains_nothing(make_runner, in_this_process, capsys):
    runner = make_runner({"a": {"seeds": 2}, "counts": {"peer": "ngram"}})
    runner.print_plan()
    assert "a, seed 1, result: " in (shown := capsys.readouterr().out) and "3 runs, about " in shown
    assert not in_this_process and not runner.records.exists()
    with pytest.raises(ListError, match="no entry b; there are a, counts"):
        make_runner({"a": {}, "counts": {"peer": "ngram"}}, only=["b"])


# ---- The track ----


def test_some_seeds_alone_can_be_run(make_runner):
    entries = {"ours": {"seeds": 3}, "other": {"seeds": [2, 5]}}
    assert [job.name for job in make_runner(entries, seeds=[0, 2]).open_jobs()] == ["ours-0", "ours-2", "other-2"]


def test_entries_of_the_ablation_begin_with_the_same_weights():
    """Plain and with subtraction: a table of positions of the same size, so the same random numbers for all else."""
    states = []
    for name in ("plain", "subtraction", "both-8"):
        entry = read_list("ar-ablation").entries[name]
        recipe = load_recipe(entry.recipe, {**entry.overrides, "hidden_size": 24, "ngram_buckets": 8})
        set_seed(1)
        config = AutoConfig.for_model("ar_encoder_decoder", **recipe.model, vocab_size=259)
        states.append(AutoModelForCausalLM.from_config(config).state_dict())
    plain, *others = states
    assert all(torch.equal(other[name], tensor) for other in others for name, tensor in plain.items())


def test_a_text_shorter_than_the_budget_is_an_error_before_training(make_runner, monkeypatch):
    experiments = make_runner({"a": {}}).experiments
    with pytest.raises(ListError, match=r"budget_bytes is 90,000, but the training text of .*train.txt has 8,\d{3}"):
        make_runner({"a": {"budget_bytes": 90_000}})
    assert experiments.budget(experiments.entries["a"]) == 5000


@pytest.mark.parametrize("tokenizer", ["bytes", str(REPOSITORY / "hub_configs" / "fsq-tokenizer-tiny"), "bpe"])
def test_every_byte_of_a_half_is_scored_once(make_runner, tmp_path, tokenizer):
    """Whatever the tokens, and whatever the model: n-grams and peers are scored on the same rows."""
    experiments = make_runner({"a": {}}).experiments
    experiments.joined = True
    experiments.text["validation_dataset"] = "odd.txt"
    documents = [f" = Läufer {i} = \n" + f"Zwölf Boxkämpfer jagen {i} € .\n" * 12 for i in range(4)]
    (tmp_path / "odd.txt").write_text("".join(documents), encoding="utf-8")
    fields = prepare_text(experiments, 5000, tmp_path, tmp_path / "parts")["result"]
    data = prepare_data(DataConfig(**fields, tokenizer=tokenizer, tokenizer_vocab_size=300, context_length=64))
    labels = [int(label) for row in data.validation for label in row["labels"] if label != -100]
    wanted = documents[1] + documents[3]
    assert data.tokenizer.decode(labels, skip_special_tokens=True) == wanted
    assert int(data.token_bytes[labels].sum()) == len(wanted.encode())
    assert [label for label in labels if not data.token_bytes[label]] == [data.tokenizer.eos_token_id]
    assert all(row["labels"][0] == -100 for row in data.validation)  # context, the last token of the row before


def test_documents_with_separators_of_lines_come_back(tmp_path):
    documents = ["one\u2028two\n", "three\x85\r\nfour"]
    write_documents(tmp_path / "text.jsonl", documents)
    assert read_documents(tmp_path / "text.jsonl") == documents


def test_seeds_of_the_track_share_the_order_of_rows(make_runner):
    trainers, rows = [], []
    for seed in (0, 1):
        [entry] = make_runner({"a": {"recipe": "eval/experiments/track/decoder-only.yaml"}}).entries
        overrides = {**make_runner({"a": {}}).overrides(run.Job(entry, seed, "result", None)), "max_steps": 2}
        recipe = load_recipe(entry.recipe, overrides)
        trainers.append(build_trainer(recipe, load_data(recipe)))
        rows.append([batch["input_ids"] for batch in trainers[-1].get_train_dataloader()])
    assert all(one.equal(other) for one, other in zip(*rows, strict=True))
    assert not rows[0][0][0].equal(trainers[0].train_dataset[0]["input_ids"])  # shuffled
    weights = [trainer.model.get_input_embeddings().weight for trainer in trainers]
    assert not weights[0].equal(weights[1])


def test_a_speedrun_leaves_a_record_a_line_and_a_comparison(make_runner, tmp_path, capsys, monkeypatch):
    make_runner({})  # a cache of its own
    (tmp_path / "wikitext2").mkdir()
    for source, name in (("train.txt", "wiki.train.txt"), ("valid.txt", "wiki.valid.txt")):
        (tmp_path / "wikitext2" / name).write_bytes((tmp_path / source).read_bytes())
    (tmp_path / "results").mkdir()
    page = (REPOSITORY / "docs" / "results" / "speedrun.md").read_text(encoding="utf-8")
    (tmp_path / "results" / "speedrun.md").write_text(page, encoding="utf-8")
    track = dataclasses.replace(read_list("track"), budget_bytes=5000)
    monkeypatch.setattr(speedrun, "read_list", lambda page: track)
    folders = [f"--{name}={tmp_path / name}" for name in ("runs", "records", "results")]
    tiny = ["hidden_size=16", "num_hidden_layers=1", "ngram_buckets=16", "context_length=32", "bf16=false"]
    common = [f"--text={tmp_path}", "--threads=1", *folders, *(f"--override={one}" for one in tiny)]
    for name, seed in (("one", 0), ("one", 1), ("two", 0), ("two", 1)):
        speedrun.main([*common, "--minutes=0.01", f"--name={name}", f"--seed={seed}"])
    shown = capsys.readouterr().out
    assert "n-grams (counts), of the same text: " in shown and "one.wikitext2: difference " in shown and "p = " in shown
    records = {(one.entry, one.seed): one for one in read_page("speedrun", tmp_path / "records")}
    assert len(records) == 6 and records["two.wikitext2", 1].configuration["model"]["hidden_size"] == 16
    assert records["one.wikitext2", 0].steps > 1 and records["one.wikitext2", 0].metrics["minutes"] == 0.01
    assert "minutes" not in records["ngram.wikitext2", 0].metrics  # it has none to keep
    lines = (tmp_path / "results" / "speedrun.md").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith(("| one | ", "| two | ", "| xz | ", "| n-grams (counts) | ")) for line in lines) == 4
    monkeypatch.setattr(speedrun, "train_one", lambda *arguments: pytest.fail("a mistake is found before training"))
    for arguments, message in (
        ([*common, "--name=one"], "is there: give another --seed"),
        ([*common, "--architecture=decoder"], "did you mean 'decoder-only'"),
        ([*common, "--override=width"], "write field=value"),
        (
            [*common, "--seed=2", "--name=one", "--minutes=0.01", "--override=num_hidden_layers=2"],
            r"differ from this one in model\.num_hidden_layers: --name it",
        ),
        (
            [*common, "--seed=2", "--name=one", "--override=gradient_accumulation_steps=2"],
            r"differ from this one in training\.gradient_accumulation_steps: --name it",
        ),
    ):
        with pytest.raises(SystemExit, match=message):
            speedrun.main(arguments)


def test_a_speedrun_is_compared_with_runs_of_as_many_minutes_on_such_a_machine():
    def make(entry, seed, score, minutes=10.0, threads=1):
        metrics = {"eval_bits_per_byte": score, "minutes": minutes}
        return make_record(entry=entry, seed=seed, metrics=metrics, machine={"cpu": "one", "threads": threads})

    mine = [make("mine", 0, 1.70), make("mine", 1, 1.71), make("mine", 2, 1.60, threads=2), make("mine", 3, 1.9, 5.0)]
    other = [make("other", 0, 1.80), make("other", 1, 1.83), make("other", 2, 1.1, threads=2)]
    for record in mine[:2]:
        [line] = speedrun.comparison_lines(record, mine, {"other": other})
        wanted = welch([1.70, 1.71], [1.80, 1.83])
        assert f"difference {wanted.difference:+.4f}, p = {wanted.p:.2g}; " in line and "2 and 2 seeds" in line
    [line] = speedrun.comparison_lines(mine[2], mine, {"other": other})
    assert "1.1000; 1 and 1 seeds" in line
    [line] = speedrun.comparison_lines(mine[3], mine, {"other": other})
    assert "no run of as many minutes" in line


def test_the_clock_decides_rates_and_the_number_of_steps(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(speedrun.time, "monotonic", lambda: now[0])
    group, state, control = {"lr": 1.0}, SimpleNamespace(global_step=0, max_steps=0), SimpleNamespace()
    schedule = SimpleNamespace(lr_lambdas=[None, None])
    limit = speedrun.TimedSchedule(10)
    optimizer = SimpleNamespace(param_groups=[group])
    limit.on_train_begin(None, state, control, optimizer=optimizer, lr_scheduler=schedule)
    rates = []
    for step in range(1, 11):
        limit.on_step_begin(None, state, control, optimizer=optimizer)
        now[0] += 57.0 / 2  # a twentieth of the ten minutes is for the evaluation
        state.global_step = step
        limit.on_step_end(None, state, control)
        rates.append(schedule.lr_lambdas[1](step))
    assert group["lr"] == 1e-3 and rates[0] == pytest.approx(1.0) and rates[9] == pytest.approx(0.5 / 0.95)
    assert sorted(rates, reverse=True) == rates and state.max_steps == 22
    assert not hasattr(control, "should_training_stop")


# ---- Lists ----


@pytest.mark.parametrize("page", LISTS)
def test_every_list_and_its_recipes_are_valid(page):
    experiments = read_list(page)
    for entry in experiments.entries.values():
        if entry.revision is not None:  # of options that are gone
            continue
        made = ("tokenizer", "from_pretrained")  # by other runs
        overrides = {name: value for name, value in entry.overrides.items() if name not in made}
        recipe = load_recipe(entry.recipe, {**overrides, **entry.tuning_overrides, "output_dir": "unused"})
        assert recipe.training.max_steps > 0


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": {"recipes": "x"}}, "unknown field 'recipes'; did you mean 'recipe'"),
        ({"a": {"recipe": "hub_configs/none"}}, "no recipe 'hub_configs/none'"),
        ({"a": {"peer": "gpt3"}}, r"no peers/gpt3\.py; did you mean 'gpt2'"),
        ({"a": {"tuned_with": "b"}, "c": {}}, "tuned_with 'b' is no entry here"),
        ({"a": {"start_from": "b"}, "b": {"start_from": "a"}}, "start_from leads back to a: a → b → a"),
        ({"a": {"learning_rates": [1e-3, 2e-3]}}, "at least three, in ascending order"),
    ],
)
def test_a_mistake_in_a_list_is_named(make_runner, entries, message):
    with pytest.raises(ListError, match=message):
        make_runner(entries)


def test_an_entry_of_a_former_revision_is_not_run(make_runner):
    runner = make_runner({"a": {"revision": "8af4c58"}, "b": {}})
    assert [entry.name for entry in runner.entries] == ["b"]
    with pytest.raises(ListError, match="a has options that the code no longer has; revision 8af4c58 runs it"):
        make_runner({"a": {"revision": "8af4c58"}}, only=["a"])


def test_a_missing_text_is_an_error_that_names_its_folder(tmp_path):
    text = {"dataset": "wikitext2/wiki.train.txt", "document_start": "^ = "}
    with pytest.raises(ListError, match=f"dataset: there is no wikitext2/wiki.train.txt below {tmp_path}; --text"):
        locate_text(text, tmp_path)
    (tmp_path / "wikitext2").mkdir()
    (tmp_path / "wikitext2" / "wiki.train.txt").touch()
    assert locate_text(text, tmp_path) == text | {"dataset": str(tmp_path / "wikitext2" / "wiki.train.txt")}
    assert locate_text({"dataset": "python_docs", "tokenizer": "org/name"}, tmp_path)["tokenizer"] == "org/name"


def test_the_budget_and_the_halves_of_a_text():
    assert list(first_bytes(["one\n", "two\nthree\n"], 9)) == ["one\n", "two\n"]
    assert list(first_bytes(["ää\n"], 3)) == ["ä"]
    assert list(first_bytes(["one", "two"], None)) == ["one", "two"]
    assert split_in_halves(["aaaa", "b", "c", "d"]) == (["aaaa"], ["b", "c", "d"])
    assert split_in_halves(["one\ntwo\nthree\n"]) == (["one\ntwo\n"], ["three\n"])


# ---- Records ----


@pytest.mark.parametrize("path", sorted(RECORDS.rglob("*.json")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_record_follows_the_schema_and_lies_where_it_belongs(path):
    record = read_record(path)
    assert path == RECORDS / record.page / record.file_name
    text = path.read_text(encoding="utf-8")
    assert "/home/" not in text and "/work/" not in text and "/tmp/" not in text and len(text.encode()) <= MAX_BYTES
    if record.source == FORMER and record.purpose == "result":
        assert record.configuration is None and not record.curve


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schema": 2}, "schema is 2, but must be 1"),
        ({"metrics": {}}, "the run is not finished"),
        ({"metrics": {"eval_loss": float("nan")}}, "must be finite"),
        ({"seed": None}, "seed is None, but must be known of a run"),
        ({"steps": 1.5}, "steps"),
        ({"source": "guess"}, "source is 'guess'"),
        ({"configuration": {"model": {}}}, "must hold data, model, training"),
        ({"parameters": {"total": 1}}, "must be counted"),
    ],
)
def test_a_record_that_is_incomplete_is_refused(fields, message):
    with pytest.raises(RecordError, match=message):
        make_record(**fields)


def test_a_record_is_not_replaced_by_a_lesser_run(tmp_path):
    path = write_record(make_record(metrics={"eval_bits_per_byte": 2.0, "extra": 1.0}), tmp_path)
    before = path.read_text(encoding="utf-8")
    with pytest.raises(RecordError, match="it has no extra"):
        write_record(make_record(), tmp_path)
    with pytest.raises(RecordError, match="8 bytes, there 9"):
        write_record(make_record(bytes_seen=8, metrics={"eval_bits_per_byte": 1.0, "extra": 1.0}), tmp_path)
    assert path.read_text(encoding="utf-8") == before and [one.name for one in path.parent.iterdir()] == ["one-0.json"]
    write_record(make_record(bytes_seen=10, metrics={"eval_bits_per_byte": 1.0, "extra": 1.0}), tmp_path)
    assert read_record(path).metrics["eval_bits_per_byte"] == 1.0
    write_record(make_record(), tmp_path, replace=True)
    assert read_record(path).metrics == {"eval_bits_per_byte": 2.0}


def test_what_a_record_says_of_a_run_is_portable_and_small(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "a-secret-token")
    value = {"a": [Path("/home/someone/text.txt"), str(REPOSITORY / "runs" / "x")], "b": "a-secret-token", "c": None}
    assert portable(value) == {"a": ["text.txt", "runs/x"], "b": "<hidden>", "c": None}
    points = thin([(step, step / 3) for step in range(1000)])
    assert len(points) == 60 and points[0][0] == 0 and points[-1][0] == 999


# ---- Reports ----


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_are_what_the_records_give(page):
    assert report.Report(page).problems() == []


def test_a_difference_is_said_to_be_one_only_where_p_says_so():
    def group(entry, values):
        return Group([make_record(seed=i, metrics={"bits": value}) for i, value in enumerate(values)])

    pair = {"value": "bits", "format": ".2f"}
    far = difference(group("a", [1.0, 1.1]), group("b", [2.1, 2.2]), pair)
    single = difference(group("a", [1.0]), group("b", [2.1, 2.2]), pair)
    assert far.endswith("1.10 lower (p = 0.0041)")
    assert "one seed, so nothing follows" in single
    # Larger than both standard deviations, 0.06 and 0.21, and still no difference.
    values = [2.416, 2.424, 2.427], [2.430, 2.436, 2.470]
    near = difference(*(group("a", ones) for ones in values), pair)
    comparison = welch(*values)
    assert f"no difference seen (0.02 lower, p = {comparison.p:.2g}; " in near and comparison.p > 0.05
    assert near.endswith(f"; {comparison.detectable:.2f} would be seen four times in five)")
    # Of pairs as well.
    paired_too = {**pair, "paired": True}
    alike = difference(group("a", [1.0, 1.2, 1.1]), group("b", [1.1, 1.1, 1.1]), paired_too)
    assert "no difference seen in 3 pairs of runs (0.00 lower, p = 1; " in alike
    assert difference(group("a", [1.0]), group("b", [1.1]), paired_too).endswith("1 pair of runs, too few to tell")


def test_welch_is_that_of_scipy():
    ones, others = [1.84, 1.85, 1.86, 1.845], [1.87, 1.90, 1.86]
    result = welch(ones, others)
    wanted = stats.ttest_ind(ones, others, equal_var=False)
    assert result.p == pytest.approx(wanted.pvalue) and result.difference == pytest.approx(-0.0279167, rel=1e-5)
    # A difference of that size is seen in four fifths of all pairs of such runs.
    generator = np.random.default_rng(0)
    runs = generator.normal(0.0, 1.0, (2, 4000, 3))
    sizes = np.median([welch(a, b).detectable for a, b in zip(*runs[:, :200].tolist(), strict=True)])
    seen = [welch((a + 4.0).tolist(), b.tolist()).p < 0.05 for a, b in zip(*runs[:, :400], strict=True)]
    assert 2.0 < sizes < 4.0 and np.mean(seen) > 0.8
    assert welch([1.0], others) is None
    assert welch([1.0, 1.0], [1.0, 1.0]).p == 1.0 and welch([1.0, 1.0], [2.0, 2.0]).p == 0.0


def test_the_paired_test_is_that_of_scipy_and_matches_seeds():
    ones, others = [1.80, 1.81, 1.78], [1.82, 1.82, 1.81]
    comparison = paired(ones, others)
    assert comparison is not None
    assert comparison.p == pytest.approx(stats.ttest_rel(ones, others).pvalue)
    assert comparison.difference == pytest.approx(-0.02)
    # Were the true difference that one, the test would find it some four times in five.
    generator = np.random.default_rng(0)
    changes = generator.normal(comparison.detectable, np.std(np.subtract(ones, others), ddof=1), (20_000, 3))
    assert (stats.ttest_1samp(changes, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.05)
    assert paired(ones[:1], others[:1]) is None
    # The runs of an entry are paired by their seed, whatever is missing or comes first.
    metric = {"value": "eval_bits_per_byte", "format": ".3f", "paired": True}
    groups = {
        name: Group([make_record(seed=s, label=name, metrics={"eval_bits_per_byte": v}) for s, v in values.items()])
        for name, values in {"one": {1: 1.81, 0: 1.80, 3: 1.78}, "other": {0: 1.82, 1: 1.82, 2: 9.0, 3: 1.81}}.items()
    }
    assert f"no difference seen in 3 pairs of runs (0.020 lower, p = {comparison.p:.2g}; " in difference(
        *groups.values(), metric
    )
    columns = [{**metric, "heading": "p", "against": "other"}]
    assert f"| one | {comparison.p:.3f} |" in results_table(groups, {"entries": list(groups), "columns": columns}, "")
    low, high = stats.ttest_rel(ones, others).confidence_interval()
    assert (comparison.difference - comparison.margin, comparison.difference + comparison.margin) == pytest.approx(
        (low, high)
    )
    columns = [{**metric, "heading": "change", "less": "other"}]
    shown = results_table(groups, {"entries": list(groups), "columns": columns}, "")
    assert f"| one | -0.020 ± {comparison.margin:.3f} |" in shown and "| other | – |" in shown


def test_what_one_of_several_runs_says_is_marked():
    """A measure may be made of one run of an entry with three; a ratio is that of values of the same run."""
    alone = [{"metrics": {"bits": 1.5} | ({"noise": 2.0} if seed == 1 else {}), "steps": seed + 1} for seed in range(3)]
    every = [{"metrics": {"bits": 1.6, "noise": 2.1}, "steps": 2} for _ in range(3)]
    groups = {
        name: Group([make_record(seed=seed, label=name, **fields) for seed, fields in enumerate(runs)])
        for name, runs in (("alone", alone), ("every", every), ("one", every[:1]))
    }
    table = {"entries": list(groups), "columns": [{"heading": "noise", "value": "noise", "format": ".1f"}]}
    shown = results_table(groups, table, "")
    assert "| alone ¹ | 2.0 |" in shown and "| every | 2.1 ± 0.0 |" in shown and "| one ¹ | 2.1 |" in shown
    assert results_table(groups, {**table, "entries": ["alone", "one"]}, "").endswith("\n\nOne seed each.")
    table["columns"] = [
        {"heading": "bits", "value": "bits"},
        *table["columns"],
        {"heading": "seeds", "value": "num_seeds"},
    ]
    assert "| alone | 1.500 ± 0.000 | 2.0 |" in results_table(groups, table, "")
    assert groups["alone"].mean("noise", "steps") == 1.0  # of the second run, and its two steps


def test_the_parts_of_a_measure_are_rows_of_a_table():
    metrics = {"raw_words_f1": 0.5, "raw_pieces_f1": 0.25}
    groups = {name: Group([make_record(label=name, metrics=metrics)]) for name in ("one", "other")}
    table = {
        "head": "cuts at",
        "entries": ["one"],
        "parts": {"raw_words_": "words", "raw_pieces_": "pieces"},
        "columns": [{"heading": "F1", "value": "f1"}],
    }
    expected = "| cuts at | F1 |\n| --- | --: |\n| words | 0.500 |\n| pieces | 0.250 |"
    assert results_table(groups, table, "") == expected
    both = results_table(groups, {**table, "entries": list(groups)}, "")
    assert "| one: words | 0.500 |" in both and "| other: pieces | 0.250 |" in both


def test_a_partial_page_leaves_out_what_has_not_run(tmp_path):
    for entry, values in (("one", [2.0, 2.1]), ("two", [3.0, 3.2])):
        for seed, value in enumerate(values):
            metrics = {"eval_bits_per_byte": value}
            write_record(
                dataclasses.replace(make_record(seed=seed, metrics=metrics), entry=entry, label=entry), tmp_path
            )
    columns = [
        {"heading": "bits", "value": "eval_bits_per_byte", "format": ".2f"},
        {"heading": "p", "value": "eval_bits_per_byte", "against": "one", "format": ".3f"},
        {"heading": "bytes/s", "value": "bytes_seen", "per": "seconds", "format": ".1f"},
    ]
    tables = {
        "some": {"entries": ["one", "later", "two"], "columns": columns},
        "none": {"entries": ["later"], "columns": columns},
        "every": {"entries": "*", "columns": columns},
    }
    panels = [{"value": "loss", "yardsticks": ["one", "later"]}]
    figures = {"curves": {"alt": "Curves", "entries": ["later", "two"], "panels": panels}}
    folder = tmp_path / "lists" / "page"
    folder.mkdir(parents=True)
    pairs = [{"value": "eval_bits_per_byte", "entries": names} for names in (["one", "two"], ["one", "later"])]
    differences = {"some": pairs, "none": pairs[1:]}
    content = {"partial": True, "tables": tables, "figures": figures, "differences": differences}
    (folder / "report.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    page = report.Report("page", tmp_path / "lists", tmp_path, tmp_path)
    some = page.block("table", "some")
    assert "| one | 2.05 ± 0.07 | – | 9.0 ± 0.0 |" in some and "| two | 3.10 ± 0.14 | 0.027 |" in some
    assert some.endswith("Not run yet: later.") and page.block("table", "none") == report.NO_RECORDS
    assert page.block("table", "every").index("| one |") < page.block("table", "every").index("| two |")
    assert page.block("figure", "curves").startswith("![Curves]")
    assert page.block("differences", "some").count("one against") == 1
    assert page.block("differences", "none") == report.NO_RECORDS
    content["partial"] = False
    (folder / "report.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ListError, match="no records of entry 'later'"):
        report.Report("page", tmp_path / "lists", tmp_path, tmp_path).block("table", "some")


def test_a_panel_by_layer_has_a_line_for_each_stack():
    metrics = {"eval_bits_per_byte": 2.0, "probe_next_embedding_0": 0.1, "probe_next_encoder_1": 0.2}
    metrics |= {"probe_next_decoder_2": 0.3, "probe_current_encoder_1": 0.9, "probe_next_encoder_10": 0.4}
    lines = layer_lines(Group([make_record(metrics=metrics), make_record(seed=1, metrics=metrics)]), "probe_next")
    assert [(line["label"], line["x"], line["mean"]) for line in lines] == [
        ("One: encoder", [0, 1, 10], [0.1, 0.2, 0.4]),
        ("One: decoder", [2], [0.3]),
    ]


def test_a_panel_of_series_joins_the_entries_of_each_by_a_number_of_their_own():
    def group(length: int, *bits: float) -> Group:
        configuration = {"model": {}, "data": {"context_length": length}, "training": {}}
        records = [
            make_record(seed=seed, configuration=configuration, metrics={"bits": value})
            for seed, value in enumerate(bits)
        ]
        return Group(records)

    groups = {"one-2048": group(2048, 1.5), "one": group(256, 1.75, 2.25), "other-512": group(512, 1.25)}
    panel = {
        "value": "bits",
        "over": {"value": "configuration.data.context_length"},
        "series": {"One": ["one", "one-*"], "Other": ["other-*"], "None": ["none*"]},
    }
    one, other = contents(groups, {"entries": [], "panels": [panel]}, "")["panels"][0]["lines"]
    spread = 0.353553  # the standard deviation of two seeds
    assert (one["label"], one["x"], one["mean"]) == ("One", [256, 2048], [2.0, 1.5])
    assert (one["low"], one["high"]) == ([2.0 - spread, 1.5], [2.0 + spread, 1.5])
    assert (other["x"], other["mean"]) == ([512], [1.25])


def test_a_panel_by_times_seen_holds_differences_of_the_same_seeds():
    groups = {
        name: Group(
            [
                make_record(
                    label=name, seed=s, metrics={f"piece_{n}_bits": v for n, v in zip((0, 16), values, strict=True)}
                )
                for s, values in runs.items()
            ]
        )
        for name, runs in {
            "one": {0: (5.0, 3.0), 1: (6.0, 3.2)},
            "none": {1: (6.5, 3.0), 0: (5.25, 3.0), 2: (9.0, 9.0)},
        }.items()
    }
    [line] = seen_lines(groups["one"], groups["none"], "piece")
    assert (line["x"], line["mean"]) == ([0, 16], [-0.375, 0.1])
    assert (line["low"], line["high"]) == ([-0.5, 0.0], [-0.25, 0.2])
    assert seen_lines(groups["one"], groups["none"], "after") == []


def test_every_figure_is_shown_by_a_page():
    figures = {path.name for path in (REPOSITORY / "docs" / "results" / "figures").iterdir()}
    pages = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "docs").rglob("*.md"))
    assert {name for name in figures if f"figures/{name})" not in pages} == set()


def test_trackio_holds_the_curves_of_records(tmp_path):
    curve = {"loss": [[1, 2.5], [3, 1.5]], "learning_rate": [[3, 0.1]]}
    sections = {name: {"field": 1} for name in ("model", "data", "training")}
    record = make_record(seed=4, steps=3, curve=curve, metrics={"eval_loss": 1.25}, configuration=sections)
    write_record(record, tmp_path / "records")
    script, environment = EXPERIMENTS / "to_trackio.py", os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")}
    command = [sys.executable, script, "page", "--records", tmp_path / "records"]
    pages = tmp_path / "pages"
    subprocess.run([*command, "--pages", pages], env=environment, check=True, capture_output=True)
    assert json.loads((pages / "config.json").read_text("utf-8"))["project"] == "latentlm-page"
    assert (pages / "data" / "metrics.parquet").exists() and (pages / "data" / "runs.json").exists()
    assert '"./assets/index' in (pages / "index.html").read_text("utf-8")
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 1 and "latentlm-page" in again.stderr  # nothing is written over
    code = (
        "import json, trackio; store = trackio.SQLiteStorage; [name] = store.get_runs('latentlm-page');"
        "print(name, json.dumps(store.get_logs('latentlm-page', name)))"
    )
    read = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    name, logs = read.stdout.strip().split(" ", 1)
    points = [{k: v for k, v in one.items() if k != "timestamp"} for one in json.loads(logs)]
    assert name == "one-4"
    assert points == [
        {"step": 1, "loss": 2.5},
        {"step": 3, "loss": 1.5, "learning_rate": 0.1, "eval_loss": 1.25},
    ]
