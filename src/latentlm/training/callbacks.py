"""What a run shows and writes while it trains: progress on the console, `metrics.jsonl`, exact logging intervals."""

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
from latentlm.runs.run_folder import METRICS_FILE, folder_of

SAMPLES_FILE = "samples.jsonl"
# Logged values that measure the machine, not the model: they differ between two runs of the same recipe.
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
    """Logs wherever the run evaluates, saves or ends.

    A checkpoint then never falls inside a logging interval, so a resumed run averages over the same steps as the
    uninterrupted one, whatever `save_steps` and `logging_steps` are.
    """

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_save or control.should_evaluate or state.global_step >= state.max_steps:
            control.should_log = True

    on_epoch_end = on_step_end


class MetricsFile(TrainerCallback):
    """Writes each log as one JSON line to `metrics.jsonl` in the run folder.

    At the start the file is rewritten from the trainer's own history, which a checkpoint stores: lines that a killed
    run wrote after its last checkpoint disappear, and the resumed run's file equals the uninterrupted run's.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            folder = folder_of(args)
            write_atomically(folder / METRICS_FILE, "".join(map(json_line, state.log_history)))
            samples = folder / SAMPLES_FILE
            if samples.exists():
                write_atomically(samples, "".join(lines_until(samples, state.global_step, state.log_history)))

    def on_log(self, args, state, control, logs: dict[str, Any] | None = None, **kwargs):
        # The summary at the end of training counts this process's steps only, not the run's.
        if state.is_world_process_zero and logs is not None and "train_runtime" not in logs:
            append_line(folder_of(args) / METRICS_FILE, {**logs, "step": state.global_step})


class SampleArtifacts(TrainerCallback):
    """Gives MLflow, of a run that reports to it, `samples.jsonl` as an artifact: at each checkpoint and at the end.

    The callback of transformers, which comes before this one, has begun the MLflow run, and has ended it when the
    training ends.
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
    return json.dumps(entry, sort_keys=True) + "\n"


def append_line(path: Path, entry: dict) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json_line(entry))


def lines_until(path: Path, step: int, history: list[dict]) -> list[str]:
    """The lines of a JSON-lines file up to a training step; a new run (no history) keeps none."""
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
    """A progress bar with the time left, and one line per log; without a terminal the lines alone."""

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
        self.progress.stop()

    def on_log(self, args, state, control, logs: dict[str, Any] | None = None, **kwargs):
        if not state.is_world_process_zero or logs is None or "train_runtime" in logs:
            return
        if any(name.startswith("eval_") for name in logs):
            hidden = TIMINGS | ({"eval_loss"} if "eval_lm_loss" in logs else set())
            shown = [
                f"{name.removeprefix('eval_')} {value:.4f}"
                for name, value in logs.items()
                # What compute_metrics returns may be anything.
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
        """Time to the last step at the speed of this process so far, evaluations and checkpoints included."""
        done = max(state.global_step - self.first_step, 1)
        seconds = (time.perf_counter() - self.started) / done * (state.max_steps - state.global_step)
        return timedelta(seconds=round(seconds))

    def print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
