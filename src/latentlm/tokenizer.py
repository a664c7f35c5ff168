"""Build, check and analyse FSQ tokenizers.

    python -m latentlm.tokenizer build RUN OUT [--segmentation fewest|unigram]   # from an autoencoder trained on pieces
    python -m latentlm.tokenizer rebuild RUN OUT               # after joint training: model and tokenizer, a new table
    python -m latentlm.tokenizer check TOKENIZER [TEXT ...]    # losslessness, slow against fast, bytes per token
    python -m latentlm.tokenizer analyse TOKENIZER TEXT OUT    # use of vocabulary and codes, as tables and figures

The autoencoder is trained by `python -m latentlm.train hub_configs/fsq-tokenizer-tiny/recipe.yaml`, which also chooses
the pieces; that run resumes where it was killed, and everything here takes seconds to minutes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from latentlm import FSQAutoencoderModel, FSQForCausalLM, FSQTokenizerFast
from latentlm.data.chunks import load_run_pieces
from latentlm.evaluation.tokenizers import analyse_tokenizer, check_tokenizer
from latentlm.models.configuration_fsq import own_fields
from latentlm.models.fsq_vocabulary import FSQVocabulary, spelling_table
from latentlm.training.codes import Codes, assign_codes

SEGMENTATIONS = ("fewest", "unigram")
STEPS_PER_BIT = 16  # of a unigram cost


def build(run: Path, out: Path, segmentation: str = "fewest") -> FSQTokenizerFast:
    """Give every byte and piece of a run a code, and write the tokenizer.

    Args:
        segmentation: a text becomes the "fewest" tokens, or the likeliest ones of a "unigram" model, in which a token
            has the probability with which the pieces' text uses it.

    Raises:
        ValueError: if the run has no pieces, or more of them than there are codes.
        OSError: if there is no trained model in it.
    """
    pieces = load_run_pieces(run)
    autoencoder = FSQAutoencoderModel.from_pretrained(run).eval()
    chunks, lengths = spelling_table([bytes([byte]) for byte in range(256)] + pieces.pieces)
    uses = np.concatenate((pieces.byte_counts, pieces.counts))
    found = assign_codes(autoencoder, chunks, lengths, uses)
    share = uses / max(uses.sum(), 1)
    print(
        f"{len(found.codes):,} bytes and pieces; distinct codes of the encoder: {1 - found.moved.mean():.2%}; spelled "
        f"exactly by the decoder: {found.exact.mean():.2%}, {(share * found.exact).sum():.2%} by use"
    )
    costs = unigram_costs(uses) if segmentation == "unigram" else None
    return write_tokenizer(out, pieces.pieces, pieces.boundary, found, autoencoder, version=1, costs=costs)


def unigram_costs(uses: np.ndarray) -> list[int]:
    """-log2 of the share of each use, in sixteenths of a bit; what is never used counts as half a use."""
    bits = -np.log2(np.maximum(uses, 0.5) / max(uses.sum(), 1))
    return np.maximum(np.rint(STEPS_PER_BIT * bits), 1).astype(int).tolist()


def rebuild(run: Path, out: Path) -> None:
    """Make the table again with the encoder as joint training left it; write model and tokenizer.

    The ids keep their spellings, so that the model's rows stay right; only codes change.
    """
    model = FSQForCausalLM.from_pretrained(run).eval()
    if not model.config.joint:
        raise ValueError(f"{run} was not trained jointly (its `joint` is false): its table is still right")
    old = FSQTokenizerFast.from_pretrained(run).vocabulary
    autoencoder = model.embedding.autoencoder
    by_use = -np.arange(len(old.codes))  # pieces are sorted by use; single bytes go first
    found = assign_codes(autoencoder, *spelling_table(old.spellings), by_use)
    changed = found.codes != old.codes
    print(f"{changed.sum():,} of {len(changed):,} codes changed ({changed.mean():.2%})")
    new = write_tokenizer(out, old.pieces, old.boundary, found, autoencoder, old.version + 1, old.costs)
    model.embedding.set_table(torch.from_numpy(new.codes), *map(torch.from_numpy, new.piece_table()))
    model.config.joint = False
    if not model.config.has_autoencoder:
        model.embedding.autoencoder = None
    model.save_pretrained(out)


def write_tokenizer(
    out: Path,
    pieces: list[bytes],
    boundary: str,
    found: Codes,
    autoencoder: FSQAutoencoderModel,
    version: int,
    costs: list[int] | None,
) -> FSQTokenizerFast:
    """Write the repository of the fast tokenizer, from which the slow one loads too."""
    vocabulary = FSQVocabulary(
        boundary=boundary,
        levels=list(autoencoder.config.levels),
        pieces=pieces,
        codes=found.codes,
        moved=np.flatnonzero(found.moved).tolist(),
        inexact=np.flatnonzero(~found.exact).tolist(),
        version=version,
        autoencoder=own_fields(autoencoder.config),
        weights=save({name: tensor.contiguous() for name, tensor in autoencoder.state_dict().items()}),
        costs=costs,
    )
    tokenizer = FSQTokenizerFast.from_vocabulary(vocabulary)
    tokenizer.save_pretrained(out)
    return tokenizer


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; mistakes in the input end with a message and exit status 1, not with a traceback."""
    parser = argparse.ArgumentParser(
        prog="latentlm.tokenizer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, places in (("build", ["run", "out"]), ("rebuild", ["run", "out"]), ("analyse", ["tokenizer", "text"])):
        command = commands.add_parser(name)
        for place in places:
            command.add_argument(place, type=Path)
        if name == "build":
            command.add_argument("--segmentation", choices=SEGMENTATIONS, default="fewest")
        if name == "analyse":
            command.add_argument("out", type=Path)
    command = commands.add_parser("check")
    command.add_argument("tokenizer", type=Path)
    command.add_argument("text", type=Path, nargs="*")
    options = parser.parse_args(arguments)
    try:
        if options.command == "build":
            build(options.run, options.out, options.segmentation)
        elif options.command == "rebuild":
            rebuild(options.run, options.out)
        elif options.command == "check":
            check_tokenizer(options.tokenizer, options.text)
        else:
            analyse_tokenizer(options.tokenizer, options.text, options.out)
    except (ValueError, OSError) as error:
        sys.exit(f"latentlm.tokenizer: {error}")
    if options.command in ("build", "rebuild"):
        print(f"Tokenizer: {options.out}")


if __name__ == "__main__":
    main()
