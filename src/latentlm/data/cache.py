"""A folder that is made once, whole or not at all, whatever processes ask for it and whenever they are killed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def build_once(folder: Path, build: Callable[[Path], object]) -> None:
    """Return once `folder` exists; if it does not, let exactly one process fill it.

    `build` writes into a temporary folder, which then gets its name in one step. Other processes on this machine (the
    ranks of one run, or another run) wait at the lock, which needs no process group and has no time limit.
    """
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.exists():  # made while this process waited
            return
        unfinished = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed
        unfinished.mkdir()
        try:
            build(unfinished)
            os.replace(unfinished, folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
