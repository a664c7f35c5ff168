"""Atomic creation of a cache folder by exactly one of several processes."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def build_once(folder: Path, build: Callable[[Path], object]) -> None:
    """Create `folder` if it does not exist, in exactly one process.

    `build` writes into a temporary folder, which is then renamed, so an incomplete folder never has the final name.
    Other processes on this machine (the ranks of one run, or another run) wait for a file lock, which needs no process
    group and has no timeout.
    """
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.exists():  # another process made it while this one waited
            return
        unfinished = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(unfinished, ignore_errors=True)  # a killed process may have left it
        unfinished.mkdir()
        try:
            build(unfinished)
            os.replace(unfinished, folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
