"""The quick start: train the smallest model for a few minutes, and load it where latentlm is not installed.

    python -m latentlm.quickstart [--minutes 4] [--prompt "The import statement"] [--any_field value ...]

Trains hub_configs/ar-encoder-decoder-tiny on the documentation inside the installed Python, which needs no download,
until all steps are done or the time is up. Run again, it continues from the last checkpoint. Every field of the recipe
can be given: --output_dir runs/mine --learning_rate 1e-3
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from transformers import TrainerCallback

from latentlm.runs import CheckpointError, Recipe, RecipeError, load_recipe
from latentlm.runs.redaction import redact
from latentlm.train import parse_command_line, train

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


class TimeLimit(TrainerCallback):
    """Ends training before the time is up, with an evaluation and a complete checkpoint.

    Args:
        minutes: for everything from the first step to the last evaluation and checkpoint. A step that has begun is
            finished, so at least one is done.
    """

    def __init__(self, minutes: float):
        self.seconds = 60 * minutes
        self.longest_pause = 0.05 * self.seconds  # between two steps: evaluation, samples, checkpoint
        self.steps = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = self.step_ended = time.monotonic()

    def on_step_begin(self, args, state, control, **kwargs):
        self.longest_pause = max(self.longest_pause, time.monotonic() - self.step_ended)

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1
        self.step_ended = time.monotonic()
        if self.step_ended - self.started + self.longest_pause >= self.seconds:
            control.should_log = control.should_evaluate = control.should_save = control.should_training_stop = True
        return control


def load_quickstart(arguments: Sequence[str]) -> tuple[Recipe, float, str]:
    """Recipe, minutes and prompt of a command line."""
    path, overrides = parse_command_line(arguments)
    if path is not None:
        raise RecipeError(f"unexpected argument {path!r}; a recipe of your own: python -m latentlm.train RECIPE.yaml")
    recipe_file = Path(__file__).resolve().parents[2] / RECIPE
    if not recipe_file.is_file():
        raise RecipeError(
            f"no {recipe_file}; the quick start runs in a clone of the repository (make quickstart). "
            "Elsewhere: python -m latentlm.train RECIPE.yaml"
        )
    given = overrides.pop("minutes", MINUTES)
    try:
        minutes = float(given)
    except (TypeError, ValueError):
        minutes = 0.0
    if not minutes > 0:
        raise RecipeError(f"--minutes is {given!r}, but it must be a number above 0.")
    prompt = overrides.pop("prompt", PROMPT)
    return load_recipe(recipe_file, {"output_dir": OUTPUT_DIR, **overrides}), minutes, str(prompt)


def train_for(recipe: Recipe, minutes: float) -> None:
    """Train until all steps are done or the time is up, and say which."""
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
        sys.exit(f"latentlm.quickstart: generating from {folder} without latentlm failed:\n{done.stderr}")
    print(f"\n{done.stdout}", end="")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; every failure ends with a message and an exit status other than 0."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    try:
        recipe, minutes, prompt = load_quickstart(arguments)
        train_for(recipe, minutes)
        generate_without_latentlm(recipe.training.output_dir, prompt)
    except (RecipeError, CheckpointError, OSError) as error:
        sys.exit(redact(f"latentlm.quickstart: {error}"))
    except KeyboardInterrupt:
        sys.exit("latentlm.quickstart: interrupted. The same command continues from the last checkpoint.")


if __name__ == "__main__":
    main()
