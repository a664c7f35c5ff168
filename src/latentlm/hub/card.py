"""The model card of a run, filled in from the files that the run left."""

from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig, PreTrainedConfig

from latentlm.architectures import architecture, find_head
from latentlm.data.sources import FORMATS, PYTHON_DOCS
from latentlm.models.block_ngram_embedding import count_ngram_parameters
from latentlm.runs.checkpoints import write_atomically
from latentlm.runs.run_folder import (
    CURVES_FILE,
    DATA_FILE,
    ENVIRONMENT_FILE,
    RESULTS_FILE,
    SEGMENTS_FILE,
    evaluation_sets,
    first_and_last,
    plot_curves,
    read_metrics,
    read_stored_recipe,
)

from .files import CARD_FILE, PublishError, code_files, published_recipe, read_json, without_local_paths

TEMPLATE = Path(__file__).with_name("model_card.md")
# A card without this line is the user's own and stays as it is.
MARKER = "<!-- Written by latentlm, anew at each push. Delete this line to keep your own changes. -->"
# The pipeline of transformers that a model is for, by its Auto class.
PIPELINES = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
}


def write_card(folder: Path, repo_id: str, tags: list[str] | None = None, **fields: Any) -> None:
    """Write the model card and the curves of a run or checkpoint beside its weights.

    A README.md without the first line that latentlm writes is left alone.

    Args:
        repo_id: the name under which the card says how to load the model.
        tags: more tags than the model type and latentlm.
        fields: other front matter: `language="en"`, `license="apache-2.0"`.

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
    config: Any = AutoConfig.from_pretrained(folder)
    auto_class, model_class = head_of(config)
    recipe = read_stored_recipe(folder) or {}
    data = read_json(folder / DATA_FILE)
    metrics = read_metrics(folder)
    # A finished run may have loaded an earlier checkpoint, its best one; `results.json` is of the weights.
    results = read_json(folder / RESULTS_FILE)
    last: dict[str, Any] = {}
    for entry in metrics:
        last |= {key: value for key, value in entry.items() if key.startswith("eval_")}
    evaluation = results if "eval_loss" in results else last
    name = repo_id.rsplit("/", 1)[-1]
    with torch.device("meta"):
        model = model_class(config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    context = getattr(config, "max_position_embeddings", None)
    embeds_texts = (folder / "modules.json").exists()  # what sentence-transformers loads
    base_model = recipe.get("model", {}).get("from_pretrained")
    card_data = {
        "library_name": "transformers",
        "language": "en" if data and is_python_docs(data) else None,
        "pipeline_tag": PIPELINES.get(auto_class) or ("feature-extraction" if embeds_texts else None),
        "tags": [config.model_type, "latentlm", *(["sentence-transformers"] if embeds_texts else []), *tags],
        "datasets": hub_names(folder, data.get("dataset"), data.get("validation_dataset")),
        "base_model": hub_names(folder, base_model),
        "model_name": name,
        "eval_results": evaluation_results(evaluation, data, auto_class),
    }
    return ModelCard.from_template(
        ModelCardData(**card_data | fields),
        template_path=str(TEMPLATE),
        title=name,
        marker=MARKER,
        repo_id=repo_id,
        architecture=describe(config),
        model_type=config.model_type,
        documented=architecture(config.model_type).config.startswith("latentlm."),
        has_code=bool(code_files(folder)),
        parameters=sum(sizes.values()),
        parameters_without_positions=sum(size for name, size in sizes.items() if "embed_positions" not in name),
        ngram_parameters=count_ngram_parameters(model),
        context=context,
        new_tokens=min(64, context // 2) if context else 64,
        auto_class=auto_class,
        embeds_texts=embeds_texts and auto_class == "AutoModelForSeq2SeqLM",
        steps=max((entry["step"] for entry in metrics), default=0),
        best_step=results.get("best_step"),
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


def head_of(config: PreTrainedConfig) -> tuple[str, Any]:
    """The Auto class, by name, and the class of the saved model: of the architecture's row, or of transformers itself.

    Raises:
        ValueError: if neither has it.
    """
    [name, *_] = config.architectures or [""]
    if head := find_head(config.model_type, name):
        return head
    model_class = getattr(transformers, name, None)
    if model_class is None:
        raise ValueError(f"the class {name!r} is neither of a registered architecture nor of transformers")
    return "AutoModelForCausalLM" if model_class.can_generate() else "AutoModel", model_class


def is_python_docs(data: dict[str, Any]) -> bool:
    """Whether all text of a run is the documentation inside Python, the one source whose language is known."""
    return {data["dataset"], data.get("validation_dataset") or PYTHON_DOCS} == {PYTHON_DOCS}


def describe(config: PreTrainedConfig) -> str:
    """The first sentence of the configuration's documentation, which says what the architecture is."""
    return (type(config).__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")


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
    if repeats := data.get("repeated_paragraphs"):
        split += f" {repeats['paragraphs']:,} repeated paragraphs ({repeats['bytes']:,} bytes) were left out before."
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


def hub_names(folder: Path, *names: str | None) -> list[str] | None:
    """Those of `names` that can be repositories on the Hub, not files or folders of this machine; `None` for none. The
    run in `folder` may have been trained where they are relative to any folder above it."""
    repositories, places = [], (Path(), *folder.resolve().parents)
    for name in names:
        if not name or name == PYTHON_DOCS or PurePosixPath(name).suffix in FORMATS:
            continue
        if any((place / name).exists() for place in places):
            continue
        try:
            validate_repo_id(name)
        except HFValidationError:
            continue
        repositories.append(name)
    return repositories or None


def evaluation_results(evaluation: dict[str, Any], data: dict[str, Any], auto_class: str) -> list[EvalResult] | None:
    """The evaluation of the model, for the model index of the front matter."""
    dataset = without_local_paths(data.get("validation_dataset") or data.get("dataset") or "held-out text")
    results = [
        EvalResult(
            task_type="text-generation" if auto_class == "AutoModelForCausalLM" else "other",
            dataset_type=dataset,
            dataset_name=f"held-out text {name}" if name else f"{dataset} (held-out part)",
            dataset_config=name or data.get("dataset_config"),  # by which the index tells sets apart
            metric_type=metric,
            metric_name=label,
            metric_value=evaluation[prefix + metric],
        )
        for prefix, name in evaluation_sets([evaluation]).items()
        for metric, label in (("loss", "loss in nats per token"), ("bits_per_byte", "bits per byte"))
        if prefix + metric in evaluation
    ]
    return results or None
