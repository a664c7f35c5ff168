"""Training: the trainer that logs named losses, and its subclasses."""

from .abstractinator import AbstractinatorTrainer, AbstractinatorTrainingArguments
from .encodzall import EncodzallTrainer, EncodzallTrainingArguments
from .fsq import CodeCollapseError, FSQAutoencoderTrainer, FSQTrainer
from .learned_dropout import LearnedDropoutTrainer
from .pid import PIDCallback
from .trainer import LatentTrainer

# Trainer by model type; an architecture that is not listed needs nothing beyond LatentTrainer. Each of the first three
# can switch on LearnedDropout; where it is off, the trainer adds nothing.
TRAINERS: dict[str, type[LatentTrainer]] = {
    "parallel_encoder_decoder": LearnedDropoutTrainer,
    "ar_encoder_decoder": LearnedDropoutTrainer,
    "decoder_only": LearnedDropoutTrainer,
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
    "LearnedDropoutTrainer",
    "PIDCallback",
]
