"""`LatentTrainer`: named losses, exact evaluation, bits per byte, checkpoints that are complete or invisible."""

import json
import math
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import recursively_apply
from huggingface_hub import CommitInfo
from rich.console import Console
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import Dataset, IterableDataset
from transformers import AutoModelForCausalLM, PrinterCallback, ProgressCallback, Trainer
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import EvalLoopOutput, has_length
from transformers.utils import logging

from latentlm.data.packing import stack_rows
from latentlm.hub.publishing import create_repository, write_card
from latentlm.hub.publishing import publish as publish_run
from latentlm.runs.arguments import LatentTrainingArguments
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
from latentlm.runs.run_folder import SEGMENTS_FILE

from .callbacks import SAMPLES_FILE, ConsoleProgress, ExactLogging, MetricsFile, append_line

logger = logging.get_logger(__name__)

# Files of the run folder that every checkpoint repeats, so that it can be resumed without anything else.
RUN_FILES = ("recipe.yaml", "environment.json", "data.json", SEGMENTS_FILE)
# Label of all positions in rows that only fill up the last batches of an evaluation; the model never sees it.
FILLER = -101


class LatentTrainer(Trainer):
    """A `Trainer` that logs every output field whose name ends in `_loss`.

    In training a term is the micro-batch's share (its sum divided by `num_items_in_batch`), so the logged value is the
    sum over micro-batches and processes, averaged over the optimizer steps since the last log. In evaluation it is the
    exact mean over the whole set; `eval_loss` is the task loss alone (`lm_loss`), and `eval_bits_per_byte` divides its
    sum by the bytes of the predicted text. `compute_metrics` and `predict` get each row once.

    Args:
        token_bytes: `(V,)` UTF-8 bytes that each token id stands for, 0 for special tokens; without it nothing is
            reported per byte.
        kwargs: everything `Trainer` takes but `model_init`. `args` is a [`LatentTrainingArguments`]. The outputs that
            `compute_loss_func` gets hold the model's own losses: what it returns is trained on and logged as `loss`,
            they are logged beside it, and evaluations report them alone.

    Raises:
        ValueError: for what would silently have no effect, before anything is built.
    """

    arguments_class: type[LatentTrainingArguments] = LatentTrainingArguments

    # What builds the model of a recipe; trainers of other heads name another Auto class.
    auto_class = AutoModelForCausalLM
    arguments_class = LatentTrainingArguments

    def __init__(self, *, token_bytes: np.ndarray | None = None, **kwargs):
        self._check_arguments(kwargs)
        kwargs.setdefault("data_collator", stack_rows)
        self._use_cache = getattr(kwargs["model"].config, "use_cache", None)
        super().__init__(**kwargs)
        if self._use_cache is None:
            del self.model.config.use_cache  # Trainer adds it, also to a model that knows no cache
        for name, size in (("cp_size", self.get_cp_size()), ("sp_size", self.get_sp_size())):
            if size > 1:
                raise ValueError(f"parallelism_config: {name} is {size}, but rows are not divided here; it must be 1.")
        if self.is_distributed_loading_by_transformers and self.model.all_tied_weights_keys:
            vocab_size, parts = self.model.config.vocab_size, self.args.world_size
            if vocab_size % parts:
                # Where the parts differ in size, torch pads a copy of the output layer that then misses every update.
                raise ValueError(
                    f"vocab_size {vocab_size} is not a multiple of the {parts} processes that share the tied embedding "
                    f"(FSDP2 at load time): set it to {vocab_size + -vocab_size % parts}."
                )
        self.token_bytes = None
        if token_bytes is not None:
            self.token_bytes = torch.as_tensor(token_bytes, dtype=torch.float32, device=self.args.device)
        self.console = Console(soft_wrap=True)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(ExactLogging())
        self.add_callback(MetricsFile())
        self.add_callback(ConsoleProgress(self.console, bar=not self.args.disable_tqdm))
        self._staging: Path | None = None
        self._evaluation_sums: dict[str, float] = {}
        self._prompts: list[torch.Tensor] | None = None
        self._start_interval()

    @classmethod
    def _check_arguments(cls, kwargs: dict[str, Any]) -> None:
        if kwargs.get("model_init") is not None or kwargs.get("model") is None:
            raise ValueError(
                "model_init would build the model anew when training starts, without what its trainer has prepared, so "
                "it is not taken (nor is hyperparameter_search, which needs it); give a `model`, and one run for each "
                "set of hyperparameters."
            )
        if not isinstance(args := kwargs.get("args"), cls.arguments_class):
            raise ValueError(
                f"args is {type(args).__name__}, but {cls.__name__} reads fields of {cls.arguments_class.__name__}; "
                "give these."
            )

    # ---- Optimizer ----

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight decay is for matrices: parameters with two dimensions or more."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    # ---- Training ----

    def train(self, resume_from_checkpoint: str | os.PathLike | bool | None = None, **kwargs):
        """Train, from a complete checkpoint on if one is given (`True`: the last complete one of the run folder).

        Raises:
            CheckpointError: if the checkpoint is incomplete, before anything is touched.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(Path(self.args.output_dir))
            if resume_from_checkpoint is None:
                raise CheckpointError(f"{self.args.output_dir} holds no complete checkpoint to resume from.")
        if not resume_from_checkpoint:
            return super().train(**kwargs)
        checkpoint = resolve_checkpoint(resume_from_checkpoint)
        processes = read_manifest(checkpoint)["processes"]
        if processes != self.args.world_size:
            logger.warning(
                f"{checkpoint} was saved by {processes} processes and is resumed by {self.args.world_size}: "
                "the run goes on, but not with the losses of an uninterrupted one."
            )
        # The evaluation before the first step belongs to the history that the checkpoint carries.
        eval_on_start, self.args.eval_on_start = self.args.eval_on_start, False
        try:
            return super().train(resume_from_checkpoint=str(checkpoint), **kwargs)
        finally:
            self.args.eval_on_start = eval_on_start

    def _run_epoch(self, **kwargs) -> None:
        if self.state.global_step >= self.state.max_steps:  # resumed at the end: Trainer would train one step more
            self.control.should_training_stop = True
            return
        super()._run_epoch(**kwargs)

    def _start_interval(self) -> None:
        """Begin to count what the next log reports."""
        self._shares: dict[str, torch.Tensor] = {}
        self._steps = 0
        self._tokens: torch.Tensor | float = 0.0
        self._bytes: torch.Tensor | float = 0.0
        self._interval_started = time.perf_counter()

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        if self._steps == 0 and not self._shares:
            self._start_interval()  # evaluations and checkpoints since the last log are not training time
        batches, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self._steps += 1
            self._tokens = self._tokens + num_items_in_batch
            if self.token_bytes is not None:
                self._bytes = self._bytes + sum(self._count_bytes(batch["labels"]) for batch in batches)
        return batches, num_items_in_batch

    def predicted(self, labels: torch.Tensor) -> torch.Tensor:
        """Those of the labels `(B, T)` that the model is scored on: all but the first, since it shifts them."""
        return labels[:, 1:]

    def _count_bytes(self, labels: torch.Tensor) -> torch.Tensor:
        """Bytes of the predicted tokens."""
        predicted = self.predicted(labels).to(self.args.device)
        predicted = predicted[predicted != -100]
        return self.token_bytes.index_select(0, predicted).sum(dtype=torch.float64)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The loss of one micro-batch; keeps the shares of its terms for the next log."""
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        if model.training:
            for name, share in named_losses(outputs).items():
                self._shares[name] = self._shares.get(name, 0) + share.detach()
        loss = outputs["loss"]
        if self.compute_loss_func is not None:
            loss = self.compute_loss_func(outputs, inputs["labels"], num_items_in_batch=num_items_in_batch)
        if num_items_in_batch is not None:
            # DDP averages gradients over processes, but shares add up. Not in place: a term may be the same tensor.
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the named losses, the speed and the model's own statistics at training steps."""
        if "loss" in logs and self._steps:
            logs.update(self._training_logs())
        super().log(logs, start_time)

    def _training_logs(self) -> dict[str, float]:
        names = list(self._shares)
        values = [*self._shares.values(), self._bytes]
        *sums, num_bytes = self._sum_over_processes([float(value) for value in values])
        seconds = time.perf_counter() - self._interval_started
        logs = {name: value / self._steps for name, value in zip(names, sums, strict=True)}
        model = self.accelerator.unwrap_model(self.model)
        if hasattr(model, "training_statistics"):
            logs.update(model.training_statistics())
        logs["tokens_per_second"] = float(self._tokens) / seconds
        if self.token_bytes is not None:
            logs["bytes_per_second"] = num_bytes / seconds
        history = (entry["training_seconds"] for entry in reversed(self.state.log_history) if "loss" in entry)
        logs["training_seconds"] = next(history, 0.0) + seconds
        self._start_interval()
        return logs

    def _sum_over_processes(self, values: list[float]) -> list[float]:
        if self.args.world_size == 1:
            return values
        return self.accelerator.reduce(torch.tensor(values, dtype=torch.float64, device=self.args.device)).tolist()

    # ---- Evaluation ----

    def _get_dataloader(self, dataset, description, batch_size, *args, **kwargs):
        if not kwargs.get("is_training"):  # each row counts once, whatever the number of processes
            dataset = fill_rounds(dataset, batch_size * self.args.world_size)
        elif isinstance(dataset, IterableDataset):
            dataset = EndlessStream(dataset)
        return super()._get_dataloader(dataset, description, batch_size, *args, **kwargs)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, torch.Tensor | None, torch.Tensor | None]:
        """Add one batch to the sums of the evaluation: each term over its tokens, rows, tokens and bytes."""
        if inputs.get("labels") is None:
            raise ValueError(
                f"the rows to evaluate have no `labels`, only {', '.join(inputs)}; add them (equal to input_ids for a "
                "language model), or call the model itself for its outputs."
            )
        filler = inputs["labels"] == FILLER
        real = ~filler.any(-1).to(self.args.device)
        inputs = self._prepare_inputs({**inputs, "labels": inputs["labels"].masked_fill(filler, -100)})
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs, num_items_in_batch=1)
        self._evaluation_sums["rows"] += real.sum().item()
        self.add_to_evaluation(inputs, outputs)
        if prediction_loss_only:
            return None, None, None
        self._real_rows = self.accelerator.gather(real)
        return None, outputs["logits"], inputs["labels"]

    def _gather_real_rows(self, data: Any) -> Any:
        """Gather tensors `(B, …)` that belong to the last batch from all processes, without rows that only fill it."""
        return recursively_apply(lambda rows: rows[self._real_rows], self.accelerator.gather(data))

    def add_to_evaluation(self, inputs: dict[str, Any], outputs: Any) -> None:
        sums = self._evaluation_sums
        for name, value in named_losses(outputs).items():
            sums[name] += value.item()
        sums["loss"] += outputs["lm_loss" if "lm_loss" in outputs else "loss"].item()
        sums["tokens"] += (self.predicted(inputs["labels"]) != -100).sum().item()
        if self.token_bytes is not None:
            sums["bytes"] += self._count_bytes(inputs["labels"]).item()

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        self._evaluation_sums = defaultdict(float)
        self.gather_function = self._gather_real_rows  # for this loop: Trainer sets its own again when it is done
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        totals = self._sum_over_processes(list(self._evaluation_sums.values()))
        sums = dict(zip(self._evaluation_sums, totals, strict=True))
        rows, tokens, num_bytes = sums.pop("rows"), sums.pop("tokens"), sums.pop("bytes", 0)
        if tokens:
            output.metrics.update({f"{metric_key_prefix}_{name}": value / tokens for name, value in sums.items()})
        if num_bytes:
            output.metrics[f"{metric_key_prefix}_bits_per_byte"] = sums["loss"] / math.log(2) / num_bytes
        return output._replace(num_samples=int(rows))

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if metric_key_prefix == "eval" and self.args.sample_prompts and self.args.sample_new_tokens:
            self.write_samples()
        return metrics

    def write_samples(self) -> None:
        """Continue a few validation prompts, greedily and sampled, for `samples.jsonl` and the console."""
        model = self.accelerator.unwrap_model(self.model)
        sharded = self.is_fsdp_enabled or self.is_distributed_loading_by_transformers
        # Sharded parameters are gathered by all processes together; otherwise one process is enough.
        if self.processing_class is None or not model.can_generate() or not (sharded or self.is_world_process_zero()):
            return
        if self._prompts is None:
            self._prompts = list(self._choose_prompts())
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():  # the run's own random numbers stay untouched
            torch.manual_seed(self.args.seed + self.state.global_step)
            for prompt in self._prompts:
                texts = {"prompt": self.processing_class.decode(prompt)}
                for kind, do_sample in (("greedy", False), ("sampled", True)):
                    room = model.config.max_position_embeddings - len(prompt)
                    ids = model.generate(
                        prompt[None].to(self.args.device),
                        attention_mask=torch.ones_like(prompt[None], device=self.args.device),
                        max_new_tokens=min(self.args.sample_new_tokens, room),
                        do_sample=do_sample,
                        pad_token_id=self.processing_class.pad_token_id,
                        synced_gpus=sharded and self.args.world_size > 1,
                    )
                    texts[kind] = self.processing_class.decode(ids[0, len(prompt) :])
                if self.is_world_process_zero():
                    append_line(Path(self.args.output_dir) / SAMPLES_FILE, {"step": self.state.global_step, **texts})
                    text = f"    {texts['prompt']!r} → {texts['greedy']!r}, sampled {texts['sampled']!r}"
                    self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _choose_prompts(self) -> Iterator[torch.Tensor]:
        """The beginnings, within one document, of rows spread over the validation set."""
        longest = min(self.args.sample_prompt_tokens, self.model.config.max_position_embeddings - 1)
        for row in self.spread_validation_rows(self.args.sample_prompts):
            ids, positions = torch.as_tensor(row["input_ids"]), torch.as_tensor(row["position_ids"])
            restarts = (positions[1:] == 0).nonzero().flatten().tolist()
            yield ids[: max(min([longest, *(restart + 1 for restart in restarts)]), 1)]

    def spread_validation_rows(self, count: int) -> list[dict[str, Any]]:
        """Always the same rows, spread over the (first) validation set; the first ones of a stream."""
        rows = self.eval_dataset if self.eval_dataset is not None else []
        if isinstance(rows, dict):
            rows = next(iter(rows.values()))
        if has_length(rows):
            count = min(count, len(rows))
            rows = [rows[i * len(rows) // count] for i in range(count)]
        return list(islice(rows, count))

    # ---- Checkpoints ----

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A checkpoint that does not fit is an error; weights that are tied to others are not stored."""
        missing = set(load_result.missing_keys) - set(self.model.all_tied_weights_keys)
        if missing or load_result.unexpected_keys:
            raise CheckpointError(
                "the checkpoint does not fit the model: "
                f"missing {sorted(missing) or 'nothing'}, unexpected {load_result.unexpected_keys or 'nothing'}."
            )

    def _get_output_dir(self, trial) -> str:
        # While a checkpoint is saved, Trainer writes it below a hidden folder.
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        """Save a checkpoint under a hidden name; rename it when all processes have written their part.

        Raises:
            CheckpointError: on all processes, if it could not be written. Nothing of it is left; earlier checkpoints
                are as they were.
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
            if self.args.should_save:
                self._complete_checkpoint(written, run_folder)
        except Exception as exception:  # OSError, but also RuntimeError (torch) and SafetensorError for a full disk
            error = exception
        finally:
            self._staging = None
        # Also the barrier after which every process has written its files.
        failures = self._sum_over_processes([float(error is not None)])[0]
        if not failures and self.args.should_save:
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
        if self._sum_over_processes([float(error is not None)])[0]:
            left = ", ".join(map(str, list_checkpoints(run_folder))) or "none"
            raise CheckpointError(
                f"{final} could not be saved: {error or 'see the other processes'}. Nothing of it is left; "
                f"earlier checkpoints are untouched: {left}. Once the cause is gone (a full disk?), the same command "
                "continues from the last one."
            ) from error

    def _complete_checkpoint(self, written: Path, run_folder: Path) -> None:
        """Add the run's own files, and name the best checkpoint by the place where it will be."""
        for name in RUN_FILES:
            if (run_folder / name).exists():
                shutil.copyfile(run_folder / name, written / name)
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(run_folder / f"checkpoint-{self.state.best_global_step}")
            self.state.save_to_json(str(written / TRAINER_STATE_NAME))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save model, code, tokenizer and training arguments, all files or none, and no pickle."""
        folder = Path(output_dir or self.args.output_dir)
        staging = folder / ".saving-model"
        model = self.accelerator.unwrap_model(self.model)
        if self._use_cache is not None:
            model.config.use_cache = self._use_cache  # Trainer turns it off for training only
        try:
            with own_class(model):
                super()._save(str(staging), state_dict)
            if not self.args.should_save:
                return
            (staging / TRAINING_ARGS_NAME).unlink()
            write_atomically(staging / ARGUMENTS_FILE, json.dumps(self.args.to_dict(), indent=2, default=str) + "\n")
            for path in staging.iterdir():
                os.replace(path, folder / path.name)
        finally:
            if self._use_cache is not None:
                model.config.use_cache = self.args.use_cache
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)

    # ---- Publishing ----

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository, so that a missing token shows before the training and not after it."""
        if self.is_world_process_zero():
            private = self.args.hub_private_repo if private is None else private
            self.hub_model_id = create_repository(
                self._run_folder, self._repo_id, private, token or self.args.hub_token
            )

    @property
    def _run_folder(self) -> Path:
        return Path(self.args.output_dir)

    @property
    def _repo_id(self) -> str:
        """Where to publish: what the Hub answered, what was asked for, or the name of the run folder."""
        return self.hub_model_id or self.args.hub_model_id or self._run_folder.absolute().name

    def create_model_card(self, **fields: Any) -> None:
        """Write README.md and curves into the run folder; `fields` as for `publishing.write_card`."""
        if self.is_world_process_zero():
            write_card(self._run_folder, self._repo_id, **fields)

    def push_to_hub(
        self,
        commit_message: str = "Publish with latentlm",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **fields: Any,
    ) -> CommitInfo | None:
        """Save the model, write its card and push both; returns the commit on the main process.

        Everything has arrived when this returns, whatever `blocking` says. `fields` as for `publishing.write_card`.

        Raises:
            PublishError: if the Hub does not take it; the run folder is complete then.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        return publish_run(
            self._run_folder,
            self._repo_id,
            message=commit_message,
            private=self.args.hub_private_repo if private is None else private,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            **fields,
        )


@contextmanager
def own_class(model: nn.Module) -> Iterator[None]:
    """Give a model sharded by FSDP2 its own class for a while.

    FSDP2 replaces the class by one that lives in torch: saving would name that one and copy torch's files as its code.
    """
    current = type(model)
    model.__class__ = next(base for base in current.__mro__ if not issubclass(base, FSDPModule))
    try:
        yield
    finally:
        model.__class__ = current


def named_losses(outputs: Any) -> dict[str, torch.Tensor]:
    """The fields of a model output that are losses with a name: `lm_loss`, `embedding_loss`, ...; also those inside of
    a field that is a dictionary."""
    inside = [item for value in outputs.values() if isinstance(value, dict) for item in value.items()]
    return {name: value for name, value in (*outputs.items(), *inside) if name.endswith("_loss")}


def fill_rounds(rows: Dataset, multiple: int) -> Dataset:
    """`rows`, followed by rows labelled [`FILLER`] until processes share them evenly.

    Otherwise the last round of batches would repeat rows of the first one.
    """
    return FilledStream(rows, multiple) if isinstance(rows, IterableDataset) else FilledRows(rows, multiple)


def as_filler(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "labels": torch.full_like(torch.as_tensor(row["labels"]), FILLER)} if "labels" in row else row


class FilledRows(Dataset):
    def __init__(self, rows: Dataset, multiple: int):
        self.rows, self.multiple = rows, multiple

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.multiple) * self.multiple

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index] if index < len(self.rows) else as_filler(self.rows[0])


class FilledStream(IterableDataset):
    def __init__(self, rows: IterableDataset, multiple: int):
        self.rows, self.multiple = rows, multiple

    def __iter__(self) -> Iterator[dict[str, Any]]:
        count = 0
        for row in self.rows:
            count += 1
            yield row
        for _ in range(-count % self.multiple):
            yield as_filler(row)


class EndlessStream(IterableDataset):
    """A stream that begins anew when it ends, so that a resumed run finds its place by the number of rows alone."""

    def __init__(self, rows: IterableDataset):
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            yield from self.rows
