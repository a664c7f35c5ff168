"""Files of a cache: a folder is created atomically by exactly one of several processes, and the memory maps of a
dataset are pickled as file names."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock


class MappedFile(NamedTuple):
    """A whole file as an array of one dtype."""

    path: str
    dtype: Any

    def open(self) -> np.memmap:
        return np.memmap(self.path, dtype=self.dtype, mode="r")


class MapsFile:
    """A dataset whose attribute `mapped` may be the memory map of a whole file. Pickling, for worker processes, keeps
    the file's name and not its content."""

    mapped: str

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if isinstance(array := state[self.mapped], np.memmap):
            state[self.mapped] = MappedFile(str(array.filename), array.dtype)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(file := state[self.mapped], MappedFile):
            self.__dict__[self.mapped] = file.open()


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
