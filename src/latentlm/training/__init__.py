"""Training: recipes, the trainer that logs named losses, checkpoints, the run folder."""

from .arguments import LatentTrainingArguments
from .checkpoints import CheckpointError
from .recipe import Recipe, RecipeError, load_recipe
from .trainer import LatentTrainer

# Trainer by model type; an architecture that is not listed needs nothing beyond LatentTrainer.
TRAINERS: dict[str, type[LatentTrainer]] = {}

__all__ = [
    "TRAINERS",
    "CheckpointError",
    "LatentTrainer",
    "LatentTrainingArguments",
    "Recipe",
    "RecipeError",
    "load_recipe",
]
