"""`SavingTrainer`, which writes checkpoints atomically and resumes runs exactly."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoConfig, Trainer
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.utils import SAFE_WEIGHTS_NAME, logging

from latentlm.runs.checkpoints import (
    ARGUMENTS_FILE,
    CheckpointError,
    last_complete_checkpoint,
    list_checkpoints,
    publish,
    read_manifest,
    remove,
    resolve_checkpoint,
    rotate,
    write_atomically,
    write_manifest,
)
from latentlm.runs.recipe import BOOKKEEPING
from latentlm.runs.run_folder import DATA_FILE, ENVIRONMENT_FILE, RECIPE_FILE, SEGMENTS_FILE, differing_places

logger = logging.get_logger(__name__)

# What an optimizer keeps in its groups and the arguments say; `lr` is the schedule's.
OPTIMIZER_SETTINGS = ("initial_lr", "weight_decay", "betas", "eps", "momentum")
# Files of the run folder that are copied into every checkpoint, so that a run can resume from the checkpoint alone.
RUN_FILES = (RECIPE_FILE, ENVIRONMENT_FILE, DATA_FILE, SEGMENTS_FILE)


class SavingTrainer(Trainer):
    """A `Trainer` that saves all files of a checkpoint or model or none of them, and resumes runs exactly."""

    def __init__(self, **kwargs: Any):
        self._use_cache = getattr(kwargs["model"].config, "use_cache", None)
        super().__init__(**kwargs)
        if self._use_cache is None:
            del kwargs["model"].config.use_cache  # Trainer adds it, also to a model without a cache
        self._staging: Path | None = None  # the hidden folder while a checkpoint is written

    # ---- Resuming ----

    def train(
        self,
        resume_from_checkpoint: str | os.PathLike | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ):
        """Train from the start or from a complete checkpoint. `True` is the last complete one of the run folder.

        Settings may differ from those of the checkpoint, except the optimizer and the number of rows in a step.

        Raises:
            CheckpointError: before anything changes, if the checkpoint is incomplete, does not exist, or does not fit
                the settings.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(Path(self._get_output_dir(trial)))
            if resume_from_checkpoint is None:
                raise CheckpointError(f"{self.args.output_dir} holds no complete checkpoint to resume from.")
        if not resume_from_checkpoint:
            return super().train(None, trial, ignore_keys_for_eval)
        checkpoint = resolve_checkpoint(resume_from_checkpoint)
        processes = self.check_start(checkpoint)
        if processes != self.args.world_size:
            logger.warning(
                f"{checkpoint} was saved by {processes} processes and is resumed by {self.args.world_size}: "
                "the run goes on, but not with the losses of an uninterrupted one."
            )
        # The history in the checkpoint has the evaluation before the first step.
        eval_on_start, self.args.eval_on_start = self.args.eval_on_start, False
        try:
            return super().train(str(checkpoint), trial, ignore_keys_for_eval)
        finally:
            self.args.eval_on_start = eval_on_start

    def check_start(self, checkpoint: Path) -> int:
        """Return the number of processes that have saved a checkpoint, after checking that the run can go on from it.

        Raises:
            CheckpointError: if weights have other shapes than the model, or states mean something else under the
                arguments: those of the optimizer, and the number of steps, by which rows are skipped and epochs end.
        """
        processes: int = read_manifest(checkpoint)["processes"]
        self._check_shapes(checkpoint)
        self._check_settings(checkpoint, processes)
        return processes

    def _check_shapes(self, checkpoint: Path) -> None:
        if not (checkpoint / SAFE_WEIGHTS_NAME).exists():  # it is in parts, or sharded
            return
        with safe_open(checkpoint / SAFE_WEIGHTS_NAME, "pt") as weights:
            stored = {name: list(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        own = {name: list(tensor.shape) for name, tensor in self.unwrapped_model.state_dict().items()}
        tied = self.unwrapped_model.all_tied_weights_keys
        wrong = [name for name in own if name in stored and own[name] != stored[name]]
        wrong += [name for name in own.keys() ^ stored.keys() if name not in tied]
        if wrong:
            old, new = (
                {name: value for name, value in config.to_dict().items() if name not in BOOKKEEPING}
                for config in (AutoConfig.from_pretrained(checkpoint), self.model_config)
            )
            fields = differing_places("model", old, new) or [f"{len(wrong)} weights, as {min(wrong)}"]
            raise CheckpointError(
                f"{checkpoint} does not fit the model ({'; '.join(fields)}): a run that goes on keeps its model."
            )

    def _check_settings(self, checkpoint: Path, processes: int) -> None:
        if not (checkpoint / ARGUMENTS_FILE).exists():
            return
        stored, now = json.loads((checkpoint / ARGUMENTS_FILE).read_text(encoding="utf-8")), self.args.to_dict()
        instead = f"keep it, or start another run from its weights: from_pretrained {checkpoint}."
        if stored["optim"] != now["optim"]:
            raise CheckpointError(f"{checkpoint} has states of optim {stored['optim']}, not {now['optim']}; {instead}")
        sizes = [
            count * one["per_device_train_batch_size"] * one["gradient_accumulation_steps"]
            for count, one in ((processes, stored), (self.args.world_size, now))
        ]
        if sizes[0] != sizes[1]:
            raise CheckpointError(
                f"{checkpoint} has read {sizes[0]} rows in a step, and this run would read {sizes[1]} (processes × "
                f"per_device_train_batch_size × gradient_accumulation_steps); {instead}"
            )

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        progress = super()._init_training_state(max_steps, *args, **kwargs)
        self.state.compute_steps(self.args, max_steps)  # the state of a checkpoint has brought those of its own
        return progress

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the states of a checkpoint, and keep the settings, which are those of the arguments."""
        optimizer: Any = self.optimizer
        scheduler = self.lr_scheduler
        if checkpoint is None or not isinstance(scheduler, LambdaLR):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        settings = [
            {name: group[name] for name in OPTIMIZER_SETTINGS if name in group} for group in optimizer.param_groups
        ]
        super()._load_optimizer_and_scheduler(checkpoint)
        for group, own in zip(optimizer.param_groups, settings, strict=True):
            group.update(own)
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
        scheduler._last_lr = [base * factor for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
        for group, rate in zip(optimizer.param_groups, scheduler._last_lr, strict=True):
            group["lr"] = rate

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # After a resume at the last step, Trainer would train one more step.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Raise CheckpointError if a checkpoint does not fit the model. Tied weights may be missing, because only one
        of them is stored."""
        missing = set(load_result.missing_keys) - set(self.unwrapped_model.all_tied_weights_keys)
        if missing or load_result.unexpected_keys:
            raise CheckpointError(
                "the checkpoint does not fit the model: "
                f"missing {sorted(missing) or 'nothing'}, unexpected {load_result.unexpected_keys or 'nothing'}."
            )

    # ---- Saving ----

    @property
    def unwrapped_model(self) -> Any:
        """The model without the wrappers of DDP, FSDP and `torch.compile`."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @property
    def model_config(self) -> Any:
        """The configuration of the model."""
        return self.unwrapped_model.config

    def _get_output_dir(self, trial: Any) -> str:
        # While a checkpoint is saved, Trainer writes it into a hidden folder.
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint under a hidden name, and rename it when all processes have written their parts.

        Raises:
            CheckpointError: on all processes, if the checkpoint cannot be written. It is removed then, and earlier
                checkpoints do not change.
        """
        run_folder = Path(self._get_output_dir(trial))
        final = run_folder / f"checkpoint-{self.state.global_step}"
        staging = run_folder / f".saving-{final.name}"
        written = staging / final.name
        error = None
        if self.args.should_save:
            remove(staging)
        self.accelerator.wait_for_everyone()
        self._staging = staging
        try:
            super()._save_checkpoint(model, trial)
            self._find_best_checkpoint(final)
            if self.args.should_save:
                self._complete_checkpoint(written, run_folder)
        except Exception as exception:  # a full disk is an OSError, RuntimeError (torch) or SafetensorError
            error = exception
        finally:
            self._staging = None
        # The reduction is also the barrier after which every process has written its files.
        if not self._count_failures(error) and self.args.should_save:
            try:
                write_manifest(
                    written,
                    {
                        "step": self.state.global_step,
                        "processes": self.args.world_size,
                        "resumable": not self.args.save_only_model,
                    },
                )
                publish(written, final)
                rotate(run_folder, self.args.save_total_limit, self.state.best_model_checkpoint)
            except OSError as exception:
                error = exception
        if self.args.should_save:
            remove(staging)
        if self._count_failures(error):
            left = ", ".join(map(str, list_checkpoints(run_folder))) or "none"
            raise CheckpointError(
                f"{final} could not be saved: {error or 'see the other processes'}. Nothing of it is left; "
                f"earlier checkpoints are untouched: {left}. Once the cause is gone (a full disk?), the same command "
                "continues from the last one."
            ) from error

    def _count_failures(self, error: Exception | None) -> float:
        """Return the number of processes with an error."""
        failures = self.accelerator.reduce(torch.tensor(float(error is not None), device=self.args.device))
        assert isinstance(failures, torch.Tensor)
        return failures.item()

    def _find_best_checkpoint(self, final: Path) -> None:
        """Set the path of the best checkpoint, on all processes: `final`, which is being saved, or an earlier one. If
        the best step was not saved, the path remains that of the best one that was."""
        best = final.with_name(f"checkpoint-{self.state.best_global_step}")
        if best == final or best.is_dir():
            self.state.best_model_checkpoint = str(best)

    def _complete_checkpoint(self, written: Path, run_folder: Path) -> None:
        """Copy the files of the run into a checkpoint, and store the final path of the best checkpoint."""
        for name in RUN_FILES:
            if (run_folder / name).exists():
                shutil.copyfile(run_folder / name, written / name)
        if self.state.best_model_checkpoint:
            self.state.save_to_json(str(written / TRAINER_STATE_NAME))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save model, code, tokenizer and training arguments, all files or none, without pickled arguments."""
        folder = Path(output_dir or self._get_output_dir(None))
        staging = folder / ".saving-model"
        model = self.unwrapped_model
        if self._use_cache is not None:
            model.config.use_cache = self._use_cache  # Trainer turns it off, but only for training
        try:
            with own_class(model):
                super()._save(str(staging), state_dict)
            if not self.args.should_save:
                return
            (staging / TRAINING_ARGS_NAME).unlink()
            write_atomically(staging / ARGUMENTS_FILE, json.dumps(self.args.to_dict(), indent=2, default=str) + "\n")
            for path in staging.iterdir():
                if path.is_dir():  # of chat templates, which no folder that is not empty can be renamed to
                    shutil.rmtree(folder / path.name, ignore_errors=True)
                os.replace(path, folder / path.name)
        finally:
            if self._use_cache is not None:
                model.config.use_cache = self.args.use_cache
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def own_class(model: nn.Module) -> Iterator[None]:
    """Return a context in which a model that FSDP2 has sharded has its original class.

    FSDP2 replaces the class by one in a module of torch. Saving would store its name, and copy files of torch as code.
    """
    current = type(model)
    model.__class__ = next(base for base in current.__mro__ if not issubclass(base, FSDPModule))
    try:
        yield
    finally:
        model.__class__ = current
