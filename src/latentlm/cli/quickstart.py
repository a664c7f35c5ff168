"""The quick start: train the smallest model for a few minutes, and load it where latentlm is not installed.

    latentlm quickstart [--minutes 4] [--prompt "The import statement"] [--any_field value ...]

Trains hub_configs/ar-encoder-decoder-tiny on the documentation that comes with Python, which needs no download.
A trial of ten seconds first finds out which arithmetic is faster here and how many steps fit into the time; both are
written into the recipe of the run folder, which repeats the run. Run again, the command continues from the last
checkpoint. Every field of the recipe can be given: --output_dir runs/mine --learning_rate 1e-3
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import parse_command_line

if TYPE_CHECKING:
    from latentlm.data import PreparedData
    from latentlm.runs import Recipe

RECIPE = Path("hub_configs") / "ar-encoder-decoder-tiny" / "recipe.yaml"
OUTPUT_DIR = "runs/quickstart"
MINUTES = 4.0
TRIAL_SECONDS = 10.0
PLANNED = ("bf16", "max_steps", "eval_steps", "save_steps")  # what the trial decides
PROMPT = "The import statement"
# What anyone does with the finished model; here in a process that cannot import latentlm.
LOAD_AND_GENERATE = r"""
import sys
sys.modules["latentlm"] = None  # `import latentlm` now raises ImportError

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, prompt = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
print(f"Loaded {type(model).__name__} from {folder} without latentlm.")
room = model.config.max_position_embeddings


def generate(text, new_tokens):
    inputs = tokenizer(text, return_tensors="pt")
    new_tokens = min(new_tokens, room - inputs.input_ids.shape[1])
    sampling = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
    output = model.generate(**inputs, min_new_tokens=new_tokens, max_new_tokens=new_tokens, **sampling)
    return tokenizer.decode(output[0], skip_special_tokens=True)


torch.manual_seed(0)
# A text begins with its title; these go on after it.
beginnings = ("Values\n******\n\nThe value ", "Functions\n*********\n\nA function ", "Exceptions\n**********\n\nIf an ")
for number, beginning in enumerate(beginnings, 1):
    print(f"\n--- Sample {number} of 3 ---\n\n{generate(beginning, 220)}")
print(f"\n--- It continues {prompt!r} ---\n")
print(generate(prompt, 200))
"""


def recipe_file() -> Path:
    """The recipe, which is there in a clone of the repository."""
    return Path(__file__).resolve().parents[3] / RECIPE


def load_quickstart(arguments: Sequence[str]) -> tuple["Recipe", float, str, dict[str, Any]]:
    """Recipe, minutes, prompt and fields of a command line."""
    from latentlm.runs import RecipeError, load_recipe

    path, overrides = parse_command_line(arguments)
    if path is not None:
        raise RecipeError(f"unexpected argument {path!r}; a recipe of your own: latentlm train RECIPE.yaml")
    if not recipe_file().is_file():
        raise RecipeError(
            f"no {recipe_file()}; the quick start runs in a clone of the repository (make quickstart). "
            "Elsewhere: latentlm train RECIPE.yaml"
        )
    value = overrides.pop("minutes", MINUTES)
    try:
        minutes = float(value)
    except (TypeError, ValueError):
        minutes = 0.0
    if not minutes > 0:
        raise RecipeError(f"--minutes is {value!r}, but it must be a number above 0.")
    prompt = overrides.pop("prompt", PROMPT)
    fields = {"output_dir": OUTPUT_DIR, **overrides}
    recipe = load_recipe(recipe_file(), fields)
    if getattr(recipe.data, "streaming", False):
        raise RecipeError("data.streaming is true, but n-grams are counted of all of the text; it must be false.")
    return recipe, minutes, str(prompt), fields


def plan_run(recipe: "Recipe", data: "PreparedData", minutes: float, fields: dict[str, Any]) -> "Recipe":
    """The recipe with what the run in its folder was planned with, or what a trial finds now; fields of the command
    line stay as they are, and with `bf16` and `max_steps` among them there is no trial."""
    from latentlm.runs import load_recipe
    from latentlm.runs.run_folder import folder_of, read_stored_recipe

    chosen = {name.removeprefix("training.") for name in fields}
    if {"bf16", "max_steps"} <= chosen:
        return recipe
    stored = read_stored_recipe(folder_of(recipe.training))
    if stored is not None:
        planned = {name: value for name, value in stored["training"].items() if name in PLANNED}
    else:
        from latentlm.training.speed_trial import plan, time_steps

        times = time_steps(recipe, data, TRIAL_SECONDS)
        planned = plan(recipe, times, minutes)
        speeds = ", ".join(f"{1000 * seconds:.0f} ms in {kind}" for kind, seconds in times.items())
        print(
            f"A step takes {speeds}: {'bfloat16' if planned['bf16'] else 'float32'}, and {planned['max_steps']} steps "
            f"in at most {minutes:g} minutes."
        )
    planned = {f"training.{name}": value for name, value in planned.items() if name not in chosen}
    return load_recipe(recipe_file(), {**fields, **planned})


def train_for(recipe: "Recipe", minutes: float, fields: dict[str, Any]) -> None:
    """Train until all steps are done or the time is up, and say which; beside what a table of counts knows."""
    from latentlm.evaluation.ngram import score_ngram
    from latentlm.runs import RecipeError
    from latentlm.training.run import load_data, train
    from latentlm.training.time_limit import TimeLimit
    from latentlm.training.yardstick import Yardstick

    data = load_data(recipe)
    recipe = plan_run(recipe, data, minutes, fields)
    try:
        score = score_ngram(data)
    except ValueError as error:
        raise RecipeError(f"data: {error}.") from error
    print("Bits per byte: how well the next byte of unseen text is predicted; 8 is a blind guess, less is better.")
    limit, yardstick = TimeLimit(minutes), Yardstick(score.bits_per_byte, score.order)
    state = train(recipe, callbacks=[limit, yardstick]).state
    if not limit.steps:
        print(f"All {state.max_steps} steps were done before; nothing was left to train.")
    elif state.global_step < state.max_steps:
        print(
            f"The {minutes:g} minutes were over after step {state.global_step} of {state.max_steps}. "
            "Run the same command again: it continues."
        )
    else:
        print(f"All {state.max_steps} steps are done.")
    if limit.was_late:
        print("The machine was slower than in the trial: the learning rate was lowered so that it ended in time.")


def generate_without_latentlm(folder: str, prompt: str) -> None:
    """Load the run's model and tokenizer in a process that cannot import latentlm, and print what they generate."""
    command = [sys.executable, "-P", "-X", "utf8", "-c", LOAD_AND_GENERATE, folder, prompt]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        sys.exit(f"latentlm quickstart: generating from {folder} without latentlm failed:\n{done.stderr}")
    print(f"\n{done.stdout}", end="")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; every failure ends with a message and an exit status other than 0."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        from .recipe_help import recipe_help

        print(f"{__doc__}\n{recipe_help([str(recipe_file()), *arguments])}")
        return
    from latentlm.hub.files import PublishError
    from latentlm.runs import CheckpointError, RecipeError
    from latentlm.runs.redaction import redact

    try:
        recipe, minutes, prompt, fields = load_quickstart(arguments)
        train_for(recipe, minutes, fields)
        generate_without_latentlm(str(recipe.training.output_dir), prompt)
    except (RecipeError, CheckpointError, PublishError, OSError) as error:
        sys.exit(redact(f"latentlm quickstart: {error}"))
    except KeyboardInterrupt:
        sys.exit("latentlm quickstart: interrupted. The same command continues from the last checkpoint.")
