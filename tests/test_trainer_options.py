"""What people give to Trainer, given to LatentTrainer and its subclasses: it works as documented, or it is refused."""

import ast
import inspect
import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, Case, token_ids
from encodzall_setup import build as build_encodzall
from rich.console import Console
from rich.progress import Progress
from test_encodzall_training import rows_of as encodzall_rows
from test_fsq_training import CHUNKS
from test_fsq_training import rows_of as chunk_rows
from test_fsq_training import small as small_autoencoder
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from training_setup import Rows, make_model, make_trainer, metrics_of, weights_of
from transformers import MambaConfig, MambaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import latentlm
from latentlm import training
from latentlm.architectures import architecture
from latentlm.data.packing import stack_rows
from latentlm.runs import LatentTrainingArguments
from latentlm.runs.arguments import FIXED_OPTIONS
from latentlm.training import LatentTrainer
from latentlm.training.private_methods import PRIVATE_METHODS
from latentlm.training.rows import EndlessStream, fill_rounds

TEXTS = ["Words of a text.", "Some more of them.", "a", "The last words are here."]


class TokenRows(Dataset):
    """Rows of 12 ids for the tiny models of the table; one has no label at all."""

    def __init__(self, count: int):
        self.ids = token_ids(count, 12, seed=3)
        self.labels = self.ids.clone()
        self.labels[1] = -100

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.labels[index]}


class Streamed(IterableDataset):
    def __init__(self, rows: Dataset):
        self.rows = rows

    def __iter__(self):
        return (self.rows[index] for index in range(len(self.rows)))


def model_and_rows(model_type: str) -> tuple[nn.Module, Dataset]:
    if model_type == "encodzall":
        return build_encodzall(), encodzall_rows(TEXTS)
    if model_type == "fsq_autoencoder":
        return small_autoencoder(), chunk_rows(CHUNKS, [1] * len(CHUNKS))
    architecture = next(row for row in ARCHITECTURES if row.name == model_type)
    return Case(architecture, architecture.typical).model(), TokenRows(5)


def trainer_for(folder: Path, model: nn.Module, options: dict[str, Any] | None = None, **arguments: Any) -> Trainer:
    trainer_class = architecture(model.config.model_type).trainer_class
    defaults = {"output_dir": str(folder), "sample_prompts": 0, "disable_tqdm": True, "report_to": "none"}
    return trainer_class(model=model, args=trainer_class.arguments_class(**defaults | arguments), **options or {})


def labels_of(rows: Dataset) -> np.ndarray:
    return np.stack([np.asarray(rows[index]["labels"]) for index in range(len(rows))])


# ---- Each row once ----


@pytest.mark.parametrize("stream", [False, True], ids=["rows", "stream"])
@pytest.mark.parametrize("model_type", latentlm.ARCHITECTURES)
def test_metrics_and_predictions_get_each_row_once(tmp_path, model_type, stream):
    model, rows = model_and_rows(model_type)
    seen = []

    def compute_metrics(prediction) -> dict[str, float]:
        seen.append(prediction)
        return {"rows": len(prediction.predictions)}

    dataset = Streamed(rows) if stream else rows
    for batch in (2, 3, 8):  # of 4 or 5 rows: the last batch is full, partly filled, or the only one
        options = {"eval_dataset": dataset, "compute_metrics": compute_metrics}
        trainer = trainer_for(tmp_path, model, options, per_device_eval_batch_size=batch)
        metrics = trainer.evaluate()
        output = trainer.predict(dataset)
        assert metrics["eval_rows"] == output.metrics["test_rows"] == len(rows)
        assert metrics["eval_loss"] == pytest.approx(output.metrics["test_loss"], rel=1e-5)
        np.testing.assert_array_equal(seen[-1].label_ids, labels_of(rows))
        np.testing.assert_array_equal(seen[-2].label_ids, labels_of(rows))
        assert output.predictions.shape[0] == len(rows)
        assert metrics["eval_samples_per_second"] / metrics["eval_steps_per_second"] == pytest.approx(
            len(rows) / -(-len(rows) // batch), rel=0.02
        )


@pytest.mark.parametrize(
    "arguments",
    [
        {"eval_accumulation_steps": 1},
        {"eval_do_concat_batches": False},
        {"batch_eval_metrics": True},
        {"include_for_metrics": ["inputs"]},
        {"dataloader_drop_last": True},
        {"train_sampling_strategy": "group_by_length"},
        {"train_sampling_strategy": "batch_rebalance"},
    ],
    ids=str,
)
def test_options_of_the_evaluation_loop(tmp_path, arguments):
    """With each of them, `compute_metrics` and `preprocess_logits_for_metrics` see the rows that are there."""
    rows, predictions_seen = Rows(11, seed=1), []

    def compute_metrics(prediction, compute_result: bool = True) -> dict[str, float]:
        predictions_seen.append(prediction)
        parts = [np.concatenate(p) if isinstance(p, list) else np.asarray(p) for p in prediction]
        return {"right": float((parts[0][:, :-1] == parts[1][:, 1:]).sum()), "rows": len(parts[0])}

    options = {
        "compute_metrics": compute_metrics,
        "preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1),
    }
    model = make_model()
    trainer = make_trainer(tmp_path, model, evaluation=rows, options=options, **arguments)
    metrics = trainer.evaluate()
    with torch.no_grad():
        batch = torch.stack([rows[i]["input_ids"] for i in range(11)])
        predictions = model(batch).logits.argmax(-1)
    labels = torch.stack([rows[i]["labels"] for i in range(11)])
    if trainer.args.batch_eval_metrics:
        assert [len(prediction.predictions) for prediction in predictions_seen] == [4, 4, 3]
        predictions, labels = predictions[8:], labels[8:]
    assert metrics["eval_rows"] == len(labels)
    assert metrics["eval_right"] == (predictions[:, :-1] == labels[:, 1:]).sum()
    if trainer.args.include_for_metrics:
        np.testing.assert_array_equal(predictions_seen[0].inputs, batch)


def test_a_loop_over_filled_rows_ends():
    """A sampler by length reads all rows, and knows no length of the dataset."""
    filled = iter(fill_rounds(Rows(5), 4))
    assert sum(1 for _ in itertools.islice(filled, 20)) == 8


def test_rows_without_labels_are_refused(tmp_path):
    rows = [{"input_ids": torch.arange(10)} for _ in range(3)]
    with pytest.raises(ValueError, match="the rows to evaluate have no `labels`, only input_ids"):
        make_trainer(tmp_path).predict(rows)


def test_rows_without_positions_are_one_document_each(tmp_path):
    rows = [{"input_ids": list(range(10)), "labels": list(range(10))} for _ in range(3)]
    trainer = make_trainer(tmp_path, evaluation=rows, sample_prompts=2, sample_new_tokens=3)
    trainer.processing_class = latentlm.ByteTokenizer()
    trainer.evaluate()
    lines = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == [bytes(range(10)).decode()] * 2


def test_an_evaluation_without_rows_says_so(tmp_path):
    with pytest.raises(ValueError, match="there are no rows to evaluate"):
        make_trainer(tmp_path, evaluation=Rows(0)).evaluate()


class ReadOnce(IterableDataset):
    def __init__(self, rows: list):
        self.rows = iter(rows)

    def __iter__(self):
        return self.rows


@pytest.mark.parametrize(("count", "message"), [(0, "has no rows"), (3, "can be read only once")])
def test_a_stream_that_ends_for_good_is_an_error(count, message):
    rows = iter(EndlessStream(ReadOnce(list(range(count)))))
    assert [next(rows) for _ in range(count)] == list(range(count))
    with pytest.raises(ValueError, match=rf"train_dataset \(ReadOnce\) {message}"):
        next(rows)


def test_a_worker_without_a_part_of_a_stream_reads_nothing():
    """`datasets` divides a stream by its files: here the second worker has none."""
    rows = datasets.Dataset.from_dict({"row": [0, 1, 2]}).to_iterable_dataset()
    loader = DataLoader(EndlessStream(rows), batch_size=None, num_workers=2)
    assert [row["row"] for row in itertools.islice(loader, 5)] == [0, 1, 2, 0, 1]


def test_a_shuffled_stream_has_another_order_in_each_pass_and_the_same_ones_again():
    shuffled = datasets.Dataset.from_dict({"row": list(range(20))}).to_iterable_dataset().shuffle(0, buffer_size=20)
    stream = EndlessStream(shuffled)
    first, again = ([row["row"] for row in itertools.islice(stream, 40)] for _ in range(2))
    assert sorted(first[:20]) == sorted(first[20:]) == list(range(20))
    assert first[:20] != first[20:] and again == first


# ---- Samples and the progress bar ----


def test_samples_of_a_model_without_a_longest_context(tmp_path):
    config = MambaConfig(hidden_size=8, num_hidden_layers=1, state_size=2, vocab_size=259)
    assert not hasattr(config, "max_position_embeddings")
    options = {"sample_prompts": 1, "sample_prompt_tokens": 4, "sample_new_tokens": 3}
    trainer = make_trainer(tmp_path, MambaForCausalLM(config), **options)
    trainer.write_samples()
    [line] = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert {"prompt", "greedy", "sampled"} <= json.loads(line).keys()


@pytest.mark.parametrize("sharded", [False, True])
def test_encodzall_writes_no_samples_where_a_process_has_a_part_of_the_weights(tmp_path, monkeypatch, sharded):
    """By FSDP, or as transformers divides a model while it loads it."""
    model, rows = model_and_rows("encodzall")
    options = {"eval_dataset": rows, "processing_class": latentlm.EncodzallTokenizer()}
    trainer = trainer_for(tmp_path, model, options, sample_prompts=1)
    monkeypatch.setattr(type(trainer), "is_sharded", sharded)
    trainer.write_samples()
    assert (tmp_path / "samples.jsonl").exists() != sharded


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_progress_bar_is_taken_away_whatever_ends_a_run(tmp_path, error):
    """It hides the cursor, and redirects what is printed."""

    class Failing(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            raise error

    trainer = make_trainer(tmp_path, options={"callbacks": [Failing()]})
    terminal = io.StringIO()
    trainer._progress.progress = Progress(console=Console(file=terminal, force_terminal=True))
    with pytest.raises(error):
        trainer.train()
    shown = terminal.getvalue()
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor is hidden and shown


# ---- Arguments of the constructor ----

WORKS = {
    *("model", "args", "data_collator", "train_dataset", "eval_dataset", "processing_class", "callbacks"),
    *("compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics"),
    *("optimizers", "optimizer_cls_and_kwargs"),
}
"""Tested in this file, or by every test that trains."""


def test_every_argument_of_trainer_is_known():
    """A new one has to be tried: it works, or it is refused."""
    assert set(inspect.signature(Trainer.__init__).parameters) == WORKS | {"self", "model_init"}


@pytest.mark.parametrize("model_type", latentlm.ARCHITECTURES)
def test_arguments_that_would_be_passed_over_are_refused(tmp_path, model_type):
    model, _ = model_and_rows(model_type)
    trainer_class = architecture(model_type).trainer_class
    arguments = trainer_class.arguments_class(str(tmp_path), report_to="none")
    with pytest.raises(ValueError, match="model_init would build the model anew"):
        trainer_class(model_init=lambda: model, args=arguments)
    for wrong in (None, TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)):
        with pytest.raises(ValueError, match=f"args is .* reads fields of {trainer_class.arguments_class.__name__}"):
            trainer_class(model=model, args=wrong)


def test_context_parallel_evaluations_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(LatentTrainer, "get_cp_size", lambda self: 2)
    with pytest.raises(ValueError, match="cp_size is 2"):
        make_trainer(tmp_path)


@pytest.mark.parametrize("model_type", latentlm.ARCHITECTURES)
def test_compute_loss_func_is_what_is_trained_on(tmp_path, model_type):
    """Twice the model's loss in place of it: twice the gradient, with the model's own terms logged beside."""
    model, rows = model_and_rows(model_type)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    logs, moved = {}, {}

    def twice(outputs, labels, num_items_in_batch=None) -> torch.Tensor:
        assert labels.shape[0] == 2 and num_items_in_batch > 0
        return 2 * outputs["loss"]

    for name, function in (("own", None), ("twice", twice)):
        model.load_state_dict(start)
        trainer = trainer_for(
            tmp_path / name, model, {"train_dataset": rows, "compute_loss_func": function},
            max_steps=1, logging_steps=1,
            per_device_train_batch_size=2, gradient_accumulation_steps=2, optim="sgd", learning_rate=1e-3,
            max_grad_norm=0.0, save_strategy="no", lr_scheduler_type="constant",
        )  # fmt: skip
        before = weights_of(trainer)
        trainer.train()
        moved[name] = torch.cat([(value - before[name]).flatten() for name, value in weights_of(trainer).items()])
        logs[name] = metrics_of(tmp_path / name)[0]
    torch.testing.assert_close(moved["twice"], 2 * moved["own"], rtol=1e-2, atol=1e-6)
    assert moved["own"].norm() > 0
    assert logs["twice"]["loss"] == pytest.approx(2 * logs["own"]["loss"], rel=1e-5)
    for name in logs["own"]:
        if name.endswith("_loss"):
            assert logs["twice"][name] == pytest.approx(logs["own"][name], rel=1e-5)


def test_the_given_optimizer_and_schedule_are_used(tmp_path):
    for number, argument in enumerate(("optimizers", "optimizer_cls_and_kwargs")):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        options = {
            "optimizers": {"optimizers": (optimizer, schedule)},
            "optimizer_cls_and_kwargs": {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.25})},
        }
        trainer = make_trainer(
            tmp_path / str(number), model, options=options[argument], max_steps=1, lr_scheduler_type="constant"
        )
        trainer.train()
        assert isinstance(trainer.optimizer.optimizer, torch.optim.SGD)
        assert trainer.state.log_history[0]["learning_rate"] == 0.25


# ---- Options of the training arguments ----

REFUSED = [
    ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is 0.1, but .* it must be 0"),
    ({"average_tokens_across_devices": False}, "average_tokens_across_devices is False, but .* it must be True"),
    ({"label_names": ["input_ids"]}, r"label_names is \['input_ids'\], but .* it must be None"),
    ({"use_liger_kernel": True}, "use_liger_kernel is True, but .* it must be False"),
    ({"auto_find_batch_size": True}, "auto_find_batch_size is True, but .* it must be False"),
    ({"enable_jit_checkpoint": True}, "enable_jit_checkpoint is True, but .* it must be False"),
    ({"eval_use_gather_object": True}, "eval_use_gather_object is True, but .* it must be False"),
    ({"include_for_metrics": ["loss"]}, "include_for_metrics holds 'loss'"),
    ({"include_for_metrics": ["inputs"], "batch_eval_metrics": True}, "include_for_metrics holds 'inputs'"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=lambda value: str(value))
def test_options_without_effect_are_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        LatentTrainingArguments(str(tmp_path), **fields)


def test_every_fixed_option_is_tried():
    assert FIXED_OPTIONS.keys() <= {name for fields, _ in REFUSED for name in fields}


@pytest.mark.parametrize("model_type", latentlm.ARCHITECTURES)
def test_noise_on_embeddings_has_an_effect(tmp_path, model_type):
    """NEFTune hooks the module that `get_input_embeddings` names: that one must be called."""
    model, rows = model_and_rows(model_type)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    losses = []
    if model_type == "encodzall":
        with pytest.raises(ValueError, match="neftune_noise_alpha is 50"):
            trainer_for(tmp_path, model, neftune_noise_alpha=50.0)
        return
    for alpha in (None, 50.0):
        model.load_state_dict(start)
        trainer = trainer_for(
            tmp_path / str(alpha), model, {"train_dataset": rows}, max_steps=1, logging_steps=1, save_strategy="no",
            neftune_noise_alpha=alpha,
        )  # fmt: skip
        trainer.train()
        losses.append(metrics_of(tmp_path / str(alpha))[0]["loss"])
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


# ---- Private methods of Trainer ----


def private_names() -> set[str]:
    """Methods of `Trainer` with a leading underscore that latentlm, but for its models, defines or uses."""
    package = Path(latentlm.__file__).parent
    files = [path for path in package.rglob("*.py") if path.parent.name != "models"]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return {name for name in names if re.match("_[^_]", name) and inspect.isfunction(getattr(Trainer, name, None))}


def test_the_list_of_private_methods_is_complete():
    assert private_names() == PRIVATE_METHODS.keys()


@pytest.mark.parametrize("name", sorted(PRIVATE_METHODS))
def test_trainer_still_has_and_calls_a_private_method(name):
    """One that is gone, or that nobody calls, would leave what is written here without effect."""
    assert f"self.{name}(" in inspect.getsource(Trainer)
    parameters = list(inspect.signature(getattr(Trainer, name)).parameters)
    for trainer_class in {LatentTrainer, *(row.trainer_class for row in latentlm.ARCHITECTURES.values())}:
        ours = inspect.signature(getattr(trainer_class, name)).parameters
        passed_on = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in ours.values())
        assert passed_on or list(ours) == parameters


# ---- Hooks of LatentTrainer ----

HOOKS = {
    *(
        "arguments_class",
        "auto_class",
        "extra_columns",
        "prepares_on_cpu",
        "predicted",
        "prepare_batch",
        "after_training_forward",
    ),
    *("training_logs", "evaluation_counts", "evaluation_results", "write_samples"),
}


def test_hooks_are_documented():
    for hook in HOOKS:
        assert re.search(rf"^        {hook}[(:]", LatentTrainer.__doc__, re.MULTILINE), hook


@pytest.mark.parametrize("name", [name for name in training.__all__ if name.endswith("Trainer")])
def test_subclasses_override_hooks_alone(name):
    trainer_class = getattr(training, name)
    if trainer_class is LatentTrainer:
        return
    own = {name for name in vars(trainer_class) if hasattr(LatentTrainer, name)}
    assert own - HOOKS <= {name for name in own if name.startswith("__")}


@pytest.mark.parametrize("stream", [False, True], ids=["rows", "stream"])
def test_batches_that_processes_join_have_equal_keys(tmp_path, monkeypatch, stream):
    """A stream is read by one process for all, and accelerate joins its batches by the keys of the first."""
    trainer = make_trainer(tmp_path)
    rows = [{"input_ids": torch.arange(4), "position_ids": torch.tensor([0, 1, *end])} for end in ([2, 3], [0, 1])]
    dataset = Streamed(rows) if stream else rows
    monkeypatch.setattr(type(trainer.args), "world_size", 2)
    loader = trainer._get_dataloader(dataset, "Training", 1, is_training=True)
    assert ("position_ids" in loader.collate_fn(rows[:1])) == stream
    assert trainer.data_collator is stack_rows
