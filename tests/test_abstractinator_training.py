"""Training of the Abstractinator: recipes, stages, codebooks over resuming and processes, what an evaluation says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file
from test_abstractinator import BYTES, build
from training_setup import Rows, make_trainer, metrics_of

from latentlm.inspect import main as inspect_main
from latentlm.train import main
from latentlm.training import AbstractinatorTrainingArguments, RecipeError
from latentlm.training.publishing import published_files, write_card

TESTS = Path(__file__).parent
TINY = REPOSITORY / "hub_configs" / "abstractinator-tiny"
SEED = REPOSITORY / "hub_configs" / "abstractinator-seed"
EXPERIMENTS = (
    "regular_flex",
    "regular_sdpa",
    "mla_flex",
    "mla_sdpa",
    "regular_flex_512",
    "regular_flex_entropy_frozen",
)
SHORT = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "eval_steps": 2,
    "save_steps": 2,
    "logging_steps": 1,
    "max_validation_rows": 2,
    "sample_new_tokens": 4,
    "warmup_steps": 0,
}
SMALL = {"hidden_size": 32, "num_attention_heads": 2, "num_top_layers": 1, "context_length": 64}


def run(recipe: Path, folder: Path, **fields) -> Path:
    arguments = [f"--{name}={value}" for name, value in (SHORT | fields).items()]
    main([str(recipe), f"--output_dir={folder}", *arguments])
    return folder


def trainer_of(folder: Path, variant: str = "two_levels", model=None, **arguments):
    torch.manual_seed(3)
    model = build(variant, **BYTES) if model is None else model
    return make_trainer(folder, model, train=Rows(16), **arguments)


def buffers(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for name, value in load_file(folder / "model.safetensors").items() if "quantizer" in name}


def test_a_run_says_what_its_codes_are_worth(tmp_path):
    run(TINY / "recipe.yaml", tmp_path / "run")
    last = [entry for entry in metrics_of(tmp_path / "run") if "eval_loss" in entry][-1]
    assert {
        "eval_level_1_length",
        "eval_level_1_perplexity",
        "eval_level_1_codes_used",
        "eval_bytes_per_top_segment",
        "eval_reconstruction_own",
        "eval_reconstruction_zeroed",
        "eval_reconstruction_shuffled",
        "eval_two_part_bits_per_byte",
        "eval_bits_per_byte",
    } <= last.keys()
    assert 0 < last["eval_level_1_codes_used"] <= 1 <= last["eval_level_1_perplexity"] <= 256
    assert last["eval_two_part_bits_per_byte"] > last["eval_reconstruction_own"] > 0
    picture = tmp_path / "segments.html"
    inspect_main([str(tmp_path / "run"), "Some <text>.\n日本語", "--out", str(picture)])
    assert "&lt;text" in picture.read_text(encoding="utf-8").replace("</span><wbr>", "")
    inspect_main([str(tmp_path / "run"), "Some text", "--out", str(tmp_path / "segments.png")])
    assert (tmp_path / "segments.png").stat().st_size > 1000
    for arguments, message in ((["", "--out", "x.png"], "empty"), (["text", "--out", "x.gif"], r"\.png or \.html")):
        with pytest.raises(SystemExit, match=message):
            inspect_main([str(tmp_path / "run"), *arguments])


def test_the_card_shows_where_a_text_is_cut(tmp_path):
    folder = run(TINY / "recipe.yaml", tmp_path / "run", **SMALL)
    for place in (folder, folder / "checkpoint-2"):
        write_card(place, "org/name")
        assert "(segments.png)" in (place / "README.md").read_text(encoding="utf-8")
        assert "segments.png" in published_files(place)
    (folder / "segments.png").unlink()
    write_card(folder, "org/name")
    assert "segments.png" not in (folder / "README.md").read_text(encoding="utf-8")


def test_three_stages(tmp_path):
    """Entropy model; compressor and expander over it; the top model over a frozen base."""
    entropy = run(TINY / "recipe-entropy.yaml", tmp_path / "entropy")
    base = run(TINY / "recipe-base.yaml", tmp_path / "base", load_entropy_from=entropy)
    top = run(TINY / "recipe-top.yaml", tmp_path / "top", load_base_from=base)
    first, second, third = (load_file(folder / "model.safetensors") for folder in (entropy, base, top))
    for name, value in first.items():
        assert torch.equal(second[name], value) == (".entropy_model." in name or "unused" in name) or ".levels." in name
    assert all(torch.equal(second[name], value) for name, value in first.items() if ".entropy_model." in name)
    assert all(torch.equal(third[name], value) for name, value in second.items() if ".levels." in name)
    assert any(".top." in name for name in third) and not any(".top." in name for name in second)


def test_a_base_that_does_not_fit_says_what_is_missing(tmp_path):
    build("default", **BYTES).save_pretrained(tmp_path / "one")
    build("two_levels", **BYTES).save_pretrained(tmp_path / "two")
    with pytest.raises(
        RecipeError, match=r"load_base_from .*missing: model\.levels\.1\.begin\.weight, model\.levels\.1\."
    ):
        trainer_of(tmp_path, "two_levels", load_base_from=str(tmp_path / "one"))
    with pytest.raises(RecipeError, match=r"unexpected: model\.levels\.1\.begin\.weight"):
        trainer_of(tmp_path, "default", load_base_from=str(tmp_path / "two"))
    with pytest.raises(RecipeError, match=r"load_entropy_from .*no model\.safetensors"):
        trainer_of(tmp_path, load_entropy_from=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_experiments_of_the_seed_take_two_steps(name, tmp_path):
    """Small; on sdpa, since flex attention has no backward on CPU."""
    fields = dict(SMALL, bf16="false", attn_implementation="sdpa")
    if name == "regular_flex_512":
        fields |= {"hidden_size": 64}
    if name == "regular_flex_entropy_frozen":
        first = run(SEED / "recipe-regular_sdpa.yaml", tmp_path / "first", **fields)
        fields["load_entropy_from"] = first
    folder = run(SEED / f"recipe-{name}.yaml", tmp_path / name, **fields)
    assert metrics_of(folder)[-1]["step"] == 2
    config = json.loads((folder / "config.json").read_text())
    assert config["attention_form"] == ("latent" if name.startswith("mla") else "regular")


def test_resuming_goes_on_with_the_same_codebooks(tmp_path):
    fields = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    whole = trainer_of(tmp_path / "whole", **fields)
    whole.train()
    whole.save_model()
    again = trainer_of(tmp_path / "again", **fields)
    again.train(resume_from_checkpoint=tmp_path / "whole" / "checkpoint-2")
    again.save_model()
    found, expected = buffers(tmp_path / "again"), buffers(tmp_path / "whole")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert metrics_of(tmp_path / "again")[-1] == metrics_of(tmp_path / "whole")[-1]


def test_micro_batches_move_codebooks_as_one_batch_does(tmp_path):
    for name, size, steps in (("one", 8, 1), ("four", 2, 4)):
        fields = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.0, "max_grad_norm": 0.0}
        trainer = trainer_of(
            tmp_path / name, per_device_train_batch_size=size, gradient_accumulation_steps=steps, **fields
        )
        for level in trainer.model.model.levels:
            level.quantizer.updates.fill_(1)  # the first update replaces the whole codebook
            level.quantizer.reset_after = float("inf")
        trainer.train()
        trainer.save_model()
    one, four = buffers(tmp_path / "one"), buffers(tmp_path / "four")
    for name in one:
        if "codebook" not in name and "idle" not in name:  # which recent vectors replace entries is another choice
            torch.testing.assert_close(one[name], four[name], rtol=1e-4, atol=1e-4, msg=name)
        if "counts" in name:
            assert not torch.equal(one[name], torch.ones_like(one[name]))


def test_the_next_byte_loss_rises_over_a_tenth_of_the_run(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=40)
    scales = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: scales.append(float(kwargs["lm_loss_scale"])), with_kwargs=True
    )
    trainer.train()
    assert scales[:6] == pytest.approx([0.02, 0.265, 0.51, 0.755, 1.0, 1.0])


def test_what_makes_codes_is_trained_after_the_first_steps(tmp_path):
    for steps in (2, 3):
        trainer = trainer_of(tmp_path / str(steps), "default", max_steps=steps, fixed_code_steps=2, weight_decay=0.0)
        before = {name: value.clone() for name, value in trainer.model.named_parameters()}
        trainer.train()
        moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
        codes = {name for name in before if ".compressor" in name or ".pooling." in name or ".quantizer." in name}
        assert (codes <= moved) if steps == 3 else not (codes & moved)
        assert before.keys() - codes <= moved
    with pytest.raises(ValueError, match="fixed_code_steps is -1"):
        AbstractinatorTrainingArguments(output_dir="unused", fixed_code_steps=-1)


def test_arguments_are_those_of_the_architecture():
    assert AbstractinatorTrainingArguments(output_dir="unused").load_base_from is None


@pytest.mark.slow
def test_two_processes_move_codebooks_as_one_does(tmp_path):
    for processes in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port"]
        command += ["29617", str(TESTS / "abstractinator_processes.py"), str(tmp_path / str(processes))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
    one, two = buffers(tmp_path / "1"), buffers(tmp_path / "2")
    for name, value in one.items():
        if "codebook" not in name and "idle" not in name:
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-4, msg=name)
