"""Choice of the pieces of an FSQ tokenizer, which are strings with which a corpus needs few tokens."""

import json
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models
from tqdm.auto import tqdm

from ..models.block_byte_pieces import (
    BOUNDARIES,
    MAX_PIECE_BYTES,
    NUM_SPECIAL_TOKENS,
    bytes_pattern,
    from_characters,
    to_characters,
)

BATCH = 20_000  # number of stretches that are segmented together
FIRST_GROWTH = 256  # least number of pieces that a round may add; a larger vocabulary may double
# Share of the pieces that each round may exchange. It decreases in the last rounds.
EXCHANGED = [0.3] * 9 + [0.25, 0.2, 0.15, 0.12, 0.1, 0.08, 0.06, 0.05, 0.04, 0.03, 0.02, 0.01]


@dataclass(frozen=True)
class Pieces:
    """The pieces that `choose_pieces` has chosen.

    Attributes:
        boundary: `"words"` or `"lines"`, whose boundaries no piece crosses.
        pieces: distinct strings of 2 to 16 bytes, the most used first.
        counts: `(len(pieces),)`, int64, number of tokens of each piece in the segmentation of the corpus.
        byte_counts: `(256,)`, int64, number of tokens of each single byte.
    """

    boundary: str
    pieces: list[bytes]
    counts: np.ndarray
    byte_counts: np.ndarray


def choose_pieces(
    documents: Iterable[str], vocab_size: int, boundary: str = "words", forbidden: Collection[bytes] = ()
) -> Pieces:
    """Choose `vocab_size - 260` pieces, in addition to the 256 bytes and 4 special tokens, so that the corpus has few
    tokens.

    This is a local search. Each round segments the corpus into the fewest tokens and counts these. Then it replaces the
    pieces that save the fewest tokens by pairs of neighbouring tokens that would save more as one piece. The order of
    the documents does not matter.

    Args:
        documents: the corpus, which is read once.
        vocab_size: number of tokens of the tokenizer, including special tokens.
        boundary: a boundary of `latentlm.models.block_byte_pieces`.
        forbidden: strings that must not become pieces, such as special tokens.

    Raises:
        ValueError: if `vocab_size` is below 260, the boundary is unknown, or the corpus has too few repeated strings.
    """
    wanted = vocab_size - 256 - NUM_SPECIAL_TOKENS
    if wanted < 0:
        raise ValueError(
            f"vocab_size: {vocab_size} must be at least {256 + NUM_SPECIAL_TOKENS}, for 256 bytes and "
            f"{NUM_SPECIAL_TOKENS} special tokens"
        )
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary: {boundary!r} must be one of {', '.join(BOUNDARIES)}")
    # The search inside lines starts from the best pieces inside words. This is faster and results in fewer tokens.
    boundaries = ["words"] if boundary == "words" else ["words", boundary]
    counted: dict[str, Counter[bytes]] = {name: Counter() for name in boundaries}
    for text in documents:
        data = text.encode("utf-8", "surrogatepass")
        for name in boundaries:
            counted[name].update(bytes_pattern(name).findall(data))
    characters = frequent_characters(counted["words"])
    pieces = [character for character in characters if character not in forbidden][:wanted]
    uses = np.zeros(0, dtype=np.int64)
    for name in boundaries:
        pieces, uses = improve(pieces, counted[name], wanted, forbidden, f"Choosing {wanted:,} pieces inside {name}")
    if len(pieces) < wanted:
        raise ValueError(
            f"vocab_size: {vocab_size} needs {wanted:,} pieces, but the corpus gives only {len(pieces):,}; it can "
            f"be at most {len(pieces) + 256 + NUM_SPECIAL_TOKENS:,}, or take more text"
        )
    counts = uses[256:]
    order = sorted(range(wanted), key=lambda index: (-counts[index], pieces[index]))
    return Pieces(boundary, [pieces[index] for index in order], counts[order], uses[:256])


def improve(
    pieces: list[bytes], counted: Counter[bytes], wanted: int, forbidden: Collection[bytes], what: str
) -> tuple[list[bytes], np.ndarray]:
    """Exchange pieces, and add some while there are too few, until no exchange saves tokens or the rounds are over.

    Args:
        pieces: the pieces to start from.
        counted: the stretches of the corpus, with their counts.
        wanted: number of pieces to choose.
        forbidden: strings that must not become pieces.
        what: label of the progress bar.

    Returns:
        The pieces, and the number of tokens of each byte and piece in the segmentation, `(256 + len(pieces),)`, int64.
    """
    stretches = sorted(counted)
    characters = list(map(to_characters, stretches))
    weights = np.array([counted[stretch] for stretch in stretches], dtype=np.float64)
    with tqdm(total=len(EXCHANGED), desc=what, unit=" rounds") as bar:
        for share in EXCHANGED:
            uses, joins = segment(pieces, characters, weights)
            for piece in (*pieces, *forbidden):
                joins.pop(piece, None)
            before = pieces
            pieces = exchange(pieces, uses[256:], joins, wanted, share)
            bar.update()
            if pieces == before:
                break
    return pieces, segment(pieces, characters, weights)[0].astype(np.int64)


def frequent_characters(counted: Counter[bytes]) -> list[bytes]:
    """Return the characters of several bytes that occur more than once, the most frequent first. The search starts with
    them, because it joins only tokens that together are valid text, and so cannot build a character from its bytes."""
    occurrences: Counter[str] = Counter()
    for stretch, count in counted.items():
        if not stretch.isascii():
            for character in stretch.decode("utf-8", "ignore"):
                if character > "\x7f":
                    occurrences[character] += count
    ordered = sorted(occurrences, key=lambda c: (-occurrences[c], c))
    return [character.encode() for character in ordered if occurrences[character] > 1]


def segment(pieces: list[bytes], stretches: list[str], weights: np.ndarray) -> tuple[np.ndarray, dict[bytes, float]]:
    """Segment stretches into the fewest tokens.

    Args:
        pieces: the pieces.
        stretches: N stretches, in the ByteLevel alphabet.
        weights: `(N,)`, count of each stretch.

    Returns:
        The number of tokens of each byte and piece, `(256 + len(pieces),)`, float64.
        The counts of the strings that two neighbouring tokens spell together, if these may be pieces.
    """
    spellings = [bytes([byte]) for byte in range(256)] + pieces
    # With equal scores, the most likely segmentation is the one with the fewest tokens.
    segmenter = Tokenizer(models.Unigram([(to_characters(spelling), -1.0) for spelling in spellings]))
    size = len(spellings)
    uses = np.zeros(size)
    keys, numbers = [np.zeros(0, np.int64)], [np.zeros(0)]
    for start in range(0, len(stretches), BATCH):
        encoded = segmenter.encode_batch_fast(stretches[start : start + BATCH], add_special_tokens=False)
        rows = [np.array(row.ids, dtype=np.int64) for row in encoded]
        lengths = np.array([len(row) for row in rows])
        tokens = np.concatenate(rows)
        counts = np.repeat(weights[start : start + BATCH], lengths)
        uses += np.bincount(tokens, counts, minlength=size)
        has_next = np.ones(len(tokens), dtype=bool)
        has_next[np.cumsum(lengths) - 1] = False
        keys.append(tokens[has_next] * size + np.append(tokens[1:], 0)[has_next])
        numbers.append(counts[has_next])
    pairs, inverse = np.unique(np.concatenate(keys), return_inverse=True)
    joins: dict[bytes, float] = {}
    for pair, count in zip(pairs.tolist(), np.bincount(inverse, np.concatenate(numbers)).tolist(), strict=True):
        joined = spellings[pair // size] + spellings[pair % size]
        if len(joined) <= MAX_PIECE_BYTES and is_text(joined):
            joins[joined] = joins.get(joined, 0.0) + count
    return uses, joins


def is_text(data: bytes) -> bool:
    """Return whether bytes are valid UTF-8 (with surrogates)."""
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def exchange(
    pieces: list[bytes], uses: np.ndarray, joins: dict[bytes, float], wanted: int, share: float
) -> list[bytes]:
    """Return the pieces of the next round. The most frequent joins are added while there are too few pieces. Further
    ones replace pieces, at most `share` of them, that save fewer tokens.

    Args:
        pieces: the pieces of this round.
        uses: `(len(pieces),)`, number of tokens of each.
        joins: counts of the strings that may become pieces.
        wanted: number of pieces to choose.
        share: in [0, 1].
    """
    best = sorted(joins, key=lambda joined: (-joins[joined], joined))
    room = min(wanted - len(pieces), max(FIRST_GROWTH, len(pieces)))
    added, rivals = best[:room], best[room:]
    # Per use, a piece saves one token if two others spell it, and else at least two, which are counted as two.
    known = {*pieces, *(bytes([byte]) for byte in range(256))}
    saved = [
        use * (1 if any(piece[:cut] in known and piece[cut:] in known for cut in range(1, len(piece))) else 2)
        for piece, use in zip(pieces, uses.tolist(), strict=True)
    ]
    weakest = sorted(range(len(pieces)), key=lambda index: (saved[index], pieces[index]))
    dropped = set()
    for index, rival in zip(weakest[: int(len(pieces) * share)], rivals, strict=False):
        if joins[rival] <= saved[index]:
            break
        dropped.add(index)
        added.append(rival)
    return [piece for index, piece in enumerate(pieces) if index not in dropped] + added


def save_pieces(pieces: Pieces, path: Path) -> None:
    """Write pieces as JSON, with spellings in the ByteLevel alphabet of GPT-2."""
    content = {
        "boundary": pieces.boundary,
        "pieces": list(map(to_characters, pieces.pieces)),
        "counts": pieces.counts.tolist(),
        "byte_counts": pieces.byte_counts.tolist(),
    }
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def load_pieces(path: Path) -> Pieces:
    """Read the pieces that [`save_pieces`] has written.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        pieces = Pieces(
            content["boundary"],
            list(map(from_characters, content["pieces"])),
            np.array(content["counts"], dtype=np.int64),
            np.array(content["byte_counts"], dtype=np.int64),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no pieces: {error!r}; choose them anew") from error
    if len(pieces.pieces) != len(pieces.counts) or len(pieces.byte_counts) != 256:
        raise ValueError(f"{path} is damaged: counts do not match the pieces; choose them anew")
    return pieces
