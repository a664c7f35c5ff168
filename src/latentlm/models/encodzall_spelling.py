"""Spelling with the word decoder of EncodZall, which predicts the bytes of each word from the vector of that word
alone."""

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .block_layers import execution_device
from .block_ragged import take
from .configuration_encodzall import EncodzallConfig
from .encodzall_masking import MASKS, WordPattern, search_words
from .encodzall_packing import CPU, Spelling, pack_spelling
from .encodzall_words import BOS, EOS, WHITE_SPACE


class EncodzallSpelling:
    """Mixin of models that have encoders, a word decoder and an output layer."""

    config: EncodzallConfig
    model: Any
    decoder: Any
    word_decoder: Any
    lm_head: Any

    def refuse_no_word_decoder(self) -> None:
        """Raise ValueError if the model has no word decoder."""
        if self.config.word_decoder == "none":
            raise ValueError("`word_decoder` is 'none': this model fills no masks; it was trained to repair noise.")

    def spell(
        self, memory: torch.Tensor, ids: torch.Tensor, spelling: Spelling
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return logits `(N, V)` and targets `(N,)` of the N bytes and ends of the words of ids `(B, T)`. Each is
        predicted from the vector of its word in the memory `(B, S, D)`. Also return the penalties of LearnedDropout's
        masks `(N, K)` if there are any."""
        config = self.config
        targets = take(ids, spelling["target"], EOS)  # (R, L)
        before = nn.functional.pad(targets[:, :-1], (1, 0))
        inputs = self.model.embed_in_words(torch.where(spelling["offset"] == 0, BOS, before), spelling["offset"])
        decoder = self.word_decoder if config.word_decoder == "own" else self.decoder
        hidden, penalties = decoder.spell(inputs, take(memory, spelling["word"]), spelling["word"], spelling["offset"])
        if penalties is not None:
            penalties = take(penalties, spelling["slot"])[0]
        logits = self.lm_head(take(hidden, spelling["slot"])[0])
        return logits, take(targets, spelling["slot"])[0], penalties

    def spell_words(
        self, words: torch.Tensor, spelled: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return logits `(N, V)` and targets `(N,)` of the N bytes and ends of words, each predicted from the vector of
        its word, and the index of that word `(N,)`.

        Args:
            words: `(W, D)`, vectors of the words in the memory.
            spelled: `(W, L)`, int64, ids of the bytes of the words, -1 after the last. The end of a text is an empty
                word.
        """
        ids = nn.functional.pad(spelled.cpu(), (0, 1), value=EOS)
        spelling = pack_spelling(ids, torch.where(ids < 0, -1, 0), 1, self.config.packed_row_length)
        ids, spelling = tree_map(lambda tensor: tensor.to(words.device), (ids, spelling))
        logits, targets, _ = self.spell(words.unsqueeze(1), ids, spelling)
        return logits, targets, take(spelling["word"], spelling["slot"])[0]

    @torch.no_grad()
    def word_log_probabilities(self, words: torch.Tensor, spelled: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities `(W,)`, float32, in nats, of the spellings `spelled` `(W, L)` (-1 after the last
        byte) and the ends of words, given their vectors `words` `(W, D)`."""
        logits, targets, word = self.spell_words(words, spelled)
        values = -nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        return values.new_zeros(len(words)).index_add(0, word, values)

    @torch.no_grad()
    def fill_mask(
        self, texts: list[str], tokenizer: PreTrainedTokenizerBase, top_k: int = 5, num_beams: int = 20
    ) -> list[list[list[tuple[str, float]]]]:
        """Fill the masks of texts (`"The <mask> s<vowel>t."`) with spellings of the word decoder.

        Args:
            texts: texts with masks.
            tokenizer: the tokenizer of the model.
            top_k: largest number of words to return for each masked word.
            num_beams: number of beams of the search.

        Returns:
            For each text, and each of its masked words in order, up to `top_k` words, best first. Each comes with its
            log-probability in nats, which includes the white space or the end after it. Unmasked characters of the word
            do not change.

        Raises:
            ValueError: if the model has no word decoder, or `top_k` or `num_beams` is below 1.
        """
        self.refuse_no_word_decoder()
        for name, value in {"top_k": top_k, "num_beams": num_beams}.items():
            if value < 1:
                raise ValueError(f"`{name}` is {value}, but it must be at least 1.")
        if not texts:
            return []
        inputs = tokenizer(texts, padding=True, return_tensors="pt").to(execution_device(self))
        memory = self.model(**inputs).last_hidden_state
        filled: list[list[list[tuple[str, float]]]] = [[] for _ in texts]
        for row, (ids, word_ids) in enumerate(zip(inputs["input_ids"], inputs["word_ids"], strict=True)):
            for word in word_ids[(ids >= min(MASKS)) & (ids <= max(MASKS))].unique().tolist():
                closing, spelled = EOS, ids[word_ids == word].tolist()
                while spelled[-1] in WHITE_SPACE:
                    *spelled, closing = spelled

                def score(beginnings: list[bytes], vector: torch.Tensor = memory[row, word]) -> list[list[float]]:
                    rows = [[*beginning] for beginning in beginnings]  # all of equal length
                    tried = torch.tensor(rows, device=CPU).long()
                    logits, _, _ = self.spell_words(vector.expand(len(tried), -1), tried)
                    return logits.unflatten(0, (len(tried), -1))[:, -1].float().log_softmax(-1).tolist()

                limit = 2 * self.config.max_word_bytes
                words = search_words(WordPattern(spelled), closing, score, top_k, num_beams, limit)
                filled[row].append([(str(tokenizer.decode([*data])), total) for data, total in words])
        return filled
