"""The adapter `--model abstractinator`, which scores texts by two-part code lengths. Next-byte likelihoods need no
adapter (`--model hf`)."""

from functools import reduce

import torch
from tqdm import tqdm

from .causal import OneBeginLM


class AbstractinatorLM(OneBeginLM):
    """The lm-eval model of an Abstractinator with a categorical top model.

    The score of a continuation, in nats, is the two-part code length of the context minus that of context and
    continuation. No continuation is reported as greedy, because there is no single distribution whose mode it could be.

    Args:
        kwargs: arguments of lm-eval's `hf` model. Texts that are longer than the context of the model lose their
            beginning.
    """

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, override_bs: int | None = None):
        texts = []
        for _, context, continuation in requests:
            whole = (context + continuation)[-self.max_length :]
            # The first id has no cost. Without a context it is the first id of the continuation.
            texts += [whole, whole[: max(len(whole) - len(continuation), 1)]]
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        size = override_bs or (self.batch_size if isinstance(self.batch_size, int) else 16)
        nats = [0.0] * len(texts)
        for begin in tqdm(range(0, len(order), size), disable=disable_tqdm, desc="Two-part code lengths"):
            chosen = order[begin : begin + size]
            rows = [torch.tensor(texts[i]) for i in chosen]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.device)
            lengths = torch.tensor([len(row) for row in rows], device=self.device)
            mask = torch.arange(ids.shape[1], device=self.device) < lengths.unsqueeze(1)
            lengths_in_nats: torch.Tensor = reduce(torch.add, self.model.code_lengths(ids, mask).values())
            for i, value in zip(chosen, lengths_in_nats.tolist(), strict=True):
                nats[i] = value if len(texts[i]) > 1 else 0.0  # the first id alone has no cost
        scores = [(nats[i + 1] - nats[i], False) for i in range(0, len(nats), 2)]
        for (key, _, _), score in zip(requests, scores, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, score)
        return scores
