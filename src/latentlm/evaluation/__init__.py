"""Evaluation with lm-eval and `evaluate`: task files, metrics, and adapters for architectures that need one.

`latentlm evaluate` takes the flags of `lm_eval run`, which `eval/README.md` describes.
"""

from pathlib import Path

__all__ = ["task_folder"]


def task_folder() -> Path:
    """Return the folder with latentlm's lm-eval task files.

    In an installed wheel it is in the folder of this file, and in a source checkout (`pip install -e`) it is
    `eval/tasks`.

    Raises:
        FileNotFoundError: if neither folder exists.
    """
    candidates = [Path(__file__).parent / "tasks", Path(__file__).parents[3] / "eval" / "tasks"]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        "latentlm's lm-eval task files were not found; looked in " + " and ".join(str(path) for path in candidates)
    )
