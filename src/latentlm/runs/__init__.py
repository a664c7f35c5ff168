"""Runs: the recipe, the run folder, its checkpoints, logs and curves."""

from .arguments import LatentTrainingArguments
from .checkpoints import CheckpointError
from .recipe import Recipe, RecipeError, load_recipe

__all__ = ["CheckpointError", "LatentTrainingArguments", "Recipe", "RecipeError", "load_recipe"]
