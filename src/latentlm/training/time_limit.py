"""Training for so many minutes."""

import time

from transformers import TrainerCallback


class TimeLimit(TrainerCallback):
    """Ends training before the time is up, with an evaluation and a complete checkpoint.

    Args:
        minutes: for everything from the first step to the last evaluation and checkpoint. A step that has begun is
            finished, so at least one is done.
    """

    def __init__(self, minutes: float):
        self.seconds = 60 * minutes
        self.longest_pause = 0.05 * self.seconds  # between two steps: evaluation, samples, checkpoint
        self.steps = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = self.step_ended = time.monotonic()

    def on_step_begin(self, args, state, control, **kwargs):
        self.longest_pause = max(self.longest_pause, time.monotonic() - self.step_ended)

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1
        self.step_ended = time.monotonic()
        if self.step_ended - self.started + self.longest_pause >= self.seconds:
            control.should_log = control.should_evaluate = control.should_save = control.should_training_stop = True
