"""Evaluation through lm-eval and `evaluate`: task files, metrics, and the adapters of architectures that need one.

`latentlm evaluate …` takes the flags of `lm_eval run`; see `eval/README.md`.
"""

from pathlib import Path

__all__ = ["task_folder"]


def task_folder() -> Path:
    """The folder with latentlm's lm-eval task files.

    An installed wheel carries them beside this file, in a source checkout (`pip install -e`) they are in `eval/tasks`.

    Raises:
        FileNotFoundError: neither folder is there.
    """
    candidates = [Path(__file__).parent / "tasks", Path(__file__).parents[3] / "eval" / "tasks"]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        "latentlm's lm-eval task files were not found; looked in " + " and ".join(str(path) for path in candidates)
    )
