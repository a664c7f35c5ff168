"""Recipes, which are YAML files with model, data and training fields. They are checked before anything runs.

model:
  config: .                  # folder with a config.json, beside this file; or `model_type:`, or `from_pretrained:`
  hidden_size: 128           # any field of the configuration
data:
  dataset: python_docs       # any field of DataConfig
training:
  learning_rate: 1e-3        # any field of LatentTrainingArguments
"""

import copy
import dataclasses
import difflib
import json
import os
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.dataclasses import type_validator
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.utils.hub import cached_file

import latentlm
from latentlm.architectures import ARCHITECTURES, architecture, resolve
from latentlm.data.config import SourceConfig
from latentlm.data.tokenizers import load_tokenizer

from .arguments import LatentTrainingArguments
from .redaction import HIDDEN, SECRET_NAME, URL_USER, redact

RECIPE_FILE = "recipe.yaml"
SECTIONS = ("model", "data", "training")
MODEL_SOURCES = ("config", "model_type", "from_pretrained")
# Fields that describe a configuration file itself, and fields that the tokenizer determines.
BOOKKEEPING = {"architectures", "auto_map", "transformers_version", "model_type", "dtype", "torch_dtype"}
EQUAL = ("max_word_bytes",)  # fields of the model and of the data section that must have one value
TOKENIZER_FIELDS = ("pad_token_id", "bos_token_id", "eos_token_id")
MIN_VOCAB_SIZE = 259  # smallest size of a tokenizer of this package, for the bytes and three special tokens


class RecipeError(ValueError):
    """The error of a recipe that cannot be run. The message names the field, its value and valid values."""


class RecipeLoader(yaml.SafeLoader):
    """A YAML loader that reads `1e-3` as a number, and `no` and `off` as strings."""


RecipeLoader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
RecipeLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("(true|True|false|False)$"), list("tTfF"))
RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"([-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?|[-+]?\.inf|\.nan)$"),
    list("-+.0123456789"),
)


@dataclass
class Recipe:
    """A checked recipe.

    Args:
        model: fields of the configuration. `vocab_size` and the ids of special tokens are among them only if the recipe
            sets them.
        data: the data section.
        training: the training section.
        model_type: the architecture.
        from_pretrained: the model to start from, or None for random weights.
        training_fields: the training fields that the recipe or the command line sets.
        max_position_embeddings: the longest context of the model, or None without a limit.
        generation: the generation defaults in the folder of the configuration or of the recipe, or None.
    """

    model: dict[str, Any]
    data: SourceConfig
    training: LatentTrainingArguments
    model_type: str
    from_pretrained: str | None
    training_fields: dict[str, Any] = dataclasses.field(repr=False)  # these may include the token
    max_position_embeddings: int | None
    generation: GenerationConfig | None = None

    def build_config(self, tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedConfig:
        """Return the configuration of the model, with the vocabulary size and the special tokens of `tokenizer`, if
        there is one.

        Raises:
            RecipeError: if the vocabulary of the model is smaller than the tokenizer, or a field is invalid.
        """
        if tokenizer is None:
            return check_model(self.model_type, self.from_pretrained, self.model)
        fields = {**self.model, **self.tokenizer_fields(tokenizer)}
        if fields.setdefault("vocab_size", len(tokenizer)) < len(tokenizer):
            raise RecipeError(
                f"model.vocab_size is {fields['vocab_size']}, but the tokenizer has {len(tokenizer)} tokens; "
                "leave the field out to take the tokenizer's."
            )
        for name in TOKENIZER_FIELDS:
            fields.setdefault(name, getattr(tokenizer, name))
        if self.from_pretrained is None:
            return AutoConfig.for_model(self.model_type, **fields)
        config = changed_config(self.from_pretrained, {k: v for k, v in fields.items() if k != "vocab_size"})
        if config.vocab_size < len(tokenizer):
            raise RecipeError(
                f"model.from_pretrained {self.from_pretrained} knows {config.vocab_size} tokens, the tokenizer "
                f"{self.tokenizer_name!r} has {len(tokenizer)}; set data.tokenizer to the model's own."
            )
        self.check_vocabulary(tokenizer)
        return config

    def check_vocabulary(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise RecipeError if a pretrained model has a tokenizer of its own, in which ids mean something else."""
        assert self.from_pretrained is not None
        if (
            cached_file(self.from_pretrained, TOKENIZER_CONFIG_FILE, _raise_exceptions_for_missing_entries=False)
            is None
        ):
            return
        try:
            own = load_tokenizer(self.from_pretrained).get_vocab()
        except ValueError:  # one of another package, or without an end: not what the data were read with
            return
        new = tokenizer.get_vocab()
        changed = [token for token, number in new.items() if own.get(token) != number]
        if changed:
            raise RecipeError(
                f"data.tokenizer {self.tokenizer_name!r} gives {len(changed)} of {len(new)} tokens another id than the "
                f"one that model.from_pretrained {self.from_pretrained} was trained with; set it to the model's own: "
                f"{self.from_pretrained}."
            )

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer of the data section, or the model type if that section has none."""
        return getattr(self.data, "tokenizer", self.model_type)

    def tokenizer_fields(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Return the fields of the configuration that the tokenizer determines, except its size and special tokens."""
        reference = architecture(self.model_type).tokenizer_fields
        try:
            return {} if reference is None else resolve(reference)(tokenizer)
        except ValueError as error:
            raise RecipeError(
                f"data.tokenizer {self.tokenizer_name!r} does not fit model_type {self.model_type!r}: {error}"
            ) from error

    def build_model(self, tokenizer: PreTrainedTokenizerBase | None, auto_class: type) -> Any:
        """Return the model to train, with pretrained weights or with random ones from the current state of the random
        number generators.

        Raises:
            RecipeError: if the tokenizer does not match the model, or the attention backend is not there.
        """
        config, missing_keys = self.build_config(tokenizer), None
        try:
            if self.from_pretrained is None:
                model = auto_class.from_config(config)
            else:
                model, loaded = auto_class.from_pretrained(
                    self.from_pretrained, config=config, output_loading_info=True
                )
                missing_keys = loaded["missing_keys"]
        except (ValueError, ImportError) as error:
            backend = self.model.get("attn_implementation")
            if backend is None or not re.search("attn|attention", str(error), re.IGNORECASE):
                raise
            raise RecipeError(f"model.attn_implementation is {backend!r}: {error}") from error
        if hasattr(model, "load_tokenizer"):
            try:
                model.load_tokenizer(tokenizer, missing_keys)
            except ValueError as error:
                raise RecipeError(
                    f"data.tokenizer {self.tokenizer_name!r} is not that of the model: {error}"
                ) from error
        if self.generation is not None:
            model.generation_config = self.generation
        if model.can_generate():
            for name in TOKENIZER_FIELDS:
                setattr(model.generation_config, name, getattr(config, name))
        return model

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return all fields that determine the run, without its folder."""
        model = {"model_type": self.model_type, **self.model}
        if self.from_pretrained is not None:
            model = {"from_pretrained": self.from_pretrained, **self.model}
        left_out = ("output_dir", "resume_from_checkpoint", "hub_token")  # the token is a secret
        training = {k: v for k, v in self.training_fields.items() if k not in left_out}
        return {
            "model": model,
            "data": dataclasses.asdict(self.data),
            "training": {**training, "seed": self.training.seed},
        }

    def to_yaml(self) -> str:
        """Return [`to_dict`] as YAML with a comment."""
        header = f"# Written by latentlm {latentlm.__version__}: the recipe as it was run, command line included.\n"
        return f"{header}{yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)}"


def load_recipe(path: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe file.

    Args:
        path: the YAML file.
        overrides: values of fields by name (`learning_rate`), or by section and name (`training.learning_rate`); also
            of a place in a list or mapping that the recipe has (`levels.0.delta`). Strings are parsed as YAML, as on
            the command line.

    Raises:
        RecipeError: for an unknown field, a value of the wrong type or out of its range, or a missing file.
    """
    path = Path(path)
    overrides = dict(overrides or {})
    nested = {name: overrides.pop(name) for name in list(overrides) if is_nested(name)}
    if nested:
        overrides |= changed_inside(load_recipe(path, overrides), nested)
    recipe = read_mapping(path)
    for section in recipe:
        if section not in SECTIONS:
            raise unknown_field(f"{path}: section", section, SECTIONS)
    recipe = {section: dict(recipe.get(section) or {}) for section in SECTIONS}

    for name in list(overrides):  # these come first, because the architecture determines the fields of the model
        if name.removeprefix("model.") in MODEL_SOURCES:
            for other in MODEL_SOURCES:
                recipe["model"].pop(other, None)
            recipe["model"][name.removeprefix("model.")] = str(overrides.pop(name))
    for name in MODEL_SOURCES:
        check_no_user("model", name, recipe["model"].get(name))
    folder_fields, model_type, source_folder = resolve_architecture(recipe["model"], path.parent)
    from_pretrained = recipe["model"].pop("from_pretrained", None)
    for name in ("config", "model_type"):
        recipe["model"].pop(name, None)

    data_class: type[SourceConfig] = architecture(model_type).data_class
    arguments_class: type[LatentTrainingArguments] = architecture(model_type).trainer_class.arguments_class
    fields = {
        "model": field_types(CONFIG_MAPPING[model_type]) | {"attn_implementation": str | None},
        "data": field_types(data_class),
        "training": field_types(arguments_class),
    }
    for section in SECTIONS:
        for name, value in recipe[section].items():
            recipe[section][name] = check_field(section, name, value, fields[section])
    for name, value in overrides.items():
        section, field = find_section(name, fields)
        recipe[section][field] = parse_override(section, field, value, fields[section])
    for section in SECTIONS:
        for name, value in recipe[section].items():
            check_no_user(section, name, value)

    tokenizer = recipe["data"].get("tokenizer")
    if isinstance(tokenizer, str) and (path.parent / tokenizer).is_dir():
        recipe["data"]["tokenizer"] = os.path.normpath(path.parent / tokenizer)  # a folder relative to the recipe
    training = {"output_dir": default_output_dir(path), **recipe["training"]}
    generation = next((f for f in (source_folder, path.parent) if f and (f / "generation_config.json").exists()), None)
    model = {**folder_fields, **recipe["model"]}
    if from_pretrained is None:
        model = {**own_defaults(CONFIG_MAPPING[model_type]), **model}
    # The vocabulary size is that of a tokenizer that is loaded or trained later.
    waits = from_pretrained is None and "tokenizer" in fields["data"]
    unknown = {"vocab_size": MIN_VOCAB_SIZE} if waits else {}
    config = check_model(model_type, from_pretrained, {**unknown, **model})
    try:
        data = data_class(**recipe["data"])
    except (ValueError, TypeError) as error:
        raise RecipeError(f"data: {error}") from error
    try:
        arguments = arguments_class(**training)
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"training: {error}") from error
    check_together(config, data, arguments)
    return Recipe(
        model=model,
        data=data,
        training=arguments,
        model_type=model_type,
        from_pretrained=from_pretrained,
        training_fields=recipe["training"],
        max_position_embeddings=getattr(config, "max_position_embeddings", None),
        generation=GenerationConfig.from_pretrained(generation) if generation else None,
    )


def check_together(config: PreTrainedConfig, data: SourceConfig, arguments: LatentTrainingArguments) -> None:
    """Check the fields of several sections that must agree.

    Raises:
        RecipeError: if they do not.
    """
    for name in EQUAL:
        values = getattr(config, name, None), getattr(data, name, None)
        if None not in values and values[0] != values[1]:
            raise RecipeError(f"data.{name} is {values[1]}, but it must be that of the model: {values[0]}.")
    if not getattr(data, "streaming", False):
        return
    if arguments.max_steps <= 0:
        raise RecipeError(
            f"training.max_steps is {arguments.max_steps}, but a stream (data.streaming) has no known end: it must be "
            "above 0."
        )
    if arguments.dataloader_num_workers > 1:
        raise RecipeError(
            f"training.dataloader_num_workers is {arguments.dataloader_num_workers}, but each worker would repeat the "
            "stream (data.streaming): it must be 0 or 1."
        )


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file of sections, each of which is a mapping or empty.

    Raises:
        RecipeError: if the file is missing or cannot be read, or has another structure.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        example = "hub_configs/ar-encoder-decoder-tiny/recipe.yaml"
        raise RecipeError(f"no recipe {path}; a recipe is a YAML file such as {example}.") from error
    except (UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"recipe {path} cannot be read: {error}.") from error
    try:
        content = yaml.load(text, RecipeLoader)
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {path} is not valid YAML: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(v, dict | None) for v in content.values()):
        raise RecipeError(f"recipe {path} must hold mappings named {', '.join(SECTIONS)}.")
    for section, fields in content.items():
        for name in (section, *(fields or {})):
            if not isinstance(name, str):
                raise RecipeError(f"recipe {path}: {name!r} in section {section!r} is no name of a field.")
    return content


def resolve_architecture(model: dict[str, Any], recipe_folder: Path) -> tuple[dict[str, Any], str, Path | None]:
    """Return the fields of the configuration folder (none without one), the model type, and the folder or None.

    Raises:
        RecipeError: unless the recipe names exactly one source of the model, which exists.
    """
    sources = [name for name in MODEL_SOURCES if model.get(name) is not None]
    if len(sources) != 1:
        raise RecipeError(
            f"model: give exactly one of {', '.join(MODEL_SOURCES)}, got {', '.join(sources) or 'none of them'}; "
            f"model types: {', '.join(ARCHITECTURES)}."
        )
    value = str(model[sources[0]])
    if sources[0] == "from_pretrained":
        try:
            return {}, AutoConfig.from_pretrained(value).model_type, None
        except (OSError, ValueError) as error:
            raise RecipeError(f"model.from_pretrained {value!r} has no configuration to load: {error}") from error
    folder, fields, model_type = None, {}, value
    if sources[0] == "config":
        candidates = [recipe_folder / value, Path(value)]
        folder = next((folder for folder in candidates if (folder / "config.json").is_file()), None)
        if folder is None:
            raise RecipeError(f"model.config {value!r}: no config.json in {' or '.join(map(str, candidates))}.")
        try:
            fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise RecipeError(f"model.config: {folder / 'config.json'} is not valid JSON: {error}.") from error
        model_type = fields.get("model_type")
        # The vocabulary size of a folder is that of its own tokenizer, but a recipe may use another one.
        dropped = {*BOOKKEEPING, *TOKENIZER_FIELDS, "vocab_size"}
        fields = {name: value for name, value in fields.items() if name not in dropped}
    if model_type not in CONFIG_MAPPING:
        raise unknown_field("model.model_type", str(model_type), ARCHITECTURES)
    return fields, model_type, folder


def own_defaults(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """Return the defaults of the fields that the architecture declares, except those that the tokenizer determines."""
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)} | {"vocab_size", *TOKENIZER_FIELDS}
    return {
        field.name: field.default
        for field in dataclasses.fields(config_class)
        if field.name not in inherited and field.default is not dataclasses.MISSING
    }


def check_model(model_type: str, from_pretrained: str | None, fields: dict[str, Any]) -> PreTrainedConfig:
    """Return the configuration with the fields of a recipe.

    Raises:
        RecipeError: if the configuration rejects a field.
    """
    try:
        if from_pretrained is not None:
            return changed_config(from_pretrained, fields)
        return AutoConfig.for_model(model_type, **fields)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise RecipeError(f"model: {error.__cause__ or error}") from error


def changed_config(source: str, fields: dict[str, Any]) -> PreTrainedConfig:
    """Return the configuration of a pretrained model with some fields changed, after validation. transformers sets
    these fields after its own validation, and would report an error only when the model is saved."""
    config = AutoConfig.from_pretrained(source, **fields)
    config.validate()
    return config


def default_output_dir(path: Path) -> str:
    """Return `runs/<name of the recipe>`. The name of a file recipe.yaml is that of its folder."""
    name = path.resolve().parent.name if path.name == RECIPE_FILE else path.stem
    return str(Path("runs") / name)


# ---- Fields, their types, and values from the command line ----


def field_types(cls: type) -> dict[str, Any]:
    """Return the type of every field of a dataclass, by name."""
    try:
        hints = typing.get_type_hints(cls)
    except NameError:  # fields with a type under TYPE_CHECKING accept any value
        hints = {field.name: Any if isinstance(field.type, str) else field.type for field in dataclasses.fields(cls)}
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def unknown_field(what: str, name: str, known: Iterable[str]) -> RecipeError:
    """Return the error of an unknown name, which suggests the most similar known one."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]
    return RecipeError(f"{what} {name!r} is unknown; did you mean {nearest!r}?")


def find_section(name: str, fields: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """Return the section and the field of an override, whose name may lack the section.

    Raises:
        RecipeError: if the name is unknown or ambiguous.
    """
    section, dot, field = name.partition(".")
    if dot:
        if field not in fields[section]:
            raise unknown_field(f"{section} field", field, fields[section])
        return section, field
    homes = [section for section in SECTIONS if name in fields[section]]
    if not homes:
        raise unknown_field("field", name, [field for section in SECTIONS for field in fields[section]])
    if len(homes) > 1:
        raise RecipeError(f"field {name!r} is ambiguous: write {' or '.join(f'--{home}.{name}' for home in homes)}.")
    return homes[0], name


def is_nested(name: str) -> bool:
    """Whether an override is of a place in a list or mapping; a section before it does not count."""
    parts = name.split(".")
    return len(parts) > (2 if parts[0] in SECTIONS else 1)


def changed_inside(recipe: Recipe, nested: dict[str, Any]) -> dict[str, Any]:
    """Return the overrides of whole fields, by section and name, that nested ones make of the fields of a recipe and of
    the model that it starts from.

    Raises:
        RecipeError: if there is no such field or place.
    """
    known_fields, changed = recipe.to_dict(), {}
    if recipe.from_pretrained is not None:
        known_fields["model"] = check_model(recipe.model_type, recipe.from_pretrained, recipe.model).to_dict()
    for name, value in nested.items():
        parts = name.split(".")
        sections = [parts.pop(0)] if parts[0] in SECTIONS else SECTIONS
        field, *places = parts
        homes = [section for section in sections if field in known_fields[section]]
        if len(homes) > 1:
            choices = " or ".join(f"--{section}.{name}" for section in homes)
            raise RecipeError(f"field {name!r} is ambiguous: write {choices}.")
        if not homes:
            known = [known for section in sections for known in (section, *known_fields[section])]
            raise no_such_place(name, field, known, "the recipe")
        whole = f"{homes[0]}.{field}"
        changed.setdefault(whole, copy.deepcopy(known_fields[homes[0]][field]))
        set_inside(changed[whole], places, parse_nested(value), name)
    return changed


def set_inside(container: Any, places: list[str], value: Any, name: str) -> None:
    """Change one value of nested lists and mappings. A list must have its place; the mapping that holds the value need
    not have it.

    Raises:
        RecipeError: if there is no such place.
    """
    for place in places[:-1]:
        container = container[key_of(container, place, name)]
    key = places[-1] if isinstance(container, dict) else key_of(container, places[-1], name)
    container[key] = value


def key_of(container: Any, place: str, name: str) -> Any:
    """Return the index or key of a place that a list or mapping has.

    Raises:
        RecipeError: if it has no such place.
    """
    if isinstance(container, list):
        if place.isdigit() and int(place) < len(container):
            return int(place)
        raise RecipeError(f"field {name!r}: {place!r} is no place in a list of {len(container)}; the first is 0.")
    known = container if isinstance(container, dict) else {}
    if place in known:
        return place
    raise no_such_place(name, place, known, repr(container))


def no_such_place(name: str, place: str, known: Iterable[str], where: str) -> RecipeError:
    """Return the error of a nested override, which suggests the most similar place."""
    nearest = difflib.get_close_matches(place, list(known), n=1, cutoff=0.3)
    end = f"; did you mean {nearest[0]!r}?" if nearest else "."
    return RecipeError(f"field {name!r}: {where} has no {place!r}{end}")


def parse_nested(value: Any) -> Any:
    """Return the value of a nested override, whose type is not known here: of a YAML text, or of a list of words."""
    if isinstance(value, list):
        return [parse_nested(part) for part in value]
    if not isinstance(value, str):
        return value
    try:
        return yaml.load(value, RecipeLoader)
    except yaml.YAMLError:
        return value


def parse_override(section: str, name: str, value: Any, known: dict[str, Any]) -> Any:
    """Return the value of an override, which is a YAML text or an object such as a list of words.

    Raises:
        RecipeError: if the value does not have the type of the field.
    """
    if isinstance(value, str):
        allowed = alternatives(known[name])
        try:
            parsed = yaml.load(value, RecipeLoader)
        except yaml.YAMLError:
            parsed = value
        # A text without quotes stays as it is, if the field takes text: "0123", and what YAML would drop, such as a
        # comment ("# " begins a heading) or a space at the end.
        if str in allowed and value[:1] not in ("'", '"'):
            is_text = type(parsed) not in allowed - {str} or value.lstrip().startswith("#")
            value = value if is_text else parsed
        else:
            value = parsed
    return check_field(section, name, value, known)


def check_no_user(section: str, name: str, value: Any) -> None:
    """Raise RecipeError if a value has a URL with a user or a password, which the run would store and publish."""
    if name != "document_start" and URL_USER.search(str(value)):  # `document_start` is a regular expression
        raise RecipeError(
            f"{section}.{name} holds a user or a password in a URL ({redact(str(value))} without it), and a run stores "
            "its recipe; log in with `hf auth login`, or download the file and name it."
        )


def check_field(section: str, name: str, value: Any, known: dict[str, Any]) -> Any:
    """Return a value if it has the type of its field. An integer is accepted for a float.

    Raises:
        RecipeError: if the field is unknown or has another type.
    """
    if name not in known:
        raise unknown_field(f"{section} field", name, known)
    annotation = known[name]
    allowed = alternatives(annotation)
    if isinstance(value, int) and not isinstance(value, bool) and float in allowed:
        return value
    choices = [choice.value for kind in allowed if isinstance(kind, type) and issubclass(kind, Enum) for choice in kind]
    if choices and isinstance(value, str) and value not in choices:
        raise RecipeError(f"{section}.{name} is {value!r}, but it must be one of {', '.join(choices)}.")
    try:
        type_validator(name, value, annotation)
    except TypeError as error:
        if str(error).startswith("Unsupported type"):
            return value
        expected = annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
        shown = HIDDEN if SECRET_NAME.search(name) else repr(value)
        if isinstance(value, list) and str in allowed and list not in allowed:
            raise RecipeError(
                f"{section}.{name} has {len(value)} values, but takes one; quote a pattern of files ('texts/*.txt'), "
                "or the shell replaces it by their names."
            ) from error
        raise RecipeError(
            f"{section}.{name} is {shown} ({type(value).__name__}), but it must be {expected}."
        ) from error
    return value


def alternatives(annotation: Any) -> set[Any]:
    """Return the types of an annotation, which are several for a union."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return {kind for argument in typing.get_args(annotation) for kind in alternatives(argument)}
    if typing.get_origin(annotation) is typing.Literal:
        return {type(value) for value in typing.get_args(annotation)}
    return {typing.get_origin(annotation) or annotation}
