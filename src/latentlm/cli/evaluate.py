"""`latentlm evaluate`: lm-eval's own command line with our models, our task files and default tasks."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from .arguments import check_place

# lm-eval's names of its `hf` model, which scores the begin token of a whole text as if it were text.
HF_NAMES = ("hf", "hf-auto", "huggingface")
DEFAULT_TASKS = ("lambada_openai", "hellaswag", "arc_easy")


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """lm-eval's parsed arguments, with our task folder included and, for `run`, the default tasks filled in and
    `hf-one-begin` in place of `hf`.

    What the user says wins: `--tasks` (or `tasks` in the file of `--config`) over the default tasks, and the task
    files in the user's `include_path` over ours of the same name.

    Raises:
        SystemExit: without lm-eval.
    """
    try:
        from lm_eval._cli import HarnessCLI
    except ImportError as error:
        raise SystemExit(f"latentlm evaluate needs lm-eval ({error}): pip install 'latentlm[eval]'") from error

    from latentlm.evaluation import task_folder

    # HarnessCLI reads sys.argv, and inserts a missing "run" where more than one argument follows.
    sys.argv = ["latentlm evaluate", *(argv or ["run", "--help"])]
    arguments = HarnessCLI().parse_args()
    if not hasattr(arguments, "include_path"):  # no subcommand: lm-eval prints its help
        return arguments

    file: dict[str, Any] = {}
    if getattr(arguments, "config", None):
        from lm_eval.config.evaluate_config import EvaluatorConfig

        file = EvaluatorConfig.load_yaml_config(arguments.config)
    if arguments.command == "run":
        if not arguments.tasks and not file.get("tasks"):
            arguments.tasks = list(DEFAULT_TASKS)
        if (arguments.model or file.get("model", "hf")) in HF_NAMES:
            arguments.model = "hf-one-begin"
    included = arguments.include_path or file.get("include_path") or []
    # lm-eval lets later folders override earlier ones, and takes a list although its flag makes one path.
    arguments.include_path = [str(task_folder()), *([included] if isinstance(included, str) else included)]
    return arguments


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `arguments` (default: the command line) as `lm_eval` would; scores are printed and saved by lm-eval."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) in (["-h"], ["--help"]):
        arguments = ["run", "--help"]  # the fields, not lm-eval's list of commands
    try:
        options = parse_arguments(arguments)
        place = (getattr(options, "model_args", None) or {}).get("pretrained")
        if place is not None:
            check_place(place)
    except (FileNotFoundError, TypeError, ValueError) as error:
        raise SystemExit(f"latentlm evaluate: {error}") from error
    from lm_eval.utils import setup_logging

    setup_logging()
    from latentlm.evaluation import adapters  # noqa: F401  (registers our lm-eval models)

    options.func(options)
