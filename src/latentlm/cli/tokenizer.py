"""Build, prune, check and analyse FSQ tokenizers.

    latentlm tokenizer build RUN OUT [--segmentation fewest|unigram]   # from an autoencoder trained on pieces
    latentlm tokenizer rebuild RUN OUT               # after joint training: model and tokenizer, a new table
    latentlm tokenizer prune TOKENIZER TEXT OUT --keep 8192   # a smaller vocabulary: what TEXT uses most
    latentlm tokenizer check TOKENIZER [TEXT ...]    # losslessness, slow against fast, bytes per token
    latentlm tokenizer analyse TOKENIZER TEXT OUT    # use of vocabulary and codes, as tables and figures

The autoencoder is trained by `latentlm train hub_configs/fsq-tokenizer-tiny/recipe.yaml`, which also chooses the
pieces; that run resumes where it was killed, and everything here takes seconds to minutes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .arguments import check_place

RUN = "folder of the trained run"
TOKENIZER = "folder of the tokenizer"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "latentlm tokenizer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, **folders: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        for folder, what in folders.items():
            command.add_argument(folder, type=Path, help=what)
        return command

    add("build", run=RUN, out="folder of the tokenizer to write").add_argument(
        "--segmentation",
        choices=("fewest", "unigram"),
        default="fewest",
        help="a text becomes the fewest tokens, or the likeliest ones of a unigram model",
    )
    add("rebuild", run=RUN, out="folder of the model and tokenizer to write")
    add("prune", tokenizer=TOKENIZER, text="text file", out="folder of the tokenizer to write").add_argument(
        "--keep",
        type=int,
        required=True,
        default=argparse.SUPPRESS,
        help="size of the vocabulary that is left, at least 260: bytes, special tokens and the pieces used most",
    )
    add("check", tokenizer=TOKENIZER).add_argument("text", type=Path, nargs="*", help="text files to check it on")
    add("analyse", tokenizer=TOKENIZER, text="text file", out="folder of analysis.md and its figures")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; mistakes in the input end with a message and exit status 1, not with a traceback."""
    options = build_parser().parse_args(arguments)
    from latentlm.evaluation.tokenizers import analyse_tokenizer, check_tokenizer
    from latentlm.training.fsq_tokenizer import build, prune, rebuild

    try:
        check_place(options.run if "run" in options else options.tokenizer)
        if options.command == "build":
            build(options.run, options.out, options.segmentation)
        elif options.command == "rebuild":
            rebuild(options.run, options.out)
        elif options.command == "prune":
            prune(options.tokenizer, options.text, options.out, options.keep)
        elif options.command == "check":
            check_tokenizer(options.tokenizer, options.text)
        else:
            analyse_tokenizer(options.tokenizer, options.text, options.out)
    except (ValueError, OSError) as error:
        sys.exit(f"latentlm tokenizer: {error}")
    if options.command in ("build", "rebuild", "prune"):
        print(f"Tokenizer: {options.out}")
