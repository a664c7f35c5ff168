"""The command line: `latentlm COMMAND …`, each command in the module of its name.

These modules import nothing heavy at the top, and `latentlm` itself nothing at all when help is asked for: `--help`
does not wait for torch.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence

from latentlm import __version__

COMMANDS = {
    "train": "train a model from a recipe",
    "publish": "push a run folder or one of its checkpoints to the Hub",
    "quickstart": "train the smallest model for a few minutes, and load it where latentlm is not installed",
    "tokenizer": "build, prune, check and analyse FSQ tokenizers",
    "noise": "learn tables of realistic noise from pairs of noisy and clean text",
    "inspect": "show the segments into which a model cuts a text",
    "compare": "make the comparison of all architectures from records, or add to it",
    "evaluate": "run lm-eval with these models and their tasks",
}
USAGE = "usage: latentlm COMMAND …    (latentlm COMMAND --help lists its fields)\n\n" + "\n".join(
    f"  {name:12}{what}" for name, what in COMMANDS.items()
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `latentlm`; mistakes in the input end with a message and exit status 1."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in ("-h", "--help"):
        print(USAGE)
        return
    if command == "--version":
        print(f"latentlm {__version__}")
        return
    if command not in COMMANDS:
        [nearest] = difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0.0)
        sys.exit(f"latentlm: command {command!r} is unknown; did you mean {nearest!r}?\n\n{USAGE}")
    importlib.import_module(f"latentlm.cli.{command}").main(rest)
