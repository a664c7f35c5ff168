"""Words of byte sequences: where they begin."""

import torch

NUM_BYTES = 256
WHITE_SPACE = frozenset(b" \t\n\v\f\r")  # what ends a word
FRAME_IDS = PAD, BOS, EOS = 256, 257, 258  # each is a word of its own
LONGEST_CHARACTER = 4  # bytes of UTF-8


def text_ids(texts: list[str]) -> torch.Tensor:
    """Return the ids `(B, T)`, int64, of texts: bytes and the end, padded. A lone surrogate has the bytes it would have
    in UTF-8."""
    ids = [torch.tensor([*text.encode("utf-8", "surrogatepass"), EOS], device="cpu") for text in texts]
    return torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=PAD)


def is_space(ids: torch.Tensor) -> torch.Tensor:
    """Return whether ids are ASCII white space, which ends a word. Other Unicode spaces are characters like any
    other."""
    return (ids == 32) | ((ids >= 9) & (ids <= 13))


def character_starts(ids: torch.Tensor) -> torch.Tensor:
    """Return whether each id `(B, T)` begins a character: all ids but the continuation bytes of UTF-8, of which three
    may follow each other."""
    continues = (ids < NUM_BYTES) & ((ids & 0xC0) == 0x80)
    since = torch.arange(ids.shape[1], device=ids.device) - last_where(~continues)
    return (since == 0) | (since >= LONGEST_CHARACTER)


def last_where(condition: torch.Tensor) -> torch.Tensor:
    """Return the position `(B, T)` of the last true value up to each position; 0 where there is none."""
    positions = torch.arange(condition.shape[1], device=condition.device)
    return torch.where(condition, positions, 0).cummax(1).values


def next_where(condition: torch.Tensor) -> torch.Tensor:
    """Return the position `(B, T)` of the first true value after each position; T where there is none."""
    length = condition.shape[1]
    positions = torch.arange(length, device=condition.device)
    at_or_after = torch.where(condition, positions, length).flip(1).cummin(1).values.flip(1)
    return torch.nn.functional.pad(at_or_after[:, 1:], (0, 1), value=length)


def find_words(ids: torch.Tensor, max_word_bytes: int) -> torch.Tensor:
    """Return the index of each id's word in its row, `(B, T)`, int64, from 0 on.

    A word is a run without white space and the white space after it; white space at the beginning of a text belongs to
    its first word. Padding, begin and end are words by themselves. A longer word is cut, not inside of a character,
    into parts of at most `max_word_bytes` ids.

    Args:
        ids: `(B, T)`, int64: bytes and special ids.
    """
    space = is_space(ids)
    frame = (ids >= FRAME_IDS[0]) & (ids <= FRAME_IDS[-1])
    first = torch.ones_like(space[:, :1])
    after_space, after_frame = (torch.cat((~first, flag[:, :-1]), 1) for flag in (space, frame))
    # White space ends a word only if there was one since the text began.
    letters = (~space & ~frame).cumsum(1)
    letters_before = letters - (~space & ~frame).long()
    has_begun = letters_before > torch.where(frame, letters, 0).cummax(1).values
    starts = frame | after_frame | (after_space & ~space & has_begun)
    starts[:, :1] = True
    return (starts | _cuts(ids, starts, max_word_bytes)).cumsum(1) - 1


def find_real_words(ids: torch.Tensor, real: torch.Tensor, max_word_bytes: int) -> torch.Tensor:
    """Find the words of the ids that are real `(B, T)`, as [`find_words`] does, counted from each text's first real id,
    wherever padding is and whatever its ids are; -1 for padding."""
    words = find_words(torch.where(real, ids, FRAME_IDS[0]), max_word_bytes)
    first = words.gather(1, real.long().argmax(1, keepdim=True))
    return torch.where(real, words - first, -1)


def first_in_words(which: torch.Tensor, word_ids: torch.Tensor, num_words: int) -> torch.Tensor:
    """Return the position `(B, T)` of the first id in each id's word for which `which` `(B, T)` is true; T if there is
    none. `word_ids` `(B, T)` are -1 for padding and below `num_words`."""
    positions = torch.arange(word_ids.shape[1], device=word_ids.device).expand_as(word_ids)
    word = word_ids.where(which & (word_ids >= 0), num_words)
    first = torch.full_like(word_ids[:, :1], word_ids.shape[1]).expand(-1, num_words + 1)
    return first.scatter_reduce(1, word, positions, "amin").gather(1, word_ids.clamp(min=0))


def _cuts(ids: torch.Tensor, starts: torch.Tensor, max_word_bytes: int) -> torch.Tensor:
    """Return where words that are too long are cut: before the character that reaches over a multiple of `part`. No
    part is then longer than `part` and the rest of one character."""
    part = max_word_bytes - (LONGEST_CHARACTER - 1)
    begin, next_begin = last_where(starts), next_where(starts)
    positions = torch.arange(ids.shape[1], device=ids.device)
    too_long = next_begin - begin > max_word_bytes
    opens = character_starts(ids)
    offset = positions - begin
    end = torch.minimum(next_where(opens), next_begin) - begin
    return too_long & opens & ~starts & ((end - 1) // part > (offset - 1) // part)
