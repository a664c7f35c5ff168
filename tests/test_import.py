"""`import latentlm`: registers every architecture, touches no network, pulls in nothing that is not needed to load a
model; and the files of models/ import only what can travel to a Hub repository."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from architectures import ARCHITECTURES, each_architecture
from conftest import REPOSITORY
from transformers import AutoConfig, AutoModel

import latentlm

MODELS = sorted((REPOSITORY / "src" / "latentlm" / "models").glob("*.py"))

IMPORT = """
import json, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("import latentlm used the network")

socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from transformers import PreTrainedModel, GenerationMixin, AutoModelForCausalLM, PreTrainedTokenizer

before = set(sys.modules)
import latentlm

print(json.dumps(sorted(set(sys.modules) - before)))
"""


@pytest.fixture(scope="module")
def imported() -> list[str]:
    """Modules that `import latentlm` loads on top of what any model of transformers needs."""
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_import_touches_no_network_and_loads_models_alone(imported):
    ours = {name for name in imported if name.startswith("latentlm.")}
    assert ours == {"latentlm.models"} | {f"latentlm.models.{path.stem}" for path in MODELS if path.stem != "__init__"}


def test_import_loads_no_package_that_a_model_does_not_need(imported):
    """lm-eval, datasets, matplotlib and the like take seconds."""
    packages = {name.split(".")[0] for name in imported}
    heavy = {
        "accelerate",
        "datasets",
        "evaluate",
        "lm_eval",
        "matplotlib",
        "peft",
        "pandas",
        "scipy",
        "sklearn",
        "rich",
    }
    assert not packages & heavy
    assert not any(name.startswith("transformers.trainer") for name in imported)


@each_architecture
def test_import_registers_the_architecture(architecture):
    assert type(AutoConfig.for_model(architecture.name)) is architecture.config_class
    assert AutoModel._model_mapping[architecture.config_class] is architecture.model_class
    assert architecture.auto_class._model_mapping[architecture.config_class] is architecture.head_class
    for class_ in (architecture.config_class, architecture.model_class, architecture.head_class):
        assert class_.__name__ in latentlm.__all__
        assert class_._auto_class is not None  # saving copies the code


def test_every_registered_architecture_is_in_the_table():
    registered = {config_class: heads for config_class, heads in latentlm.ARCHITECTURES}
    assert registered == {architecture.config_class: architecture.heads for architecture in ARCHITECTURES}


def test_public_names_exist():
    assert sorted(latentlm.__all__) == latentlm.__all__
    for name in latentlm.__all__:
        assert hasattr(latentlm, name)


# --- rule 1 of the design: models/ knows nothing above it ------------------------------------------------------------

CAN_TRAVEL = {"torch", "transformers", "tokenizers", "huggingface_hub", "safetensors", "numpy"}
CAN_TRAVEL |= set(sys.stdlib_module_names)


def imports_of(tree: ast.AST) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_model_files_import_torch_transformers_and_neighbours_alone(path: Path):
    """transformers copies files along `from .neighbour import name`, and along nothing else."""
    names = {other.stem for other in MODELS}
    for node in imports_of(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{path.name}:{node.lineno}"
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"{where}: only one level up exists in a repository"
            assert node.module, f"{where}: `from . import x` is not copied"
            assert node.module in names, f"{where}: .{node.module} is not a file of models/"
        else:
            modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for module in modules:
                assert module.split(".")[0] in CAN_TRAVEL, f"{where}: {module} is not installed everywhere"


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_model_files_have_no_text_that_reads_like_a_relative_import(path: Path):
    """transformers finds relative imports by regular expression, in docstrings and comments too; a name that is no file
    breaks saving."""
    text = path.read_text(encoding="utf-8")
    names = {other.stem for other in MODELS}
    found = re.findall(r"^\s*import\s+\.(\S+)\s*$", text, re.MULTILINE)
    found += re.findall(r"^\s*from\s+\.(\S+)\s+import", text, re.MULTILINE)
    assert set(found) <= names


def test_models_is_flat():
    folder = MODELS[0].parent
    assert [path.name for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"] == []
    assert (folder / "__init__.py").read_text().strip() == ""


POSIX_ONLY = ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix", "_posixsubprocess")
IMPORT_ALL = """
import importlib, pkgutil, sys
from pathlib import Path

# What others import is theirs, and chosen by `sys.platform`.
import accelerate, datasets, matplotlib.pyplot, torch, transformers.trainer, huggingface_hub.hf_api, rich.progress
try:
    import evaluate, lm_eval._cli, lm_eval.models.huggingface
except ImportError:
    pass

for name in sys.argv[1:]:
    sys.modules[name] = None  # importing it raises ImportError
import latentlm

for module in pkgutil.walk_packages(latentlm.__path__, "latentlm."):
    if "evaluation" in module.name and "lm_eval" not in sys.modules:
        continue
    importlib.import_module(module.name)
from latentlm.runs.run_folder import peak_memory
print(peak_memory(torch.device("cpu")))
"""


def test_every_module_is_imported_where_posix_has_nothing():
    """As on Windows; the peak memory of a run is then unknown."""
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL, *POSIX_ONLY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "None"
