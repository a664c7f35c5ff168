"""A train/validation split that cannot overlap: by the hash of a document's text."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


def document_key(text: str) -> int:
    """64 bits of a hash of the text: equal for identical documents, the same on every machine."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@dataclass(frozen=True)
class Split:
    """Which documents are held out for validation.

    Attributes:
        held_out: keys of the validation documents.
        cut: key of the one document whose end is held out (where every document is larger than the share), else None.
        fraction: of its characters that are held out, up to a line boundary.
    """

    held_out: frozenset[int]
    cut: int | None = None
    fraction: float = 0.0

    def train(self, documents: Iterable[str]) -> Iterator[str]:
        for text in documents:
            key = document_key(text)
            if key == self.cut:
                yield text[: _cut_position(text, self.fraction)]
            elif key not in self.held_out:
                yield text

    def validation(self, documents: Iterable[str]) -> Iterator[str]:
        for text in documents:
            key = document_key(text)
            if key == self.cut:
                yield text[_cut_position(text, self.fraction) :]
            elif key in self.held_out:
                yield text


def split_by_hash(documents: Iterable[str], fraction: float) -> Split:
    """Hold out `fraction` of the bytes: documents in the order of their hash, as many as fit.

    Where not even one fits (one document, or a few large ones), the largest is cut at a line boundary.

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
    unique_keys, index = np.unique(np.frombuffer(keys, np.uint64), return_inverse=True)  # sorted: the order of the hash
    all_copies = np.bincount(index, weights=np.frombuffer(sizes, np.int64))
    share = fraction * all_copies.sum()
    fits = all_copies <= share
    chosen = fits & (np.cumsum(all_copies * fits) <= share)
    if chosen.any():
        return Split(frozenset(unique_keys[chosen].tolist()))
    if not _cut_position(largest, fraction):
        raise ValueError(
            f"validation_fraction: no document is small enough for a share of {fraction}, and the largest has no line"
            " boundary to be cut at; the validation split would be empty (give validation_dataset)"
        )
    return Split(frozenset(), document_key(largest), fraction)


def _cut_position(text: str, fraction: float) -> int:
    """Start of the line nearest to where `fraction` of `text` remains; 0 if it has only one line."""
    limit = int(len(text) * (1 - fraction))
    boundaries = (text.rfind("\n", 0, limit) + 1, text.find("\n", limit, len(text) - 1) + 1)
    return min(filter(None, boundaries), key=lambda boundary: abs(boundary - limit), default=0)
