"""Train a model from a recipe.

    python -m latentlm.train RECIPE.yaml [--field value ...]
    accelerate launch -m latentlm.train RECIPE.yaml [--field value ...]
    python -m latentlm.train --resume_from_checkpoint runs/x/checkpoint-100      # with the recipe stored there

Every field of a recipe's three sections can be given: --learning_rate 1e-3, --hidden_size 128, --dataset text.txt, or
with its section where a name exists twice: --model.use_cache false. Run again, the command continues where it stopped.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, set_seed
from transformers.utils import logging

from latentlm.data import ChunkConfig, PreparedData, TextConfig, prepare_chunks, prepare_data, prepare_texts
from latentlm.hub.files import PublishError
from latentlm.runs import CheckpointError, Recipe, RecipeError, load_recipe
from latentlm.runs.checkpoints import checkpoint_step
from latentlm.runs.redaction import redact
from latentlm.runs.run_folder import (
    check_data,
    find_start,
    open_run_folder,
    plot_curves,
    read_metrics,
    stored_recipe_of,
    write_results,
)
from latentlm.training import TRAINERS, CodeCollapseError, LatentTrainer


def parse_command_line(arguments: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
    """Recipe path (if given) and overrides: `--name value`, `--name=value`, `--flag`, `--list a b`."""
    path, overrides, name = None, {}, None
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            name = name.replace("-", "_")
            if name in overrides:
                raise RecipeError(f"--{name} is given twice.")
            overrides[name] = [value] if equals else []
            name = None if equals else name
        elif name is not None:
            overrides[name].append(argument)
        elif path is None:
            path = argument
        else:
            raise RecipeError(f"unexpected argument {argument!r}; fields are written --name value.")
    single = {name: values[0] if len(values) == 1 else values or "true" for name, values in overrides.items()}
    return path, single


def recipe_from_command_line(arguments: Sequence[str]) -> Recipe:
    path, overrides = parse_command_line(arguments)
    if path is None:
        checkpoint = overrides.get("resume_from_checkpoint") or overrides.get("training.resume_from_checkpoint")
        if not isinstance(checkpoint, str):
            raise RecipeError("name a recipe, or a checkpoint with --resume_from_checkpoint PATH.")
        path = stored_recipe_of(checkpoint)
        if not {"output_dir", "training.output_dir"} & overrides.keys():
            overrides["output_dir"] = str(Path(path).parent.parent)
    return load_recipe(path, overrides)


def load_data(recipe: Recipe) -> PreparedData:
    try:
        if isinstance(recipe.data, ChunkConfig):
            return prepare_chunks(recipe.data)
        if isinstance(recipe.data, TextConfig):
            return prepare_texts(recipe.data, recipe.max_position_embeddings)
        return prepare_data(recipe.data, recipe.max_position_embeddings)
    except (ValueError, TypeError, OSError) as error:
        raise RecipeError(f"data: {error}") from error


def build_trainer(recipe: Recipe, data: PreparedData, callbacks: Sequence[TrainerCallback] = ()) -> LatentTrainer:
    """Model and trainer of a recipe; the same seed gives the same model."""
    arguments = recipe.training
    set_seed(arguments.seed)
    trainer_class = TRAINERS.get(recipe.model_type, LatentTrainer)
    return trainer_class(
        model=recipe.build_model(data.tokenizer, trainer_class.auto_class),
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=data.tokenizer,
        token_bytes=data.token_bytes,
        callbacks=list(callbacks),
    )


def train(recipe: Recipe, callbacks: Sequence[TrainerCallback] = ()) -> LatentTrainer:
    """Run a recipe to its end, from its last checkpoint on if it has one, and leave the finished model."""
    logging.disable_progress_bar()  # of saving; the run has its own
    start = find_start(recipe)
    data = load_data(recipe)
    if start is not None:
        check_data(start, data.info)
    trainer = build_trainer(recipe, data, callbacks)
    if trainer.is_world_process_zero():
        open_run_folder(recipe, data.info, recipe.training.world_size, recipe.training.device, data.files)
    trainer.accelerator.wait_for_everyone()
    if start is not None and trainer.is_world_process_zero():
        trainer.console.print(f"Continuing from {start}.", highlight=False)
    trainer.train(resume_from_checkpoint=start)
    trainer.save_model(_internal_call=True)
    if trainer.is_world_process_zero():
        if trainer.state.global_step > (checkpoint_step(start) if start else 0):
            write_results(trainer)
        report(trainer)
    if recipe.training.push_to_hub:
        commit = trainer.push_to_hub()
        if commit is not None:
            print(redact(f"Published: {commit.repo_url}"))
    # Also lets gloo's threads release their last tensors: a process group that is destroyed before hangs (the
    # destructor holds Python's lock, which those threads wait for).
    trainer.accelerator.wait_for_everyone()
    return trainer


def report(trainer: LatentTrainer) -> None:
    """Print losses and bits per byte before and after, and where everything lies."""
    run_folder = Path(trainer.args.output_dir)
    metrics = read_metrics(run_folder)
    for kind, key in (("training", "loss"), ("held-out text", "eval_loss")):
        entries = [entry for entry in metrics if key in entry]
        if not entries:
            continue
        first, last = entries[0], entries[-1]
        for name in sorted(last):
            if name.endswith(("_loss", "_bits_per_byte")) and not (name == key and "eval_lm_loss" in last):
                label = name.removeprefix("eval_").replace("_", " ")
                print(f"{kind}, step {first['step']} → {last['step']}: {label} {first[name]:.4f} → {last[name]:.4f}")
    print(f"Curves: {plot_curves(run_folder)}")
    print(f"Model, tokenizer and code: {run_folder}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; mistakes in the input end with a message and exit status 1, not with a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    try:
        recipe = recipe_from_command_line(arguments)
        trainer = train(recipe)
    except (RecipeError, CheckpointError, CodeCollapseError, PublishError) as error:
        sys.exit(redact(f"latentlm.train: {error}"))
    trainer.end()


if __name__ == "__main__":
    main()
