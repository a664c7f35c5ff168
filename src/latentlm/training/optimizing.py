"""`OptimizingTrainer`: which optimizer takes the steps, and which parameters decay."""

from typing import Any

import torch
from torch import nn

from latentlm.runs.arguments import OwnOptimizerNames

from .muon import make_muon
from .saving import SavingTrainer


class OptimizingTrainer(SavingTrainer):
    """A [`SavingTrainer`] that knows `optim: muon`.

    Raises:
        ValueError: if the model has no matrix for Muon, before the training.
    """

    args: Any  # LatentTrainingArguments

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        if self.args.optim == OwnOptimizerNames.MUON:
            assert self.model is not None
            make_muon(self.model, [], self.args)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight decay is for matrices: parameters with two dimensions or more."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.args.optim == OwnOptimizerNames.MUON:
            trained = self.model if model is None else model
            assert trained is not None
            self.optimizer = make_muon(trained, self.get_decay_parameter_names(trained), self.args)
        return super().create_optimizer(model)
