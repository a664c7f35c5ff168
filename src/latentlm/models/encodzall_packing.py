"""Packing: the words of a batch laid into dense rows. The CPU makes index tensors, with which the model gathers.

[`pack_batch`] makes them wherever a model was not given any. A trainer gives them: the CPU then works ahead of the
accelerator, which never waits, and shapes recur, so that compiled graphs are used again.
"""

from typing import TypedDict

import numpy as np
import torch
from torch.utils._pytree import tree_map

from .configuration_encodzall import EncodzallConfig
from .encodzall_words import EOS, PAD, find_real_words

IGNORED = -100
STEPS_OF_AN_OCTAVE = 16
CPU = torch.device("cpu")  # whatever the default device is


class Packing(TypedDict):
    """Where the words of texts `(B, T)`, at most S in a text, lie in R rows of L slots. No word crosses an edge.

    Attributes:
        source: `(R, L)`, int64, the position in the flattened texts of each slot's id; B * T where a slot is empty.
        word: `(R, L)`, int64, the place of each slot's word in the flattened `(B, S)`; B * S where a slot is empty.
        offset: `(R, L)`, int64, the slot's position in its word.
        vector: `(B, S)`, int64, the place of the word whose vector each word has: its own, or that of an equal word,
            which alone lies in the rows; B * S after a text's last word.
        lengths: `(B, S)`, int64, number of ids of each word; 0 after a text's last word.
        starts: `(B, S)`, int64, the position of each word's first id, counted from its text's first id.
        word_ids: `(B, T)`, int64, the word of each id in its text, -1 for padding.
    """

    source: torch.Tensor
    word: torch.Tensor
    offset: torch.Tensor
    vector: torch.Tensor
    lengths: torch.Tensor
    starts: torch.Tensor
    word_ids: torch.Tensor


class Spelling(TypedDict):
    """Where the words of labels `(B, T)` are spelled in R rows of L slots: the bytes and the end of each word, N in
    all.

    Attributes:
        target: `(R, L)`, int64, the position in the flattened labels of the byte that each slot predicts; B * T for the
            end of a word, and where a slot is empty.
        word: `(R, L)`, int64, the place of each slot's word in the flattened memory `(B, S)`; B * S where it is empty.
        offset: `(R, L)`, int64, the slot's position in its word.
        slot: `(1, N)`, int64, the slots of all words in order; R * L after the last.
        weight: `(1, N)`, float32, ids of a slot's word divided by its slots, so that a word's end does not count as a
            byte; 0 after the last.
    """

    target: torch.Tensor
    word: torch.Tensor
    offset: torch.Tensor
    slot: torch.Tensor
    weight: torch.Tensor


class PackedBatch(TypedDict, total=False):
    """What the models take beside a batch; [`changed_words`] makes `changed`."""

    packing: Packing
    spelling: Spelling
    clean_packing: Packing
    changed: torch.Tensor


def bucket(size: int) -> int:
    """Round up to one of a few sizes, 16 in an octave: at most 1/16 larger."""
    step = 1 << max(0, size.bit_length() - STEPS_OF_AN_OCTAVE.bit_length())
    return -(-size // step) * step


def lay_words(lengths: torch.Tensor, row_length: int) -> tuple[torch.Tensor, int, int]:
    """Lay words of `lengths` `(W,)` one after the other into rows. The next row begins where a word does not fit. With
    words of 6 bytes rows of 128 are 97 % full.

    Returns:
        The slot `(W,)` where each word begins, the number of rows, at least 1, and their length: `row_length`, or that
        of the longest word.
    """
    if not len(lengths):
        return lengths, 1, row_length
    row_length = max(row_length, int(lengths.max()))
    ends = lengths.cumsum(0)
    first = ends - lengths
    # If a row began with word w, the next one would begin with word `following[w]`.
    following = torch.searchsorted(ends, first + row_length, right=True).tolist()
    row_starts = [0]
    while following[row_starts[-1]] < len(following):
        row_starts.append(following[row_starts[-1]])
    starts = torch.tensor(row_starts, device=CPU)
    row = torch.searchsorted(starts, torch.arange(len(lengths), device=CPU), right=True) - 1
    return row * row_length + first - first[starts][row], len(row_starts), row_length


def members(lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the word `(N,)` of each id, and the id's position in it `(N,)`, for words of `lengths` `(W,)` in turn."""
    word = torch.arange(len(lengths), device=CPU).repeat_interleave(lengths)
    return word, torch.arange(len(word), device=CPU) - (lengths.cumsum(0) - lengths)[word]


def place(indices: torch.Tensor, values: torch.Tensor, shape: tuple[int, int], fill: int) -> torch.Tensor:
    """Make a matrix of `fill` with `values` at flattened `indices`."""
    matrix = torch.full((shape[0] * shape[1],), fill, dtype=values.dtype, device=CPU)
    matrix[indices] = values
    return matrix.view(shape)


def first_of_equals(ids: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the words `(E,)` that no earlier word equals, and for each word which of them it equals `(W,)`. The ids
    `(N,)` of the words follow each other."""
    word, offset = members(lengths)
    spelled = np.full((len(lengths), int(lengths.max())), -1, np.int16)
    spelled[word.numpy(), offset.numpy()] = ids.numpy()
    keys = spelled.view(np.dtype((np.void, spelled.shape[1] * 2)))[:, 0]
    _, firsts, equal = np.unique(keys, return_index=True, return_inverse=True)
    first, order = torch.from_numpy(firsts).sort()
    return first, order.argsort()[torch.from_numpy(equal)]


def pack_words(
    word_ids: torch.Tensor, row_length: int, bucketed: bool = False, distinct_ids: torch.Tensor | None = None
) -> Packing:
    """Lay the words of a batch into rows. It works on the CPU in O(N) memory, with a Python loop over rows alone.

    Args:
        word_ids: `(B, T)`, int64, the index of each id's word in its text, -1 where there is no id. It must not fall
            along a text.
        row_length: slots in a row; as long as the longest word if that is longer.
        bucketed: whether the numbers of rows, and of words in the longest text, are rounded up by [`bucket`].
        distinct_ids: `(B, T)`, int64, of the texts: with them, only one of equal words lies in the rows.
    """
    size = bucket if bucketed else int
    texts, length = word_ids.shape
    longest = size(max(1, int(word_ids.max()) + 1)) if word_ids.numel() else 1
    shape, none = (texts, longest), texts * longest
    real = word_ids >= 0
    token = real.flatten().nonzero()[:, 0]  # (N,)
    place_of_token = (word_ids + longest * torch.arange(texts, device=CPU)[:, None]).flatten()[token]
    places, lengths = torch.unique_consecutive(place_of_token, return_counts=True)  # (W,)
    first = lengths.cumsum(0) - lengths  # (W,), counted in tokens
    starts = token[first] % length - real.long().argmax(1)[places // longest]

    laid = equal = torch.arange(len(places), device=CPU)
    if distinct_ids is not None and len(places):
        laid, equal = first_of_equals(distinct_ids.flatten()[token], lengths)
    begins, num_rows, row_length = lay_words(lengths[laid], row_length)
    rows = (size(num_rows), row_length)
    word, offset = members(lengths[laid])
    slot = begins[word] + offset
    return Packing(
        source=place(slot, token[first[laid][word] + offset], rows, word_ids.numel()),
        word=place(slot, places[laid][word], rows, none),
        offset=place(slot, offset, rows, 0),
        vector=place(places, places[laid][equal], shape, none),
        lengths=place(places, lengths, shape, 0),
        starts=place(places, starts, shape, 0),
        word_ids=word_ids,
    )


def pack_spelling(
    ids: torch.Tensor, word_ids: torch.Tensor, longest: int, row_length: int, bucketed: bool = False
) -> Spelling:
    """Lay the words of a batch into rows in which each is spelled, on the CPU. The end of a text is the empty word.

    Args:
        ids: `(B, T)`, int64.
        word_ids: as of [`pack_words`]; all below `longest`.
        longest: S, the number of words of a text in the memory.
        row_length, bucketed: as of [`pack_words`].
    """
    size = bucket if bucketed else int
    none = len(ids) * longest
    token = (word_ids >= 0).flatten().nonzero()[:, 0]  # (N,)
    place_of_token = (word_ids + longest * torch.arange(len(ids), device=CPU)[:, None]).flatten()[token]
    places, which, lengths = torch.unique_consecutive(place_of_token, return_inverse=True, return_counts=True)
    is_byte = ids.flatten()[token] != EOS
    token = torch.cat((token[is_byte], torch.tensor([ids.numel()], device=CPU)))
    num_bytes = torch.zeros_like(lengths).index_add(0, which, is_byte.long())  # (W,)
    first = num_bytes.cumsum(0) - num_bytes

    begins, num_rows, row_length = lay_words(num_bytes + 1, row_length)
    rows = (size(num_rows), row_length)
    word, offset = members(num_bytes + 1)
    slot = begins[word] + offset
    target = torch.where(offset < num_bytes[word], first[word] + offset, len(token) - 1)
    weight = (lengths / (num_bytes + 1))[word]
    missing = size(len(slot)) - len(slot)
    return Spelling(
        target=place(slot, token[target], rows, ids.numel()),
        word=place(slot, places[word], rows, none),
        offset=place(slot, offset, rows, 0),
        slot=torch.nn.functional.pad(slot, (0, missing), value=rows[0] * row_length)[None],
        weight=torch.nn.functional.pad(weight, (0, missing))[None],
    )


def changed_words(
    ids: torch.Tensor, word_ids: torch.Tensor, labels: torch.Tensor, target_word_ids: torch.Tensor, longest: int
) -> torch.Tensor:
    """Compare each word with the word in its place in the clean text, on the CPU: `(B, S)`, int64, 1 where the bytes
    differ, 0 where not, and -100 where there is no word, or no label for it.

    Args:
        ids, word_ids: `(B, T_in)`, as the encoder reads them; a word of -1 is none.
        labels, target_word_ids: `(B, T)`, the same for the clean text.
        longest: S, the number of words of a text in the memory.
    """

    def spelled(ids: torch.Tensor, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        token = (words >= 0).flatten().nonzero()[:, 0]
        place_of_token = (words + longest * torch.arange(len(words), device=CPU)[:, None]).flatten()[token]
        _, offset = members(torch.unique_consecutive(place_of_token, return_counts=True)[1])
        return place_of_token, offset, ids.flatten()[token]

    both = [spelled(ids, word_ids), spelled(labels, target_word_ids)]
    width = max(int(offset.max()) + 1 if len(offset) else 1 for _, offset, _ in both)
    shape = (len(ids) * longest, width)
    noisy, clean = (place(word * width + offset, spelled, shape, -1) for word, offset, spelled in both)
    scored = (noisy[:, 0] >= 0).view(-1, longest) & (target_word_ids >= 0).any(1, keepdim=True)
    return (noisy != clean).any(1).view(-1, longest).long().where(scored, IGNORED)


@torch.compiler.disable
@torch.no_grad()
def pack_batch(
    config: EncodzallConfig,
    input_ids: torch.Tensor | None = None,  # (B, T_in)
    attention_mask: torch.Tensor | None = None,  # (B, T_in), 1 where an id is real; without it, all but padding ids
    word_ids: torch.Tensor | None = None,  # (B, T_in), found in the ids if None
    labels: torch.Tensor | None = None,  # (B, T)
    target_word_ids: torch.Tensor | None = None,  # (B, T), found in the labels if None
    clean_input_ids: torch.Tensor | None = None,  # (B, T_clean)
    word_mask: torch.Tensor | None = None,  # (B, S), of a memory that is known, where there are no `input_ids`
    bucketed: bool = False,
    distinct: bool = False,
) -> PackedBatch:
    """Make the index tensors of a batch: `packing`, and for the denoising model `spelling` and `clean_packing`, where
    `labels` and `clean_input_ids` are given and have a loss. With a gate `changed` is added, and only these words are
    spelled. Tensors are copied from an accelerator once, and results are copied back to it.

    Args:
        bucketed: whether sizes are few, so that compiled graphs are used again.
        distinct: whether only one of equal words is encoded, which without dropout gives the same.

    Raises:
        ValueError: if a text has no id at all, or if the word decoder has to spell other words than the encoder has
            read: their numbers differ.
    """
    tensors = {
        "ids": input_ids,
        "mask": attention_mask,
        "words": word_ids,
        "labels": labels,
        "target_words": target_word_ids,
        "clean": clean_input_ids,
        "word_mask": word_mask,
    }
    cpu = on_cpu({name: tensor for name, tensor in tensors.items() if tensor is not None})

    def pack(ids: torch.Tensor, mask: torch.Tensor | None, words: torch.Tensor | None) -> Packing:
        real = ids != PAD if mask is None else mask.bool()
        if not real.any(1).all():
            raise ValueError("A text without any id has no words: even the empty text has its end, `eos_token_id`.")
        words = find_real_words(ids, real, config.max_word_bytes) if words is None else torch.where(real, words, -1)
        return pack_words(words, config.packed_row_length, bucketed, ids if distinct else None)

    packed: PackedBatch = {}
    packing: Packing | None = None
    if input_ids is not None:
        packed["packing"] = packing = pack(cpu["ids"], cpu.get("mask"), cpu.get("words"))
        cpu["word_mask"] = packing["lengths"] > 0
    if labels is not None and config.word_decoder != "none" and config.word_loss_weight:
        real = cpu["labels"] != IGNORED
        ids = torch.where(real, cpu["labels"], PAD)
        if target_word_ids is None:
            words = find_real_words(ids, real, config.max_word_bytes)
        else:
            words = torch.where(real, cpu["target_words"], -1)
        longest = cpu["word_mask"].shape[1]
        if config.gate_loss_weight and packing is not None and target_word_ids is not None:
            # What noise has joined or split has as many words as the noisy text; some may have no clean byte.
            if int(words.max()) >= longest:
                raise ValueError(f"`target_word_ids` name word {int(words.max())}, but the longest text has {longest}.")
        else:
            check_words(words, cpu["word_mask"])
        if config.gate_loss_weight and packing is not None:
            changed = changed_words(cpu["ids"], packing["word_ids"], ids, words, longest)
            packed["changed"] = changed
            words = torch.where(changed.gather(1, words.clamp(min=0)) == 1, words, -1)
        packed["spelling"] = pack_spelling(ids, words, longest, config.packed_row_length, bucketed)
    if clean_input_ids is not None and config.contrastive_loss_weight:
        packed["clean_packing"] = pack(cpu["clean"], None, None)
    device = next(tensor for tensor in tensors.values() if tensor is not None).device
    return tree_map(lambda tensor: tensor.to(device), packed)


def on_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy tensors of ids and masks to the CPU as int64, so that an accelerator is waited for once."""
    if all(tensor.device.type == "cpu" for tensor in tensors.values()):
        return tensors
    together = torch.cat([tensor.long().flatten() for tensor in tensors.values()]).cpu()
    parts = together.split([tensor.numel() for tensor in tensors.values()])
    return {name: part.view(tensor.shape) for (name, tensor), part in zip(tensors.items(), parts, strict=True)}


def check_words(target_word_ids: torch.Tensor, word_mask: torch.Tensor) -> None:
    """Raise a ValueError unless each text with labels has as many words as its memory `(B, S)`."""
    scored = (target_word_ids >= 0).any(1, keepdim=True)  # rows that only fill up a batch have no labels
    longest = max(word_mask.shape[1], int(target_word_ids.max()) + 1)
    expected = torch.nn.functional.pad(word_mask.bool() & scored, (0, longest - word_mask.shape[1]))
    words = torch.zeros(len(word_mask), longest + 1, dtype=torch.bool, device=CPU)  # the last for padding
    words = words.scatter(1, target_word_ids % (longest + 1), True)[:, :-1]
    if not torch.equal(words, expected):
        raise ValueError(
            f"The labels have {int(words.sum())} words, the input {int(expected.sum())}: the word decoder needs the "
            "same. Give `word_ids` and `target_word_ids` that agree, or set `word_loss_weight` to 0."
        )
