"""Whether two sets of runs differ: t-tests over seeds, of two samples or of pairs, and what they could have seen."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

LEVEL = 0.05  # of a two-sided test, for what could have been seen, and of what an interval leaves out
POWER = 0.8


@dataclass(frozen=True)
class Comparison:
    """Of two means.

    Attributes:
        difference: mean of the first less mean of the second.
        p: two-sided: the chance of such a difference between equal means.
        detectable: the difference that a test at the level of 5 % sees with a probability of 80 %, were the spreads
            those of these runs.
        margin: half of the interval around the difference that holds the true one with a probability of 95 %.
    """

    difference: float
    p: float
    detectable: float
    margin: float


def welch(ones: Sequence[float], others: Sequence[float]) -> Comparison | None:
    """Compare the means of two sets of runs, whose spreads may differ (Welch 1947); None where one of them is a single
    run."""
    if min(len(ones), len(others)) < 2:
        return None
    difference = statistics.fmean(ones) - statistics.fmean(others)
    shares = [statistics.variance(runs) / len(runs) for runs in (ones, others)]
    if not any(shares):
        return Comparison(difference, float(difference == 0), 0.0, 0.0)
    freedom = sum(shares) ** 2 / sum(
        share**2 / (len(runs) - 1) for share, runs in zip(shares, (ones, others), strict=True)
    )
    return t_test(difference, math.sqrt(sum(shares)), freedom)


def paired(ones: Sequence[float], others: Sequence[float]) -> Comparison | None:
    """Compare runs pair by pair (Student 1908): what a pair shares, as first weights, takes no part in the spread. None
    of a single pair."""
    changes = [one - other for one, other in zip(ones, others, strict=True)]
    if len(changes) < 2:
        return None
    difference, error = statistics.fmean(changes), statistics.stdev(changes) / math.sqrt(len(changes))
    if not error:
        return Comparison(difference, float(difference == 0), 0.0, 0.0)
    return t_test(difference, error, len(changes) - 1)


def t_test(difference: float, error: float, freedom: float) -> Comparison:
    """Of a difference with its standard error, by Student's t with so many degrees of freedom."""
    p = 2 * stats.t.sf(abs(difference) / error, freedom)
    margin = stats.t.ppf(1 - LEVEL / 2, freedom) * error
    detectable = margin + stats.t.ppf(POWER, freedom) * error
    return Comparison(difference, float(p), float(detectable), float(margin))
