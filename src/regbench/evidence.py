"""Is the difference real? Intervals and tests, each with its formula; all intervals are of 95 %."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value, the ends of its 95 % interval, and how many observations it is from.

    `p` is the two-sided p-value of "the true value is 0", where that was tested.
    """

    value: float
    low: float
    high: float
    n: int
    p: float | None = None


def mean_over_seeds(values):
    """Mean of two or more values with Student's interval, mean ± t(0.975, n − 1) · s / √n, and the t-test against 0."""
    values = np.asarray(values, np.float64)
    n, mean = len(values), float(values.mean())
    error = standard_deviation(values) / math.sqrt(n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    # Without any spread, as on a handful of images, there is nothing to test against.
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error else 1.0
    return Estimate(mean, mean - half, mean + half, n, p)


def proportion(successes, n):
    """A share of n trials with Wilson's score interval (E. B. Wilson, 1927)."""
    interval = stats.binomtest(int(successes), int(n)).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), int(n))


def paired_proportions(first, second):
    """Accuracy of the second model minus that of the first, on the same images.

    With b images that only the first has right and c that only the second has: (c − b) / n; the p-value is
    McNemar's exact one, a binomial test of c among b + c; the interval is Wald's with ½ added to each of b and c
    and 2 to n (A. Agresti, Y. Min, 2005). It says how far these two models differ on images of this kind, and
    nothing of what other seeds would give.

    Args:
        first, second: bool [N], which images each has right.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    n, b, c = len(first), int((first & ~second).sum()), int((~first & second).sum())
    p = float(stats.binomtest(c, b + c).pvalue) if b + c else 1.0
    centre, adjusted = (c - b) / (n + 2), n + 2
    variance = (b + c + 1) / adjusted - centre**2
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt(max(variance, 0) / adjusted)
    return Estimate((c - b) / n, max(-1.0, centre - half), min(1.0, centre + half), n, p)


def holm(p_values):
    """p-values corrected for their number (S. Holm, 1979): the chance of one false alarm among them stays at 5 %."""
    p_values = np.asarray(p_values, np.float64)
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty_like(p_values)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return corrected.tolist()


def standard_deviation(values):
    """Of a sample, with n − 1 below."""
    return float(np.std(values, ddof=1))


def difference(first, second):
    """First minus second of two independent proportions, `Estimate`s: Wilson's intervals squared and added.

    Method 10 of R. G. Newcombe, "Interval estimation for the difference between independent proportions", 1998.
    """
    value = first.value - second.value
    low = math.hypot(first.value - first.low, second.high - second.value)
    high = math.hypot(first.high - first.value, second.value - second.low)
    return Estimate(value, value - low, value + high, min(first.n, second.n))
