"""Construction of FSQ tokenizers: from a trained autoencoder, again after joint training, and with fewer pieces."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from latentlm import FSQAutoencoderModel, FSQForCausalLM, FSQTokenizerFast
from latentlm.data.chunks import load_run_pieces
from latentlm.data.codes import refuse_added_tokens
from latentlm.models.configuration_fsq import own_fields
from latentlm.models.fsq_vocabulary import NUM_BYTES, FSQVocabulary, spelling_table

from .codes import Codes, assign_codes

STEPS_PER_BIT = 16  # unigram costs are integers in units of 1/16 bit


def build(run: Path, out: Path, segmentation: str = "fewest") -> FSQTokenizerFast:
    """Assign a code to every byte and piece of a run, and write the tokenizer.

    Args:
        run: folder of the finished run of an autoencoder.
        out: folder for the tokenizer.
        segmentation: "fewest" for the segmentation with the fewest tokens, or "unigram" for the most likely one in a
            unigram model, whose probabilities are the shares of the uses in the text of the pieces.

    Raises:
        ValueError: if the run has no pieces, or more pieces than codes.
        OSError: if the run has no trained model.
    """
    pieces = load_run_pieces(run)
    autoencoder = FSQAutoencoderModel.from_pretrained(run).eval()
    chunks, lengths = spelling_table([bytes([byte]) for byte in range(256)] + pieces.pieces)
    uses = np.concatenate((pieces.byte_counts, pieces.counts))
    assigned = assign_codes(autoencoder, chunks, lengths, uses)
    share = uses / max(uses.sum(), 1)
    print(
        f"{len(assigned.codes):,} bytes and pieces; distinct codes of the encoder: {1 - assigned.moved.mean():.2%}; "
        f"spelled exactly by the decoder: {assigned.exact.mean():.2%}, {(share * assigned.exact).sum():.2%} by use"
    )
    costs = unigram_costs(uses) if segmentation == "unigram" else None
    tokenizer = FSQTokenizerFast.from_vocabulary(
        make_vocabulary(pieces.pieces, pieces.boundary, assigned, autoencoder, version=1, costs=costs)
    )
    tokenizer.save_pretrained(out)
    return tokenizer


def unigram_costs(uses: np.ndarray) -> list[int]:
    """Return the cost of each byte and piece, at least 1: -log2 of its share of all uses `(N,)`, in units of 1/16 bit.
    An unused one counts as half a use."""
    bits = -np.log2(np.maximum(uses, 0.5) / max(uses.sum(), 1))
    return np.maximum(np.rint(STEPS_PER_BIT * bits), 1).astype(int).tolist()


def rebuild(run: Path, out: Path) -> None:
    """Recompute the table of codes with the jointly trained encoder, and write model and tokenizer.

    Only codes change. The ids keep their spellings, so the embeddings of the model remain valid.

    Args:
        run: folder of the finished run of a language model.
        out: folder for the model and the tokenizer.

    Raises:
        ValueError: if the run was not trained jointly, or its tokenizer has added tokens.
    """
    model = FSQForCausalLM.from_pretrained(run).eval()
    if not model.config.joint:
        raise ValueError(f"{run} was not trained jointly (its `joint` is false): its table is still right")
    tokenizer = load_without_added_tokens(run)
    old = tokenizer.vocabulary
    autoencoder = model.embedding.autoencoder
    assert autoencoder is not None  # joint training needs it
    by_use = -np.arange(len(old.codes))  # an order alone: single bytes first, then pieces, which are sorted by use
    assigned = assign_codes(autoencoder, *spelling_table(old.spellings), by_use)
    changed = assigned.codes != old.codes
    print(f"{changed.sum():,} of {len(changed):,} codes changed ({changed.mean():.2%})")
    table = make_vocabulary(old.pieces, old.boundary, assigned, autoencoder, old.version + 1, old.costs)
    new = with_vocabulary(tokenizer, table)
    new.save_pretrained(out)
    model.embedding.set_table(torch.from_numpy(new.codes), *map(torch.from_numpy, new.piece_table()))
    model.config.joint = False
    if not model.config.has_autoencoder:
        model.embedding.autoencoder = None
    model.save_pretrained(out)


def prune(folder: Path, text: Path, out: Path, keep: int) -> None:
    """Reduce a vocabulary to `keep` ids: the bytes, the pieces that are used most when `text` is segmented, and the
    special tokens. Pieces keep their order and their codes. The effect on the number of tokens of the text is printed.

    Args:
        folder: folder of the tokenizer.
        text: text file in UTF-8.
        out: folder for the smaller tokenizer.
        keep: number of ids.

    Raises:
        ValueError: if `keep` is below 260 or above the size of the vocabulary, or the tokenizer has added tokens.
    """
    tokenizer = load_without_added_tokens(folder)
    old = tokenizer.vocabulary
    least = old.size - len(old.pieces)
    if keep < least:
        raise ValueError(
            f"--keep is {keep}, but must be at least {least}: {NUM_BYTES} bytes and {least - NUM_BYTES} special tokens "
            "always stay"
        )
    if keep > old.size:
        raise ValueError(f"--keep is {keep}, but {folder} has only {old.size:,} ids")
    data = text.read_bytes()
    if not data:
        raise ValueError(f"{text} is empty: it does not say which pieces are used")
    ids = np.array(old.segmenter(data))
    uses = np.bincount(ids, minlength=NUM_BYTES + len(old.pieces))[NUM_BYTES:]
    most_used = np.argsort(-uses, kind="stable")[: keep - least]
    new = old.subset([*range(NUM_BYTES), *(NUM_BYTES + np.sort(most_used)).tolist()])
    pruned = with_vocabulary(tokenizer, new)
    tokens = len(new.segmenter(data))
    pruned.save_pretrained(out)
    print(
        f"{old.size:,} ids to {new.size:,}: {len(data) / len(ids):.3f} to {len(data) / tokens:.3f} bytes per token on "
        f"{text.name} ({tokens / len(ids) - 1:+.2%} tokens); {np.count_nonzero(uses[most_used] == 0):,} of the pieces "
        "that stay are not used there"
    )


def load_without_added_tokens(folder: Path) -> FSQTokenizerFast:
    """Load the tokenizer of a folder.

    Raises:
        ValueError: if it has added tokens.
    """
    tokenizer = FSQTokenizerFast.from_pretrained(folder)
    refuse_added_tokens(tokenizer)
    return tokenizer


def with_vocabulary(tokenizer: FSQTokenizerFast, vocabulary: FSQVocabulary) -> FSQTokenizerFast:
    """Return a tokenizer with another table, and the special tokens, the framing, the chat template and the maximum
    length of `tokenizer`."""
    new = FSQTokenizerFast.from_vocabulary(vocabulary, **dict(tokenizer.special_tokens_map), **tokenizer.saved_framing)
    new.chat_template, new.model_max_length = tokenizer.chat_template, tokenizer.model_max_length
    return new


def make_vocabulary(
    pieces: list[bytes],
    boundary: str,
    assigned: Codes,
    autoencoder: FSQAutoencoderModel,
    version: int,
    costs: list[int] | None,
) -> FSQVocabulary:
    """Return the table of pieces with the codes that an autoencoder gave them."""
    return FSQVocabulary(
        boundary=boundary,
        levels=list(autoencoder.fsq.levels),
        pieces=pieces,
        codes=assigned.codes,
        moved=np.flatnonzero(assigned.moved).tolist(),
        inexact=np.flatnonzero(~assigned.exact).tolist(),
        version=version,
        autoencoder=own_fields(autoencoder.config),
        weights=save({name: tensor.contiguous() for name, tensor in autoencoder.state_dict().items()}),
        costs=costs,
    )
