"""A PID controller that keeps a loss at a set point by changing the strength of the noise."""

import math
from typing import Any

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

SATURATED_STEPS = 200  # steps at the maximum after which the strength counts as saturated


class PIDCallback(TrainerCallback, ExportableState):
    """A callback that changes the noise strength p once per optimizer step, so that the running mean of a loss stays at
    a set point.

    It is a PID controller in velocity form. With the error e = set point - mean, which is positive if the loss is too
    low, and the errors e' and e'' one and two steps before,

        p <- clip(p + clip(kp (e - e') + ki e + kd (e - 2 e' + e''), -max_change, max_change), minimum, maximum)

    p itself is the integral. Hence there is no integral wind-up while p is at a limit, and p falls as fast as it rises.
    The state is part of every checkpoint.

    Args:
        strength: p at the start, and always without a set point.
        set_point: target of the loss, in nats. None switches the controller off.
        minimum, maximum: limits of p, in [0, 1]. The minimum must be above 0, because without noise there is no loss to
            measure. It should not be small: with little noise the model does not learn to repair, its loss stays above
            the set point, and p stays at its minimum.
        kp, ki, kd: proportional, integral and derivative gains, in strength per nat.
        max_change: largest change of p in one step.
        smoothing: decay of the running mean, in [0, 1).

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        strength: float,
        set_point: float | None = None,
        minimum: float = 0.1,
        maximum: float = 1.0,
        kp: float = 0.1,
        ki: float = 0.01,
        kd: float = 0.0,
        max_change: float = 0.02,
        smoothing: float = 0.9,
    ):
        if not 0 <= strength <= 1:
            raise ValueError(f"strength is {strength}, but must lie in [0, 1].")
        if set_point is not None and not 0 <= minimum <= strength <= maximum <= 1:
            raise ValueError(
                f"strength is {strength}, minimum {minimum}, maximum {maximum}, but they must be ordered within [0, 1]."
            )
        if set_point is not None and minimum == 0:
            raise ValueError(f"minimum is {minimum}, but without noise the loop has nothing to measure: above 0.")
        if set_point is not None and set_point <= 0:
            raise ValueError(f"set_point is {set_point}, but a loss is above 0.")
        for name, value in {"kp": kp, "ki": ki, "kd": kd}.items():
            if value < 0:
                raise ValueError(f"{name} is {value}, but a gain is at least 0.")
        if max_change <= 0:
            raise ValueError(f"max_change is {max_change}, but must be above 0.")
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing is {smoothing}, but must lie in [0, 1).")
        self.arguments = {
            "strength": strength,
            "set_point": set_point,
            "minimum": minimum,
            "maximum": maximum,
            "kp": kp,
            "ki": ki,
            "kd": kd,
            "max_change": max_change,
            "smoothing": smoothing,
        }
        self.strength = strength
        self.mean: float | None = None
        self.errors: list[float] = []  # errors of the last two steps, the newest first
        self.terms = [0.0, 0.0, 0.0]
        self.steps_at_maximum = 0
        self._sums: torch.Tensor | None = None

    def state(self) -> dict:
        """Return the arguments and the state, from which transformers restores the callback."""
        names = ("strength", "mean", "errors", "terms", "steps_at_maximum")
        return {"args": self.arguments, "attributes": {name: getattr(self, name) for name in names}}

    def add(self, total: torch.Tensor, count: torch.Tensor) -> None:
        """Add the loss of one micro-batch, as a sum over `count` bytes."""
        sums = torch.stack((total.detach().double(), count.double()))
        self._sums = sums if self._sums is None else self._sums + sums

    def on_train_begin(self, args: Any, state, control, **kwargs):
        # transformers restores a callback of a checkpoint with the arguments that it had.
        if hasattr(args, "make_pid"):
            self.arguments = args.make_pid().arguments
            if self.arguments["set_point"] is None:
                self.strength = self.arguments["strength"]

    def on_step_end(self, args, state, control, **kwargs):
        if self._sums is None:
            return
        total, count = torch.as_tensor(reduce(self._sums, "sum")).tolist()
        self._sums = None
        if count:
            self.step(total / count)

    def step(self, loss: float) -> float:
        """Update the strength with the mean loss of one optimizer step, in nats, and return it. A loss that is not
        finite is skipped, because the running mean would never forget it."""
        arguments = self.arguments
        if arguments["set_point"] is None or not math.isfinite(loss):
            return self.strength
        past = arguments["smoothing"]
        self.mean = loss if self.mean is None else past * self.mean + (1 - past) * loss
        error = arguments["set_point"] - self.mean
        last, before_last = ([*self.errors, error, error] if not self.errors else [*self.errors, self.errors[-1]])[:2]
        self.errors = [error, last]
        self.terms = [
            arguments["kp"] * (error - last),
            arguments["ki"] * error,
            arguments["kd"] * (error - 2 * last + before_last),
        ]
        change = min(max(sum(self.terms), -arguments["max_change"]), arguments["max_change"])
        self.strength = min(max(self.strength + change, arguments["minimum"]), arguments["maximum"])
        self.steps_at_maximum = self.steps_at_maximum + 1 if self.strength == arguments["maximum"] else 0
        return self.strength

    def logs(self) -> dict[str, float]:
        """Return the values to log, which are the strength and, if the controller is on, the set point, the error and
        the three terms. `noise_saturated` is 1 if the strength has been at its maximum for at least 200 steps, which
        means that the model could repair more noise."""
        logs = {"noise_strength": self.strength}
        if self.errors:
            logs |= {"noise_set_point": self.arguments["set_point"], "noise_error": self.errors[0]}
            logs |= dict(zip(("noise_p", "noise_i", "noise_d"), self.terms, strict=True))
            logs["noise_saturated"] = float(self.steps_at_maximum >= SATURATED_STEPS)
        return logs
