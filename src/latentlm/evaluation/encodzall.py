"""The adapter `--model encodzall`, which scores texts by pseudo-log-likelihood with each word masked in turn
(Salazar et al. 2020, arXiv:1910.14659, with words instead of tokens)."""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from tqdm import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerBase

from latentlm.models.encodzall_words import WHITE_SPACE, find_words, is_space
from latentlm.models.modeling_encodzall import EncodzallForMaskedDenoising


@dataclass
class MaskedWord:
    """A text in which one word is masked. What the model reads is made when it is read, because a text has a copy of
    itself for each of its words.

    Attributes:
        text, text_words: bytes of the text, and the word of each; all of its masked words share them.
        begin, end: the place of the word, including its white space.
        filling: what stands in the place of the word: `<mask>` and its white space.
        request: index of the request that the text is a part of.
    """

    text: list[int]
    text_words: list[int]
    begin: int
    end: int
    filling: list[int]
    request: int

    @property
    def word(self) -> int:
        return self.text_words[self.begin]

    @property
    def spelled(self) -> list[int]:
        return self.text[self.begin : self.end]

    def __len__(self) -> int:
        return len(self.text) - (self.end - self.begin) + len(self.filling) + 1

    def inputs(self, end_id: int) -> tuple[list[int], list[int]]:
        """Return ids and word ids of the masked text with the end after it."""
        ids = [*self.text[: self.begin], *self.filling, *self.text[self.end :], end_id]
        filled = [self.word] * len(self.filling)
        words = [*self.text_words[: self.begin], *filled, *self.text_words[self.end :], self.text_words[-1] + 1]
        return ids, words


class EncodzallLM(LM):
    """The lm-eval model of an EncodZall with a word decoder, for tasks that compare log-likelihoods.

    The score of a continuation is the sum over its words of log P(bytes of the word | all other words), in nats. A word
    belongs to the continuation if one of its characters does that is not white space.

    Args:
        pretrained: run folder or Hub repository, or a loaded model.
        tokenizer: the tokenizer of a loaded model.
        batch_size: number of masked texts in a batch.
        device: device of the model, such as "cpu".
        dtype: dtype of the weights, such as "bfloat16", or "auto" for that of the checkpoint.
        trust_remote_code: whether the code of a repository may run.

    Raises:
        ValueError: if there are other arguments, or the model has no word decoder.
    """

    model: EncodzallForMaskedDenoising
    tokenizer: Any

    def __init__(
        self,
        pretrained: str | EncodzallForMaskedDenoising,
        tokenizer: PreTrainedTokenizerBase | None = None,
        batch_size: int | str = 64,
        device: str | None = None,
        dtype: str = "float32",
        trust_remote_code: bool = False,
        **kwargs,
    ):
        super().__init__()
        if kwargs.keys() - {"max_batch_size"}:
            raise ValueError(f"--model encodzall knows no arguments {sorted(kwargs)}.")
        if isinstance(pretrained, str):
            trusted = {"trust_remote_code": bool(trust_remote_code)}
            tokenizer = AutoTokenizer.from_pretrained(pretrained, **trusted)
            model = AutoModelForSeq2SeqLM.from_pretrained(pretrained, dtype=dtype, **trusted)
        else:
            model = pretrained
        if model.config.word_decoder == "none":
            raise ValueError("This model has no word decoder (`word_decoder` is 'none'), so it cannot score words.")
        if not torch.cuda.is_available() and str(device).startswith("cuda"):
            device = None  # the default of lm-eval is a GPU
        self.model = model.to(device or "cpu").eval()  # pyright: ignore[reportArgumentType]  transformers wraps `to`
        self.tokenizer = tokenizer
        self.batch_size = 64 if str(batch_size).startswith("auto") else int(batch_size)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        masked = []
        for index, request in enumerate(requests):
            arguments: tuple[Any, ...] = request.args
            context, continuation = arguments
            masked += self.mask_words(context + continuation, len(context.encode("utf-8", "surrogatepass")), index)
        return self.score(masked, len(requests))

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        masked = []
        for index, request in enumerate(requests):
            masked += self.mask_words(request.args[0], 0, index)
        return [total for total, _ in self.score(masked, len(requests))]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("EncodZall repairs texts and continues none: tasks that generate do not fit it.")

    def mask_words(self, text: str, start: int, request: int) -> list[MaskedWord]:
        """Return a masked text for each word of `text` from byte `start` on.

        Of a text that is longer than the context of the model, the last words are kept that fit in. Only where the
        words to mask do not fit in is the text cut, between words, into parts that begin with the first of them.
        """
        config = self.model.config
        data = torch.tensor([*text.encode("utf-8", "surrogatepass")], dtype=torch.long)
        if not len(data):
            return []
        words = find_words(data[None], config.max_word_bytes)[0]
        room = config.max_position_embeddings - 1  # one position is that of the end
        masked, begin = [], self.first_kept(data, words, start, room)
        while begin < len(data):
            end = len(data)
            if end - begin > room:  # cut after the last word that fits
                end = begin + int((words[begin : begin + room + 1].diff() != 0).nonzero().max()) + 1
            part, part_words = data[begin:end].tolist(), (words[begin:end] - words[begin]).tolist()
            masked += self._mask_part(part, part_words, start - begin, request)
            begin = end
        return masked

    def first_kept(self, data: torch.Tensor, words: torch.Tensor, start: int, room: int) -> int:
        """Return the byte at which the text to score begins: that of a word, at most `room` bytes before the end or,
        if the words to mask are longer, that of the first of them."""
        begins = torch.cat((torch.zeros(1, dtype=torch.long), (words.diff() != 0).nonzero()[:, 0] + 1))
        visible = (~is_space(data[start:])).nonzero()[:, 0] + start
        if not len(visible):  # nothing is masked
            return len(data)
        fitting = begins[begins >= len(data) - room]
        first_masked = begins[words[visible[0]]]
        return int(torch.cat((fitting, first_masked[None])).min())

    def _mask_part(self, ids: list[int], word_ids: list[int], start: int, request: int) -> list[MaskedWord]:
        masked = []
        for _, run in itertools.groupby(range(len(ids)), key=word_ids.__getitem__):
            places = list(run)
            visible = [place for place in places if ids[place] not in WHITE_SPACE]
            if not visible or visible[-1] < start:
                continue
            before = [ids[place] for place in places if place < visible[0]]
            after = [ids[place] for place in places if place > visible[0] and ids[place] in WHITE_SPACE]
            filling = [*before, self.tokenizer.mask_token_id, *after]
            masked.append(MaskedWord(ids, word_ids, places[0], places[-1] + 1, filling, request))
        return masked

    @torch.no_grad()
    def score(self, masked: list[MaskedWord], count: int) -> list[tuple[float, bool]]:
        """Return, for each of `count` requests, the sum of the log-probabilities of its words, in nats, and whether
        every byte of them is the most likely one."""
        totals, greedy = [0.0] * count, [True] * count
        order = sorted(masked, key=len)
        pad, device = self.tokenizer.pad_token_id, self.model.device
        for begin in tqdm(range(0, len(order), self.batch_size), desc="Scoring masked words", disable=not order):
            batch = order[begin : begin + self.batch_size]
            texts, text_words = zip(*(item.inputs(self.tokenizer.eos_token_id) for item in batch), strict=True)
            longest, widest = max(map(len, batch)), max(len(item.spelled) for item in batch)
            ids, words, spelled = (
                torch.tensor([values + [fill] * (length - len(values)) for values in rows], device=device)
                for rows, fill, length in (
                    (texts, pad, longest),
                    (text_words, -1, longest),
                    ([item.spelled for item in batch], -1, widest),
                )
            )
            memory = self.model.model(ids, ids != pad, words).last_hidden_state
            vectors = memory[torch.arange(len(batch)), torch.tensor([item.word for item in batch])]
            logits, targets, word = self.model.spell_words(vectors, spelled)
            scores = -torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
            wrong = (logits.argmax(-1) != targets).float()
            sums = scores.new_zeros(2, len(batch)).index_add(1, word, torch.stack((scores, wrong))).tolist()
            for item, total, errors in zip(batch, *sums, strict=True):
                totals[item.request] += total
                greedy[item.request] &= errors == 0
        return list(zip(totals, greedy, strict=True))
