"""Save, then load anywhere: in a process without latentlm, from a folder and over HTTP, through every Auto class."""

import ast
import json
import shutil
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, Case, build, each_architecture, each_case, parameters, randomise, token_ids
from conftest import REPOSITORY
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from latentlm import ByteTokenizer

CASES: list[Case] = [parameter.values[0] for parameter in parameters(ARCHITECTURES)]


def save(case: Case, folder: Path) -> None:
    """A checkpoint as a run leaves it, and what it gives: inputs, logits and generated ids."""
    model = case.model()
    model.save_pretrained(folder)
    ByteTokenizer().save_pretrained(folder)
    ids = token_ids(2, 9)
    expected = {"ids": ids, "logits": model(ids).logits.detach(), "states": model.model(ids)[0].detach()}
    if case.architecture.causal:
        expected["generated"] = model.generate(ids, max_new_tokens=5, do_sample=False)
    save_file({key: value.contiguous() for key, value in expected.items()}, folder / "expected.safetensors")


# Runs in a process without latentlm; prints one line per checkpoint that gave the same bits.
LOAD = """
import json, transformers, torch
from huggingface_hub import hf_hub_download
from pathlib import Path
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoTokenizer

for name in sys.argv[2:]:
    source = sys.argv[1] + name
    file = "expected.safetensors"
    expected = load_file(f"{source}/{file}" if Path(source).is_dir() else hf_hub_download(source, file))
    trusted = {"trust_remote_code": True}
    config = AutoConfig.from_pretrained(source, **trusted)
    heads = sorted(set(config.auto_map) - {"AutoConfig", "AutoModel", "AutoTokenizer"})
    tokenizer = AutoTokenizer.from_pretrained(source, **trusted)
    text = "Zoë \\U0001f600"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    for auto in [*heads, "AutoModel"]:
        model, info = getattr(transformers, auto).from_pretrained(source, output_loading_info=True, **trusted)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        assert not info["missing_keys"] and not info["mismatched_keys"], info
        # The other head's own parameters may be left over, never those of the model itself.
        assert all(not key.startswith("model.") for key in info["unexpected_keys"]), info
        output = model.eval()(expected["ids"])
        assert torch.equal(output[0], expected["states" if auto == "AutoModel" else "logits"]), (name, auto)
        if hasattr(model, "generate") and "generated" in expected:
            generated = model.generate(expected["ids"], max_new_tokens=5, do_sample=False)
            assert torch.equal(generated, expected["generated"]), name
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
    assert set(auto_map) == {"AutoConfig", "AutoModel", case.architecture.auto_class.__name__}
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


@pytest.mark.parametrize("head", ["model_class", "head_class"])
@each_architecture
def test_whichever_head_is_saved_every_auto_class_is_named(architecture, head, tmp_path):
    model = getattr(architecture, head)(Case(architecture, "default").config())
    model.save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map == architecture.config_class().auto_map
    modules = {reference.split(".")[0] for reference in auto_map.values()}
    assert all((tmp_path / f"{module}.py").is_file() for module in modules)


@each_case
def test_saving_and_loading_keeps_every_bit(case: Case, tmp_path):
    """Also the buffers that are not in the checkpoint (rotary tables), which are rebuilt after the meta device."""
    model = case.model()
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is case.architecture.head_class
    assert not any(info.values()), info
    ids = token_ids(2, 9)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    again = dict(loaded.named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(again[name], buffer), name
    base, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(base) is case.architecture.model_class and not info["missing_keys"]
    assert torch.equal(base(ids)[0], model.model(ids)[0])


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
    missing |= {next(name for name in state if "o_proj.weight" in name), next(n for n in state if "norm.weight" in n)}
    for name in missing:
        del state[name]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
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
    for name, value in written.items():
        assert getattr(config, name) == value, name
    assert set(written) - set(vars(config)) == set(), "a field that the configuration does not know"
    heads = [head for head in (AutoModelForCausalLM, AutoModelForSeq2SeqLM) if head.__name__ in config.auto_map]
    auto_class = heads[0] if heads else AutoModel
    with torch.device("meta"):
        model = auto_class.from_config(config)
    assert [type(model).__name__] == written["architectures"]
    if folder.endswith("-tiny"):
        assert model.num_parameters() < 1_000_000


# Runs in a process without latentlm.
FROM_CONFIG = """
import math, torch
from transformers import AutoConfig, AutoModelForCausalLM

config = AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
others = ("aggregation", "autoencoder", "code_network", "pooling", "quantizer")
for name, p in model.named_parameters():
    if ("gate" in name and "gate_proj" not in name) or "norm" in name:
        assert (p == 1).all() or name.endswith("bias"), name
    elif name.endswith(("o_proj.weight", "down_proj.weight")):
        assert abs(p.std().item() / (0.02 / math.sqrt(float(sys.argv[2]))) - 1) < 0.1, (name, p.std())
    elif p.ndim == 2 and p.numel() > 999 and not any(part in name for part in others):
        assert abs(p.std().item() / 0.02 - 1) < 0.1, (name, p.std())

# What was loaded as remote code and changed is saved with its code, loads again, and is no one else's.
model.save_pretrained(sys.argv[3])
config = AutoConfig.from_pretrained(sys.argv[3], trust_remote_code=True)
again = AutoModelForCausalLM.from_pretrained(sys.argv[3], trust_remote_code=True)
ids = torch.arange(1, 9).unsqueeze(0)
assert torch.equal(again.eval()(ids).logits, model.eval()(ids).logits)
print("done")
"""


@each_architecture
def test_remote_code_initialises_and_saves_again(architecture, tmp_path, run_without_latentlm):
    case = Case(architecture, list(architecture.variants)[-1])
    changes = {"hidden_size": 64, "intermediate_size": 256}
    if "cross_attention_gate" in architecture.own_fields:
        changes |= {"cross_attention_gate": True}
    model = architecture.head_class(case.config(**changes))
    model.save_pretrained(tmp_path / "first")
    code = {path.name: path.read_text() for path in (tmp_path / "first").glob("*.py")}
    assert run_without_latentlm(
        FROM_CONFIG, tmp_path / "first", model.num_residual_projections, tmp_path / "second"
    ).endswith("done\n")
    assert {path.name: path.read_text() for path in (tmp_path / "second").glob("*.py")} == code
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "second"))
    assert second["auto_map"] == first["auto_map"]


@each_architecture
def test_local_classes_win_over_the_code_in_a_folder(architecture, tmp_path):
    """With latentlm imported, a checkpoint loads as latentlm's own class without trusting its code."""
    case = Case(architecture, "default")
    case.model().save_pretrained(tmp_path)
    shutil.copytree(tmp_path, tmp_path / "renamed", ignore=lambda _, names: [n for n in names if n.endswith(".py")])
    for folder in (tmp_path, tmp_path / "renamed"):
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        assert type(loaded) is architecture.head_class


@each_architecture
def test_the_tokenizer_of_a_checkpoint_loads_without_trusting_code(architecture, tmp_path):
    """The byte tokenizer as well as any of `tokenizers`."""
    Case(architecture, "default").config().save_pretrained(tmp_path)
    ByteTokenizer().save_pretrained(tmp_path)
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is ByteTokenizer
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
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    ids = token_ids(2, 9)
    torch.testing.assert_close(loaded(ids).logits.float(), model(ids).logits, rtol=0.1, atol=0.4)
