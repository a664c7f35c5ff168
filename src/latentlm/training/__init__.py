"""Training: the trainer that logs named losses, and its subclasses."""

from .abstractinator import AbstractinatorTrainer, AbstractinatorTrainingArguments
from .encodzall import EncodzallTrainer, EncodzallTrainingArguments
from .fsq import CodeCollapseError, FSQAutoencoderTrainer, FSQTrainer
from .learned_dropout import ParallelEncoderDecoderTrainer
from .pid import PIDCallback
from .trainer import LatentTrainer

# Trainer by model type; an architecture that is not listed needs nothing beyond LatentTrainer. Each of the first three
# can switch on LearnedDropout; where it is off, the trainer adds nothing.
TRAINERS: dict[str, type[LatentTrainer]] = {
    "parallel_encoder_decoder": ParallelEncoderDecoderTrainer,
    "ar_encoder_decoder": ParallelEncoderDecoderTrainer,
    "decoder_only": ParallelEncoderDecoderTrainer,
    "fsq_autoencoder": FSQAutoencoderTrainer,
    "fsq": FSQTrainer,
    "encodzall": EncodzallTrainer,
    "abstractinator": AbstractinatorTrainer,
}

__all__ = [
    "TRAINERS",
    "AbstractinatorTrainer",
    "AbstractinatorTrainingArguments",
    "CodeCollapseError",
    "EncodzallTrainer",
    "EncodzallTrainingArguments",
    "FSQAutoencoderTrainer",
    "FSQTrainer",
    "LatentTrainer",
    "PIDCallback",
    "ParallelEncoderDecoderTrainer",
]
