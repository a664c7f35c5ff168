"""Training for a limited time, with a learning rate that decays before the time is up."""

import time

from transformers import TrainerCallback

PATIENCE = 0.2  # share of the time after which the learning rate may be lowered


class TimeLimit(TrainerCallback):
    """A callback that ends training within a time limit, with an evaluation and a complete checkpoint.

    If, at the mean speed so far, fewer steps are possible than planned, the learning rate is multiplied by the ratio of
    both numbers, so that a linear schedule ends near 0. The losses of such a run depend on its speed; those of a run
    that is fast enough do not.

    Args:
        minutes: time from the first step to the end of the last evaluation and checkpoint. A step that has begun is
            completed, so there is at least one.
    """

    def __init__(self, minutes: float):
        self.seconds = 60 * minutes
        self.longest_pause = 0.05 * self.seconds  # longest time between two steps, for evaluation and checkpoint
        self.steps = 0
        self.was_late = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = self.step_ended = time.monotonic()

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        now = time.monotonic()
        self.longest_pause = max(self.longest_pause, now - self.step_ended)
        if optimizer is None or not self.steps:
            return
        self.keep_time(now - self.started, state, optimizer)

    def keep_time(self, passed, state, optimizer):
        """Lower the learning rate of the next step if the run, after `passed` seconds, is too slow."""
        possible = max(self.seconds - self.longest_pause - passed, 0.0) * self.steps / passed
        planned = state.max_steps - state.global_step
        if passed > PATIENCE * self.seconds and possible < planned:
            self.was_late = True
            for group in optimizer.param_groups:  # the schedule resets the rate after each step
                group["lr"] *= possible / planned

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1
        self.step_ended = time.monotonic()
        if self.step_ended - self.started + self.longest_pause >= self.seconds:
            control.should_log = control.should_evaluate = control.should_save = control.should_training_stop = True
