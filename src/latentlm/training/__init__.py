"""Trainers: the base class that logs named losses, and its subclasses."""

from .abstractinator import AbstractinatorTrainer, AbstractinatorTrainingArguments
from .encodzall import EncodzallTrainer, EncodzallTrainingArguments
from .fsq import CodeCollapseError, FSQAutoencoderTrainer, FSQTrainer
from .learned_dropout import LearnedDropoutTrainer
from .pid import PIDCallback
from .trainer import LatentTrainer

__all__ = [
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
