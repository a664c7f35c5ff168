"""`OptimizingTrainer`: which optimizer takes the steps, which parameters decay, and which weights are kept."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from latentlm.runs.arguments import OwnOptimizerNames

from .averaging import AverageWeights
from .muon import make_muon
from .saving import SavingTrainer


class OptimizingTrainer(SavingTrainer):
    """A [`SavingTrainer`] that knows `optim: muon` and `average_weights_from`.

    Raises:
        ValueError: if the model has no matrix for Muon, or averages would have to be taken of FSDP's flat parameters,
            before the training.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        if self.args.optim == OwnOptimizerNames.MUON:
            assert self.model is not None
            make_muon(self.model, [], self.args)
        start = self.args.average_weights_from
        self._average = None if start is None else AverageWeights(self, start)
        if self._average is not None:
            if self.is_fsdp_enabled:
                raise ValueError(f"average_weights_from is {start}, but with accelerate's FSDP it must be null.")
            self.add_callback(self._average)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight decay is for matrices: parameters with two dimensions or more."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.args.optim == OwnOptimizerNames.MUON:
            trained = self.model if model is None else model
            assert trained is not None
            self.optimizer = make_muon(trained, self.get_decay_parameter_names(trained), self.args)
        return super().create_optimizer(model)

    def averaged_weights(self) -> AbstractContextManager[None]:
        """While it is entered the model has the mean of its weights, where one is taken."""
        return nullcontext() if self._average is None else self._average.in_place()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self.averaged_weights():
            super()._save_checkpoint(model, trial)
