"""`LatentTrainer`, which logs named losses, evaluates exactly and reports bits per byte."""

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import DataLoaderShard
from accelerate.utils import recursively_apply, send_to_device
from rich.console import Console
from torch import nn
from torch.utils.data import IterableDataset
from transformers import AutoModelForCausalLM, PreTrainedModel, PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput

from latentlm.data.packing import stack_rows
from latentlm.models.block_causal_head import CausalLMHead
from latentlm.runs.arguments import LatentTrainingArguments

from .callbacks import ConsoleProgress, ExactLogging, MetricsFile, SampleArtifacts
from .metrics import Count, Counts, Mean, Sum, Totals
from .optimizing import OptimizingTrainer
from .publishing import PublishingTrainer
from .refusals import check_arguments, check_parallelism
from .rows import EndlessStream, equal_keys, fill_rounds, split_filler, spread_rows
from .samples import choose_prompts, continue_prompts, write_texts


class LatentTrainer(OptimizingTrainer, PublishingTrainer):
    """A `Trainer` that logs every output field whose name ends in `_loss`.

    In training a term is the share of a micro-batch (its sum divided by `num_items_in_batch`). The logged value is the
    sum over micro-batches and processes, averaged over the optimizer steps since the last log. In evaluation it is the
    exact mean over the whole set. `eval_loss` is the task loss alone (`lm_loss`), and `eval_bits_per_byte` is its sum
    in bits divided by the bytes of the predicted text. `compute_metrics` and `predict` get each row once.

    A subclass overrides only the following attributes and methods. Its methods extend the results of `super()`, except
    for `predicted` and `write_samples`:

        arguments_class: class of `args`, with the fields that the subclass reads;
        auto_class: Auto class that builds the model of a recipe;
        extra_columns: columns of a dataset that the trainer reads and the model does not;
        prepares_on_cpu: whether batches are on the CPU when `prepare_batch` is called;
        predicted(labels): which labels `(B, T)` the model is scored on;
        prepare_batch(inputs): called with each micro-batch before it is copied to the device, in training
            (`self.model.training`) and evaluation; returns the inputs of the model, and columns that
            `evaluation_counts` reads;
        after_training_forward(inputs, outputs): called after the forward of each micro-batch in training;
        training_logs(): called at each log in training, on all processes; returns additional values to log;
        evaluation_counts(inputs, outputs): called with each batch of an evaluation; returns its contributions, by name,
            as [`Sum`], [`Mean`] or [`Histogram`];
        evaluation_results(totals): called with the [`Totals`] of an evaluation; returns its results by name, without
            `eval_`;
        write_samples(): called on all processes after each evaluation, if `sample_prompts` and `sample_new_tokens` are
            not 0.

    Args:
        token_bytes: `(V,)`, number of UTF-8 bytes of each token id, 0 for special tokens. Without it nothing is
            reported per byte.
        kwargs: arguments of `Trainer`, except `model_init`. `args` is a [`LatentTrainingArguments`]. The outputs that
            `compute_loss_func` gets contain the losses of the model. Its result is minimised and logged as `loss`. The
            losses of the model are logged too, and evaluations report only these.

    Raises:
        ValueError: before anything is built, for an option that would have no effect.
    """

    arguments_class: type[LatentTrainingArguments] = LatentTrainingArguments
    auto_class: Any = AutoModelForCausalLM
    extra_columns: tuple[str, ...] = ()
    prepares_on_cpu: bool = False

    args: Any  # an `arguments_class`
    model: PreTrainedModel
    processing_class: Any  # the tokenizer

    def __init__(self, *, token_bytes: np.ndarray | None = None, **kwargs: Any):
        check_arguments(type(self), kwargs)
        kwargs.setdefault("data_collator", stack_rows)
        super().__init__(**kwargs)
        check_parallelism(self)
        if self.compute_loss_func is not None:  # it may read logits
            for head in (module for module in self.model.modules() if isinstance(module, CausalLMHead)):
                head.returns_training_logits = True
        self.token_bytes = None
        if token_bytes is not None:
            self.token_bytes = torch.as_tensor(token_bytes, dtype=torch.float32, device=self.args.device)
        self.console = Console(soft_wrap=True)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(ExactLogging())
        self.add_callback(MetricsFile())
        self.add_callback(SampleArtifacts())
        self._progress = ConsoleProgress(self.console, bar=not self.args.disable_tqdm)
        self.add_callback(self._progress)
        self._evaluation = Counts(self.args.device)
        self._prompts: list[torch.Tensor] | None = None
        self._start_interval()

    # ---- Rows and batches ----

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns or []
        columns.extend(name for name in self.extra_columns if name not in columns)

    def _get_dataloader(self, dataset: Any, description: str, batch_size: int, *args: Any, **kwargs: Any):
        if not kwargs.get("is_training"):  # each row counts once with any number of processes
            dataset = fill_rounds(dataset, batch_size * self.args.world_size)
        elif isinstance(dataset, IterableDataset):
            dataset = EndlessStream(dataset)
        with equal_keys(self, dataset):
            loader = super()._get_dataloader(dataset, description, batch_size, *args, **kwargs)
        if self.prepares_on_cpu and isinstance(loader, DataLoaderShard):
            loader.device = None
        return loader

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        batch: Any = self.prepare_batch(inputs)
        if self.prepares_on_cpu and self.args.device.type == "cuda":  # the copy of Trainer would block
            batch = send_to_device(batch, self.args.device, non_blocking=True)
        return super()._prepare_inputs(batch)

    def prepare_batch(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Hook that returns the inputs of the model for a micro-batch, before this is copied to the device."""
        return inputs

    def predicted(self, labels: torch.Tensor) -> torch.Tensor:
        """Hook that returns the scored ones of labels `(B, T)`: all but the first, because the model shifts them."""
        return labels[:, 1:]

    def count_bytes(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the number of bytes of the predicted tokens, a float64 scalar."""
        assert self.token_bytes is not None
        predicted = self.predicted(labels).to(self.args.device).flatten()
        num_bytes = self.token_bytes.index_select(0, predicted.clamp(min=0)).masked_fill(predicted == -100, 0)
        return num_bytes.sum(dtype=torch.float64)

    # ---- Training ----

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer` does; also after an error or Ctrl-C the terminal is as it was."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._progress.stop()

    def _start_interval(self) -> None:
        """Reset the counts and times of the next log."""
        self._interval = Counts(self.args.device)
        self._steps = 0
        self._tokens: torch.Tensor | float = 0.0
        self._interval_started = time.perf_counter()

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        if self._steps == 0:
            self._start_interval()  # evaluations and checkpoints since the last log are not training time
        batches, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self._steps += 1
            if num_items_in_batch is not None:
                self._tokens = self._tokens + num_items_in_batch
            if self.token_bytes is not None:
                for batch in batches:
                    self._interval.add({"bytes": Sum(self.count_bytes(batch["labels"]))})
        return batches, num_items_in_batch

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Return the loss of one micro-batch, and add the shares of its terms to the next log."""
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        if model.training:
            self._interval.add({name: Sum(share) for name, share in named_losses(outputs).items()})
            self.after_training_forward(inputs, outputs)
        loss = outputs["loss"]
        if self.compute_loss_func is not None:
            loss = self.compute_loss_func(outputs, inputs["labels"], num_items_in_batch=num_items_in_batch)
        if num_items_in_batch is not None:
            # DDP averages gradients, but shares are summed. Not in place, because a term may be the same tensor.
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        return (loss, outputs) if return_outputs else loss

    def after_training_forward(self, inputs: dict[str, Any], outputs: Any) -> None:
        """Hook that is called with each micro-batch in training and the outputs of the model."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the given values and, in training, the named losses, the speed and the statistics of the model."""
        if "loss" in logs and self._steps:
            logs.update(self._interval_logs())
            logs.update(self.training_logs())
        super().log(logs, start_time)

    def _interval_logs(self) -> dict[str, float]:
        """Return the losses and the speed since the last log, and start the next interval."""
        sums = self._interval.reduce(self.accelerator).results()
        seconds = time.perf_counter() - self._interval_started
        num_bytes = sums.pop("bytes", None)
        logs = {name: value / self._steps for name, value in sums.items()}
        logs["tokens_per_second"] = float(self._tokens) / seconds
        if num_bytes is not None:
            logs["bytes_per_second"] = num_bytes / seconds
        history = (entry["training_seconds"] for entry in reversed(self.state.log_history) if "loss" in entry)
        logs["training_seconds"] = next(history, 0.0) + seconds
        self._start_interval()
        return logs

    def training_logs(self) -> dict[str, float]:
        """Hook that returns additional values to log in training, which are the statistics that the model keeps."""
        model = self.unwrapped_model
        return model.training_statistics() if hasattr(model, "training_statistics") else {}

    # ---- Evaluation ----

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, torch.Tensor | None, torch.Tensor | None]:
        """Add the counts of one batch to the evaluation. Return logits and labels if predictions are needed."""
        if inputs.get("labels") is None:
            raise ValueError(
                f"the rows to evaluate have no `labels`, only {', '.join(inputs)}; add them (equal to input_ids for a "
                "language model), or call the model itself for its outputs."
            )
        labels, real = split_filler(inputs["labels"])
        inputs, real = self._prepare_inputs({**inputs, "labels": labels}), real.to(self.args.device)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs, num_items_in_batch=1)
        self._evaluation.add({"rows": Sum(real.sum())} | self.evaluation_counts(inputs, outputs))
        if prediction_loss_only:
            return None, None, None
        if outputs.get("logits") is None:
            raise ValueError(
                "this model has no logits with its labels, so there are no predictions: `evaluate` without "
                "`compute_metrics` gives its losses and metrics."
            )
        self._real_rows = self.accelerator.gather(real)
        return None, outputs["logits"], inputs["labels"]

    def _gather_real_rows(self, data: Any) -> Any:
        """Gather tensors `(B, …)` of the last batch from all processes, without filler rows."""
        return recursively_apply(lambda rows: rows[self._real_rows], self.accelerator.gather(data))

    def evaluation_counts(self, inputs: dict[str, Any], outputs: Any) -> dict[str, Count]:
        """Hook that returns the counts of a batch, by name: the mean of each named loss and the task loss per token."""
        tokens = (self.predicted(inputs["labels"]) != -100).sum()
        losses = named_losses(outputs)
        task_loss = outputs["lm_loss" if "lm_loss" in outputs else "loss"].double()
        counts: dict[str, Count] = {name: Mean(value, tokens) for name, value in losses.items()}
        counts["loss"] = Mean(task_loss, tokens)
        if self.token_bytes is not None:
            counts["bits_per_byte"] = Mean(task_loss / math.log(2), self.count_bytes(inputs["labels"]))
        return counts

    def evaluation_results(self, totals: Totals) -> dict[str, float]:
        """Hook that returns the results of an evaluation, by name, which are those of its counts."""
        return totals.results()

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        self._evaluation = Counts(self.args.device)
        self.gather_function = self._gather_real_rows  # Trainer restores its own function after this loop
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        totals = self._evaluation.reduce(self.accelerator)
        if "rows" not in totals.numbers:
            raise ValueError("there are no rows to evaluate; leave the dataset out, with eval_strategy 'no'.")
        rows = int(totals.pop("rows").item())
        results = {f"{metric_key_prefix}_{name}": value for name, value in self.evaluation_results(totals).items()}
        return output._replace(metrics={**(output.metrics or {}), **results}, num_samples=rows)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if metric_key_prefix == "eval" and self.args.sample_prompts and self.args.sample_new_tokens:
            self.write_samples()
        return metrics

    # ---- Samples ----

    @property
    def is_sharded(self) -> bool:
        """Whether each process has only a part of the parameters, so that all must run the model together."""
        return self.is_fsdp_enabled or self.is_distributed_loading_by_transformers

    def write_samples(self) -> None:
        """Hook that writes greedy and sampled continuations of validation prompts to `samples.jsonl` and console."""
        model, synced = self.unwrapped_model, self.is_sharded and self.args.world_size > 1
        runs = self.is_sharded or self.is_world_process_zero()  # one process is enough if it has all parameters
        if self.processing_class is None or not model.can_generate() or not runs:
            return
        if self._prompts is None:
            limit = getattr(model.config, "max_position_embeddings", None)
            longest = self.args.sample_prompt_tokens
            if limit is not None:
                longest = min(longest, limit - 1)
            self._prompts = choose_prompts(self.spread_validation_rows(self.args.sample_prompts), longest)
        seed = self.args.seed + self.state.global_step
        samples = continue_prompts(
            model, self.processing_class, self._prompts, self.args.sample_new_tokens, seed, self.args.device, synced
        )
        if self.is_world_process_zero():
            for texts in samples:
                write_texts(texts, self.state.global_step, self.run_folder, self.console)

    def spread_validation_rows(self, count: int) -> list[dict[str, Any]]:
        """Return the rows of [`spread_rows`] for the (first) validation set."""
        return spread_rows(self.eval_dataset, count) if self.eval_dataset is not None else []


def named_losses(outputs: Any) -> dict[str, torch.Tensor]:
    """Return the fields of a model output whose names end in `_loss`, such as `lm_loss`, and those in fields that are
    dictionaries."""
    inside = [item for value in outputs.values() if isinstance(value, dict) for item in value.items()]
    return {name: value for name, value in (*outputs.items(), *inside) if name.endswith("_loss")}
