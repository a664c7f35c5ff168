"""The model `--model hf-one-begin`, which is lm-eval's `hf` model with exactly one begin token before every text."""

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM


class OneBeginLM(HFLM):
    """The lm-eval model of a causal language model, which scores a whole text as log P(text | begin), in nats.

    In `loglikelihood_rolling`, lm-eval adds a begin token before the text, and scores the one of the tokenizer as a
    part of the text (EleutherAI/lm-evaluation-harness#3333). With `add_bos_token=False` the tokenizer adds none, but
    then the contexts of `loglikelihood` have none either. Therefore this option is set for whole texts only.

    Args:
        kwargs: arguments of lm-eval's `hf` model.
    """

    # A decorator of HFLM hides these attributes from type checkers.
    model: Any
    max_length: int
    batch_size: int | str

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        former, self.add_bos_token = self.add_bos_token, False
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm)  # pyright: ignore[reportCallIssue]  as above
        finally:
            self.add_bos_token = former
