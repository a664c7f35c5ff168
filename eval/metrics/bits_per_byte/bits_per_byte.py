"""Bits per byte as an `evaluate` module: `evaluate.load("eval/metrics/bits_per_byte")`."""

# `evaluate` finds dependencies by reading import statements line by line: one import on each line.
import math

import datasets
import evaluate

_DESCRIPTION = """
Bits per byte: the total negative log-likelihood of some text, in bits, over its length in UTF-8 bytes. Unlike the
perplexity per token it compares models with different tokenizers. Lower is better; 8 is a uniform guess over bytes.
"""

_KWARGS_DESCRIPTION = """
Args:
    nats (`list` of `float`): negative log-likelihood of each text, summed over its tokens, in nats (at least 0).
    bytes (`list` of `int`): length of each text in UTF-8 bytes, in the same order.
Returns:
    bits_per_byte (`float`): sum(nats) / (ln 2 * sum(bytes)), both sums taken over all texts first. The mean of the
    texts' own ratios would be another number.
Examples:
    >>> metric = evaluate.load("eval/metrics/bits_per_byte")
    >>> metric.compute(nats=[math.log(256), 0.0], bytes=[1, 3])
    {'bits_per_byte': 2.0}
"""

_CITATION = ""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class BitsPerByte(evaluate.Metric):
    """Bits per byte from total nats and bytes per text."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"nats": datasets.Value("float64"), "bytes": datasets.Value("int64")}),
        )

    def _compute(self, nats: list[float], bytes: list[int]) -> dict[str, float]:
        if not all(math.isfinite(value) and value >= 0 for value in nats):
            raise ValueError(
                f"nats must be finite negative log-likelihoods, at least 0, got a minimum of {min(nats)} and a maximum "
                f"of {max(nats)}; pass -log_likelihood, summed over the tokens of each text"
            )
        if min(bytes) < 0 or sum(bytes) == 0:
            raise ValueError(f"bytes must be lengths in bytes with a sum above 0, got {sum(bytes)} in total")
        # fsum rounds once, so the result does not depend on the order or the number of texts.
        return {"bits_per_byte": math.fsum(nats) / (math.log(2) * sum(bytes))}
