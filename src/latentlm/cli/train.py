"""Train a model from a recipe.

    latentlm train RECIPE.yaml [--field value ...]
    accelerate launch -m latentlm.train RECIPE.yaml [--field value ...]
    latentlm train --resume_from_checkpoint runs/x/checkpoint-100        # with the recipe stored there

Every field of a recipe's three sections can be given: --learning_rate 1e-3, --hidden_size 128, --dataset text.txt; a
name that two sections have takes its section: --model.use_cache false. Run again, the command continues where it
stopped.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import parse_command_line

if TYPE_CHECKING:
    from latentlm.runs import Recipe


def recipe_from_command_line(arguments: Sequence[str]) -> "Recipe":
    """The recipe that a command line names, or that is stored in the checkpoint it resumes from.

    Raises:
        RecipeError: if it names neither, or the recipe cannot be run.
    """
    from latentlm.runs import RecipeError, load_recipe
    from latentlm.runs.run_folder import stored_recipe_of

    path, overrides = parse_command_line(arguments)
    if path is None:
        checkpoint = overrides.get("resume_from_checkpoint") or overrides.get("training.resume_from_checkpoint")
        if not isinstance(checkpoint, str):
            raise RecipeError("name a recipe, or a checkpoint with --resume_from_checkpoint PATH.")
        path = stored_recipe_of(checkpoint)
        if not {"output_dir", "training.output_dir"} & overrides.keys():
            overrides["output_dir"] = str(Path(path).parent.parent)
    return load_recipe(path, overrides)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; mistakes in the input end with a message and exit status 1, not with a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        from .recipe_help import recipe_help

        print(f"{__doc__}\n{recipe_help(arguments)}")
        return
    from latentlm.hub.files import PublishError
    from latentlm.runs import CheckpointError, RecipeError
    from latentlm.runs.redaction import redact
    from latentlm.training import CodeCollapseError
    from latentlm.training.run import train

    try:
        trainer = train(recipe_from_command_line(arguments))
    except (RecipeError, CheckpointError, CodeCollapseError, PublishError) as error:
        sys.exit(redact(f"latentlm train: {error}"))
    trainer.end()
