"""`OptimizingTrainer`, which chooses the optimizer and the parameters with weight decay."""

from typing import Any

import torch
from torch import nn

from latentlm.runs.arguments import OwnOptimizerNames

from .muon import make_muon
from .saving import SavingTrainer


class OptimizingTrainer(SavingTrainer):
    """A [`SavingTrainer`] with the option `optim: muon`.

    Raises:
        ValueError: before training, if the model has no matrix for Muon.
    """

    args: Any  # LatentTrainingArguments

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        if self.args.optim == OwnOptimizerNames.MUON:
            assert self.model is not None
            make_muon(self.model, [], self.args)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of the parameters with at least two dimensions, which have weight decay."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.args.optim == OwnOptimizerNames.MUON:
            trained = self.model if model is None else model
            assert trained is not None
            self.optimizer = make_muon(trained, self.get_decay_parameter_names(trained), self.args)
        return super().create_optimizer(model)
