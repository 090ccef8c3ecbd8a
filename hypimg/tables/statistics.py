"""Intervals and verdicts: three kinds, never mixed.

Over seeds (what the method gives), over paired seeds (what separates two arms), over test episodes (one trained
model). All are 95 % unless said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

LEVEL = 0.95

Word = Literal["inside", "outside", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A mean over n values; `half_width` of its interval and `std` are None where n is too small to say."""

    mean: float
    half_width: float | None
    std: float | None
    n: int


@dataclass(frozen=True)
class Verdict:
    """Whether a single number from elsewhere lies where one more run of ours would be expected."""

    word: Word
    difference: float  # our mean − the number
    half_width: float | None  # of the prediction interval
    spreads: float | None  # the difference in units of our standard deviation over seeds


@dataclass(frozen=True)
class Paired:
    """Differences a − b at the seeds that both arms have."""

    mean: float
    half_width: float | None
    n: int
    positive: int  # seeds at which a > b
    p: float | None  # two-sided paired t-test; uncorrected for the number of comparisons

    @property
    def decided(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.half_width is not None and abs(self.mean) > self.half_width


def over_seeds(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Mean and t-interval: mean ± t_{n−1} s / √n, s with n − 1 in the denominator. n = 1: the value alone."""
    mean, std = _mean_std(values)
    n = len(values)
    half_width = None if std is None else _t(n, level) * std / math.sqrt(n)
    return Estimate(mean, half_width, std, n)


def prediction_half_width(values: Sequence[float], level: float = LEVEL, of: int = 1) -> float | None:
    """Half width of the interval where the mean of `of` more values is expected: t_{n−1} s √(1/of + 1/n).

    None for n = 1.
    """
    _, std = _mean_std(values)
    n = len(values)
    return None if std is None else _t(n, level) * std * math.sqrt(1 / of + 1 / n)


def verdict(values: Sequence[float], number: float, level: float = LEVEL, of: int = 1) -> Verdict:
    """Does `number`, somebody else's single value or mean of `of`, lie in our prediction interval?

    Below 3 seeds: undecided.

    Bounds count as inside. Values that are all equal leave an interval without width: inside only if equal to them.
    """
    mean, std = _mean_std(values)
    half_width = prediction_half_width(values, level, of)
    difference = mean - number
    spreads = difference / std if std else None
    if len(values) < 3 or half_width is None:
        return Verdict("undecided", difference, half_width, spreads)
    return Verdict("inside" if abs(difference) <= half_width else "outside", difference, half_width, spreads)


def paired(a: Mapping[int, float], b: Mapping[int, float], level: float = LEVEL) -> Paired | None:
    """Mean difference a − b over the seeds of both, its t-interval and p; None where no seed is shared."""
    differences = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
    if not differences:
        return None
    estimate = over_seeds(differences, level)
    p = None
    if estimate.std is not None:
        p = _p_value(estimate.mean, estimate.std, estimate.n)
    return Paired(estimate.mean, estimate.half_width, estimate.n, sum(d > 0 for d in differences), p)


def over_episodes(accuracies: Sequence[float]) -> Estimate:
    """Mean and normal interval over test episodes: mean ± 1.96 s / √n, s with n in the denominator.

    The ± of few-shot tables. It covers the draw of episodes for one trained model; seeds spread beyond it.
    Source: HIE, Tables 4 and 5, as its released code computes it.
    """
    mean, _ = _mean_std(accuracies)
    n = len(accuracies)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in accuracies) / n)
    return Estimate(mean, 1.96 * std / math.sqrt(n) if n > 1 else None, std, n)


def _mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    n = len(values)
    if n == 0 or not all(math.isfinite(value) for value in values):
        raise ValueError(f"statistics need one finite value at least, got {list(values)}")
    mean = math.fsum(values) / n
    if n == 1:
        return mean, None
    if min(values) == max(values):
        return values[0], 0.0  # a rounded mean would give equal values a spread
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))


def _t(n: int, level: float) -> float:
    """The t quantile of a two-sided interval with n − 1 degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, n - 1))


def _p_value(mean: float, std: float, n: int) -> float:
    from scipy.stats import t

    if std == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * t.sf(abs(mean) / std * math.sqrt(n), n - 1))
