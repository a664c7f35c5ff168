"""The noise of phase 1 of EncodZall, which replaces characters and whole words by masks."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..models.encodzall_masking import ANY, CONSONANT, LETTERS, NONSPACE, VOWEL, VOWELS, WORD_MASK
from ..models.encodzall_words import NUM_BYTES, PAD, character_starts, find_words, is_space
from .randomness import uniforms

WORD_SHARE = 0.2  # share of the strength that masks words; the rest masks characters
GENERAL_SHARE = 0.5  # share of the masked characters that become `<any>`
CLASS_MASKS = torch.full((NUM_BYTES,), NONSPACE)
CLASS_MASKS[[*LETTERS]] = CONSONANT
CLASS_MASKS[[*VOWELS]] = VOWEL


@dataclass
class CorruptedBatch:
    """A batch of corrupted texts.

    Attributes:
        input_ids, attention_mask, word_ids: `(B, T)`, int64, padded on the right (`word_ids` with -1).
        corrupted: `(B, T_clean)`, bool, which ids of the clean texts were changed.
        target_word_ids: `(B, T_clean)`, int64, the noisy word, as in `word_ids`, to which each clean id belongs. It is
            -1 for padding and for ids whose noisy word was cut off. None without alignment.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    word_ids: torch.Tensor
    corrupted: torch.Tensor
    target_word_ids: torch.Tensor | None = None


def mask_texts(
    ids: torch.Tensor,
    real: torch.Tensor,
    strength: float,
    keys: np.ndarray,
    max_word_bytes: int,
    word_share: float = WORD_SHARE,
    aligned: bool = False,
) -> CorruptedBatch:
    """Replace words and characters by masks, independently. A word is masked with probability `word_share` *
    `strength`, and a character with probability (1 - `word_share`) * `strength`.

    A masked character becomes one id for all its bytes, which is `<any>` with probability 1/2, and otherwise the mask
    of its class. The characters of a masked word become one `<mask>`. White space is never masked. Words keep their
    index.

    Args:
        ids: `(B, T)`, int64, clean texts with their end.
        real: `(B, T)`, bool, which ids are not padding.
        strength: in [0, 1].
        keys: `(B,)`, uint64, keys of the random numbers.
        max_word_bytes: longer words are split.
        word_share: in [0, 1].
        aligned: whether `target_word_ids` are returned.
    """
    word_ids = find_words(ids, max_word_bytes)
    length = ids.shape[1]
    draws = [torch.from_numpy(uniforms(keys, length, stream)) for stream in range(3)]
    opens = character_starts(ids)
    character = opens.long().cumsum(1) - 1
    maskable = real & (ids < NUM_BYTES) & ~is_space(ids)
    masked_character = maskable & (draws[0].gather(1, character) < (1 - word_share) * strength)
    masked_word = maskable & (draws[1].gather(1, word_ids) < word_share * strength)
    corrupted = masked_character | masked_word
    # The first maskable id of each word, which the mask of a whole word replaces.
    order = maskable.long().cumsum(1)
    before = order - maskable.long()
    before_word = torch.zeros_like(order).scatter_reduce(1, word_ids, before, "amin", include_self=False)
    first_of_word = maskable & (order - before_word.gather(1, word_ids) == 1)

    general = draws[2].gather(1, character) < GENERAL_SHARE
    mask_of_character = torch.where(general, ANY, CLASS_MASKS[ids.clamp(max=NUM_BYTES - 1)])
    replaced = torch.where(masked_word, WORD_MASK, torch.where(masked_character, mask_of_character, ids))
    keep = real & (~corrupted | torch.where(masked_word, first_of_word, opens))
    batch = compact(replaced, word_ids, keep, corrupted)
    batch.target_word_ids = torch.where(real, word_ids, -1) if aligned else None
    return batch


def compact(ids: torch.Tensor, word_ids: torch.Tensor, keep: torch.Tensor, corrupted: torch.Tensor) -> CorruptedBatch:
    """Return a batch of the ids `(B, T)` for which `keep` is true, without gaps and padded on the right."""
    lengths = keep.sum(1)
    place = (keep.long().cumsum(1) - 1)[keep]
    row = keep.nonzero()[:, 0]
    shape = (len(ids), int(lengths.max()))
    input_ids, words = torch.full(shape, PAD), torch.full(shape, -1)
    input_ids[row, place], words[row, place] = ids[keep], word_ids[keep]
    attention_mask = (torch.arange(shape[1]) < lengths[:, None]).long()
    return CorruptedBatch(input_ids, attention_mask, words, corrupted)


def join_batches(batches: dict[bool, CorruptedBatch], is_first: torch.Tensor) -> CorruptedBatch:
    """Return the rows of two batches as one batch. `is_first` `(B,)`, bool, are the keys of the batches that the rows
    come from, each in order."""
    if len(batches) == 1:
        return next(iter(batches.values()))
    longest = max(batch.input_ids.shape[1] for batch in batches.values())
    place = torch.where(is_first, is_first.cumsum(0) - 1, (~is_first).cumsum(0) - 1 + int(is_first.sum()))

    def join(name: str, fill: int) -> torch.Tensor:
        parts = [getattr(batches[kind], name) for kind in (True, False)]
        width = longest if name in ("input_ids", "attention_mask", "word_ids") else parts[0].shape[1]
        padded = [nn.functional.pad(part, (0, width - part.shape[1]), value=fill) for part in parts]
        return torch.cat(padded)[place]

    aligned = batches[True].target_word_ids is not None and batches[False].target_word_ids is not None
    return CorruptedBatch(
        join("input_ids", PAD),
        join("attention_mask", 0),
        join("word_ids", -1),
        join("corrupted", 0),
        join("target_word_ids", -1) if aligned else None,
    )
