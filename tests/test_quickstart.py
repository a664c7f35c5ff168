"""The quick start: stops in time, continues, and loads what it saved in a process without latentlm."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import TrainerControl, TrainerState

from latentlm.cli import quickstart
from latentlm.cli.quickstart import generate_without_latentlm, load_quickstart, main, plan_run, train_for
from latentlm.hub.files import PublishError
from latentlm.runs.run_folder import METRICS_FILE
from latentlm.training import speed_trial, time_limit
from latentlm.training.run import load_data
from latentlm.training.speed_trial import plan, time_steps

TINY = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "ngram_buckets": 16,
    "bf16": "false",  # with the number of steps, there is nothing to try
    "context_length": 64,
    "max_steps": 4,
    "warmup_steps": 1,
    "per_device_train_batch_size": 2,
    "max_validation_rows": 4,
    "logging_steps": 1,
    "eval_steps": 4,
    "sample_prompts": 1,
    "sample_new_tokens": 2,
}


def command_line(folder: Path, **options: object) -> list[str]:
    fields = TINY | {"output_dir": folder} | options
    return [part for name, value in fields.items() for part in (f"--{name}", str(value))]


def test_it_stops_in_time_continues_and_is_complete(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    # The first run generates in its own process; the others would do the same again.
    main(command_line(folder, minutes=1e-6))
    first = capsys.readouterr().out
    for text in (
        "The 1e-06 minutes were over after step 1 of 4",
        "training, step 1 → 1: lm loss",
        "; a table of ",
        "-gram counts of the same text gets ",
        "held-out text, step 0 → 1: bits per byte",
        f"Curves: {folder / 'curves.png'}",
        f"Loaded AREncoderDecoderForCausalLM from {folder} without latentlm.",
        "--- Sample 3 of 3 ---",
        "--- It continues 'The import statement' ---",
    ):
        assert text in first
    assert first.rpartition("\n\n")[2].startswith("The import statement")
    assert (folder / "curves.png").stat().st_size > 0
    assert (folder / "checkpoint-1" / "checkpoint.json").exists()

    monkeypatch.setattr(quickstart, "generate_without_latentlm", lambda *arguments: None)
    main(command_line(folder))
    second = capsys.readouterr().out
    assert f"Continuing from {folder / 'checkpoint-1'}" in second
    assert "held-out text, step 0 → 4: bits per byte" in second and "All 4 steps are done." in second
    weights = (folder / "model.safetensors").read_bytes()
    main(command_line(folder))
    assert "All 4 steps were done before; nothing was left to train." in capsys.readouterr().out
    assert (folder / "model.safetensors").read_bytes() == weights

    # Stopping and continuing changed nothing: one run with time enough ends with the same weights.
    recipe, minutes, _, fields = load_quickstart(command_line(tmp_path / "whole"))
    assert minutes == 4
    train_for(recipe, minutes, fields)
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == weights
    metrics = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    assert [entry["step"] for entry in metrics if "eval_loss" in entry] == [0, 1, 4]

    # What is loaded is the folder's own code: without it, there is a message and an exit status.
    shutil.copytree(folder, tmp_path / "no_code", ignore=shutil.ignore_patterns("*.py", "checkpoint-*"))
    with pytest.raises(SystemExit, match="without latentlm failed") as error:
        generate_without_latentlm(str(tmp_path / "no_code"), "x")
    assert "no_code does not appear to have a file named" in str(error.value)


def test_the_second_process_cannot_import_latentlm(tmp_path, monkeypatch):
    code = quickstart.LOAD_AND_GENERATE.replace("import torch\n", "import latentlm\n")
    monkeypatch.setattr(quickstart, "LOAD_AND_GENERATE", code)
    with pytest.raises(SystemExit, match="import of latentlm halted"):
        generate_without_latentlm(str(tmp_path), "x")


def test_time_limit_leaves_time_for_the_last_evaluation(monkeypatch):
    """Of 60 seconds, the longest pause between two steps (an evaluation) is kept free at the end."""
    clock = 0.0
    monkeypatch.setattr(time_limit.time, "monotonic", lambda: clock)
    limit, control = time_limit.TimeLimit(minutes=1), TrainerControl()
    limit.on_train_begin(None, None, control)
    for pause, step, stops in [(20.0, 1.0, False), (5.0, 13.0, False), (0.5, 1.0, True)]:
        clock += pause
        limit.on_step_begin(None, None, control)
        clock += step
        limit.on_step_end(None, None, control)
        assert control.should_training_stop is stops, clock
    assert control.should_save and control.should_evaluate and control.should_log


def test_a_slow_machine_ends_at_a_rate_near_zero(monkeypatch):
    """In time, the rate is that of the schedule; late, it comes down with the steps that are possible."""
    clock = 0.0
    monkeypatch.setattr(time_limit.time, "monotonic", lambda: clock)
    limit, control, state = time_limit.TimeLimit(minutes=1), TrainerControl(), TrainerState(max_steps=100)
    state.global_step = 20
    limit.on_train_begin(None, state, control)
    rates = {}
    optimizer = torch.optim.SGD([torch.zeros(1)])
    for step in range(20, 100):
        optimizer.param_groups[0]["lr"] = planned = 1 - step / 100  # as the schedule does
        clock += 0.5 if step < 40 else 1.5
        state.global_step = step
        limit.on_step_begin(None, state, control, optimizer=optimizer)
        rates[step] = optimizer.param_groups[0]["lr"]
        assert rates[step] <= planned and (step > 41 or rates[step] == planned)
        limit.on_step_end(None, state, control)
        if control.should_training_stop:
            break
    assert limit.was_late and 50 < step < 90
    assert rates[step] < 0.05 and sorted(rates.values(), reverse=True) == list(rates.values())


def test_the_trial_plans_a_run_that_its_recipe_repeats(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quickstart, "TRIAL_SECONDS", 0.1)
    kept = {name: value for name, value in TINY.items() if name not in ("bf16", "eval_steps", "max_steps")}
    arguments = [part for name, value in kept.items() for part in (f"--{name}", str(value))]
    recipe, _, _, fields = load_quickstart([*arguments, "--output_dir", str(tmp_path / "run")])
    data = load_data(recipe)
    times = time_steps(recipe, data, 0.1)
    assert times.keys() == {"float32", "bfloat16"} and min(times.values()) > 0
    assert plan(recipe, {"float32": 1.0, "bfloat16": 0.96}, 4) == {
        "bf16": False,  # not clearly faster
        "max_steps": 180,
        "eval_steps": 30,
        "save_steps": 30,
    }
    assert plan(recipe, {"float32": 1.0, "bfloat16": 0.5}, 2)["max_steps"] == 180
    assert plan(recipe, {"float32": 1.0, "bfloat16": 1e-6}, 4)["max_steps"] == 600  # no more than the recipe's
    assert plan(recipe, {"float32": 1e3, "bfloat16": 1e9}, 1)["max_steps"] == 1
    recipe.training.max_steps = -1  # as many as fit
    assert plan(recipe, {"float32": 1.0, "bfloat16": 0.5}, 2)["max_steps"] == 180
    recipe.training.max_steps = 600
    planned = plan_run(recipe, data, 1e-3, fields)
    assert "A step takes " in capsys.readouterr().out
    assert planned.training.max_steps < 600 and planned.training.eval_steps <= planned.training.max_steps
    # What was written once is taken again, without a trial, unless the command line says otherwise.
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "recipe.yaml").write_text(planned.to_yaml())
    monkeypatch.setattr(speed_trial, "time_steps", None)
    assert plan_run(recipe, data, 4, fields).to_dict() == planned.to_dict()
    assert plan_run(recipe, data, 4, {**fields, "max_steps": 7}).training.max_steps == 7


def test_the_recipe_is_the_repository_s():
    recipe, minutes, prompt, _ = load_quickstart([])
    assert (recipe.data.dataset, recipe.data.tokenizer) == ("python_docs", "bytes")
    assert recipe.training.output_dir == "runs/quickstart" and recipe.training.eval_on_start
    assert (minutes, prompt) == (4, "The import statement")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "soon"], "--minutes is 'soon', but it must be a number above 0"),
        (["--minutes", "0"], "--minutes is '0'"),
        (["--minutes", "nan"], "--minutes is 'nan'"),
        (["recipe.yaml"], "unexpected argument 'recipe.yaml'"),
        (["--minuts", "3"], "unknown; did you mean"),
        (["--streaming", "true", "--max_validation_rows", "2"], "data.streaming is true"),
    ],
)
def test_mistakes_are_messages(arguments, message):
    with pytest.raises(SystemExit, match=message) as error:
        main(arguments)
    assert isinstance(error.value.code, str)  # printed, exit status 1


def test_a_hub_that_cannot_be_written_to_is_a_message(monkeypatch):
    def train_for(*arguments):
        raise PublishError("org/name was not published: there is no token")

    monkeypatch.setattr(quickstart, "train_for", train_for)
    with pytest.raises(SystemExit, match="latentlm quickstart: org/name was not published: there is no token"):
        main(["--push_to_hub", "true"])


def test_outside_of_a_clone(monkeypatch):
    monkeypatch.setattr(quickstart, "RECIPE", Path("hub_configs") / "nowhere" / "recipe.yaml")
    with pytest.raises(SystemExit, match="the quick start runs in a clone of the repository"):
        main([])
