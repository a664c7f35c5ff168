"""Pipelines in place of those of transformers, which take an id for a word, or for a part that its offsets tell."""

import math
import warnings
from itertools import chain, groupby, takewhile
from typing import Any

from transformers.pipelines.base import Pipeline, PipelineException
from transformers.pipelines.token_classification import TokenClassificationPipeline

from .encodzall_masking import MASKS
from .encodzall_words import WHITE_SPACE


class WordTaggingPipeline(TokenClassificationPipeline):
    """The pipeline `"token-classification"`, in which white space separates words. That of transformers goes by the
    space before an id's character: there a line break joins words, and a first letter of several bytes falls apart."""

    def gather_pre_entities(self, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Tokenizer does not support real words")
            entities = super().gather_pre_entities(*args, **kwargs)
        end = None
        for entity in entities:  # the tokenizer marks white space as special, so that it is none of them
            entity["is_subword"] = entity["index"] == end
            end = entity["index"] + 1
        return entities


class WordFillingPipeline(Pipeline):
    """The pipeline `"fill-mask"`: the words that `fill_mask` finds for each masked word.

    A text gives `top_k` dictionaries, best first, or, where several words are masked, a list of them for each. `score`
    is the probability of the word and of its end; `token` the list of its ids, which are bytes; `token_str` the word;
    `sequence` the text with it.
    """

    model: Any
    tokenizer: Any  # of this model; transformers leaves open whether there is one
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def _sanitize_parameters(self, top_k: int = 5, num_beams: int = 20) -> tuple[dict, dict, dict]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return {}, {"top_k": top_k, "num_beams": num_beams}, {}

    def preprocess(self, text: str) -> dict[str, str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return {"text": text}

    def _forward(self, inputs: dict[str, str], **options: int) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return {**inputs, "filled": self.model.fill_mask([inputs["text"]], self.tokenizer, **options)[0]}

    def postprocess(self, outputs: dict[str, Any]) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        encoded = self.tokenizer(outputs["text"], add_special_tokens=False)
        pairs = zip(encoded["word_ids"], encoded["input_ids"], strict=True)
        words = [[id_ for _, id_ in word] for _, word in groupby(pairs, key=lambda pair: pair[0])]
        masked = [index for index, ids in enumerate(words) if MASKS & {*ids}]
        if not masked:
            raise PipelineException("fill-mask", self.model.base_model_prefix, f"no mask in {outputs['text']!r}")
        propositions = [
            [self.proposition(words, index, *candidate) for candidate in candidates]
            for index, candidates in zip(masked, outputs["filled"], strict=True)
        ]
        return propositions[0] if len(propositions) == 1 else propositions

    def proposition(self, words: list[list[int]], index: int, word: str, score: float) -> dict[str, Any]:
        """Return the dictionary for the masked word at `index` filled with `word`, of log-probability `score`."""
        token = [*word.encode("utf-8", "surrogatepass")]
        spaces = [*takewhile(WHITE_SPACE.__contains__, reversed(words[index]))][::-1]
        ids = [*chain(*words[:index], token, spaces, *words[index + 1 :])]
        sequence = self.tokenizer.decode(ids)
        return {"score": math.exp(score), "token": token, "token_str": word, "sequence": sequence}
