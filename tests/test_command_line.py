"""`latentlm COMMAND --help` lists every field, and imports neither torch nor transformers; the listing, which is read
from the sources, is what the dataclasses say."""

import dataclasses
import enum
import json
import re
import subprocess
import sys
from typing import Any

import pytest
from conftest import REPOSITORY

import latentlm
from latentlm import cli
from latentlm.architectures import resolve
from latentlm.cli import inspect, noise, publish, tokenizer
from latentlm.cli.recipe_help import MODEL_FIELDS, model_type_of, recipe_help, sections
from latentlm.cli.sources import REQUIRED, Field, class_named_by, fields_of
from latentlm.runs.recipe import MODEL_SOURCES, field_types

HEAVY = {"torch", "transformers", "numpy", "datasets", "accelerate", "matplotlib"}
# What a command shows in its help, beside its usage.
SHOWN = {
    "train": "--learning_rate",
    "publish": "--private",
    "quickstart": "--embedding_loss_weight",
    "tokenizer": "analyse",
    "noise": "--min_count",
    "inspect": "--trust_remote_code",
    "compare": "--add",
    "evaluate": "--model_args",
}
RUN = """
import atexit, json, runpy, sys

atexit.register(lambda: print(json.dumps(sorted({name.split(".")[0] for name in sys.modules}))))
sys.argv = sys.argv[1:]
if sys.argv[0] == "latentlm":  # the console script
    from latentlm.cli import main

    main()
else:
    module = sys.argv[0]
    sys.argv[0] = "-m"  # as Python says while it looks for the module
    import latentlm

    runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("command", cli.COMMANDS)
@pytest.mark.parametrize("program", ["latentlm", "latentlm.__main__"])
def test_help_imports_nothing_heavy_and_lists_fields(program, command):
    if command == "evaluate":
        pytest.importorskip("lm_eval", reason="needs the eval extra: pip install 'latentlm[eval]'")
    done = subprocess.run([sys.executable, "-c", RUN, program, command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *shown, modules = done.stdout.splitlines()
    assert SHOWN[command] in "\n".join(shown)
    assert not HEAVY & set(json.loads(modules))


def test_every_command_is_in_the_list(capsys):
    cli.main(["--help"])
    printed = capsys.readouterr().out
    assert set(SHOWN) == set(cli.COMMANDS) and all(f"  {name} " in printed for name in cli.COMMANDS)
    with pytest.raises(SystemExit, match="command 'tran' is unknown; did you mean 'train'"):
        cli.main(["tran"])


def test_the_console_script_is_declared():
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'\[project\.scripts\]\nlatentlm = "latentlm\.cli:main"', text)


def test_modules_of_before_are_the_same_command():
    """`accelerate launch` needs a module."""
    from latentlm import train

    assert train.main is resolve("latentlm.cli.train:main")


@pytest.mark.parametrize("module", [inspect, noise, publish, tokenizer], ids=lambda module: module.__name__)
def test_every_option_says_what_it_is(module):
    parsers = [module.build_parser()]
    for parser in parsers:
        for action in parser._actions:
            if isinstance(action.choices, dict):
                parsers += action.choices.values()
            else:
                assert action.help, action


FSQ, ABSTRACTINATOR, ENCODZALL = (
    str(REPOSITORY / "hub_configs" / name)
    for name in ("fsq-tokenizer-tiny", "abstractinator-wikitext2", "encodzall-wikitext2")
)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["inspect", "./nowhere", "x"], "inspect: there is no folder ./nowhere, and no repository on the Hub"),
        (
            ["inspect", ENCODZALL, "x"],
            "encodzall-wikitext2 has the model type encodzall; only these have segments: abstractinator.$",
        ),
        (["inspect", FSQ, "x"], "fsq-tokenizer-tiny has the model type fsq_autoencoder; only these have segments"),
        (["inspect", ABSTRACTINATOR, "x", "--out", "file/x.png"], "inspect: .*'file'"),
        (["tokenizer", "check", "/nowhere"], "tokenizer: there is no folder /nowhere"),
        (["tokenizer", "rebuild", "/nowhere", "out"], "tokenizer: there is no folder /nowhere"),
        (
            ["tokenizer", "check", ENCODZALL],
            "encodzall-wikitext2 holds no FSQTokenizer: fsq_vocabulary.json is missing",
        ),
        (["tokenizer", "prune", ENCODZALL, "file", "out", "--keep", "300"], "holds no FSQTokenizerFast: "),
        (["tokenizer", "analyse", FSQ, "file", "out"], "tokenizer: file is empty: it does not say which tokens are"),
    ],
)
def test_mistakes_end_with_a_message(line, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=message):
        cli.main(line)


def test_evaluating_what_is_not_there_ends_with_a_message():
    pytest.importorskip("lm_eval", reason="needs the eval extra: pip install 'latentlm[eval]'")
    with pytest.raises(SystemExit, match="evaluate: there is no folder /nowhere"):
        cli.main(["evaluate", "--model", "hf", "--model_args", "pretrained=/nowhere,trust_remote_code=True"])


def test_inspect_makes_the_folder_of_its_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli.main(["inspect", ABSTRACTINATOR, "A text.", "--out", "new/segments.html"])
    assert (tmp_path / "new" / "segments.html").is_file()


# ---- Fields of a recipe ----


@pytest.fixture(params=latentlm.ARCHITECTURES.values(), ids=lambda row: row.model_type)
def row(request) -> latentlm.Architecture:
    return request.param


def written(value: Any) -> str:
    """A default as a recipe would have it."""
    value = value.value if isinstance(value, enum.Enum) else value
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def check(listed: list[Field], cls: Any) -> None:
    """The listing has the fields of the dataclass, in no order, with their defaults."""
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    assert [field.name for field in listed if field.name not in fields] == []
    assert set(fields) == {field.name for field in listed} == set(field_types(cls))
    for field in listed:
        default = fields[field.name].default
        if fields[field.name].default_factory is not dataclasses.MISSING:
            default = fields[field.name].default_factory()
        expected = REQUIRED if default is dataclasses.MISSING else written(default)
        assert field.default.replace("'", "") in (expected, expected.replace("'", "")), field


def test_the_listing_is_what_the_dataclasses_say(row):
    listed = sections(row)
    names = [field.name for field in MODEL_FIELDS]
    assert names == [*MODEL_SOURCES, "attn_implementation"]
    check(listed["model"][len(names) :], resolve(row.config))
    check(listed["data"], row.data_class)
    check(listed["training"], row.trainer_class.arguments_class)


def test_every_field_of_our_own_says_what_it_is(row):
    """But for those that mean what they mean everywhere in transformers."""
    silent = {field.name for fields in sections(row).values() for field in fields if not field.help}
    standard = {"bos_token_id", "decoder_start_token_id", "eos_token_id", "initializer_range", "layer_norm_eps"}
    standard |= {"pad_token_id", "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "use_cache"}
    assert silent <= standard


def test_help_shows_name_type_default_and_text():
    printed = recipe_help(["--help", "--model_type", "encodzall"])
    assert "\n  --word_pooling 'mean', 'max', 'query' = mean\n        how the bytes of a word become its" in printed
    assert "\n  --noise_strength float = 0.3\n        Strength in [0, 1], at the start where it moves." in printed
    assert "\n  --train_split str = train\n        The configuration of a Hub dataset" in printed
    assert "--word_pooling" not in recipe_help(["--help"])


def test_help_shows_whole_texts(row):
    """Also those that list what values mean."""
    printed = "".join(recipe_help(["--help", "--model_type", row.model_type]).split())
    fields = [field for fields in sections(row).values() for field in fields]
    texts = ["".join(field.help.replace("%%", "%").split()) for field in fields]
    assert [text for text in texts if text not in printed] == [] and "%%" not in printed


@pytest.mark.parametrize(
    ("arguments", "model_type"),
    [
        ([], None),
        (["--learning_rate", "1"], None),
        (["--model_type=fsq"], "fsq"),
        (["--model.model_type", "fsq"], "fsq"),
        (["RECIPE"], "encodzall"),
        (["RECIPE", "--model_type", "fsq"], "fsq"),
        (["RECIPE", "--from_pretrained", "FOLDER"], "abstractinator"),
        (["nowhere.yaml"], None),
    ],
)
def test_a_command_line_names_an_architecture(arguments, model_type):
    hub_configs = REPOSITORY / "hub_configs"
    places = {"RECIPE": hub_configs / "encodzall-tiny" / "recipe.yaml", "FOLDER": hub_configs / "abstractinator-tiny"}
    assert model_type_of([*(str(places.get(word, word)) for word in arguments), "--help"]) == model_type


def test_sources_of_nothing():
    assert class_named_by("latentlm.training:LatentTrainer", "nothing") is None
    with pytest.raises(LookupError, match=r"latentlm\.data:Nothing: no source"):
        fields_of("latentlm.data:Nothing")
