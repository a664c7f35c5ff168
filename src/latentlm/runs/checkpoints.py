"""Checkpoints that are written atomically.

A checkpoint is written under a hidden name and renamed when every process has written its part. Its `checkpoint.json`
lists each file with its size, so that later damage (a partial copy, a full disk) is detected before it is used.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)

MANIFEST = "checkpoint.json"
ARGUMENTS_FILE = "training_args.json"
HIDDEN_PREFIXES = (".saving-", ".replaced-", ".deleting-")
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")


class CheckpointError(RuntimeError):
    """The error of a checkpoint that cannot be read or written. The message names the checkpoint, the reason and the
    usable checkpoints."""


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file atomically, so that a reader sees either the old or the new content."""
    staging = path.with_name(f".saving-{path.name}")
    with open(staging, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staging, path)


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Flush the files of `folder` to disk, and write `checkpoint.json` with `facts` and their sizes in bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        with open(path, "r+b") as file:  # Windows syncs only files that are open for writing
            os.fsync(file.fileno())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    write_atomically(folder / MANIFEST, json.dumps({**facts, "files": sizes}, indent=2) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the content of `checkpoint.json`: step, processes, whether it is resumable, and the size of each file."""
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def find_damage(folder: Path) -> str | None:
    """Return why a run cannot resume from the checkpoint `folder`, or None if it can."""
    damage = find_missing(folder)
    if damage is None and not read_manifest(folder)["resumable"]:
        return "it holds the model only (save_only_model), no optimizer state"
    return damage


def find_missing(folder: Path) -> str | None:
    """Return the damage of the checkpoint `folder`, or None if all its files have the sizes that were saved."""
    try:
        manifest = read_manifest(folder)
        files, _ = manifest["files"], manifest["resumable"]
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was not saved to its end (or not by latentlm)"
    except (ValueError, KeyError, TypeError):
        return f"its {MANIFEST} is damaged"
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return None


def list_checkpoints(run_folder: Path) -> list[Path]:
    """Return the folders `checkpoint-<step>` of a run, complete or not, by increasing step."""
    if not run_folder.is_dir():
        return []
    folders = [path for path in run_folder.iterdir() if path.is_dir() and CHECKPOINT_NAME.fullmatch(path.name)]
    return sorted(folders, key=checkpoint_step)


def checkpoint_step(folder: Path) -> int:
    """Return the step in the name of a checkpoint folder."""
    return int(folder.name.removeprefix("checkpoint-"))


def last_complete_checkpoint(run_folder: Path) -> Path | None:
    """Return the checkpoint with the highest step from which a run can resume, or None. Others are skipped with a
    warning."""
    for folder in reversed(list_checkpoints(run_folder)):
        damage = find_damage(folder)
        if damage is None:
            return folder
        logger.warning(f"Skipping checkpoint {folder}: {damage}.")
    return None


def resolve_checkpoint(path: str | os.PathLike) -> Path:
    """Return the checkpoint of `path`, which is a checkpoint folder, or a run folder for its last complete checkpoint.

    Raises:
        CheckpointError: if the checkpoint does not exist or is incomplete.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"resume_from_checkpoint: no folder {folder}.")
    if not (folder / MANIFEST).exists() and list_checkpoints(folder):
        checkpoint = last_complete_checkpoint(folder)
        if checkpoint is None:
            raise CheckpointError(f"resume_from_checkpoint: {folder} holds no complete checkpoint.")
        return checkpoint
    damage = find_damage(folder)
    if damage is not None:
        complete = [other for other in list_checkpoints(folder.parent) if find_damage(other) is None]
        hint = f" Complete: {', '.join(map(str, complete))}." if complete else ""
        raise CheckpointError(f"resume_from_checkpoint: {folder} cannot be resumed: {damage}.{hint}")
    return folder


def publish(staging: Path, final: Path) -> None:
    """Rename the finished folder `staging` to `final`, and delete an older folder with that name."""
    replaced = final.with_name(f".replaced-{final.name}")
    remove(replaced)
    if final.exists():
        os.rename(final, replaced)
    os.rename(staging, final)
    remove(replaced)


def remove(folder: Path) -> None:
    """Delete a folder. A visible checkpoint is first renamed to a hidden name, so that no partly deleted checkpoint is
    visible."""
    if not folder.exists():
        return
    if not folder.name.startswith(HIDDEN_PREFIXES):
        hidden = folder.with_name(f".deleting-{folder.name}")
        shutil.rmtree(hidden, ignore_errors=True)
        folder = folder.rename(hidden)
    shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(run_folder: Path) -> None:
    """Delete the hidden files and folders that a killed process has left in a run folder."""
    for path in run_folder.iterdir():
        if path.name.startswith(HIDDEN_PREFIXES):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def rotate(run_folder: Path, limit: int | None, keep: str | None) -> None:
    """Delete the oldest checkpoints beyond `limit`, except the newest one and `keep`, the best one."""
    if not limit or limit <= 0:
        return
    complete = [folder for folder in list_checkpoints(run_folder) if (folder / MANIFEST).exists()]
    complete.sort(key=lambda folder: (folder / MANIFEST).stat().st_mtime_ns)
    protected = {complete[-1].name} | ({Path(keep).name} if keep else set())
    surplus = len(complete) - max(limit, len(protected))
    for folder in [folder for folder in complete if folder.name not in protected][: max(surplus, 0)]:
        remove(folder)
