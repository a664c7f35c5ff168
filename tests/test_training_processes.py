"""Training as a user starts it: the command line, two processes through `accelerate launch`, SIGKILL at any time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_kills import MOMENTS
from training_processes import MUON, STEPS
from training_setup import MASKED, Rows, make_model, make_trainer, metrics_of

from latentlm.train import main
from latentlm.training import muon

TESTS = Path(__file__).parent
TWO_PROCESSES = TESTS.parent / "examples" / "accelerate" / "two_cpu_processes.yaml"
RECIPE = """
model:
  model_type: ar_encoder_decoder
  hidden_size: 16
  num_attention_heads: 2
  num_encoder_layers: 1
  num_decoder_layers: 1
  max_position_embeddings: 64
  embedding_loss: mse
  hidden_dropout: 0.1
  learned_dropout: bernoulli
  learned_dropout_shift: 1.3
data:
  context_length: 64
  max_validation_rows: 6
training:
  max_steps: 10
  learning_rate: 1e-3
  per_device_train_batch_size: 2
  per_device_eval_batch_size: 4
  gradient_accumulation_steps: 2
  logging_steps: 2
  eval_strategy: steps
  eval_steps: 4
  eval_on_start: true
  save_steps: 3
  sample_prompts: 1
  sample_new_tokens: 4
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def run(*command: str | Path) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def launch(*arguments: str | Path) -> str:
    """Run two processes with the example configuration, on a free port."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", TWO_PROCESSES]
    return run(*command, "--main_process_port", "0", *arguments)


def assert_same_run(run_folder: Path, other: Path) -> None:
    """Equal to the last digit: losses, evaluations, samples, weights."""
    assert metrics_of(run_folder) == metrics_of(other)
    assert (run_folder / "samples.jsonl").read_bytes() == (other / "samples.jsonl").read_bytes()
    assert (run_folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_killed_at_any_moment_it_ends_the_same(recipe, tmp_path):
    main([str(recipe), "--output_dir", str(tmp_path / "whole")])
    assert metrics_of(tmp_path / "whole")[-1]["step"] == 10
    output = run(sys.executable, TESTS / "training_kills.py", recipe, tmp_path / "killed", *MOMENTS)
    assert output.count(": -9") == len(MOMENTS), output
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    names = [path.name for path in (tmp_path / "killed").iterdir()]
    kept = sorted(name for name in names if name.startswith(("checkpoint-", ".")))
    assert kept == [".lock", "checkpoint-10", "checkpoint-9"]  # the system has released the lock


@pytest.mark.slow
def test_killed_at_random_it_ends_the_same(recipe, tmp_path):
    """A run of its own: how far it gets before each random moment depends on the machine."""
    main([str(recipe), "--output_dir", str(tmp_path / "whole")])
    run(sys.executable, TESTS / "training_kills.py", recipe, tmp_path / "random", "random-0", "random-1")
    assert_same_run(tmp_path / "random", tmp_path / "whole")


def test_command_line_run_resume_and_errors(recipe, tmp_path, capsys):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    main([str(recipe), "--output_dir", str(whole), "--save_total_limit", "3"])
    printed = capsys.readouterr().out
    for text in ("held-out text, step 0 → 10: bits per byte", "embedding loss", "curves.png", "left 0:00:0"):
        assert text in printed
    files = {"recipe.yaml", "environment.json", "data.json", "results.json", "metrics.jsonl", "samples.jsonl",
             "curves.png", "config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json",
             "modeling_ar_encoder_decoder.py"}  # fmt: skip
    assert files <= {path.name for path in whole.iterdir()}
    results = json.loads((whole / "results.json").read_text())
    assert results["steps"] == 10 and results["parameters"] > 0 and results["peak_memory_bytes"] > 1e6

    # Again: the run is complete, but for the results if it was killed before. Without a recipe: the one in the
    # checkpoint.
    (whole / "results.json").unlink()
    weights = (whole / "model.safetensors").read_bytes()
    main([str(recipe), "--output_dir", str(whole), "--save_total_limit", "3"])
    assert "Continuing from" in capsys.readouterr().out
    assert (whole / "model.safetensors").read_bytes() == weights
    again = json.loads((whole / "results.json").read_text())
    assert {**again, "peak_memory_bytes": 0} == {**results, "peak_memory_bytes": 0}
    main(["--resume_from_checkpoint", str(whole / "checkpoint-6"), "--output_dir", str(resumed)])
    assert metrics_of(resumed) == metrics_of(whole)
    assert (resumed / "model.safetensors").read_bytes() == weights

    def message(*arguments: str) -> str:
        with pytest.raises(SystemExit) as error:
            main(arguments)
        assert isinstance(error.value.code, str)  # printed, exit status 1
        return error.value.code

    assert "holds another run (training.max_steps: 10 there, 12 here)" in message(
        str(recipe), "--output_dir", str(whole), "--max_steps", "12"
    )
    assert "context_length: 65 is longer" in message(str(recipe), "--context_length", "65")
    assert "data:" in message(str(recipe), "--dataset", str(tmp_path / "nothing.txt"))
    assert "name a recipe" in message("--max_steps", "3")
    assert "did you mean 'max_steps'" in message(str(recipe), "--max_step", "3")
    data = json.loads((whole / "checkpoint-6" / "data.json").read_text())
    (whole / "checkpoint-6" / "data.json").write_text(json.dumps(data | {"vocab_size": 9}))
    assert "cannot be resumed: data.json has" in message("--resume_from_checkpoint", str(whole / "checkpoint-6"))


PARALLEL = [
    *("--model_type", "parallel_encoder_decoder"),
    *("--mask_entropy_loss_weight", "0.5", "--mask_l1_loss_weight", "0.3", "--mask_l1_loss_rate", "0.06"),
]


@pytest.mark.two_process
def test_two_processes_equal_one(recipe, tmp_path):
    """From the command line, with schedules of masks; test_two_processes.py has every architecture."""
    # Nothing that is drawn: draws differ between one process and two.
    options = ["--hidden_dropout", "0", "--learned_dropout", "sigmoid_detached", "--max_steps", "6", *PARALLEL]
    main([str(recipe), "--output_dir", str(tmp_path / "one"), *options])
    options += ["--gradient_accumulation_steps", "1", "--output_dir", str(tmp_path / "two")]
    launch("-m", "latentlm.train", recipe, *options)
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["processes"] == 2
    assert (tmp_path / "two" / "checkpoint-6" / "rng_state_1.pth").exists()
    for one, two in zip(metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two"), strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() - {"epoch"}:
            # Six validation rows do not fill two rounds of 2 × 4: none may count twice.
            assert two[name] == pytest.approx(one[name], rel=1e-5), name
    weights = [entry["mask_l1_loss_weight"] for entry in metrics_of(tmp_path / "two") if "loss" in entry]
    assert weights == sorted(weights) and weights[0] < weights[-1] == pytest.approx(0.3)


@pytest.mark.slow
@pytest.mark.two_process
def test_two_processes_run_the_tiny_parallel_recipe_with_learned_dropout(tmp_path):
    """The recipe as published, with masks that are drawn; killed between, it would resume like the others."""
    recipe = TESTS.parent / "hub_configs" / "parallel-encoder-decoder-tiny" / "recipe.yaml"
    options = ["--learned_dropout", "bernoulli", "--output_dir", tmp_path, "--max_steps", "4", "--warmup_steps", "1"]
    options += ["--logging_steps", "2", "--eval_steps", "2", "--save_steps", "2", "--max_validation_rows", "6"]
    launch("-m", "latentlm.train", recipe, *options, "--per_device_train_batch_size", "2", "--sample_new_tokens", "4")
    assert json.loads((tmp_path / "environment.json").read_text())["processes"] == 2
    last = [entry for entry in metrics_of(tmp_path) if "loss" in entry][-1]
    assert last["step"] == 4 and {"lm_loss", "embedding_loss", "mask_l1_loss", "mask_density"} <= last.keys()


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> Path:
    """Folder of what two processes did in training_processes.py."""
    folder = tmp_path_factory.mktemp("processes")
    launch(TESTS / "training_processes.py", folder)
    return folder


@pytest.mark.two_process
@pytest.mark.parametrize("kind", ["ddp", "fsdp", "ddp_muon", "fsdp_muon"])
def test_replicated_and_sharded_steps_equal_one_process(processes, tmp_path, kind, monkeypatch):
    """DDP and FSDP2 (as far as the CPU has it: sharded when loaded) against the same rows in one process."""
    monkeypatch.setattr(muon, "iteration_dtype", lambda device: torch.float64)
    trainer = make_trainer(
        tmp_path,
        make_model(vocab_size=260, **MASKED),
        train=Rows(8),
        eval_strategy="steps",
        eval_steps=1,
        **STEPS | (MUON if "muon" in kind else {}) | {"per_device_train_batch_size": 8},
    )
    trainer.train()
    for one, two in zip(metrics_of(tmp_path), metrics_of(processes / kind), strict=True):
        for name in one:
            if name.endswith("loss") or name in ("grad_norm", "eval_bits_per_byte"):
                assert two[name] == pytest.approx(one[name], rel=1e-5), name
    weights = load_file(processes / kind / "model.safetensors")
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(weights[name], parameter.data, rtol=1e-4, atol=1e-6)
    config = json.loads((processes / kind / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_ar_encoder_decoder.AREncoderDecoderForCausalLM"
    assert (processes / kind / "modeling_ar_encoder_decoder.py").exists()
    assert not list((processes / kind).glob("_fsdp*"))


@pytest.mark.two_process
def test_metrics_and_predictions_of_two_processes_get_each_row_once(processes, tmp_path):
    facts = json.loads((processes / "evaluation" / "facts.json").read_text())
    assert facts.keys() == {"rows", "few", "stream"}
    for name, found in facts.items():
        alone = make_trainer(tmp_path, make_model(), evaluation=Rows(len(found["expected"]))).evaluate()
        assert found["seen"] == found["expected"], name
        assert found["losses"] == pytest.approx(2 * [alone["eval_loss"]], rel=1e-6), name


@pytest.mark.two_process
def test_two_processes_resume_exactly(processes):
    assert metrics_of(processes / "again") == metrics_of(processes / "whole")
    assert (processes / "whole" / "checkpoint-4" / "rng_state_1.pth").exists()


@pytest.mark.two_process
def test_two_processes_end_with_the_best_checkpoint(processes):
    """`training_processes.run_best` compares the weights of each."""
    assert (processes / "best" / "done").exists()
