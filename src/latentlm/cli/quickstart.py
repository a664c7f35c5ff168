"""The quick start: train the smallest model for a few minutes, and load it where latentlm is not installed.

    latentlm quickstart [--minutes 4] [--prompt "The import statement"] [--any_field value ...]

Trains hub_configs/ar-encoder-decoder-tiny on the documentation inside the installed Python, which needs no download,
until all steps are done or the time is up. Run again, it continues from the last checkpoint. Every field of the recipe
can be given: --output_dir runs/mine --learning_rate 1e-3
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import parse_command_line

if TYPE_CHECKING:
    from latentlm.runs import Recipe

RECIPE = Path("hub_configs") / "ar-encoder-decoder-tiny" / "recipe.yaml"
OUTPUT_DIR = "runs/quickstart"
MINUTES = 4.0
PROMPT = "The import statement"
# What anyone does with the finished model; here in a process that cannot import latentlm.
LOAD_AND_GENERATE = """
import sys
sys.modules["latentlm"] = None  # `import latentlm` now raises ImportError

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, prompt = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
print(f"Loaded {type(model).__name__} from {folder} without latentlm. It continues {prompt!r}:", end="\\n\\n")
torch.manual_seed(0)
inputs = tokenizer(prompt, return_tensors="pt")
room = model.config.max_position_embeddings - inputs.input_ids.shape[1]
output = model.generate(**inputs, max_new_tokens=min(200, room), do_sample=True, temperature=0.7)
print(tokenizer.decode(output[0], skip_special_tokens=True))
"""


def recipe_file() -> Path:
    """The recipe, which is there in a clone of the repository."""
    return Path(__file__).resolve().parents[3] / RECIPE


def load_quickstart(arguments: Sequence[str]) -> tuple["Recipe", float, str]:
    """Recipe, minutes and prompt of a command line."""
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
    return load_recipe(recipe_file(), {"output_dir": OUTPUT_DIR, **overrides}), minutes, str(prompt)


def train_for(recipe: "Recipe", minutes: float) -> None:
    """Train until all steps are done or the time is up, and say which."""
    from latentlm.training.run import train
    from latentlm.training.time_limit import TimeLimit

    limit = TimeLimit(minutes)
    state = train(recipe, callbacks=[limit]).state
    if not limit.steps:
        print(f"All {state.max_steps} steps were done before; nothing was left to train.")
    elif state.global_step < state.max_steps:
        print(
            f"The {minutes:g} minutes were over after step {state.global_step} of {state.max_steps}. "
            "Run the same command again: it continues."
        )
    else:
        print(f"All {state.max_steps} steps are done.")


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
    from latentlm.runs import CheckpointError, RecipeError
    from latentlm.runs.redaction import redact

    try:
        recipe, minutes, prompt = load_quickstart(arguments)
        train_for(recipe, minutes)
        generate_without_latentlm(str(recipe.training.output_dir), prompt)
    except (RecipeError, CheckpointError, OSError) as error:
        sys.exit(redact(f"latentlm quickstart: {error}"))
    except KeyboardInterrupt:
        sys.exit("latentlm quickstart: interrupted. The same command continues from the last checkpoint.")
