"""Repair of noisy words with EncodZall, by the noisy channel model (Shannon 1948; for spelling Kernighan, Church and
Gale 1990).

    score(new) = log p(changed) - log p(kept) + log p(new | changed, text) + log p(old | new)

The gate predicts the first two terms and the word decoder the third; both read the noisy text. The sum of these terms
is log p(new | text) - log p(old | text), since the spelling of a word that is kept is certain. The last term is an edit
model, -`edit_cost` nats for each edit. With a dictionary, another term is added for a text of n words,

    unknown_word_odds / sqrt(n) * (known(new) - known(old)),

where known is 1 or 0. The dictionary words near an unknown word are then candidates in addition to those of the beam
search. The factor 1 / sqrt(n) is empirical: with more words of context, the gate alone detects wrong words better.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from .block_layers import execution_device
from .configuration_encodzall import EncodzallConfig
from .encodzall_dictionary import Dictionary, Words, count_edits, pack_words
from .encodzall_packing import CPU
from .encodzall_words import BOS, EOS, NUM_BYTES, WHITE_SPACE, text_ids

TOGETHER = 512  # number of candidates of the dictionary that are scored in one batch


@dataclass
class Repair:
    """A new spelling of a word, including its white space.

    Attributes:
        start, end: the bytes `start` to `end` - 1 of the text are the word.
        new: the bytes of the new spelling.
        score: log-odds, in nats, of the new spelling against the present one.
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
    """Search for better spellings of words with a beam search.

    The score of a beam never rises with further bytes. Hence a higher threshold yields the same repair or none.

    Args:
        words: the bytes of each word.
        odds: the log-odds, in nats, that each word was changed, from which the scores of its beams start.
        best: the best known spelling of each word and its score, which are the word itself and the threshold if none is
            known.
        score: returns the log-probabilities `(n, V)` of the next id after beginnings `(n, l)` of the words with indices
            `(n,)`.
        cost: returns the nats, at least 0, that are subtracted from the score of a complete spelling of the word with
            an index.
        threshold: words whose log-odds are not above it are not searched.
        num_beams: number of beams of each word.
        max_bytes: largest number of bytes of a spelling.

    Returns:
        `best`, with the spellings that the search has found where their scores are higher.
    """
    best = [*best]
    opened = [index for index, odd in enumerate(odds) if odd > threshold]
    open_words = torch.tensor(opened, dtype=torch.long, device=CPU)
    ids = torch.empty(len(open_words), 0, dtype=torch.long, device=CPU)
    totals = torch.tensor(odds, dtype=torch.float64, device=CPU)[open_words]
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
        # The best `num_beams` beams of each word are continued if their scores are above that of its best spelling.
        totals, byte = following[:, :NUM_BYTES].topk(num_beams)
        beam = torch.arange(len(ids), device=CPU).repeat_interleave(num_beams)
        totals, byte, word = totals.flatten(), byte.flatten(), open_words[beam]
        order = totals.argsort(descending=True, stable=True)
        order = order[word[order].argsort(stable=True)]
        word, totals = word[order], totals[order]
        first = torch.searchsorted(word, word)
        bound = torch.tensor([total for _, total in best], dtype=torch.float64, device=CPU)
        rank = torch.arange(len(word), device=CPU) - first
        goes_on = (rank < num_beams) & (totals > bound[word]) & (length < max_bytes)
        ids = torch.cat((ids[beam[order]], byte[order, None]), 1)[goes_on]
        open_words, totals = word[goes_on], totals[goes_on]
    return best


def is_whole(data: bytes, start: int, end: int) -> bool:
    """Return whether the bytes `start` to `end` - 1 are a whole word, and not a part of a word that was split because
    it is too long."""
    return (not start or data[start - 1] in WHITE_SPACE) and (end == len(data) or data[end - 1] in WHITE_SPACE)


def apply_repairs(data: bytes, repairs: list[Repair], threshold: float) -> bytes:
    """Return a text with the repairs whose scores are above the threshold. All other bytes are copied."""
    pieces, position = [], 0
    for repair in repairs:
        if repair.score > threshold:
            pieces += data[position : repair.start], repair.new
            position = repair.end
    return b"".join([*pieces, data[position:]])


class EncodzallRepairs:
    """Mixin of the denoising model, which has `model`, `config`, `gate`, the decoders and `lm_head`."""

    config: EncodzallConfig
    model: Any
    gate: Any
    decoder: Any
    word_decoder: Any
    lm_head: Any
    generate: Any
    dictionary: Any
    word_log_probabilities: Any

    def set_dictionary(self, words: Iterable[str], unknown_word_odds: float) -> None:
        """Set the dictionary of the model and `unknown_word_odds` of its configuration. `save_pretrained` saves both.

        Args:
            words: words of the language, in lower case.
            unknown_word_odds: nats that a repair gains by replacing an unknown word by a known one.

        Raises:
            ValueError: if a word has other characters than letters in lower case, or there is none; if the odds are
                below 0.
        """
        if not unknown_word_odds >= 0:
            raise ValueError(f"`unknown_word_odds` is {unknown_word_odds}, but it must be at least 0.")
        packed = torch.frombuffer(bytearray(pack_words(words)), dtype=torch.uint8)
        self.config.dictionary_bytes, self.config.unknown_word_odds = len(packed), unknown_word_odds
        self.dictionary = Dictionary(len(packed)).to(execution_device(self))
        self.dictionary.packed.copy_(packed)

    def denoise(
        self,
        texts: list[str],
        tokenizer: PreTrainedTokenizerBase | None = None,
        threshold: float | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Return the repaired texts. A model with a gate repairs single words ([`find_repairs`]) and copies all other
        bytes. A model without one rewrites each text with `generate()`.

        Args:
            texts: the noisy texts.
            tokenizer: the tokenizer of a model without a gate. A model with a gate reads bytes and needs none.
            threshold: for a model with a gate, the score in nats, at least 0, above which a repair is applied. The
                default is `denoise_threshold`; with infinity, texts are copied.
            kwargs: arguments of [`find_repairs`] or of `generate()`. By default, the latter decodes greedily, and its
                output has at most twice the length of the input plus 16 ids.

        Raises:
            ValueError: if a text is longer than `max_position_embeddings`, if the threshold is below 0 or the model has
                no gate for it, or if a model with a gate has no `edit_cost`.
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
        if not texts:
            return []
        inputs = tokenizer(texts, padding=True, return_tensors="pt").to(execution_device(self))
        longest = 2 * inputs["input_ids"].shape[1] + 16
        kwargs.setdefault("max_length", min(longest, self.config.max_position_embeddings))
        ids = self.generate(**inputs, **kwargs)
        return tokenizer.batch_decode(ids, skip_special_tokens=True)

    @torch.no_grad()
    def find_repairs(self, texts: list[str], threshold: float = 0.0, num_beams: int = 4) -> list[list[Repair]]:
        """Return the repairs of each text, in the order of its words, that [`denoise`] applies.

        A word has a repair if the score of another spelling is above `threshold` nats. The candidates are those of a
        beam search, and the dictionary words near an unknown word; the repair is the best of them. The other terms of
        the score are not positive. Therefore only words are searched whose log-odds of the gate, plus the term of an
        unknown word, are above the threshold.

        Raises:
            ValueError: as in [`denoise`], if the dictionary has no words, or if `num_beams` is below 1.
        """
        config, edit_cost = self.config, self.config.edit_cost
        if not config.gate_loss_weight or edit_cost is None:
            raise ValueError(
                f"`gate_loss_weight` is {config.gate_loss_weight} and `edit_cost` {config.edit_cost}, but repairs need "
                "a gate and the noisy channel: set `edit_cost` in the configuration, in nats of an edit."
            )
        if not threshold >= 0:
            raise ValueError(f"`threshold` is {threshold}, but it must be at least 0; infinity copies.")
        if num_beams < 1:
            raise ValueError(f"`num_beams` is {num_beams}, but it must be at least 1.")
        repairs: list[list[Repair]] = [[] for _ in texts]
        rows = [row for row, text in enumerate(texts) if text.strip()]
        if not rows:
            return repairs
        data = [texts[row].encode("utf-8", "surrogatepass") for row in rows]
        ids = text_ids([texts[row] for row in rows]).to(execution_device(self))
        encoded = self.model(ids)
        memory = encoded.last_hidden_state
        odds = self.gate(memory).squeeze(-1).float()  # (B, S)
        starts = encoded.word_positions.tolist()
        known: Words | None = None if self.dictionary is None else self.dictionary.read()
        num_words = encoded.word_mask.sum(1, keepdim=True) - 1  # (B, 1), not counting the end
        unknown_odds = num_words.clamp(min=1).float().rsqrt() * (0.0 if known is None else config.unknown_word_odds)
        is_open = (encoded.word_mask & (odds + unknown_odds > threshold)).nonzero().tolist()
        # The end of a text is not repaired.
        spans = [(b, s, starts[b][s], starts[b][s + 1]) for b, s in is_open if starts[b][s] < len(data[b])]
        if not spans:
            return repairs
        vectors = torch.stack([memory[b, s] for b, s, _, _ in spans])
        old = [data[b][start:end] for b, _, start, end in spans]
        old_texts = [word.decode(errors="replace") for word in old]
        # The parts of a word that is too long are not looked up in the dictionary.
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
        """Return the log-probabilities, in nats, of n spellings in the word decoder, each from its vector in the memory
        `(n, D)`."""
        scores: list[float] = []
        for start in range(0, len(spelled), TOGETHER):
            part = [torch.tensor([*one], device=CPU) for one in spelled[start : start + TOGETHER]]
            padded = nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=-1)
            scores += self.word_log_probabilities(words[start : start + TOGETHER], padded).tolist()
        return scores

    def following_bytes(self, words: torch.Tensor, beginnings: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities `(n, V)`, float32, in nats, of the next id after the beginnings `(n, l)` of
        spellings in the word decoder, each from its vector in the memory `(n, D)`."""
        inputs = nn.functional.pad(beginnings, (1, 0), value=BOS)
        offset = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
        word = torch.arange(len(inputs), device=inputs.device).unsqueeze(1).expand_as(inputs)
        embedded = self.model.embed_in_words(inputs, offset)
        decoder = self.word_decoder if self.config.word_decoder == "own" else self.decoder
        hidden, _ = decoder.spell(embedded, words.unsqueeze(1).expand_as(embedded), word, offset)
        logits = self.lm_head(hidden[:, -1])
        return logits.float().log_softmax(-1)
