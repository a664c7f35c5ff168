"""The mean of the weights over the last part of a run, which is evaluated and saved in place of the last weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

KEY = "average_weights"  # in the optimizer's state: checkpoints then hold it, without a file of its own


class AverageWeights(TrainerCallback):
    """Takes the mean of the trained parameters over all steps after `start`, a fraction of the run (Polyak averaging;
    Izmailov et al. 2018, 1803.05407). Buffers, such as codebooks, are not averaged.

    The mean lies in the optimizer's state. To evaluate and to save, parameters and mean change places: a checkpoint
    holds the mean as its model and the last weights beside the optimizer's moments, and a resumed run changes them
    back. At the end of the training the model has the mean.
    """

    def __init__(self, trainer: Trainer, start: float):
        self.trainer = trainer
        self.start = start

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        optimizer: Any = self.trainer.optimizer
        return getattr(optimizer, "optimizer", optimizer)  # without accelerate's wrapper

    @property
    def average(self) -> dict[str, Any] | None:
        """Number of steps and mean of each parameter, once there is one."""
        state: Any = self.optimizer.state if self.trainer.optimizer is not None else {}
        return state.get(KEY)

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def swap(self) -> None:
        """Parameters and mean change places."""
        if self.average is not None:
            for parameter, mean in zip(self.parameters, self.average["means"], strict=True):
                last = parameter.detach().clone()
                parameter.copy_(mean)
                mean.copy_(last)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the mean of its weights for a while."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def on_train_begin(self, args, state, control, **kwargs):
        if self.average is not None:  # from a checkpoint
            self.average["means"] = [
                mean.to(parameter.device)
                for mean, parameter in zip(self.average["means"], self.parameters, strict=True)
            ]
            self.swap()

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step <= self.start * state.max_steps:
            return
        if self.average is None:
            means = [parameter.detach().clone() for parameter in self.parameters]
            self.optimizer.state[KEY] = {"steps": 1, "means": means}  # pyright: ignore[reportArgumentType]
            return
        self.average["steps"] += 1
        for parameter, mean in zip(self.parameters, self.average["means"], strict=True):
            mean.lerp_(parameter, 1 / self.average["steps"])

    def on_train_end(self, args, state, control, **kwargs):
        best = args.load_best_model_at_end and state.best_model_checkpoint is not None  # has taken its place
        if self.average is not None and not best:
            self.swap()
        self.optimizer.state.pop(KEY, None)  # pyright: ignore[reportArgumentType]
