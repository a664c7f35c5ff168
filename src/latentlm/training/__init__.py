"""Training: recipes, the trainer that logs named losses, checkpoints, the run folder."""

from .arguments import LatentTrainingArguments
from .checkpoints import CheckpointError
from .learned_dropout import ParallelEncoderDecoderTrainer
from .recipe import Recipe, RecipeError, load_recipe
from .trainer import LatentTrainer

# Trainer by model type; an architecture that is not listed needs nothing beyond LatentTrainer. Of the three here each
# can switch on LearnedDropout; where it is off, the trainer adds nothing.
TRAINERS: dict[str, type[LatentTrainer]] = {
    "parallel_encoder_decoder": ParallelEncoderDecoderTrainer,
    "ar_encoder_decoder": ParallelEncoderDecoderTrainer,
    "decoder_only": ParallelEncoderDecoderTrainer,
}

__all__ = [
    "TRAINERS",
    "CheckpointError",
    "LatentTrainer",
    "LatentTrainingArguments",
    "ParallelEncoderDecoderTrainer",
    "Recipe",
    "RecipeError",
    "load_recipe",
]
