"""Repairs of EncodZall: what a word may have been before noise changed it, by the noisy channel.

    score(new) = log p(changed) - log p(kept) + log p(new | changed, text) + log p(old | new)

The first two are the gate's, which sees the noisy text as the word decoder does: with the third they are
log p(new | text) - log p(old | text), where a word that is kept costs nothing to spell. The last is an edit model. With
a dictionary a factor is added, in a text of n words

    unknown_word_odds / sqrt(n) * (known(new) - known(old)),

and the words near an unknown one are candidates beside those of the beam search. The root is measured, not derived: the
more words stand around one, the better the gate tells by itself whether it is right.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from .configuration_encodzall import EncodzallConfig
from .encodzall_dictionary import Dictionary, Words, count_edits, pack_words
from .encodzall_words import BOS, EOS, NUM_BYTES, WHITE_SPACE, text_ids

TOGETHER = 512  # candidates of the dictionary, scored at a time


@dataclass
class Repair:
    """Another spelling of a word, its white space included.

    Attributes:
        start, end: first and last + 1 byte of the word in its text.
        new: the other bytes.
        score: nats by which they are likelier than those that are there.
    """

    start: int
    end: int
    new: bytes
    score: float


def search_repairs(
    words: list[bytes],
    odds: list[float],
    best: list[tuple[bytes, float]],
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    cost: Callable[[int, str], float],
    threshold: float,
    num_beams: int,
    max_bytes: int,
) -> list[tuple[bytes, float]]:
    """For each word the best other spelling that a beam search finds, and its score, if that is above what is known of
    it. A higher threshold finds the same or nothing: no score grows with further bytes.

    Args:
        odds: of each word the log-odds that it was changed.
        best: of each word the best spelling that is known, and its score; the word itself and the threshold if none is.
        score: log-probabilities `(n, V)` of the ids that follow beginnings `(n, l)` of words `(n,)`, whose index it is.
        cost: nats, at least 0, that a spelling of a word, whose index it is, costs besides.
    """
    best = [*best]
    open_words = torch.tensor([index for index, odd in enumerate(odds) if odd > threshold], dtype=torch.long)
    ids, totals = torch.empty(len(open_words), 0, dtype=torch.long), torch.tensor(odds, dtype=torch.float64)[open_words]
    for length in range(max_bytes + 1):
        if not len(open_words):
            break
        following = totals[:, None] + score(open_words, ids).double()
        for index, spelled, total in zip(open_words.tolist(), ids.tolist(), following[:, EOS].tolist(), strict=True):
            if total <= best[index][1] or bytes(spelled) == words[index]:
                continue
            try:
                new = bytes(spelled).decode()
            except UnicodeDecodeError:
                continue
            total -= cost(index, new)
            if total > best[index][1]:
                best[index] = (bytes(spelled), total)
        # The beams of each word that go on: the best `num_beams`, if they are still above its best.
        totals, byte = following[:, :NUM_BYTES].topk(num_beams)
        beam = torch.arange(len(ids)).repeat_interleave(num_beams)
        totals, byte, word = totals.flatten(), byte.flatten(), open_words[beam]
        order = totals.argsort(descending=True, stable=True)
        order = order[word[order].argsort(stable=True)]
        word, totals = word[order], totals[order]
        first = torch.searchsorted(word, word)
        bound = torch.tensor([total for _, total in best], dtype=torch.float64)
        goes_on = (torch.arange(len(word)) - first < num_beams) & (totals > bound[word]) & (length < max_bytes)
        ids = torch.cat((ids[beam[order]], byte[order, None]), 1)[goes_on]
        open_words, totals = word[goes_on], totals[goes_on]
    return best


def is_whole(data: bytes, start: int, end: int) -> bool:
    """Whether a word is not a part of one that was cut."""
    return (not start or data[start - 1] in WHITE_SPACE) and (end == len(data) or data[end - 1] in WHITE_SPACE)


def apply_repairs(data: bytes, repairs: list[Repair], threshold: float) -> bytes:
    """A text with its repairs above the threshold; every other byte is copied."""
    pieces, position = [], 0
    for repair in repairs:
        if repair.score > threshold:
            pieces += data[position : repair.start], repair.new
            position = repair.end
    return b"".join([*pieces, data[position:]])


class EncodzallRepairs:
    """Goes among the bases of the denoising model, which has `model`, `config`, `gate`, decoders and `lm_head`."""

    config: EncodzallConfig
    device: Any
    model: Any
    gate: Any
    decoder: Any
    word_decoder: Any
    lm_head: Any
    generate: Any
    dictionary: Any
    word_log_probabilities: Any

    def set_dictionary(self, words: Iterable[str], unknown_word_odds: float) -> None:
        """Gives the model words of the language, in lower case, which repairs then know, and `unknown_word_odds` of the
        configuration. `save_pretrained` saves them.

        Raises:
            ValueError: if a word has other characters than letters in lower case, or there is none; if the odds are
                below 0.
        """
        if not unknown_word_odds >= 0:
            raise ValueError(f"`unknown_word_odds` is {unknown_word_odds}, but it must be at least 0.")
        packed = torch.frombuffer(bytearray(pack_words(words)), dtype=torch.uint8)
        self.config.dictionary_bytes, self.config.unknown_word_odds = len(packed), unknown_word_odds
        self.dictionary = Dictionary(len(packed)).to(self.device)
        self.dictionary.packed.copy_(packed)

    def denoise(
        self,
        texts: list[str],
        tokenizer: PreTrainedTokenizerBase | None = None,
        threshold: float | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """The texts, repaired: with a gate word by word ([`find_repairs`]), and else by `generate()`.

        Args:
            tokenizer: of the model; one with a gate reads bytes and needs none.
            threshold: of a model with a gate: nats by which a repair has to be likelier than the word as it is, at
                least 0, by default `denoise_threshold`; infinity copies. Words that are not repaired are copied to the
                byte.
            kwargs: those of [`find_repairs`], or of `generate()`; by default greedy, and at most twice as long.

        Raises:
            ValueError: if a text is longer than `max_position_embeddings`; if the threshold is below 0 or there is no
                gate for it; if a gate has no `edit_cost`.
        """
        if self.config.gate_loss_weight:
            threshold = self.config.denoise_threshold if threshold is None else threshold
            repairs = self.find_repairs(texts, threshold, **kwargs)
            data = [text.encode("utf-8", "surrogatepass") for text in texts]
            repaired = (apply_repairs(*pair, threshold) for pair in zip(data, repairs, strict=True))
            return [text.decode("utf-8", "surrogatepass") for text in repaired]
        if threshold is not None or tokenizer is None:
            raise ValueError(
                f"`threshold` is {threshold} and `tokenizer` {tokenizer!r}, but this model has no gate "
                "(`gate_loss_weight` is 0): it needs a tokenizer, and knows no threshold."
            )
        inputs = tokenizer(texts, padding=True, return_tensors="pt").to(self.device)
        longest = 2 * inputs["input_ids"].shape[1] + 16
        kwargs.setdefault("max_length", min(longest, self.config.max_position_embeddings))
        ids = self.generate(**inputs, **kwargs)
        return tokenizer.batch_decode(ids, skip_special_tokens=True)

    @torch.no_grad()
    def find_repairs(self, texts: list[str], threshold: float = 0.0, num_beams: int = 4) -> list[list[Repair]]:
        """Of each text, in order, the words for which another spelling is likelier by more than `threshold` nats, with
        the likeliest that a beam search finds, or that the dictionary has near an unknown word: what `denoise` writes.
        Only words whose odds are above the threshold are searched, since no spelling adds to them: the gate's, and
        those of a word that the dictionary does not know.

        Raises:
            ValueError: as [`denoise`]; if there is a dictionary without words.
        """
        config, edit_cost = self.config, self.config.edit_cost
        if not config.gate_loss_weight or edit_cost is None:
            raise ValueError(
                f"`gate_loss_weight` is {config.gate_loss_weight} and `edit_cost` {config.edit_cost}, but repairs need "
                "a gate and the noisy channel: set `edit_cost` in the configuration, in nats of an edit."
            )
        if not threshold >= 0:
            raise ValueError(f"`threshold` is {threshold}, but it must be at least 0; infinity copies.")
        repairs: list[list[Repair]] = [[] for _ in texts]
        rows = [row for row, text in enumerate(texts) if text.strip()]
        if not rows:
            return repairs
        data = [texts[row].encode("utf-8", "surrogatepass") for row in rows]
        ids = text_ids([texts[row] for row in rows]).to(self.device)
        encoded = self.model(ids)
        memory = encoded.last_hidden_state
        odds = self.gate(memory).squeeze(-1).float()  # (B, S)
        starts = encoded.word_positions.tolist()
        known: Words | None = None if self.dictionary is None else self.dictionary.read()
        num_words = encoded.word_mask.sum(1, keepdim=True) - 1  # (B, 1), without the end
        unknown_odds = num_words.clamp(min=1).float().rsqrt() * (0.0 if known is None else config.unknown_word_odds)
        is_open = (encoded.word_mask & (odds + unknown_odds > threshold)).nonzero().tolist()
        spans = [(b, s, starts[b][s], starts[b][s + 1]) for b, s in is_open if starts[b][s] < len(data[b])]  # no end
        if not spans:
            return repairs
        vectors = torch.stack([memory[b, s] for b, s, _, _ in spans])
        old = [data[b][start:end] for b, _, start, end in spans]
        old_texts = [word.decode(errors="replace") for word in old]
        # The parts of a word that is too long are no words that a dictionary has.
        factors = [unknown_odds[b].item() * is_whole(data[b], start, end) for b, _, start, end in spans]

        def odds_if_unknown(index: int, word: str) -> float:
            return 0.0 if known is None or known.knows(word) else factors[index]

        def cost(index: int, new: str) -> float:
            return edit_cost * count_edits(old_texts[index], new) + odds_if_unknown(index, new)

        def score(words: torch.Tensor, beginnings: torch.Tensor) -> torch.Tensor:
            return self.following_bytes(vectors[words.to(ids.device)], beginnings.to(ids.device)).cpu()

        added = [odds_if_unknown(index, word) for index, word in enumerate(old_texts)]
        log_odds = [odds[b, s].item() + added[index] for index, (b, s, _, _) in enumerate(spans)]
        best = [(word, threshold) for word in old]
        if known is not None:
            near = [
                (index, new, log_odds[index] - cost(index, new))
                for index, word in enumerate(old_texts)
                if added[index] and log_odds[index] > threshold and word.encode() == old[index]
                for new in known.respell(word)
            ]
            near = [candidate for candidate in near if candidate[2] > threshold]
            log_p = self.score_spellings(vectors[[index for index, _, _ in near]], [new.encode() for _, new, _ in near])
            for (index, new, total), value in zip(near, log_p, strict=True):
                if total + value > best[index][1]:
                    best[index] = (new.encode(), total + value)
        limit = 2 * config.max_word_bytes
        best = search_repairs(old, log_odds, best, score, cost, threshold, num_beams, limit)
        for (b, _, start, end), word, (new, total) in zip(spans, old, best, strict=True):
            if new != word:
                repairs[rows[b]].append(Repair(start, end, new, total))
        return repairs

    def score_spellings(self, words: torch.Tensor, spelled: list[bytes]) -> list[float]:
        """Log-probabilities of spellings in the word decoder, each from its vector in the memory `(n, D)`."""
        scores: list[float] = []
        for start in range(0, len(spelled), TOGETHER):
            part = [torch.tensor([*one]) for one in spelled[start : start + TOGETHER]]
            padded = nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=-1)
            scores += self.word_log_probabilities(words[start : start + TOGETHER], padded).tolist()
        return scores

    def following_bytes(self, words: torch.Tensor, beginnings: torch.Tensor) -> torch.Tensor:
        """Log-probabilities `(n, V)`, float32, of the ids that follow beginnings `(n, l)` of the spellings of words, in
        the word decoder, from their vectors in the memory `(n, D)`."""
        inputs = nn.functional.pad(beginnings, (1, 0), value=BOS)
        offset = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
        word = torch.arange(len(inputs), device=inputs.device).unsqueeze(1).expand_as(inputs)
        embedded = self.model.embed_in_words(inputs, offset)
        decoder = self.word_decoder if self.config.word_decoder == "own" else self.decoder
        hidden, _ = decoder.spell(embedded, words.unsqueeze(1).expand_as(embedded), word, offset)
        logits = self.lm_head(hidden[:, -1])
        return logits.float().log_softmax(-1)
