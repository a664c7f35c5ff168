"""Runs, which consist of a recipe and a run folder with checkpoints, logs and curves."""

from .arguments import LatentTrainingArguments
from .checkpoints import CheckpointError
from .recipe import Recipe, RecipeError, load_recipe

__all__ = ["CheckpointError", "LatentTrainingArguments", "Recipe", "RecipeError", "load_recipe"]
