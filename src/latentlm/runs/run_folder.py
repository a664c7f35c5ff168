"""The run folder: the files of a run besides its model, and the check that a folder does not belong to another run."""

import importlib.metadata
import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

import latentlm
from latentlm.architectures import plugin_versions
from latentlm.models.block_ngram_embedding import count_ngram_parameters

from .arguments import LatentTrainingArguments
from .checkpoints import (
    CheckpointError,
    checkpoint_step,
    find_damage,
    list_checkpoints,
    remove_leftovers,
    resolve_checkpoint,
    write_atomically,
)
from .recipe import RECIPE_FILE, Recipe, RecipeError
from .redaction import redact_command

logger = logging.get_logger(__name__)

ENVIRONMENT_FILE = "environment.json"
DATA_FILE = "data.json"
CURVES_FILE = "curves.png"
METRICS_FILE = "metrics.jsonl"
LOCK_FILE = ".lock"
SEGMENTS_FILE = "segments.png"  # the segments of an Abstractinator in a held-out text
RESULTS_FILE = "results.json"
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy", "safetensors")
# A folder with one of these files but no recipe belongs to another program.
SIGNS_OF_A_RUN = ("config.json", "model.safetensors", "trainer_state.json", METRICS_FILE)
# Fields that may differ between a run and its continuation, because they change no loss.
FREE_FIELDS = frozenset(
    {
        "cache_dir",
        *("output_dir", "resume_from_checkpoint", "save_total_limit", "report_to", "run_name", "project"),
        *("disable_tqdm", "log_level", "log_level_replica", "log_on_each_node", "trackio_space_id"),
        *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
        *("hub_revision", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor"),
        *("dataloader_persistent_workers", "sample_prompts", "sample_prompt_tokens", "sample_new_tokens"),
    }
)


def folder_of(arguments: TrainingArguments) -> Path:
    """Return the run folder of training arguments."""
    assert arguments.output_dir is not None  # TrainingArguments sets a default
    return Path(arguments.output_dir)


def differences(stored: dict[str, Any], recipe: dict[str, Any]) -> list[str]:
    """Return the fields in which two recipes describe different runs, as `section.field: old there, new here`. Of lists
    and mappings only the places that differ are named."""
    lines = []
    for section in recipe:
        old, new = stored.get(section) or {}, recipe[section]
        for name in sorted(old.keys() | new.keys()):
            if name not in FREE_FIELDS:
                lines += differing_places(f"{section}.{name}", old.get(name), new.get(name))
    return lines


def differing_places(name: str, old: Any, new: Any) -> list[str]:
    """Return the places at which two values of a field differ, as `name.place: old there, new here`."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = {key: (old.get(key), new.get(key)) for key in [*old, *(key for key in new if key not in old)]}
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = dict(enumerate(zip(old, new, strict=True)))
    else:
        return [] if old == new else [f"{name}: {old!r} there, {new!r} here"]
    return [line for key, pair in pairs.items() for line in differing_places(f"{name}.{key}", *pair)]


def read_stored_recipe(folder: Path) -> dict[str, Any] | None:
    """Return the recipe that a run has stored in its folder or checkpoint, or None if there is none.

    Raises:
        RecipeError: if the file cannot be read.
    """
    try:
        return read_yaml(folder / RECIPE_FILE)
    except FileNotFoundError:
        return None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{folder / RECIPE_FILE} cannot be read: {error}.") from error


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def find_start(recipe: Recipe) -> Path | None:
    """Return the checkpoint to continue from, or None to start. Nothing is changed.

    The checkpoint is `resume_from_checkpoint`, or else the last complete one of the same recipe in the run folder.

    Raises:
        RecipeError: if the run folder belongs to another run.
        CheckpointError: if `resume_from_checkpoint` is incomplete.
    """
    run_folder = folder_of(recipe.training)
    file = next((path for path in (run_folder, *run_folder.parents) if path.is_file()), None)
    if file is not None:
        raise RecipeError(f"training.output_dir {run_folder}: {file} is a file; name a folder.")
    wanted = recipe.training.resume_from_checkpoint
    explicit = resolve_checkpoint(wanted) if wanted else None
    if explicit is not None and explicit.resolve().parent == run_folder.resolve():
        return explicit  # a checkpoint of this folder that is named may be continued with any settings

    stored = read_stored_recipe(run_folder)
    if stored is None:
        signs = [name for name in SIGNS_OF_A_RUN if (run_folder / name).exists()]
        signs += [folder.name for folder in list_checkpoints(run_folder)]
        if signs:
            raise RecipeError(
                f"training.output_dir {run_folder} holds something else ({', '.join(signs)}, but no {RECIPE_FILE}); "
                "give another --output_dir."
            )
        return explicit
    changed = differences(stored, recipe.to_dict())
    if changed:
        last = next((f for f in reversed(list_checkpoints(run_folder)) if find_damage(f) is None), None)
        hint = f", or --resume_from_checkpoint {last} to go on from there with the new settings" if last else ""
        raise RecipeError(
            f"training.output_dir {run_folder} holds another run ({'; '.join(changed)}); "
            f"give another --output_dir{hint}."
        )
    return explicit or last_checkpoint_of(run_folder, recipe)


def last_checkpoint_of(run_folder: Path, recipe: Recipe) -> Path | None:
    """Return the last complete checkpoint that the same recipe has written, or None."""
    for folder in reversed(list_checkpoints(run_folder)):
        damage = find_damage(folder)
        if damage is None:
            stored = read_stored_recipe(folder)
            if stored is not None and not differences(stored, recipe.to_dict()):
                return folder
            damage = "another recipe wrote it"
        logger.warning(f"Skipping checkpoint {folder}: {damage}.")
    return None


def stored_recipe_of(checkpoint: str) -> Path:
    """Return the recipe file in a checkpoint, for `--resume_from_checkpoint PATH` without a recipe.

    Raises:
        CheckpointError: if the checkpoint is incomplete or has no recipe.
    """
    path = resolve_checkpoint(checkpoint) / RECIPE_FILE
    if not path.exists():
        raise CheckpointError(f"{path.parent} holds no {RECIPE_FILE}; name the recipe on the command line.")
    return path


def check_data(checkpoint: Path, info: dict[str, Any]) -> None:
    """Raise RecipeError if the corpus, described by `info`, differs from the one of the checkpoint."""
    path = checkpoint / DATA_FILE
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    changed = [name for name in stored if name != "cache" and stored[name] != info.get(name)]
    if changed:
        detail = "; ".join(f"{name}: {stored[name]!r} there, {info.get(name)!r} now" for name in changed)
        raise RecipeError(f"the data changed since {checkpoint} ({detail}); give another --output_dir.")


def open_run_folder(
    recipe: Recipe, info: dict[str, Any], processes: int, device: torch.device, files: dict[str, Path] | None = None
) -> None:
    """Write recipe, data, environment and `files` (sources by name) into the run folder, and delete leftovers of a
    killed process. Only one process may call this."""
    run_folder = folder_of(recipe.training)
    run_folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(run_folder)
    write_atomically(run_folder / RECIPE_FILE, recipe.to_yaml())
    write_atomically(run_folder / DATA_FILE, json.dumps(info, indent=2) + "\n")
    for name, path in (files or {}).items():
        write_atomically(run_folder / name, path.read_text(encoding="utf-8"))
    environment = describe_environment(recipe.training, processes, device)
    write_atomically(run_folder / ENVIRONMENT_FILE, json.dumps(environment, indent=2) + "\n")


@contextmanager
def only_process_of(run_folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, which ends with the process, also where it is killed.

    Raises:
        RecipeError: if another process trains in the folder.
    """
    run_folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run_folder / LOCK_FILE, timeout=0):
            yield
    except Timeout as error:
        raise RecipeError(
            f"training.output_dir {run_folder}: another process is training there; wait for it, or name another folder."
        ) from error


def describe_environment(arguments: LatentTrainingArguments, processes: int, device: torch.device) -> dict[str, Any]:
    """Return versions, revision, command and machine of this run, without secrets."""
    command = redact_command([Path(sys.executable).name, *sys.orig_argv[1:]], arguments.hub_token)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "seed": arguments.seed,
        "processes": processes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "machine": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "torch_threads": torch.get_num_threads(),
        "git_revision": git_revision(),
        "versions": {
            "latentlm": latentlm.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
            **plugin_versions(),
        },
    }


def git_revision() -> str | None:
    """Return the revision of the latentlm checkout in use, followed by `+` if it has changes, or None if there is no
    checkout."""
    folder = Path(latentlm.__file__).parent
    options = {"capture_output": True, "text": True, "check": True, "timeout": 10}
    git = ["git", "-C", str(folder)]
    try:
        # Installed into the environment of a project, the package lies in a checkout that is not its own.
        subprocess.run([*git, "ls-files", "--error-unmatch", "__init__.py"], **options)
        command = [*git, "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, **options).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def write_results(trainer: Trainer) -> None:
    """Write `results.json`: steps, parameters, training time in seconds and peak memory of this process in bytes, and
    the last evaluation, or with `load_best_model_at_end` that of the loaded checkpoint (`best_step`)."""
    history, best = trainer.state.log_history, best_step(trainer)
    model = trainer.accelerator.unwrap_model(trainer.model)
    evaluations = [entry for entry in reversed(history) if "eval_loss" in entry and best in (None, entry["step"])]
    results = {
        "steps": trainer.state.global_step,
        "best_step": best,
        "parameters": model.num_parameters(),
        "ngram_parameters": count_ngram_parameters(model),  # these are included in "parameters"
        "training_seconds": next((e["training_seconds"] for e in reversed(history) if "loss" in e), 0.0),
        "peak_memory_bytes": peak_memory(trainer.args.device),
        **(evaluations[0] if evaluations else {}),
    }
    write_atomically(folder_of(trainer.args) / RESULTS_FILE, json.dumps(results, indent=2) + "\n")


def best_step(trainer: Trainer) -> int | None:
    """Return the step of the best checkpoint, which the trainer has loaded at its end, or None if it loaded none."""
    best = trainer.state.best_model_checkpoint
    return checkpoint_step(Path(best)) if best and trainer.args.load_best_model_at_end else None


def peak_memory(device: torch.device) -> int | None:
    """Return the peak memory of this process on `device`, in bytes, or None if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def read_metrics(run_folder: Path) -> list[dict[str, Any]]:
    """Return the log of a run, one entry per line, or the log up to a checkpoint if that is the folder."""
    if not (run_folder / METRICS_FILE).exists():
        return json.loads((run_folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["log_history"]
    return [json.loads(line) for line in (run_folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()]


def evaluation_sets(metrics: list[dict[str, Any]]) -> dict[str, str]:
    """Return the validation sets of a log: by how their metrics begin, `eval_` or `eval_<name>_`, the name of each one
    of a dictionary, empty for a single one."""
    fields = dict.fromkeys(field for entry in metrics for field in entry)
    matches = [re.fullmatch("(eval_((.+)_)?)runtime", field) for field in fields]
    return {match[1]: match[3] or "" for match in matches if match}


def first_and_last(metrics: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield a row for each logged loss and for bits per byte: the first and the last value with their steps, in
    training and on each held-out text. A loss that a run was resumed with begins later than others."""
    texts = {prefix: f"held-out text {name}".strip() for prefix, name in evaluation_sets(metrics).items()}
    for prefix, text in {"": "training", **texts}.items():
        key = f"{prefix}loss"
        entries = [entry for entry in metrics if key in entry]
        last = entries[-1] if entries else {}
        names = [name for name in sorted(last) if name.endswith(("_loss", "_bits_per_byte")) or name == key]
        for name in names:
            if prefix and name == key and f"{prefix}lm_loss" in last:
                continue  # the same number
            first = next(entry for entry in entries if name in entry)
            yield {
                "text": text,
                "name": name.removeprefix(prefix),
                **{"first_step": first["step"], "first": first[name], "last_step": last["step"], "last": last[name]},
            }


def plot_curves(run_folder: Path) -> Path:
    """Plot the terms of the training loss, the evaluation in bits per byte (or nats per token), and, if a controller
    sets it, the strength of the noise. Return the path of the figure."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    metrics = read_metrics(run_folder)
    training = [entry for entry in metrics if "loss" in entry]
    terms = sorted({name for entry in training for name in entry if name.endswith("_loss")}) or ["loss"]
    sets = evaluation_sets(metrics)
    in_bits = any(f"{prefix}bits_per_byte" in entry for entry in metrics for prefix in sets)
    key = "bits_per_byte" if in_bits else "loss"
    noise = [entry for entry in training if "noise_error" in entry]
    columns = 3 if noise else 2
    figure, (left, right, *rest) = plt.subplots(1, columns, figsize=(5 * columns, 4), layout="constrained")
    for name in terms:
        points = [(entry["step"], entry[name]) for entry in training if name in entry]
        left.plot(*zip(*points, strict=True), label=name)
    for prefix, name in sets.items():
        entries = [entry for entry in metrics if prefix + key in entry]
        steps, values = ([entry[field] for entry in entries] for field in ("step", prefix + key))
        right.plot(steps, values, marker="o", label=name)
    if len(sets) > 1:
        right.legend()
    left.set(xlabel="step", ylabel="nats per token", title="training")
    right.set(xlabel="step", ylabel=key.replace("_", " "), title="held-out text")
    if noise:
        steps = [entry["step"] for entry in noise]
        set_point = noise[-1]["noise_set_point"]
        rest[0].plot(steps, [entry["noise_strength"] for entry in noise], label="strength of the noise")
        means = [set_point - entry["noise_error"] for entry in noise]
        rest[0].plot(steps, means, label="mean loss on corrupted bytes")
        rest[0].axhline(set_point, color="gray", linestyle="--", label=f"set point {set_point:g}")
        rest[0].set(xlabel="step", title="noise that the loop holds", ylim=(0, None))
        rest[0].legend()
    if terms:
        left.legend()
    figure.savefig(run_folder / CURVES_FILE, dpi=120)
    plt.close(figure)
    return run_folder / CURVES_FILE
