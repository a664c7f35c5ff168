"""`--model hf-one-begin`: lm-eval's `hf` model with one begin token before every text."""

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM


class OneBeginLM(HFLM):
    """Whole texts are scored as log P(text | begin), in nats.

    lm-eval puts a begin token before the text of `loglikelihood_rolling`, and scores as text the one that the tokenizer
    put there (EleutherAI/lm-evaluation-harness#3333). With its own `add_bos_token=False` the tokenizer would put none,
    but then contexts of `loglikelihood` begin with none either: so it is set for whole texts alone.

    Args:
        kwargs: those of lm-eval's `hf` model.
    """

    # HFLM's decorator hides them from type checkers.
    model: Any
    max_length: int
    batch_size: int | str

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        former, self.add_bos_token = self.add_bos_token, False
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm)  # pyright: ignore[reportCallIssue]  as above
        finally:
            self.add_bos_token = former
