"""Command lines of recipe fields, which `train` and `quickstart` take, and folders or names on the Hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def parse_command_line(arguments: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
    """Recipe path (if there is one) and overrides: `--name value`, `--name=value`, `--flag`, `--list a b`.

    Raises:
        RecipeError: for a second path, or a field that is there twice.
    """
    from latentlm.runs import RecipeError

    path: str | None = None
    overrides: dict[str, list[str]] = {}
    name: str | None = None
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            name = name.replace("-", "_")
            if name in overrides:
                raise RecipeError(f"--{name} is given twice.")
            overrides[name] = [value] if equals else []
            name = None if equals else name
        elif name is not None:
            overrides[name].append(argument)
        elif path is None:
            path = argument
        else:
            raise RecipeError(f"unexpected argument {argument!r}; fields are written --name value.")
    return path, {name: values[0] if len(values) == 1 else values or "true" for name, values in overrides.items()}


def check_place(place: str | Path) -> None:
    """Check that a model or tokenizer can be loaded from a place.

    Raises:
        ValueError: for what is neither a folder nor a name that a repository on the Hub can have.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if Path(place).is_dir():
        return
    try:
        validate_repo_id(str(place))
    except HFValidationError as error:
        raise ValueError(f"there is no folder {place}, and no repository on the Hub can have this name") from error
