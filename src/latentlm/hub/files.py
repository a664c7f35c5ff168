"""Which files of a run go to the Hub.

These are weights (safetensors), code, tokenizer, configurations, the card, the recipe and the figures, each by its
name; never a pickle, a checkpoint, a log, a path of this machine, or any other file of the folder.
"""

import json
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name
from transformers.tokenization_utils_base import (
    ADDED_TOKENS_FILE,
    FULL_TOKENIZER_FILE,
    SPECIAL_TOKENS_MAP_FILE,
    TOKENIZER_CONFIG_FILE,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import CHAT_TEMPLATE_DIR, CHAT_TEMPLATE_FILE

import latentlm
from latentlm.data.chunks import PIECES_FILE
from latentlm.models.encodzall_base import SENTENCE_TRANSFORMERS_FILES
from latentlm.runs.checkpoints import CHECKPOINT_NAME, MANIFEST, find_missing, last_complete_checkpoint
from latentlm.runs.recipe import RECIPE_FILE
from latentlm.runs.run_folder import CURVES_FILE, METRICS_FILE, SEGMENTS_FILE, read_stored_recipe

CARD_FILE = "README.md"
# What is published if it is there, beside weights, code and the tokenizer's own files.
NAMES = {CONFIG_NAME, GENERATION_CONFIG_NAME, CARD_FILE, CURVES_FILE, SEGMENTS_FILE, PIECES_FILE}
NAMES |= SENTENCE_TRANSFORMERS_FILES.keys()
# What a tokenizer of any class may save.
TOKENIZER_FILES = {
    *(TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_MAP_FILE, ADDED_TOKENS_FILE, FULL_TOKENIZER_FILE, CHAT_TEMPLATE_FILE)
}
# Recipe fields that say where a run lives and who may write there, not how to repeat it.
PLACES = {"cache_dir", "push_to_hub", "trackio_space_id"}


class PublishError(RuntimeError):
    """Nothing was published; the message says why, and that nothing saved is lost."""


def check_complete(folder: Path) -> None:
    """Raise `PublishError` unless `folder` is a run or a checkpoint with all of its weights."""
    if not folder.is_dir():
        raise PublishError(f"there is no folder {folder}.")
    is_checkpoint = (folder / MANIFEST).exists() or CHECKPOINT_NAME.fullmatch(folder.name)
    if is_checkpoint and (damage := find_missing(folder)):
        raise PublishError(f"checkpoint {folder} is not complete: {damage}.")
    if not any((folder / name).exists() for name in (METRICS_FILE, TRAINER_STATE_NAME, CARD_FILE)):
        raise PublishError(
            f"{folder} is neither a run folder (it has no {METRICS_FILE}) nor a checkpoint, and it has no card "
            f"({CARD_FILE})."
        )
    shards = weight_files(folder) - {SAFE_WEIGHTS_INDEX_NAME}
    for name in (CONFIG_NAME, *sorted(shards)):
        if not (folder / name).exists():
            checkpoint = last_complete_checkpoint(folder)
            hint = f" The run is not finished; its last checkpoint can be published: {checkpoint}" if checkpoint else ""
            raise PublishError(f"{folder} has no {name}.{hint}")
    for name in shards:
        try:
            safe_open(folder / name, "pt")  # compares the size of the file with its header
        except SafetensorError as error:
            raise PublishError(f"{folder / name} is damaged or cut short: {error}.") from error


def published_files(folder: Path) -> dict[str, Path | bytes]:
    """What the repository of a run or checkpoint consists of: name and file, or content where it is not the file's."""
    names = NAMES | weight_files(folder) | tokenizer_files(folder) | code_files(folder)
    files: dict[str, Path | bytes] = {name: folder / name for name in sorted(names) if (folder / name).is_file()}
    if recipe := published_recipe(folder):
        header = "# The recipe of this model: python -m latentlm.train recipe.yaml\n"
        files[RECIPE_FILE] = (header + recipe).encode()
    return files


def weight_files(folder: Path) -> set[str]:
    """The weights: one file, or an index and what it names."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.exists():
        return {SAFE_WEIGHTS_NAME}
    try:
        return {index.name, *json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, KeyError) as error:
        raise PublishError(f"{index} is damaged: {error}.") from error


def tokenizer_files(folder: Path) -> set[str]:
    """What the class of the saved tokenizer, fast or slow, reads; nothing if there is none."""
    name = read_json(folder / TOKENIZER_CONFIG_FILE).get("tokenizer_class")
    if name is None:
        return set()
    candidates = (name, f"{name}Fast")
    classes = [getattr(latentlm, name, None) or tokenizer_class_from_name(name) for name in candidates]
    if not any(classes):
        raise PublishError(
            f"{folder / TOKENIZER_CONFIG_FILE} names the tokenizer {name}, which neither latentlm nor transformers "
            "has, so which files it reads is not known; train with a tokenizer of one of these two."
        )
    templates = {f"{CHAT_TEMPLATE_DIR}/{path.name}" for path in (folder / CHAT_TEMPLATE_DIR).glob("*.jinja")}
    names = (known.vocab_files_names.values() for known in classes if known is not None)
    return TOKENIZER_FILES.union(templates, *names)


def code_files(folder: Path) -> set[str]:
    """The code that model and tokenizer name in their `auto_map`, and what it imports."""
    modules = set()
    for name in (CONFIG_NAME, TOKENIZER_CONFIG_FILE):
        for references in read_json(folder / name).get("auto_map", {}).values():
            for reference in references if isinstance(references, list) else [references]:
                if reference and "--" not in reference:  # with `--` it lies in another repository
                    modules.add(folder / f"{reference.split('.')[0]}.py")
    try:
        return {Path(file).name for module in modules for file in (module, *get_relative_import_files(module))}
    except FileNotFoundError as error:
        raise PublishError(f"{error.filename} is missing, which an `auto_map` in {folder} needs.") from error


def published_recipe(folder: Path) -> str | None:
    """The stored recipe as YAML, without what belongs to the machine or the account."""
    recipe = read_stored_recipe(folder)
    if recipe is None:
        return None
    published = {
        section: {name: value for name, value in fields.items() if name not in PLACES and not name.startswith("hub_")}
        for section, fields in recipe.items()
    }
    return str(yaml.safe_dump(without_local_paths(published), sort_keys=False, allow_unicode=True))


def without_local_paths(value: Any) -> Any:
    """`value` with the last part alone of every string that is a path outside of the working folder."""
    if isinstance(value, dict):
        return {k: v if k == "document_start" else without_local_paths(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_local_paths(item) for item in value]
    if isinstance(value, str):
        absolute = PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()
        if absolute or value.startswith(("~", "..", "file:")):
            return PureWindowsPath(value).name  # both kinds of separators
    return value


def read_json(path: Path) -> dict[str, Any]:
    """What a run wrote down; nothing for a `LatentTrainer` that was used without a recipe."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
