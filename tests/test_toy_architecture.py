"""CONTRIBUTING's "Add an architecture", done: a package outside of latentlm of a configuration, a model file and a row
is registered, trained from a recipe, loaded without latentlm, scored by lm-eval, and joined to the shared tests."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file

TOY = Path(__file__).parent / "toy"
RECIPE = """
model:
  model_type: gated_window
  window: 3
  max_position_embeddings: 256
data:
  dataset: text.txt
  context_length: 32
  validation_fraction: 0.2
training:
  output_dir: run
  max_steps: 12
  learning_rate: 2e-2
  per_device_train_batch_size: 8
  logging_steps: 4
  eval_strategy: steps
  eval_steps: 6
  save_steps: 6
  eval_on_start: true
  sample_new_tokens: 4
"""
PROBE = """
import sys, torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

trusted = {"trust_remote_code": sys.argv[2] == "without"}
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], **trusted).eval()
assert type(AutoModel.from_pretrained(sys.argv[1], **trusted)).__name__ == "GatedWindowModel"
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], **trusted)
inputs = tokenizer(["A text."], return_tensors="pt")
generated = model.generate(**inputs, max_new_tokens=5, do_sample=False)
print(type(model).__module__, tokenizer.decode(generated[0]).encode())
save_file({"logits": model(**inputs).logits.detach(), "generated": generated}, sys.argv[3])
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the package as pip would install it: its files, and metadata with the entry point."""
    folder = tmp_path_factory.mktemp("toy")
    shutil.copytree(TOY, folder / "gated_window", ignore=shutil.ignore_patterns("__pycache__"))
    metadata = folder / "gated_window-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: gated-window\nVersion: 0.1\n")
    (metadata / "entry_points.txt").write_text("[latentlm.architectures]\ngated_window = gated_window.architecture\n")
    (folder / "text.txt").write_text("\n\n".join(f"Line {i} of a text, {i * i} letters." for i in range(400)))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def run_with(package: Path) -> Callable[..., str]:
    """Runs Python with the package installed, in its folder; returns what was printed."""

    def run(*arguments: object, **environment: str) -> str:
        path = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=package,
            env={**os.environ, "PYTHONPATH": path, **environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def trained(run_with, package: Path) -> Path:
    """The finished run."""
    printed = run_with("-m", "latentlm", "train", "recipe.yaml")
    assert "step 12 evaluation: lm_loss" in printed
    return package / "run"


def test_three_files_and_a_row():
    """And the row of the shared tests."""
    files = {"configuration_gated_window.py", "modeling_gated_window.py", "architecture.py", "shared_tests.py"}
    assert {path.name for path in TOY.glob("*.py")} == files


@pytest.mark.parametrize("first", ["latentlm", "gated_window.architecture"])
def test_it_is_registered(run_with, first):
    """Whichever of the two is imported first."""
    code = f"import {first}; from transformers import AutoConfig, AutoModelForCausalLM as A, AutoTokenizer; "
    code += "config = AutoConfig.for_model('gated_window', window=2); print(type(A.from_config(config)).__module__)"
    assert run_with("-c", code).strip() == "gated_window.modeling_gated_window"


def test_it_is_trained_from_a_recipe(trained):
    entries = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["eval_lm_loss"] for entry in entries if "eval_lm_loss" in entry]
    assert len(losses) == 3 and losses[-1] < losses[0] - 0.1
    config = json.loads((trained / "config.json").read_text())
    assert (config["window"], config["vocab_size"]) == (3, 259)
    assert json.loads((trained / "environment.json").read_text())["versions"]["gated-window"] == "0.1"


def test_help_lists_its_fields(run_with):
    printed = run_with("-m", "latentlm", "train", "recipe.yaml", "--help")
    assert "--window int = 4\n        tokens that a layer sees, its own included." in printed


def test_it_loads_without_latentlm_and_gives_the_same(run_with, trained, package, run_without_latentlm, tmp_path):
    run_with("-c", f"import latentlm\n{PROBE}", trained, "with", package / "with.safetensors")
    printed = run_without_latentlm(PROBE, trained, "without", tmp_path / "without.safetensors")
    assert printed.startswith("transformers_modules.")
    ours, theirs = load_file(package / "with.safetensors"), load_file(tmp_path / "without.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    carried = {path.name for path in trained.glob("*.py") if path.name.startswith(("configuration", "modeling"))}
    assert carried == {"configuration_gated_window.py", "modeling_gated_window.py"}


CARD = """
import json, shutil, sys
from pathlib import Path
from latentlm.hub.card import write_card
from latentlm.hub.files import published_files
from latentlm.hub.push import with_code

run, bare = map(Path, sys.argv[1:])
write_card(run, "org/name")
print(*published_files(run))
bare.mkdir()
for name in ("model.safetensors", "tokenizer_config.json"):
    shutil.copy(run / name, bare)
config = json.loads((run / "config.json").read_text())
del config["auto_map"]
(bare / "config.json").write_text(json.dumps(config))
with with_code(bare) as complete:
    print(*sorted(path.name for path in complete.iterdir()))
"""


def test_its_card_is_written_and_its_code_published(run_with, trained, package):
    """Also of a folder without code, as in hub_configs."""
    published, completed = run_with("-c", CARD, trained, package / "bare").splitlines()
    code = {"configuration_gated_window.py", "modeling_gated_window.py"}
    assert code | {"README.md", "model.safetensors", "recipe.yaml"} <= set(published.split())
    assert code | {"model.safetensors", "tokenization_byte.py"} <= set(completed.split())
    card = (trained / "README.md").read_text(encoding="utf-8")
    assert "AutoModelForCausalLM.from_pretrained" in card and "trust_remote_code=True" in card
    assert "A language model whose layers gate a sum" in card and "Model type `gated_window`.\n" in card
    assert "pipeline_tag: text-generation" in card and "of the package latentlm" not in card


def test_lm_eval_scores_it(run_with, trained, package, shared_data):
    pytest.importorskip("lm_eval", reason="needs the eval extra: pip install 'latentlm[eval]'")
    model = f"pretrained={trained}"
    printed = run_with(
        *("-m", "latentlm", "evaluate", "--model", "hf", "--model_args", model, "--device", "cpu"),
        *("--tasks", "local_blimp", "--limit", "2"),
        *("--output_path", package / "scores"),
    )
    assert "|local_blimp|" in printed
    [file] = (package / "scores").rglob("results_*.json")
    results = json.loads(file.read_text())
    assert results["config"]["model"] == "hf-one-begin" and 0 <= results["results"]["local_blimp"]["acc,none"] <= 1


# But for two that look for the attention and the initialisation of the transformers.
CHOSEN = "gated_window and not missing_key and not remote_code"
SHARED = ("test_causality.py", "test_accumulation.py", "test_loading.py", "test_configuration.py")


def test_it_joins_the_shared_tests(run_with):
    printed = run_with(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", REPOSITORY),
        *("-c", REPOSITORY / "pyproject.toml", "-k", CHOSEN),
        *(REPOSITORY / "tests" / name for name in SHARED),
        LATENTLM_TEST_ROWS="gated_window.shared_tests:ROW",
    )
    assert " passed" in printed and "failed" not in printed
