"""Training for a limited time, with a learning rate that decays before the time is up."""

import time

from transformers import TrainerCallback

PATIENCE = 0.2  # share of the time after which the pace is known well enough


class TimeLimit(TrainerCallback):
    """Ends training before the time is up, with an evaluation and a complete checkpoint.

    Where fewer steps are possible, at the pace so far, than are planned, the rate of the schedule is lowered in
    proportion: a linear one comes near 0 as the time is up. Such a run depends on the clock; one in time does not.

    Args:
        minutes: for everything from the first step to the last evaluation and checkpoint. A step that has begun is
            finished, so at least one is done.
    """

    def __init__(self, minutes: float):
        self.seconds = 60 * minutes
        self.longest_pause = 0.05 * self.seconds  # between two steps: evaluation, samples, checkpoint
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
        """Lower the rate of the step that comes where the run, after `passed` seconds, is late."""
        possible = max(self.seconds - self.longest_pause - passed, 0.0) * self.steps / passed
        planned = state.max_steps - state.global_step
        if passed > PATIENCE * self.seconds and possible < planned:
            self.was_late = True
            for group in optimizer.param_groups:  # the schedule sets it anew after each step
                group["lr"] *= possible / planned

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1
        self.step_ended = time.monotonic()
        if self.step_ended - self.started + self.longest_pause >= self.seconds:
            control.should_log = control.should_evaluate = control.should_save = control.should_training_stop = True
