"""The execution of a recipe, from its data to the finished model."""

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from transformers import TrainerCallback, set_seed
from transformers.utils import logging

from latentlm.architectures import architecture, resolve
from latentlm.data import PreparedData
from latentlm.runs import Recipe, RecipeError
from latentlm.runs.checkpoints import checkpoint_step
from latentlm.runs.redaction import redact
from latentlm.runs.run_folder import (
    RESULTS_FILE,
    check_data,
    find_start,
    first_and_last,
    folder_of,
    only_process_of,
    open_run_folder,
    plot_curves,
    read_metrics,
    write_results,
)

from .trainer import LatentTrainer


def load_data(recipe: Recipe) -> PreparedData:
    """Return the data of a recipe.

    Raises:
        RecipeError: if the text cannot be found or read, is too short, or does not fit the model.
    """
    limit = recipe.max_position_embeddings
    limits = {} if limit is None else {"max_position_embeddings": limit}
    try:
        return resolve(architecture(recipe.model_type).prepare)(recipe.data, **limits)
    except (ValueError, TypeError, OSError) as error:
        raise RecipeError(f"data: {error}") from error


def build_trainer(recipe: Recipe, data: PreparedData, callbacks: Sequence[TrainerCallback] = ()) -> LatentTrainer:
    """Return the trainer of a recipe, with its model. The same seed gives the same model."""
    arguments = recipe.training
    set_seed(arguments.seed)
    trainer_class: type[LatentTrainer] = architecture(recipe.model_type).trainer_class
    model = recipe.build_model(data.tokenizer, trainer_class.auto_class)
    try:
        return trainer_class(
            model=model,
            args=arguments,
            train_dataset=data.train,
            eval_dataset=data.validation,
            processing_class=data.tokenizer,
            token_bytes=data.token_bytes,
            callbacks=list(callbacks),
        )
    except ValueError as error:
        raise RecipeError(f"training: {error}") from error


def train(recipe: Recipe, callbacks: Sequence[TrainerCallback] = ()) -> LatentTrainer:
    """Train a recipe to its end, from its last checkpoint if there is one, and save the finished model."""
    logging.disable_progress_bar()  # the progress bar of saving would disturb that of the run
    try:
        recipe.training.check_files()
        recipe.training.check_trackers()
    except ValueError as error:
        raise RecipeError(f"training: {error}") from error
    folder = folder_of(recipe.training)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        raise RecipeError(f"training.output_dir {folder}: there is no permission to write to {existing}")
    start = find_start(recipe)
    data = load_data(recipe)
    if start is not None:
        check_data(start, data.info)
    trainer = build_trainer(recipe, data, callbacks)
    with only_process_of(folder) if trainer.is_world_process_zero() else nullcontext():
        run(trainer, recipe, data, start)
    return trainer


def run(trainer: LatentTrainer, recipe: Recipe, data: PreparedData, start: Path | None) -> None:
    """Train from a checkpoint, or from the start, save the finished model, and publish it if the recipe says so."""
    if start is not None:
        trainer.check_start(start)  # before anything is written
    if trainer.is_world_process_zero():
        open_run_folder(recipe, data.info, recipe.training.world_size, recipe.training.device, data.files)
    trainer.accelerator.wait_for_everyone()
    if start is not None and trainer.is_world_process_zero():
        trainer.console.print(f"Continuing from {start}.", highlight=False)
    trainer.train(resume_from_checkpoint=start)
    trainer.save_model(_internal_call=True)
    if trainer.is_world_process_zero():
        trained = trainer.state.global_step > (checkpoint_step(start) if start else 0)
        results = folder_of(trainer.args) / RESULTS_FILE
        known = json.loads(results.read_text(encoding="utf-8"))["steps"] if results.exists() else None
        if trained or known != trainer.state.global_step:
            write_results(trainer)
        report(trainer)
    if recipe.training.push_to_hub:
        commit = trainer.push_to_hub()
        if commit is not None:
            print(redact(f"Published: {commit.repo_url}"))
    # Without this barrier, the destructor of the process group can wait forever: it holds Python's lock, which the
    # threads of gloo need to release their last tensors.
    trainer.accelerator.wait_for_everyone()


def report(trainer: LatentTrainer) -> None:
    """Print the first and last losses and bits per byte of a run, and the paths of its results."""
    run_folder = Path(str(trainer.args.output_dir))
    for row in first_and_last(read_metrics(run_folder)):
        label = row["name"].replace("_", " ")
        steps = f"step {row['first_step']} → {row['last_step']}"
        print(f"{row['text']}, {steps}: {label} {row['first']:.4f} → {row['last']:.4f}")
    print(f"Curves: {plot_curves(run_folder)}")
    print(f"Model, tokenizer and code: {run_folder}")
