"""Words of a byte sequence: where they begin, packing them into dense rows, pooling each to one vector."""

from dataclasses import dataclass
from functools import cached_property

import torch

NUM_BYTES = 256
WHITE_SPACE = frozenset(b" \t\n\v\f\r")  # what ends a word
FRAME_IDS = (256, 257, 258)  # padding, begin, end: each is a word of its own
LONGEST_CHARACTER = 4  # bytes of UTF-8


def is_space(ids: torch.Tensor) -> torch.Tensor:
    """Whether ids are ASCII white space, which ends a word. Other Unicode spaces are characters like any other."""
    return (ids == 32) | ((ids >= 9) & (ids <= 13))


def character_starts(ids: torch.Tensor) -> torch.Tensor:
    """Whether each id `(B, T)` begins a character: all but the continuation bytes of UTF-8, of which three may follow
    each other."""
    continues = (ids < NUM_BYTES) & ((ids & 0xC0) == 0x80)
    since = torch.arange(ids.shape[1], device=ids.device) - last_where(~continues)
    return (since == 0) | (since >= LONGEST_CHARACTER)


def last_where(condition: torch.Tensor) -> torch.Tensor:
    """Position `(B, T)` of the last true value up to each position; 0 where there is none."""
    positions = torch.arange(condition.shape[1], device=condition.device)
    return torch.where(condition, positions, 0).cummax(1).values


def next_where(condition: torch.Tensor) -> torch.Tensor:
    """Position `(B, T)` of the first true value after each position; T where there is none."""
    length = condition.shape[1]
    positions = torch.arange(length, device=condition.device)
    at_or_after = torch.where(condition, positions, length).flip(1).cummin(1).values.flip(1)
    return torch.nn.functional.pad(at_or_after[:, 1:], (0, 1), value=length)


def find_words(ids: torch.Tensor, max_word_bytes: int) -> torch.Tensor:
    """The index of each id's word in its row, `(B, T)`, int64, from 0 on.

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
    """[`find_words`] of the ids that are real `(B, T)`, counted from each text's first one, wherever padding is and
    whatever its ids are; -1 for padding."""
    words = find_words(torch.where(real, ids, FRAME_IDS[0]), max_word_bytes)
    first = words.gather(1, real.long().argmax(1, keepdim=True))
    return torch.where(real, words - first, -1)


def _cuts(ids: torch.Tensor, starts: torch.Tensor, max_word_bytes: int) -> torch.Tensor:
    """Where words that are too long are cut: before the character that reaches over a multiple of `part`. No part is
    then longer than `part` and the rest of one character."""
    part = max_word_bytes - (LONGEST_CHARACTER - 1)
    begin, next_begin = last_where(starts), next_where(starts)
    positions = torch.arange(ids.shape[1], device=ids.device)
    too_long = next_begin - begin > max_word_bytes
    opens = character_starts(ids)
    offset = positions - begin
    end = torch.minimum(next_where(opens), next_begin) - begin
    return too_long & opens & ~starts & ((end - 1) // part > (offset - 1) // part)


@dataclass
class Packing:
    """Where each of N tokens of W words goes: rows of R slots in which no word crosses an edge.

    Attributes:
        token: `(N,)` places of the tokens in their `(B, T)` batch, flattened.
        word: `(N,)` the word that each belongs to, 0 to W - 1 in the order of texts.
        offset: `(N,)` position in its word.
        slot: `(N,)` place in the rows, flattened.
        text, index: `(W,)` the text of each word, and its position in there.
        lengths: `(W,)` tokens of each.
        num_rows, row_length: of the rows.
        longest: words of the longest text, gaps in its positions counted.
    """

    token: torch.Tensor
    word: torch.Tensor
    offset: torch.Tensor
    slot: torch.Tensor
    text: torch.Tensor
    index: torch.Tensor
    lengths: torch.Tensor
    num_rows: int
    row_length: int
    longest: int

    def to_rows(self, values: torch.Tensor, fill: float = 0) -> torch.Tensor:
        """Values `(N, ...)` of the tokens laid into their rows `(rows, R, ...)`."""
        rows = values.new_full((self.num_rows * self.row_length, *values.shape[1:]), fill)
        return rows.index_copy(0, self.slot, values).unflatten(0, (self.num_rows, self.row_length))

    def from_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Values `(N, ...)` of the tokens, out of their rows `(rows, R, ...)`."""
        return rows.flatten(0, 1).index_select(0, self.slot)

    @cached_property
    def word_of_slot(self) -> torch.Tensor:
        """The word in each slot `(rows, R)`, -1 where there is none."""
        return self.to_rows(self.word, -1)

    @cached_property
    def position_of_slot(self) -> torch.Tensor:
        """Position in its word of each slot `(rows, R)`."""
        return self.to_rows(self.offset)

    @property
    def num_words(self) -> int:
        return self.lengths.shape[0]  # `len` would be a constant where the model is exported

    @property
    def first(self) -> torch.Tensor:
        """Place `(W,)` of each word's first token, as in `token`."""
        return self.token[self.lengths.cumsum(0) - self.lengths]

    def pad_words(self, values: torch.Tensor, num_texts: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Values `(W, D)` of the words as `(B, S, D)`, 0 after a text's last word, and the mask `(B, S)` of words."""
        place = self.text * self.longest + self.index
        shape = (num_texts, self.longest)
        padded = values.new_zeros((num_texts * self.longest, *values.shape[1:])).index_copy(0, place, values)
        mask = torch.zeros(num_texts * self.longest, dtype=torch.bool, device=values.device)
        return padded.unflatten(0, shape), mask.index_fill(0, place, True).unflatten(0, shape)

    def words_of_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """The word of each id `(B, T)`, -1 where it has none."""
        words = torch.full_like(ids, -1).flatten().index_copy(0, self.token, self.index[self.word])
        return words.view_as(ids)


def pack_words(word_ids: torch.Tensor, row_length: int) -> Packing:
    """Lay the words of a batch one after the other into rows; the next row begins where a word does not fit.

    Costs O(N) memory, and a Python loop over rows alone. With words of 6 bytes rows of 128 are 97 % full.

    Args:
        word_ids: `(B, T)`, int64, the index of each token's word in its text, -1 where there is no token. Must not fall
            along a row; the tokens of a word lie next to each other.
        row_length: slots in a row; as long as the longest word if that is longer.
    """
    real = word_ids >= 0
    token = real.flatten().nonzero().squeeze(1)
    text_of_token = token // word_ids.shape[1]
    index_of_token = word_ids.flatten()[token]
    begins = torch.ones_like(token, dtype=torch.bool)
    begins[1:] = (index_of_token[1:] != index_of_token[:-1]) | (text_of_token[1:] != text_of_token[:-1])
    word = begins.cumsum(0) - 1
    first = begins.nonzero().squeeze(1)  # (W,) the first token of each word
    ends = torch.cat((first[1:], first.new_tensor([len(token)])))
    lengths = ends - first
    row_length = max(row_length, int(lengths.max())) if len(lengths) else row_length

    # If a row began with word w, the next one would begin with word `following[w]`.
    following = torch.searchsorted(ends, first + row_length, right=True).tolist()
    row_starts = [0] if following else []
    while row_starts and following[row_starts[-1]] < len(following):
        row_starts.append(following[row_starts[-1]])
    row_starts = torch.tensor(row_starts, dtype=torch.long, device=word_ids.device)
    word_index = torch.arange(len(lengths), device=word_ids.device)
    row = torch.searchsorted(row_starts, word_index, right=True) - 1
    column = first - first[row_starts][row]
    offset = torch.arange(len(token), device=word_ids.device) - first[word]
    return Packing(
        token=token,
        word=word,
        offset=offset,
        slot=(row * row_length + column)[word] + offset,
        text=text_of_token[first],
        index=index_of_token[first],
        lengths=lengths,
        num_rows=len(row_starts),
        row_length=row_length,
        longest=int(index_of_token.max()) + 1 if len(lengths) else 1,
    )


def spell_words(ids: torch.Tensor, packing: Packing) -> torch.Tensor:
    """The words of a packing as rows of ids `(W, L)`, -1 after the end of each.

    Args:
        ids: `(N,)`, int64, of the packed tokens.
    """
    longest = int(packing.lengths.max())
    spelled = ids.new_full((packing.num_words * longest,), -1)
    return spelled.index_copy(0, packing.word * longest + packing.offset, ids).unflatten(0, (-1, longest))
