"""Tokens, keys and passwords, wherever they are given: in no file of a run, no message, and nothing published."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_publishing import RECIPE
from test_trainer_options import trainer_for
from training_setup import make_model

from latentlm.architectures import architecture
from latentlm.hub.files import PublishError
from latentlm.hub.push import explained
from latentlm.runs import LatentTrainingArguments, RecipeError, load_recipe
from latentlm.runs.redaction import redact, redact_command
from latentlm.train import main as train_main

SECRETS = {
    "flag": "hf_onTheCommandLine",
    "recipe": "hf_inTheRecipe",
    "code": "hf_inTheCodeOfTheCommand",
    "HF_TOKEN": "hf_inTheEnvironment",
    "WANDB_API_KEY": "wandbKeyOfTheUser",
    "COMET_API_KEY": "cometKeyOfTheUser",
    "MLFLOW_TRACKING_PASSWORD": "mlflowPasswordOfTheUser",
    "proxy": "proxyPasswordOfTheUser",
    "other": "valueOfAFlagOfTheScript",
}
CODE = f"""
import sys, torch
from transformers import Trainer
from latentlm.train import main
from latentlm.training.run import train
from latentlm.runs import LatentTrainingArguments, load_recipe

recipe, with_token, folder, hub = sys.argv[1:5]
token = "{SECRETS["code"]}"
main([recipe, "--output_dir", f"{{folder}}/flag", "--hub_token={SECRETS["flag"]}", *hub.split(), "org/flag"])
train(load_recipe(with_token, {{"output_dir": f"{{folder}}/recipe"}}))
trainer = train(load_recipe(recipe, {{"output_dir": f"{{folder}}/code", "hub_token": token}}))
arguments = LatentTrainingArguments(f"{{folder}}/plain", hub_token=token)
Trainer(trainer.model, arguments).save_model()
trainer.push_to_hub(token=token)
print(trainer.args, load_recipe(with_token))
"""


def test_no_file_and_no_message_holds_a_secret(mini_hub, tmp_path):
    recipe, with_token, runs = tmp_path / "small.yaml", tmp_path / "token.yaml", tmp_path / "runs"
    recipe.write_text(RECIPE)
    fields = yaml.safe_load(RECIPE)
    fields["training"] |= {"hub_token": SECRETS["recipe"], "report_to": "tensorboard"}
    with_token.write_text(yaml.safe_dump(fields))
    proxy = f"http://user:{SECRETS['proxy']}@127.0.0.1:9"
    environment = os.environ | mini_hub.environment
    environment |= {name: secret for name, secret in SECRETS.items() if name.isupper()}
    environment |= {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "NO_PROXY": "127.0.0.1,localhost"}
    arguments = [recipe, with_token, runs, "--push_to_hub true --hub_model_id", "--api-key", SECRETS["other"]]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *map(str, arguments)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (mini_hub.root / "org" / "flag" / "model.safetensors").exists()  # the tokens were good for publishing
    assert (mini_hub.root / "org" / "code" / "model.safetensors").exists()
    assert (runs / "plain" / "training_args.bin").exists() and list(runs.rglob("events.out.tfevents*"))
    assert "--api-key" in (runs / "flag" / "environment.json").read_text()

    paths = [path for root in (runs, mini_hub.root) for path in root.rglob("*") if path.is_file()]
    places = {str(path): path.read_bytes() for path in paths}
    places |= {"stdout": done.stdout.encode(), "stderr": done.stderr.encode()}
    assert sum("checkpoint-" in place for place in places) > 20
    found = {(place, kind) for place, data in places.items() for kind, word in SECRETS.items() if word.encode() in data}
    assert not found


def test_pickled_arguments_hold_no_token(tmp_path):
    arguments = LatentTrainingArguments(str(tmp_path), hub_token=SECRETS["flag"], learning_rate=0.25)
    again = pickle.loads(pickle.dumps(arguments))
    assert (again.hub_token, again.learning_rate) == (None, 0.25)
    assert arguments.hub_token == SECRETS["flag"]


@pytest.mark.parametrize("kind", ["encodzall", "abstractinator"])
def test_pickled_arguments_of_other_trainers_hold_no_token(tmp_path, kind):
    arguments = architecture(kind).trainer_class.arguments_class(str(tmp_path), hub_token=SECRETS["flag"])
    assert SECRETS["flag"].encode() not in pickle.dumps(arguments)


def test_saved_models_hold_no_token_at_any_moment(tmp_path, monkeypatch):
    """A process that is killed while it saves leaves what it has written."""
    written = []
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    monkeypatch.setattr(Path, "unlink", lambda path, **_: written.append(path.read_bytes()))
    trainer_for(tmp_path, make_model(), hub_token=SECRETS["flag"]).save_model()
    assert written  # training_args.bin of Trainer
    data = written + [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [part for part in data if SECRETS["flag"].encode() in part]


URL = "https://user:pass-word@example.org/texts.jsonl"


@pytest.mark.parametrize(
    ("section", "field"),
    [
        *(("data", field) for field in ("dataset", "validation_dataset", "tokenizer", "dataset_config")),
        *(("model", field) for field in ("config", "from_pretrained")),
        *(("training", field) for field in ("hub_model_id", "run_name", "resume_from_checkpoint")),
    ],
)
def test_users_in_urls_are_refused(tmp_path, section, field):
    """From a recipe and from the command line, before anything is read or written, and without repeating them."""
    recipe = yaml.safe_load(RECIPE)
    if field in ("config", "from_pretrained"):
        recipe["model"] = {}
    changed = {**recipe, section: recipe[section] | {field: URL}}
    (tmp_path / "changed.yaml").write_text(yaml.safe_dump(changed))
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    for path, overrides in (("changed.yaml", {}), ("small.yaml", {f"{section}.{field}": URL})):
        with pytest.raises(RecipeError, match=f"{section}.{field} holds a user or a password in a URL") as error:
            load_recipe(tmp_path / path, overrides)
        assert "pass-word" not in str(error.value) and "https://example.org/texts.jsonl" in str(error.value)


def test_addresses_that_hold_no_user_pass(tmp_path):
    recipe = yaml.safe_load(RECIPE)
    recipe["data"] |= {"dataset": "hf://datasets/org/name@main/x", "document_start": "^https://[^@]+@"}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    assert load_recipe(tmp_path / "small.yaml").data.dataset == "hf://datasets/org/name@main/x"


def test_messages_do_not_repeat_a_token(tmp_path, monkeypatch):
    (tmp_path / "small.yaml").write_text(RECIPE.replace("training:", "training:\n  hub_token: {first: hf_first}"))
    monkeypatch.setenv("HF_ENDPOINT_TOKEN", "a-secret-of-the-environment")
    with pytest.raises(SystemExit) as stopped:
        train_main([str(tmp_path / "small.yaml")])
    assert re.search("training.hub_token is <hidden>", str(stopped.value)) and "hf_" not in str(stopped.value)
    with pytest.raises(PublishError) as error, explained(tmp_path, "org/name", "hf_given"):
        raise ValueError(
            "Illegal header value b'Bearer hf_given\\n' for https://user:pw@host/a-secret-of-the-environment"
        )
    assert "Bearer <hidden>" in str(error.value) and "https://host/<hidden>" in str(error.value)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["--hub_token", "x"], ["--hub_token", "<hidden>"]),
        (["--hub-token=x", "--lr=1"], ["--hub-token=<hidden>", "--lr=1"]),
        (["--training.hub_token", "x"], ["--training.hub_token", "<hidden>"]),
        (["-c", "login('hf_unknown')", "x"], ["-c", "<hidden>", "x"]),
        (["run.py", "--name", "of-hf_known"], ["run.py", "--name", "of-<hidden>"]),
        (["--sample_new_tokens", "64", "--pad_token_id", "3"], ["--sample_new_tokens", "64", "--pad_token_id", "3"]),
        (["--url", "https://me@host/x"], ["--url", "https://host/x"]),
    ],
)
def test_commands_without_secrets(given, kept, monkeypatch):
    monkeypatch.setenv("SHORT_KEY", "x")  # too short to be looked for
    assert redact_command(given, "hf_known", None) == kept
    assert redact("--lr 1 x", None) == "--lr 1 x"
