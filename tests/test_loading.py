"""Save, then load anywhere: in a process without latentlm, from a folder and over HTTP, through every Auto class."""

import ast
import json
import shutil
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, Case, build, each_architecture, each_case, parameters, randomise
from conftest import REPOSITORY
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast

CASES: list[Case] = [parameter.values[0] for parameter in parameters(ARCHITECTURES)]


def save(case: Case, folder: Path) -> None:
    """A checkpoint as a run leaves it, and what it gives: inputs, logits, states and generated ids."""
    model = case.model()
    model.save_pretrained(folder)
    if case.architecture.tokenizer is not None:
        case.architecture.tokenizer().save_pretrained(folder)
    batch = case.batch()
    expected = {f"batch.{name}": value for name, value in batch.items()}
    with torch.no_grad():
        expected["AutoModel"] = model.base_model(**case.prompt())[0]
        expected[case.architecture.auto_class.__name__] = model(**batch).logits
        if case.architecture.generates:
            expected["generated"] = model.generate(**case.prompt(), max_new_tokens=5, do_sample=False)
    save_file({key: value.clone().contiguous() for key, value in expected.items()}, folder / "expected.safetensors")


# Runs in a process without latentlm; prints one line per checkpoint that gave the same bits.
LOAD = """
import transformers, torch
from huggingface_hub import hf_hub_download
from pathlib import Path
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

torch.set_grad_enabled(False)
for name in sys.argv[2:]:
    source = sys.argv[1] + name
    file = "expected.safetensors"
    expected = load_file(f"{source}/{file}" if Path(source).is_dir() else hf_hub_download(source, file))
    batch = {key.removeprefix("batch."): value for key, value in expected.items() if key.startswith("batch.")}
    prompt = {key: batch[key] for key in ("input_ids", "attention_mask") if key in batch}
    trusted = {"trust_remote_code": True}
    config = AutoConfig.from_pretrained(source, **trusted)
    if "AutoTokenizer" in config.auto_map or Path(source, "tokenizer_config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(source, **trusted)
        text = "Zoë \\U0001f600"
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    for auto in sorted(set(config.auto_map) - {"AutoConfig", "AutoTokenizer"}):
        if auto == "AutoModelForMaskedLM" and config.word_decoder == "none":
            continue  # an error, which tests/test_encodzall_pipelines.py looks at
        model, info = getattr(transformers, auto).from_pretrained(source, output_loading_info=True, **trusted)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        # Another head than the saved one has parameters of its own; those of the model itself are never missing.
        own = tuple(f"{prefix}." for prefix, _ in model.named_children() if prefix != model.base_model_prefix)
        new = () if auto in expected else own
        assert all(key.startswith(new) for key in info["missing_keys"]) and not info["mismatched_keys"], info
        assert all(not key.startswith("model.") for key in info["unexpected_keys"]), info
        if auto == "AutoModel":
            assert torch.equal(model(**prompt)[0], expected[auto]), (name, auto)
        elif auto in expected:
            assert torch.equal(model(**batch).logits, expected[auto]), (name, auto)
            if "generated" in expected:
                generated = model.generate(**prompt, max_new_tokens=5, do_sample=False)
                assert torch.equal(generated, expected["generated"]), name
        else:
            assert model(**prompt).logits.isfinite().all(), (name, auto)
    print("same bits:", name)
"""


def test_a_process_without_latentlm_loads_every_checkpoint_from_its_folder(tmp_path, run_without_latentlm):
    for case in CASES:
        save(case, tmp_path / f"{case.architecture.name}-{case.variant}")
    names = [f"{case.architecture.name}-{case.variant}" for case in CASES]
    printed = run_without_latentlm(LOAD, f"{tmp_path}/", *names).splitlines()
    assert [line for line in printed if line.startswith("same bits")] == [f"same bits: {name}" for name in names]


def test_a_process_without_latentlm_loads_from_a_hub(mini_hub, run_without_latentlm):
    names = []
    for architecture in ARCHITECTURES:
        variant = list(architecture.variants)[-1]
        names.append(architecture.name)
        save(Case(architecture, variant), mini_hub.root / "org" / architecture.name)
    printed = run_without_latentlm(LOAD, "org/", *names, env=mini_hub.environment).splitlines()
    assert [line for line in printed if line.startswith("same bits")] == [f"same bits: {name}" for name in names]


@each_case
def test_a_checkpoint_holds_code_and_safetensors_alone(case: Case, tmp_path):
    """Every Auto class is in auto_map, the modules it names and their neighbours are there, nothing is a pickle."""
    save(case, tmp_path)
    suffixes = {path.suffix for path in tmp_path.iterdir()}
    assert suffixes <= {".py", ".json", ".safetensors", ".jinja"}
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoConfig", *(auto_class.__name__ for auto_class in case.architecture.heads)}
    if case.architecture.tokenizer is not None:
        tokenizer_map = json.loads((tmp_path / "tokenizer_config.json").read_text())["auto_map"]
        assert "AutoTokenizer" in tokenizer_map
    for reference in auto_map.values():
        module, class_name = reference.split(".")
        source = ast.parse((tmp_path / f"{module}.py").read_text())
        assert class_name in {node.name for node in source.body if isinstance(node, ast.ClassDef)}
    for path in tmp_path.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert (tmp_path / f"{node.module}.py").is_file(), f"{path.name} imports {node.module}"


@each_architecture
def test_whichever_head_is_saved_every_auto_class_is_named(architecture, tmp_path):
    for head in architecture.heads.values():
        folder = tmp_path / head.__name__
        head(Case(architecture, "default").config()).save_pretrained(folder)
        auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
        assert auto_map == architecture.config_class().auto_map
        modules = {reference.split(".")[0] for reference in auto_map.values()}
        assert all((folder / f"{module}.py").is_file() for module in modules)


@each_case
def test_saving_and_loading_keeps_every_bit(case: Case, tmp_path):
    """Also the buffers that are not in the checkpoint (rotary tables), which are rebuilt after the meta device."""
    model = case.model()
    model.save_pretrained(tmp_path)
    loaded, info = case.architecture.auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is case.architecture.head_class
    assert not any(info.values()), info
    batch, prompt = case.batch(), case.prompt()
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    again = dict(loaded.named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(again[name], buffer), name
    base, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(base) is case.architecture.model_class and not info["missing_keys"]
    assert torch.equal(base(**prompt)[0], model.base_model(**prompt)[0])


@each_case
def test_a_model_made_on_the_meta_device_is_the_same(case: Case):
    """No tensor arithmetic in __init__: the meta model has the same parameters, and loads to the same output."""
    model = case.model()
    with torch.device("meta"):
        empty = case.architecture.head_class(case.config())
    assert {name: p.shape for name, p in empty.named_parameters()} == {
        name: p.shape for name, p in model.named_parameters()
    }
    assert all(p.is_meta for p in empty.parameters())


def is_gate(name: str) -> bool:
    """Whether a parameter is a gate of cross-attention, and no projection of SwiGLU."""
    return "gate" in name and "gate_proj" not in name


@each_case
def test_a_missing_key_leaves_what_was_loaded_alone(case: Case, tmp_path):
    """The missing parameter gets a proper initial value; its siblings in the same module keep what was loaded."""
    model = case.model()
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    # One parameter of every module that has several, and of every kind that is initialised in its own way.
    missing = {name for name in state if name.endswith(("bias", "shift")) or is_gate(name) or "aggregation" in name}
    for kind in ("o_proj.weight", "norm.weight"):
        missing |= {next((name for name in state if kind in name), "")} - {""}
    assert missing
    for name in missing:
        del state[name]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = case.architecture.auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == missing
    parameters = loaded.state_dict()
    for name, value in state.items():
        assert torch.equal(parameters[name], value), name
    for name in missing:
        value = parameters[name]
        if name.endswith("bias"):
            assert (value == 0).all(), name
        elif name.endswith("shift"):
            assert (value == loaded.config.learned_dropout_shift).all(), name
        elif "norm" in name or is_gate(name):
            assert (value == 1).all(), name
        else:
            assert value.isfinite().all() and value.abs().max() < 0.5, name


@pytest.mark.parametrize(
    "folder", sorted(path.name for path in (REPOSITORY / "hub_configs").iterdir() if path.is_dir())
)
def test_published_configurations_load_once_latentlm_is_imported(folder):
    path = REPOSITORY / "hub_configs" / folder
    config = AutoConfig.from_pretrained(path)
    written = json.loads((path / "config.json").read_text())
    assert written["model_type"] == config.model_type
    assert "auto_map" not in written  # added by saving
    assert written.pop("dtype", "float32") == "float32"  # whatever the dtype of the weights that ship
    for name, value in written.items():
        assert getattr(config, name) == value, name
    assert set(written) - set(vars(config)) == set(), "a field that the configuration does not know"
    [architecture] = [row for row in ARCHITECTURES if row.name == config.model_type]
    with torch.device("meta"):
        model = architecture.auto_class.from_config(config)
    assert [type(model).__name__] == written["architectures"]
    if folder.endswith("-tiny"):
        assert model.num_parameters() < 1_000_000


# Runs in a process without latentlm.
FROM_CONFIG = """
import math, torch, transformers
from pathlib import Path
from transformers import AutoConfig

for folder, auto_class in zip(map(Path, sys.argv[1::2]), sys.argv[2::2]):
    auto_class, batch = getattr(transformers, auto_class), torch.load(folder / "batch.pt")
    config = AutoConfig.from_pretrained(folder / f"{folder.name}-first", trust_remote_code=True)
    torch.manual_seed(0)
    model = auto_class.from_config(config, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    others = ("aggregation", "autoencoder", "code_network", "pooling", "quantizer")
    for name, p in model.named_parameters():
        if ("gate" in name and "gate_proj" not in name) or "norm" in name:
            assert (p == 1).all() or name.endswith("bias"), name
        elif "ngrams.table" in name:
            assert (p == 0).all(), name
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            expected = 0.02 / math.sqrt(getattr(model, "num_residual_projections", 1))
            assert abs(p.std().item() / expected - 1) < 0.1, (name, p.std())
        elif p.ndim == 2 and p.numel() > 999 and model.base_model_prefix == "model":
            assert any(part in name for part in others) or abs(p.std().item() / 0.02 - 1) < 0.1, (name, p.std())

    # What was loaded as remote code and changed is saved with its code, loads again, and is no one else's.
    model.save_pretrained(folder / f"{folder.name}-second")
    again = auto_class.from_pretrained(folder / f"{folder.name}-second", trust_remote_code=True)
    assert torch.equal(again.eval()(**batch).logits, model.eval()(**batch).logits)
    print("done:", folder.name)
"""


def test_remote_code_initialises_and_saves_again(tmp_path, run_without_latentlm):
    """One process for all: its imports take longer than this."""
    arguments, done = [], []
    for architecture in ARCHITECTURES:
        case, folder = Case(architecture, list(architecture.variants)[-1]), tmp_path / architecture.name
        changes = {"hidden_size": 64, "intermediate_size": 256}
        if "cross_attention_gate" in architecture.own_fields:
            changes |= {"cross_attention_gate": True}
        changes = {name: value for name, value in changes.items() if name in architecture.own_fields}
        architecture.head_class(case.config(**changes)).save_pretrained(folder / f"{folder.name}-first")
        torch.save(case.batch(), folder / "batch.pt")
        arguments += [folder, architecture.auto_class.__name__]
        done.append(f"done: {folder.name}")
    assert [line for line in run_without_latentlm(FROM_CONFIG, *arguments).splitlines() if "done" in line] == done
    for folder in arguments[::2]:
        first, second = folder / f"{folder.name}-first", folder / f"{folder.name}-second"
        code = [{path.name: path.read_text() for path in part.glob("*.py")} for part in (first, second)]
        assert code[0] and code[1] == code[0]
        auto_maps = [json.loads((part / "config.json").read_text())["auto_map"] for part in (first, second)]
        assert auto_maps[1] == auto_maps[0]


@each_architecture
def test_local_classes_win_over_the_code_in_a_folder(architecture, tmp_path):
    """With latentlm imported, a checkpoint loads as latentlm's own class without trusting its code."""
    case = Case(architecture, "default")
    case.model().save_pretrained(tmp_path)
    shutil.copytree(tmp_path, tmp_path / "renamed", ignore=lambda _, names: [n for n in names if n.endswith(".py")])
    for folder in (tmp_path, tmp_path / "renamed"):
        for auto_class, head in architecture.heads.items():
            assert type(auto_class.from_pretrained(folder)) is head


@each_architecture
def test_the_tokenizer_of_a_checkpoint_loads_without_trusting_code(architecture, tmp_path):
    """Its own tokenizer as well as any of `tokenizers`."""
    if architecture.tokenizer is None:
        pytest.skip("has no tokenizer of its own")
    Case(architecture, "default").config().save_pretrained(tmp_path)
    tokenizer = architecture.tokenizer()
    tokenizer.save_pretrained(tmp_path)
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is type(tokenizer)
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE({"a": 0, "b": 1}, [])))
    for path in tmp_path.glob("*tokeniz*"):
        path.unlink()
    fast.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("ab").input_ids == [0, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_architecture
def test_loading_in_half_precision(architecture, dtype, tmp_path):
    case = Case(architecture, list(architecture.variants)[-1])
    model = build(architecture.head_class, case.config())
    randomise(model)
    model.save_pretrained(tmp_path)
    loaded = architecture.auto_class.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    batch = case.batch()
    torch.testing.assert_close(loaded(**batch).logits.float(), model(**batch).logits, rtol=0.1, atol=0.4)
