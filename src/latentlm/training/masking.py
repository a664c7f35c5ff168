"""Phase 1 of EncodZall: characters and whole words replaced by masks."""

from dataclasses import dataclass

import numpy as np
import torch

from ..models.encodzall_masking import ANY, CONSONANT, LETTERS, NONSPACE, VOWEL, VOWELS, WORD_MASK
from ..models.encodzall_words import NUM_BYTES, PAD, character_starts, find_words, is_space
from .randomness import uniforms

CHARACTER_SHARE, WORD_SHARE = 0.8, 0.2  # of the strength
GENERAL_SHARE = 0.5  # of the masked characters
CLASS_MASKS = torch.full((NUM_BYTES,), NONSPACE)
CLASS_MASKS[[*LETTERS]] = CONSONANT
CLASS_MASKS[[*VOWELS]] = VOWEL


@dataclass
class CorruptedBatch:
    """A batch of corrupted texts.

    Attributes:
        input_ids, attention_mask, word_ids: `(B, T)`, int64, padded on the right (word_ids with -1).
        corrupted: `(B, T_clean)`, bool, which ids of the clean texts were changed.
        target_word_ids: `(B, T_clean)`, int64, the word of `word_ids` that each clean id belongs to, -1 where none is
            left; None where words keep their index, or are not aligned.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    word_ids: torch.Tensor
    corrupted: torch.Tensor
    target_word_ids: torch.Tensor | None = None


def mask_texts(
    ids: torch.Tensor, real: torch.Tensor, strength: float, keys: np.ndarray, max_word_bytes: int
) -> CorruptedBatch:
    """Mask characters, with probability 0.8 `strength` each, and words, with 0.2 `strength`, independently.

    A masked character is one id, whatever its bytes: half of them `<any>`, the others the mask of their class. The
    characters of a masked word are one `<mask>`. White space is never masked. Words keep their index.

    Args:
        ids: `(B, T)`, int64, clean texts with their end.
        real: `(B, T)`, bool, which of them count.
        strength: in [0, 1].
        keys: `(B,)`, uint64, of the random numbers.
    """
    word_ids = find_words(ids, max_word_bytes)
    length = ids.shape[1]
    draws = [torch.from_numpy(uniforms(keys, length, stream)) for stream in range(3)]
    opens = character_starts(ids)
    character = opens.long().cumsum(1) - 1
    maskable = real & (ids < NUM_BYTES) & ~is_space(ids)
    masked_character = maskable & (draws[0].gather(1, character) < CHARACTER_SHARE * strength)
    masked_word = maskable & (draws[1].gather(1, word_ids) < WORD_SHARE * strength)
    corrupted = masked_character | masked_word
    # The first maskable id of each word, where a whole-word mask goes.
    order = maskable.long().cumsum(1)
    before = order - maskable.long()
    before_word = torch.zeros_like(order).scatter_reduce(1, word_ids, before, "amin", include_self=False)
    first_of_word = maskable & (order - before_word.gather(1, word_ids) == 1)

    general = draws[2].gather(1, character) < GENERAL_SHARE
    mask_of_character = torch.where(general, ANY, CLASS_MASKS[ids.clamp(max=NUM_BYTES - 1)])
    replaced = torch.where(masked_word, WORD_MASK, torch.where(masked_character, mask_of_character, ids))
    keep = real & (~corrupted | torch.where(masked_word, first_of_word, opens))
    return compact(replaced, word_ids, keep, corrupted)


def compact(ids: torch.Tensor, word_ids: torch.Tensor, keep: torch.Tensor, corrupted: torch.Tensor) -> CorruptedBatch:
    """The ids that are kept, moved together."""
    lengths = keep.sum(1)
    place = (keep.long().cumsum(1) - 1)[keep]
    row = keep.nonzero()[:, 0]
    shape = (len(ids), int(lengths.max()))
    input_ids, words = torch.full(shape, PAD), torch.full(shape, -1)
    input_ids[row, place], words[row, place] = ids[keep], word_ids[keep]
    attention_mask = (torch.arange(shape[1]) < lengths[:, None]).long()
    return CorruptedBatch(input_ids, attention_mask, words, corrupted)
