"""Split into training and validation documents by the hash of their text, so that identical documents are never in
both."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

MIN_SHARE = 0.1  # of what is to be held out: with less, a large document is cut


def document_key(text: str) -> int:
    """Return 64 bits of a hash of a text, which are the same on every machine."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@dataclass(frozen=True)
class Split:
    """The choice of the documents that are held out for validation.

    Attributes:
        held_out: keys of the validation documents.
        cut: key of the document whose end is held out, if every document is larger than the share, else None.
        fraction: share of the characters of that document that are held out, rounded to a line boundary.
    """

    held_out: frozenset[int]
    cut: int | None = None
    fraction: float = 0.0

    def train(self, documents: Iterable[str]) -> Iterator[str]:
        """Yield the training documents among all documents."""
        for text in documents:
            key = document_key(text)
            if key == self.cut:
                yield text[: _cut_position(text, self.fraction)]
            elif key not in self.held_out:
                yield text

    def validation(self, documents: Iterable[str]) -> Iterator[str]:
        """Yield the validation documents among all documents."""
        for text in documents:
            key = document_key(text)
            if key == self.cut:
                yield text[_cut_position(text, self.fraction) :]
            elif key in self.held_out:
                yield text


def split_by_hash(documents: Iterable[str], fraction: float) -> Split:
    """Hold out at most `fraction` of the bytes. Documents are chosen in the order of their hash, as many as fit.

    If no document fits (one document, or a few large ones), or those that fit are less than a tenth of `fraction`, the
    largest one is cut at a line boundary instead, where it has one.

    Raises:
        ValueError: if there is no text, or the document to be cut has no line boundary.
    """
    keys, sizes = array("Q"), array("q")
    largest = ""
    for text in documents:
        keys.append(document_key(text))
        sizes.append(len(text.encode("utf-8", "surrogatepass")))
        if len(text) > len(largest):
            largest = text
    if not keys:
        raise ValueError("dataset: there is no text in it")
    unique_keys, index = np.unique(np.frombuffer(keys, np.uint64), return_inverse=True)  # sorted by the hash
    all_copies = np.bincount(index, weights=np.frombuffer(sizes, np.int64))
    share = fraction * all_copies.sum()
    fits = all_copies <= share
    chosen = fits & (np.cumsum(all_copies * fits) <= share)
    is_enough = all_copies[chosen].sum() >= share * MIN_SHARE
    can_cut = _cut_position(largest, fraction) > 0
    if chosen.any() and (is_enough or not can_cut):
        return Split(frozenset(unique_keys[chosen].tolist()))
    if not can_cut:
        raise ValueError(
            f"validation_fraction: no document is small enough for a share of {fraction}, and the largest has no line"
            " boundary to be cut at; the validation split would be empty (give validation_dataset)"
        )
    return Split(frozenset(), document_key(largest), fraction)


def _cut_position(text: str, fraction: float) -> int:
    """Return the start of the line that is nearest to the position from which `fraction` of a text remains, or 0 if the
    text has only one line."""
    limit = int(len(text) * (1 - fraction))
    boundaries = (text.rfind("\n", 0, limit) + 1, text.find("\n", limit, len(text) - 1) + 1)
    return min(filter(None, boundaries), key=lambda boundary: abs(boundary - limit), default=0)
