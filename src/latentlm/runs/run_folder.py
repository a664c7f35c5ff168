"""The run folder: what a run leaves besides its model, and the check that a folder is not another run's."""

import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

import latentlm
from latentlm.models.block_ngram_embedding import count_ngram_parameters

from .arguments import LatentTrainingArguments
from .checkpoints import (
    CheckpointError,
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
SEGMENTS_FILE = "segments.png"  # where an Abstractinator cuts a held-out text
RESULTS_FILE = "results.json"
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy", "safetensors")
# A folder with one of these and no recipe was made by something else.
SIGNS_OF_A_RUN = ("config.json", "model.safetensors", "trainer_state.json", METRICS_FILE)
# Fields that may differ between a run and its continuation: they change no loss.
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
    """The run folder that training arguments name."""
    assert arguments.output_dir is not None  # TrainingArguments sets one where none was named
    return Path(arguments.output_dir)


def differences(stored: dict[str, Any], recipe: dict[str, Any]) -> list[str]:
    """Where two recipes describe different runs: `section.field: old there, new here`."""
    lines = []
    for section in recipe:
        old, new = stored.get(section) or {}, recipe[section]
        for name in sorted(old.keys() | new.keys()):
            if name in FREE_FIELDS:
                continue
            if old.get(name) != new.get(name):
                lines.append(f"{section}.{name}: {old.get(name)!r} there, {new.get(name)!r} here")
    return lines


def read_stored_recipe(folder: Path) -> dict[str, Any] | None:
    """The recipe that a run stored in its folder or checkpoint, `None` if there is none."""
    try:
        return read_yaml(folder / RECIPE_FILE)
    except FileNotFoundError:
        return None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{folder / RECIPE_FILE} cannot be read: {error}.") from error


def read_yaml(path: Path) -> Any:
    """What a YAML file holds."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def find_start(recipe: Recipe) -> Path | None:
    """The checkpoint to continue from, `None` to begin; changes nothing.

    With `resume_from_checkpoint` that one; otherwise the last complete checkpoint of the same recipe in the run folder.

    Raises:
        RecipeError: if the run folder holds another run.
        CheckpointError: if the checkpoint asked for is incomplete.
    """
    run_folder = folder_of(recipe.training)
    if run_folder.exists() and not run_folder.is_dir():
        raise RecipeError(f"training.output_dir {run_folder} is a file; name a folder.")
    wanted = recipe.training.resume_from_checkpoint
    explicit = resolve_checkpoint(wanted) if wanted else None
    if explicit is not None and explicit.resolve().parent == run_folder.resolve():
        return explicit  # asked for by name, with whatever new settings

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
    """The last complete checkpoint that the same recipe wrote."""
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
    """The recipe file inside a checkpoint, for `--resume_from_checkpoint PATH` without a recipe."""
    path = resolve_checkpoint(checkpoint) / RECIPE_FILE
    if not path.exists():
        raise CheckpointError(f"{path.parent} holds no {RECIPE_FILE}; name the recipe on the command line.")
    return path


def check_data(checkpoint: Path, info: dict[str, Any]) -> None:
    """Raise if the corpus is not the one that the checkpoint was trained on."""
    path = checkpoint / DATA_FILE
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    changed = [name for name in stored if name != "cache" and stored[name] != info.get(name)]
    if changed:
        detail = "; ".join(f"{name}: {stored[name]!r} there, {info.get(name)!r} now" for name in changed)
        raise RecipeError(f"the data changed since {checkpoint} ({detail}); give another --output_dir.")


def open_run_folder(
    recipe: Recipe, info: dict[str, Any], processes: int, device: torch.device, files: dict[str, Path] | None = None
) -> None:
    """Write recipe, data, environment and `files` (name to source), and clean up after a killed process. For one
    process only."""
    run_folder = folder_of(recipe.training)
    run_folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(run_folder)
    write_atomically(run_folder / RECIPE_FILE, recipe.to_yaml())
    write_atomically(run_folder / DATA_FILE, json.dumps(info, indent=2) + "\n")
    for name, path in (files or {}).items():
        write_atomically(run_folder / name, path.read_text(encoding="utf-8"))
    environment = describe_environment(recipe.training, processes, device)
    write_atomically(run_folder / ENVIRONMENT_FILE, json.dumps(environment, indent=2) + "\n")


def describe_environment(arguments: LatentTrainingArguments, processes: int, device: torch.device) -> dict[str, Any]:
    """Versions, revision, command and machine of this run, without what is secret."""
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
        },
    }


def git_revision() -> str | None:
    """Revision of the latentlm checkout that runs, `+` if it has changes; `None` outside of one."""
    folder = Path(latentlm.__file__).parent
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def write_results(trainer: Trainer) -> None:
    """What a table of results needs besides the metrics: size, time and peak memory of the process that finished."""
    history = trainer.state.log_history
    model = trainer.accelerator.unwrap_model(trainer.model)
    results = {
        "steps": trainer.state.global_step,
        "parameters": model.num_parameters(),
        "ngram_parameters": count_ngram_parameters(model),  # among them
        "training_seconds": next((e["training_seconds"] for e in reversed(history) if "loss" in e), 0.0),
        "peak_memory_bytes": peak_memory(trainer.args.device),
        **next((entry for entry in reversed(history) if "eval_loss" in entry), {}),
    }
    write_atomically(folder_of(trainer.args) / RESULTS_FILE, json.dumps(results, indent=2) + "\n")


def peak_memory(device: torch.device) -> int | None:
    """Most bytes that this process has held on `device`; `None` where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def read_metrics(run_folder: Path) -> list[dict[str, Any]]:
    """The log of a run, one entry per line; in a checkpoint, the log until then."""
    if not (run_folder / METRICS_FILE).exists():
        return json.loads((run_folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["log_history"]
    return [json.loads(line) for line in (run_folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()]


def plot_curves(run_folder: Path) -> Path:
    """Draw the training losses of each term, the evaluation in bits per byte (or nats per token), and the strength of
    the noise where a loop moves it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    metrics = read_metrics(run_folder)
    training = [entry for entry in metrics if "loss" in entry]
    evaluation = [entry for entry in metrics if "eval_loss" in entry]
    terms = sorted({name for entry in training for name in entry if name.endswith("_loss")}) or ["loss"]
    key = "eval_bits_per_byte" if any("eval_bits_per_byte" in entry for entry in evaluation) else "eval_loss"
    noise = [entry for entry in training if "noise_error" in entry]
    columns = 3 if noise else 2
    figure, (left, right, *rest) = plt.subplots(1, columns, figsize=(5 * columns, 4), layout="constrained")
    for name in terms:
        points = [(entry["step"], entry[name]) for entry in training if name in entry]
        left.plot(*zip(*points, strict=True), label=name)
    right.plot([entry["step"] for entry in evaluation], [entry[key] for entry in evaluation], marker="o")
    left.set(xlabel="step", ylabel="nats per token", title="training")
    right.set(xlabel="step", ylabel=key.removeprefix("eval_").replace("_", " "), title="held-out text")
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
