"""`--help` of the commands that take a recipe's fields: each with its type, its default and its meaning."""

import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from latentlm.architectures import ARCHITECTURES, Architecture, architecture

from .sources import Field, class_named_by, fields_of

WIDTH = 110
NO_CONFIG = "transformers:PreTrainedConfig"
# Fields of the model section that the configuration does not declare.
MODEL_FIELDS = [
    Field("config", "str", "null", "folder with a config.json, beside the recipe or from here"),
    Field("model_type", "str", "null", f"instead of it: {', '.join(ARCHITECTURES)}"),
    Field("from_pretrained", "str", "null", "instead of it: a model to start from, a run folder or a name on the Hub"),
    Field("attn_implementation", "str | None", "null", "attention backend: eager, sdpa, flex_attention, …"),
]


def recipe_help(arguments: Sequence[str]) -> str:
    """The fields of the sections of a recipe; those of the model where the command line names a recipe, a model type,
    a configuration or a pretrained model in a folder."""
    model_type = model_type_of(arguments)
    row = architecture(model_type) if model_type else Architecture(model_type="", config=NO_CONFIG, heads={})
    lines = [] if model_type else ["Fields of a model: add a recipe, or --model_type NAME.", ""]
    for section, fields in sections(row).items():
        lines += [f"{section}:", *(line for field in fields for line in describe(field)), ""]
    return "\n".join(lines)


def sections(row: Architecture) -> dict[str, list[Field]]:
    """The fields of a recipe's sections, for one architecture."""
    arguments_class = class_named_by(row.trainer, "arguments_class")
    assert arguments_class is not None, f"{row.trainer} names no arguments_class"
    return {
        "model": MODEL_FIELDS + (fields_of(row.config) if row.config != NO_CONFIG else []),
        "data": fields_of(row.data),
        "training": fields_of(arguments_class),
    }


def describe(field: Field) -> Iterator[str]:
    """The lines of one field."""
    kind = re.sub(r"Literal\[([^]]*)\]", r"\1", field.type)
    yield f"  --{field.name} {kind} = {field.default}"
    text = (field.help or "As everywhere in transformers.").replace("%%", "%")  # transformers writes for argparse
    yield from textwrap.wrap(text, WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8)


def model_type_of(arguments: Sequence[str]) -> str | None:
    """The model type that a command line with `--help` in it is about, if it names one."""
    words = [word for argument in arguments if argument not in ("-h", "--help") for word in argument.split("=", 1)]
    options = dict(pairwise(words))
    model: dict[str, Any] = {}
    folder = Path()
    recipe = Path(words[0]) if words and not words[0].startswith("--") else None
    if recipe is not None and recipe.is_file():
        folder = recipe.parent
        content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            model = content.get("model") or {}
    for name in ("model_type", "config", "from_pretrained"):
        value = options.get(f"--{name}") or options.get(f"--model.{name}")
        if value is not None:
            model, folder = {name: value}, Path()
    if model.get("model_type"):
        return str(model["model_type"])
    for name in ("config", "from_pretrained"):
        file = folder / str(model.get(name) or "nowhere") / "config.json"
        if file.is_file():
            return json.loads(file.read_text(encoding="utf-8")).get("model_type")
    return None
