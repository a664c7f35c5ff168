"""Publishing a run: which of its files go to the Hub, its model card, and the push.

Published are weights (safetensors), code, tokenizer, configurations, the card, the recipe and the figures, each by its
name; never a pickle, a checkpoint, a log, a path of this machine, or whatever else lies in the folder.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
import yaml
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
    get_token,
)
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name
from transformers.tokenization_utils_base import (
    ADDED_TOKENS_FILE,
    CHAT_TEMPLATE_FILE,
    FULL_TOKENIZER_FILE,
    SPECIAL_TOKENS_MAP_FILE,
    TOKENIZER_CONFIG_FILE,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

import latentlm
from latentlm.data.chunks import PIECES_FILE
from latentlm.data.sources import FORMATS, PYTHON_DOCS
from latentlm.models.encodzall_base import SENTENCE_TRANSFORMERS_FILES
from latentlm.runs.checkpoints import (
    CHECKPOINT_NAME,
    MANIFEST,
    find_missing,
    last_complete_checkpoint,
    write_atomically,
)
from latentlm.runs.recipe import RECIPE_FILE
from latentlm.runs.redaction import redact
from latentlm.runs.run_folder import (
    CURVES_FILE,
    DATA_FILE,
    ENVIRONMENT_FILE,
    METRICS_FILE,
    SEGMENTS_FILE,
    plot_curves,
    read_metrics,
    read_stored_recipe,
)

CARD_FILE = "README.md"
TEMPLATE = Path(__file__).with_name("model_card.md")
# A card without this line is the user's own and stays as it is.
MARKER = "<!-- Written by latentlm, anew at each push. Delete this line to keep your own changes. -->"
# The pipeline of transformers that a model is for, by its Auto class.
PIPELINES = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
}
# What is published if it is there, beside weights, code and the tokenizer's own files.
NAMES = {CONFIG_NAME, GENERATION_CONFIG_NAME, CARD_FILE, CURVES_FILE, SEGMENTS_FILE, PIECES_FILE}
NAMES |= SENTENCE_TRANSFORMERS_FILES.keys()
# What a tokenizer of any class may save.
TOKENIZER_FILES = {
    *(TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_MAP_FILE, ADDED_TOKENS_FILE, FULL_TOKENIZER_FILE, CHAT_TEMPLATE_FILE)
}
# Recipe fields that say where a run lives and who may write there, not how to repeat it.
PLACES = {"cache_dir", "push_to_hub"}
# Weights under other names would be found first by whoever loads the repository.
STALE = ("model*.safetensors", SAFE_WEIGHTS_INDEX_NAME, "pytorch_model*", "training_args.bin")


class PublishError(RuntimeError):
    """Nothing was published; the message says why, and that nothing saved is lost."""


def publish(
    folder: Path,
    repo_id: str,
    message: str = "Publish with latentlm",
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    **card_fields: Any,
) -> CommitInfo:
    """Push a run folder or checkpoint, in one commit, and write its card.

    Args:
        repo_id: `organisation/name`, or `name` for the user's own; created if it is not there.
        private: visibility of a new repository; `None` for the account's default.
        token: a write token instead of the one that is logged in.
        revision: branch to commit to instead of the main one.
        card_fields: as for [`write_card`].

    Raises:
        PublishError: if the folder is not a complete run, or the Hub does not take it.
    """
    check_complete(folder)
    repo_id = create_repository(folder, repo_id, private, token)
    write_card(folder, repo_id, **card_fields)
    files = published_files(folder)
    with explained(folder, repo_id, token):
        api = HfApi(token=token)
        try:
            present = api.list_repo_files(repo_id, revision=revision)
        except EntryNotFoundError:  # a new repository without any file
            present = []
        stale = [name for name in present if any(fnmatch(name, pattern) for pattern in STALE)]
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        operations += [CommitOperationDelete(name) for name in stale if name not in files]
        return api.create_commit(repo_id, operations, commit_message=message, revision=revision)


def create_repository(folder: Path, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """Make sure that the repository is there and may be written to; returns its full id."""
    with explained(folder, repo_id, token):
        if (token or get_token()) is None:
            raise ValueError("there is no token; log in with `hf auth login` or set HF_TOKEN to a write token")
        return HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True).repo_id


@contextmanager
def explained(folder: Path, repo_id: str, token: str | None) -> Iterator[None]:
    """Turn what goes wrong on the way to the Hub into a message that says what to do."""
    try:
        yield
    except Exception as error:  # of the system, of huggingface_hub, of whichever HTTP library it uses
        reason = redact(" ".join(str(error).split()).rstrip("."), token) or type(error).__name__
        raise PublishError(
            f"{repo_id} was not published: {reason}. Whatever {folder} holds is untouched; "
            f"a finished run is pushed with: latentlm publish {folder} {repo_id}"
        ) from error


def check_complete(folder: Path) -> None:
    """Raise `PublishError` unless `folder` is a run or a checkpoint with all of its weights."""
    if not folder.is_dir():
        raise PublishError(f"there is no folder {folder}.")
    is_checkpoint = (folder / MANIFEST).exists() or CHECKPOINT_NAME.fullmatch(folder.name)
    if is_checkpoint and (damage := find_missing(folder)):
        raise PublishError(f"checkpoint {folder} is not complete: {damage}.")
    if not any((folder / name).exists() for name in (METRICS_FILE, TRAINER_STATE_NAME)):
        raise PublishError(f"{folder} is neither a run folder (it has no {METRICS_FILE}) nor a checkpoint.")
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
    return TOKENIZER_FILES.union(*(known.vocab_files_names.values() for known in classes if known is not None))


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
    kept = {
        section: {name: value for name, value in fields.items() if name not in PLACES and not name.startswith("hub_")}
        for section, fields in recipe.items()
    }
    return yaml.safe_dump(without_local_paths(kept), sort_keys=False, allow_unicode=True)


def without_local_paths(value: Any) -> Any:
    """`value` with the last part alone of every string that is a path outside of the working folder."""
    if isinstance(value, dict):
        return {k: v if k == "document_start" else without_local_paths(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_local_paths(item) for item in value]
    if isinstance(value, str):
        absolute = PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()
        if absolute or value.startswith(("~", "..")):
            return PureWindowsPath(value).name  # both kinds of separators
    return value


# ---- The model card ----


def write_card(folder: Path, repo_id: str, tags: list[str] | None = None, **fields: Any) -> None:
    """Write the model card and the curves of a run or checkpoint beside its weights.

    A README.md without the first line that latentlm writes is left alone.

    Args:
        repo_id: the name under which the card says how to load the model.
        tags: more tags than the model type and latentlm.
        fields: other front matter: `language="en"`, or a `license` that is not apache-2.0.

    Raises:
        PublishError: if the folder cannot be read or written.
    """
    path = folder / CARD_FILE
    try:
        if path.exists() and MARKER not in path.read_text(encoding="utf-8"):
            return
        plot_curves(folder)
        write_atomically(path, str(make_card(folder, repo_id, tags or [], fields)))
    except (OSError, ValueError) as error:
        raise PublishError(f"the model card of {folder} cannot be written: {error}.") from error


def make_card(folder: Path, repo_id: str, tags: list[str], fields: dict[str, Any]) -> ModelCard:
    """The card of a run, from the files that it left."""
    config = AutoConfig.from_pretrained(folder)
    recipe = read_stored_recipe(folder) or {}
    data = read_json(folder / DATA_FILE)
    metrics = read_metrics(folder)
    head = f".{config.architectures[0]}"
    auto_class = next((name for name, path in config.auto_map.items() if path.endswith(head)), "AutoModel")
    name = repo_id.rsplit("/", 1)[-1]
    with torch.device("meta"):
        model = getattr(latentlm, config.architectures[0])(config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    context = getattr(config, "max_position_embeddings", None)
    embeds_texts = (folder / "modules.json").exists()  # what sentence-transformers loads
    base_model = recipe.get("model", {}).get("from_pretrained")
    card_data = {
        "library_name": "transformers",
        "license": "apache-2.0",
        "language": "en" if data and is_python_docs(data) else None,
        "pipeline_tag": PIPELINES.get(auto_class) or ("feature-extraction" if embeds_texts else None),
        "tags": [config.model_type, "latentlm", *(["sentence-transformers"] if embeds_texts else []), *tags],
        "datasets": hub_names(data.get("dataset"), data.get("validation_dataset")),
        "base_model": hub_names(base_model),
        "model_name": name,
        "eval_results": evaluation_results(metrics, data, auto_class),
    }
    return ModelCard.from_template(
        ModelCardData(**card_data | fields),
        template_path=str(TEMPLATE),
        title=name,
        marker=MARKER,
        repo_id=repo_id,
        architecture=describe(config),
        model_type=config.model_type,
        parameters=sum(sizes.values()),
        parameters_without_positions=sum(size for name, size in sizes.items() if "embed_positions" not in name),
        context=context,
        new_tokens=min(64, context // 2) if context else 64,
        auto_class=auto_class,
        steps=max((entry["step"] for entry in metrics), default=0),
        training_time=timedelta(
            seconds=round(next((e["training_seconds"] for e in reversed(metrics) if "loss" in e), 0))
        ),
        losses=(losses := list(first_and_last(metrics))),
        lm_loss_named=any(row["name"] == "lm_loss" for row in losses),
        figure=CURVES_FILE,
        segments=SEGMENTS_FILE if (folder / SEGMENTS_FILE).exists() else None,
        data=describe_data(data, recipe.get("data", {})) if data else None,
        recipe=(published_recipe(folder) or "").strip(),
        environment=read_json(folder / ENVIRONMENT_FILE),
    )


def is_python_docs(data: dict[str, Any]) -> bool:
    """Whether all text of a run is the documentation inside Python, the one source whose language is known."""
    return {data["dataset"], data.get("validation_dataset") or PYTHON_DOCS} == {PYTHON_DOCS}


def read_json(path: Path) -> dict[str, Any]:
    """What a run wrote down; nothing for a `LatentTrainer` that was used without a recipe."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def describe(config: PreTrainedConfig) -> str:
    """The first sentence of the configuration's documentation, which says what the architecture is."""
    return type(config).__doc__.strip().split("\n\n")[0].replace("\n", " ")


def first_and_last(metrics: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row per logged loss and for bits per byte: its first and last value, in training and on held-out text."""
    for text, key, prefix in (("training", "loss", ""), ("held-out text", "eval_loss", "eval_")):
        entries = [entry for entry in metrics if key in entry]
        if not entries:
            continue
        first, last = entries[0], entries[-1]
        names = [name for name in sorted(last) if name.endswith(("_loss", "_bits_per_byte")) or name == key]
        for name in names:
            if name == "eval_loss" and "eval_lm_loss" in last:
                continue  # the same number
            yield {
                "text": text,
                "name": name.removeprefix(prefix),
                **{"first_step": first["step"], "first": first[name], "last_step": last["step"], "last": last[name]},
            }


def describe_data(data: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """The data of a run as the card shows it: a row per split, and how they were divided."""

    def dataset(name: str) -> str:
        if name == PYTHON_DOCS:
            return "`python_docs` (the documentation inside Python)"
        parts = [without_local_paths(name), data.get("dataset_config")]
        return "`" + " ".join(part for part in parts if part) + "`"

    def count(number: int | None) -> str:
        return "not counted" if number is None else f"{number:,}"

    validation_name = data.get("validation_dataset") or data["dataset"]
    splits = [
        {"text": text, "dataset": dataset(name)}
        | {kind: count(data[split].get(kind)) for kind in ("documents", "bytes", "tokens")}
        for text, split, name in (
            ("training", "train", data["dataset"]),
            ("held out", "validation", validation_name),
        )
    ]
    if data.get("validation_dataset"):
        split = "The held-out text is a dataset of its own."
    elif fields.get("validation_split"):
        train, held_out = fields["train_split"], fields["validation_split"]
        split = f"The held-out text is the split `{held_out}`, the training text the split `{train}`."
    elif fields.get("streaming"):
        split = "The held-out text is the beginning of the stream; training leaves its documents out."
    else:
        share = f"about {fields['validation_fraction']:.1%} of the bytes, " if "validation_fraction" in fields else ""
        split = f"The held-out text is {share}chosen by document; no document is on both sides."
    if fields.get("max_validation_rows"):
        split += f" Evaluated on its first {data['validation']['rows']:,} rows."
    if fields.get("max_train_rows"):
        split += f" Trained on the first {data['train']['rows']:,} rows of its text."
    return {
        "splits": splits,
        "split": split,
        "tokenizer": f"`{without_local_paths(data['tokenizer'])}`",
        "vocab_size": data["vocab_size"],
        "context_length": data["context_length"],
    }


def hub_names(*names: str | None) -> list[str] | None:
    """Those of `names` that can be repositories on the Hub, not files or folders of this machine; `None` for none."""
    found = []
    for name in names:
        if not name or name == PYTHON_DOCS or PurePosixPath(name).suffix in FORMATS or Path(name).exists():
            continue
        try:
            validate_repo_id(name)
        except HFValidationError:
            continue
        found.append(name)
    return found or None


def evaluation_results(metrics: list[dict[str, Any]], data: dict[str, Any], auto_class: str) -> list[EvalResult] | None:
    """The last evaluation, for the model index of the front matter."""
    last = next((entry for entry in reversed(metrics) if "eval_loss" in entry), None)
    if last is None:
        return None
    dataset = without_local_paths(data.get("validation_dataset") or data.get("dataset") or "held-out text")
    return [
        EvalResult(
            task_type="text-generation" if auto_class == "AutoModelForCausalLM" else "other",
            dataset_type=dataset,
            dataset_name=f"{dataset} (held-out part)",
            dataset_config=data.get("dataset_config"),
            metric_type=name.removeprefix("eval_"),
            metric_name=label,
            metric_value=last[name],
        )
        for name, label in (("eval_loss", "loss in nats per token"), ("eval_bits_per_byte", "bits per byte"))
        if name in last
    ]
