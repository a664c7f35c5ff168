"""Callbacks for the logs of a run: progress on the console, `metrics.jsonl`, and exact logging intervals."""

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback
from transformers.trainer_utils import has_length

from latentlm.runs.checkpoints import write_atomically
from latentlm.runs.run_folder import METRICS_FILE, evaluation_sets, folder_of

SAMPLES_FILE = "samples.jsonl"
# Logged values that measure the machine. They differ between two runs of the same recipe.
TIMINGS = frozenset(
    {
        "tokens_per_second",
        "bytes_per_second",
        "training_seconds",
        "eval_runtime",
        "eval_samples_per_second",
        "eval_steps_per_second",
        "eval_model_preparation_time",
    }
)


class ExactLogging(TrainerCallback):
    """A callback that logs whenever the run evaluates, saves or ends.

    No checkpoint then falls inside a logging interval. Therefore a resumed run averages over the same steps as the
    uninterrupted one, for any `save_steps` and `logging_steps`.
    """

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_save or control.should_evaluate or state.global_step >= state.max_steps:
            control.should_log = True

    on_epoch_end = on_step_end


class MetricsFile(TrainerCallback):
    """A callback that writes each log as one JSON line to `metrics.jsonl` in the run folder.

    At the start the file is rewritten from the history of the trainer, which a checkpoint stores. This removes the
    lines that a killed run wrote after its last checkpoint, so the file of the resumed run equals that of an
    uninterrupted run.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            folder = folder_of(args)
            write_atomically(folder / METRICS_FILE, "".join(map(json_line, state.log_history)))
            samples = folder / SAMPLES_FILE
            if samples.exists():
                write_atomically(samples, "".join(lines_until(samples, state.global_step, state.log_history)))

    def on_log(self, args, state, control, logs: dict[str, Any] | None = None, **kwargs):
        # The summary at the end of training counts only the steps of this process, without those before a resume.
        if state.is_world_process_zero and logs is not None and "train_runtime" not in logs:
            append_line(folder_of(args) / METRICS_FILE, {**logs, "step": state.global_step})


class SampleArtifacts(TrainerCallback):
    """A callback that logs `samples.jsonl` as an MLflow artifact at each checkpoint and at the end, if the run reports
    to MLflow.

    The callback of transformers, which is called before this one, starts the MLflow run, and has ended it when this one
    is called at the end of training.
    """

    run_id: str | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero and "mlflow" in (args.report_to or ()):
            import mlflow

            run = mlflow.active_run()
            self.run_id = run and run.info.run_id

    def on_save(self, args, state, control, **kwargs):
        samples = folder_of(args) / SAMPLES_FILE
        if self.run_id is not None and samples.exists():
            import mlflow

            mlflow.MlflowClient().log_artifact(self.run_id, str(samples))

    on_train_end = on_save


def json_line(entry: dict) -> str:
    """Return a dictionary as one line of JSON, with sorted keys."""
    return json.dumps(entry, sort_keys=True) + "\n"


def append_line(path: Path, entry: dict) -> None:
    """Append a dictionary to a file of JSON lines."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json_line(entry))


def lines_until(path: Path, step: int, history: list[dict]) -> list[str]:
    """Return the lines of a file of JSON lines up to a training step, or none for a new run, which has no history."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if history else []:
        try:
            entry = json.loads(line)
        except ValueError:  # the process was killed while it wrote this line
            break
        if entry["step"] <= step:
            lines.append(line)
    return lines


class ConsoleProgress(TrainerCallback):
    """A callback that shows a progress bar with the remaining time, and prints one line per log. Without a terminal
    there is no bar."""

    def __init__(self, console: Console, bar: bool = True):
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not (bar and console.is_terminal),
        )
        self.training = self.evaluation = None

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self.started, self.first_step = time.perf_counter(), state.global_step
        self.progress.start()
        self.training = self.progress.add_task("training", total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        if self.training is not None:
            self.progress.update(self.training, completed=state.global_step)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if state.is_world_process_zero and self.training is not None:
            if self.evaluation is None:
                total = len(eval_dataloader) if has_length(eval_dataloader) else None
                self.evaluation = self.progress.add_task("evaluation", total=total)
            self.progress.advance(self.evaluation)

    def on_evaluate(self, args, state, control, **kwargs):
        if self.evaluation is not None:
            self.progress.remove_task(self.evaluation)
            self.evaluation = None

    def on_train_end(self, args, state, control, **kwargs):
        self.stop()

    def stop(self) -> None:
        """Take the bar away, which hides the cursor and redirects what is printed."""
        self.progress.stop()

    def on_log(self, args, state, control, logs: dict[str, Any] | None = None, **kwargs):
        if not state.is_world_process_zero or logs is None or "train_runtime" in logs:
            return
        if any(name.startswith("eval_") for name in logs):
            sets = evaluation_sets([logs])
            timings = {prefix + name.removeprefix("eval_") for prefix in sets for name in TIMINGS}
            hidden = timings | {f"{prefix}loss" for prefix in sets if f"{prefix}lm_loss" in logs}
            shown = [
                f"{name.removeprefix('eval_')} {value:.4f}"
                for name, value in logs.items()
                # `compute_metrics` may return values of any type.
                if name.startswith("eval_") and name not in hidden and isinstance(value, int | float)
            ]
            self.print(f"step {state.global_step} evaluation: " + "  ".join(shown))
            return
        shown = [f"{name} {value:.4f}" for name, value in logs.items() if name == "loss" or name.endswith("_loss")]
        shown += [f"learning_rate {logs['learning_rate']:.2e}"] if "learning_rate" in logs else []
        for name, unit in (("tokens_per_second", "tokens/s"), ("bytes_per_second", "bytes/s")):
            shown += [f"{logs[name]:,.0f} {unit}"] if name in logs else []
        shown += [f"left {self.time_left(state)}"] if self.training is not None else []
        self.print(f"step {state.global_step}/{state.max_steps}: " + "  ".join(shown))

    def time_left(self, state) -> timedelta:
        """Return the time to the last step at the mean speed of this process, including evaluations and checkpoints."""
        done = max(state.global_step - self.first_step, 1)
        seconds = (time.perf_counter() - self.started) / done * (state.max_steps - state.global_step)
        return timedelta(seconds=round(seconds))

    def print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
