"""`import latentlm`: registers every architecture, touches no network, pulls in nothing that is not needed to load a
model; and the files of models/ import only what can travel to a Hub repository."""

import ast
import dataclasses
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
from latentlm.architectures import resolve

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
    models = {f"latentlm.models.{path.stem}" for path in MODELS if path.stem != "__init__"}
    assert ours == {"latentlm.architectures", "latentlm.models"} | models


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
    registered = {
        resolve(row.config): {name: resolve(reference) for name, reference in row.heads.items()}
        for row in latentlm.ARCHITECTURES.values()
    }
    assert registered == {
        architecture.config_class: {auto.__name__: head for auto, head in architecture.heads.items()}
        for architecture in ARCHITECTURES
    }


def references(row: latentlm.Architecture) -> list[str]:
    values = [getattr(row, field.name) for field in dataclasses.fields(row) if field.name != "model_type"]
    values = [value for value in values if isinstance(value, str)] + list(row.heads.values())
    return [value for value in values if "lm_eval" in sys.modules or not value.startswith("latentlm.evaluation.")]


@pytest.mark.parametrize("row", latentlm.ARCHITECTURES.values(), ids=lambda row: row.model_type)
def test_every_reference_of_the_table_is_there(row):
    for reference in references(row):
        assert callable(resolve(reference)), reference
    assert row.trainer_class.auto_class.__name__ in row.heads


def test_the_table_and_the_models_alone_name_model_types():
    """Among the names that mean nothing else."""
    sources = (REPOSITORY / "src" / "latentlm").rglob("*.py")
    here = {path.name for path in sources if re.search('"(abstractinator|encodzall|fsq)"', path.read_text("utf-8"))}
    assert here - {path.name for path in MODELS} == {"architectures.py"}


def test_a_row_is_checked_when_it_is_registered():
    row = latentlm.ARCHITECTURES["decoder_only"]
    with pytest.raises(ValueError, match=r"'decoder_only' is taken by latentlm.models.configuration_decoder_only"):
        latentlm.register(dataclasses.replace(row, adapter="a:b"))
    with pytest.raises(ValueError, match=r"'mine': that of latentlm.* is 'decoder_only'"):
        latentlm.register(dataclasses.replace(row, model_type="mine"))
    assert "mine" not in latentlm.ARCHITECTURES
    with pytest.raises(ImportError, match=r"'latentlm:nothing': latentlm has no 'nothing'"):
        resolve("latentlm:nothing")


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
    if "evaluation" in module.name and "lm_eval" not in sys.modules or module.name.endswith("__main__"):
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


FLOORS = [{"models"}, {"data"}, {"runs", "hub"}, {"training", "evaluation"}, {"cli"}]
"""Packages of latentlm from the ground up: each imports its own floor and those below."""


def test_imports_go_one_way():
    source = REPOSITORY / "src" / "latentlm"
    floor_of = {name: number for number, names in enumerate(FLOORS) for name in names}
    for path in source.rglob("*.py"):
        package = path.relative_to(source).parts[0]
        if package not in floor_of:  # a file of latentlm itself
            continue
        for node in imports_of(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom) and node.level > 1:
                modules = [f"latentlm.{modules[0]}"]
            for module in modules:
                _, dot, rest = module.partition("latentlm.")
                if dot:
                    imported = floor_of.get(rest.split(".")[0], -1)
                    assert imported <= floor_of[package], f"{path.name}:{node.lineno} imports {module}"


def test_no_two_model_files_share_ten_lines():
    """Blank lines and indentation aside."""
    files = {path.name: [line.strip() for line in path.read_text("utf-8").splitlines()] for path in MODELS}
    owner: dict[tuple[str, ...], str] = {}
    for name, lines in files.items():
        lines = [line for line in lines if line]
        for start in range(len(lines) - 9):
            first = owner.setdefault(tuple(lines[start : start + 10]), name)
            assert first == name, f"{first} and {name} share ten lines from {lines[start]!r} on"


def test_model_files_are_as_short_as_the_documents_say():
    longest = max(len(path.read_text("utf-8").splitlines()) for path in MODELS)
    for name, words in (("README.md", "none above"), ("CONTRIBUTING.md", "never more than")):
        (limit,) = re.findall(rf"{words} (\d+)", (REPOSITORY / name).read_text("utf-8"))
        assert longest <= int(limit), name
