"""The quick start: stops in time, continues, and loads what it saved in a process without latentlm."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import TrainerControl

from latentlm.cli import quickstart
from latentlm.cli.quickstart import generate_without_latentlm, load_quickstart, main, train_for
from latentlm.runs.run_folder import METRICS_FILE
from latentlm.training import time_limit

TINY = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
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
        "training, step 1 → 1: embedding loss",
        "held-out text, step 0 → 1: bits per byte",
        f"Curves: {folder / 'curves.png'}",
        f"Loaded AREncoderDecoderForCausalLM from {folder} without latentlm. It continues 'The import statement':",
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
    recipe, minutes, _ = load_quickstart(command_line(tmp_path / "whole"))
    assert minutes == 4
    train_for(recipe, minutes)
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


def test_the_recipe_is_the_repository_s():
    recipe, minutes, prompt = load_quickstart([])
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
    ],
)
def test_mistakes_are_messages(arguments, message):
    with pytest.raises(SystemExit, match=message) as error:
        main(arguments)
    assert isinstance(error.value.code, str)  # printed, exit status 1


def test_outside_of_a_clone(monkeypatch):
    monkeypatch.setattr(quickstart, "RECIPE", Path("hub_configs") / "nowhere" / "recipe.yaml")
    with pytest.raises(SystemExit, match="the quick start runs in a clone of the repository"):
        main([])
