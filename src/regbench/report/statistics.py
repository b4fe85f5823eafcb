"""Is the difference real? Intervals and tests, each with its formula; all intervals are of 95 %.

Accuracies are counts: correct images of so many. Means and spreads over seeds are computed from the integers, so that
equal differences are equal.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
from scipy import special  # scipy.stats takes a second to import

CONFIDENCE = 0.95
SIGNIFICANT = 0.05
"""A p-value below this counts as a difference."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval.

    Attributes:
        value: as measured.
        n: how many observations it is from: seeds or images.
        low: lower end of the interval. None, as `high`, where seeds show no spread to estimate it from.
        high: upper end.
        p: the two-sided p-value of "the true value is 0", where that was tested.
    """

    value: float
    n: int
    low: float | None = None
    high: float | None = None
    p: float | None = None

    def __post_init__(self):
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval has two ends, or there is none")


def mean_over_seeds(correct: Sequence[int], images: int) -> Estimate:
    """Mean accuracy of two or more seeds with Student's interval, mean ± t(0.975, n − 1) · s / √n, within 0 and 1.

    Args:
        correct: how many images each seed has right.
        images: of how many.
    """
    value, error, n = _mean(_counts(correct, images), images)
    return Estimate(value, n, *_student(value, error, n, lowest=0))


def difference_over_seeds(first: Sequence[int], second: Sequence[int], images: int) -> Estimate:
    """Accuracy of the second minus that of the first, paired by seed: Student's interval and the t-test against 0.

    Where the difference is the same with every seed there is no spread, and a t-test would say p = 0 of any
    difference, however few the seeds. Then there is no interval, and p is the sign test's, `smallest_p` of the seeds;
    1 where all differences are 0. In simulations of regularizers that do not differ this calls 5 % of
    them different, and 6.5 % at most where the spread is about one image.

    Args:
        first, second: how many images each seed has right, in the same order of seeds.
        images: of how many.
    """
    first, second = _counts(first, images), _counts(second, images)
    _same_length(first, second)
    value, error, n = _mean([there - here for here, there in zip(first, second, strict=True)], images)
    same = smallest_p(n) if value else 1.0
    p = float(2 * special.stdtr(n - 1, -abs(value) / error)) if error else same
    return Estimate(value, n, *_student(value, error, n, lowest=-1), p)


def gap_over_seeds(train: Sequence[int], train_images: int, test: Sequence[int], test_images: int) -> Estimate:
    """Training minus test accuracy: mean over two or more seeds with Student's interval.

    Args:
        train, test: how many images each seed has right, in the same order of seeds.
        train_images, test_images: of how many.
    """
    train, test = _counts(train, train_images), _counts(test, test_images)
    _same_length(train, test)
    gaps = [right * test_images - other * train_images for right, other in zip(train, test, strict=True)]
    value, error, n = _mean(gaps, train_images * test_images)
    return Estimate(value, n, *_student(value, error, n, lowest=-1))


def smallest_p(seeds: int) -> float:
    """The smallest p that paired differences of so many seeds can reach in a sign test, ½ⁿ⁻¹: all of one sign.

    It assumes nothing about how differences are distributed. Student's t-test assumes that they are normal, and that
    is how it gets below this.
    """
    return 0.5 ** (_whole(seeds, "seeds", 1) - 1)


def standard_deviation(correct: Sequence[int], images: int) -> float:
    """Standard deviation of the accuracies of two or more seeds, with n − 1 below."""
    _, error, n = _mean(_counts(correct, images), images)
    return error * math.sqrt(n)


def proportion(correct: int, images: int) -> Estimate:
    """Accuracy with Wilson's score interval (E. B. Wilson, 1927)."""
    images = _whole(images, "images", 1)
    correct = _whole(correct, "correct", 0, images)
    z, share = _z(), correct / images
    centre = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    # At the ends the formula gives 0 and 1, but for rounding.
    low = 0.0 if correct == 0 else centre - half
    high = 1.0 if correct == images else centre + half
    return Estimate(share, images, low, high)


def difference(first: Estimate, second: Estimate) -> Estimate:
    """First minus second of two independent proportions: Wilson's intervals, squared and added.

    Method 10 of R. G. Newcombe, "Interval estimation for the difference between independent proportions", 1998.
    For two models on the same images it is wider than need be.
    """
    if any(end is None for estimate in (first, second) for end in (estimate.low, estimate.high)):
        raise ValueError("both proportions should have an interval")
    value = first.value - second.value
    low = value - math.hypot(first.value - first.low, second.high - second.value)
    high = value + math.hypot(first.high - first.value, second.value - second.low)
    return Estimate(value, min(first.n, second.n), max(-1.0, low), min(1.0, high))


def paired_proportions(first: Sequence[bool], second: Sequence[bool]) -> Estimate:
    """Accuracy of the second model minus that of the first, on the same images.

    With b images that only the first has right and c that only the second has: (c − b) / n. The p-value is McNemar's
    exact one, a binomial test of c among b + c. The interval is Wald's with ½ added to each of b and c and 2 to n
    (A. Agresti, Y. Min, 2005). It says how far these two models differ on images of this kind, and nothing about
    other seeds.

    Args:
        first, second: bool [N], which images each has right.
    """
    first, second = _flags(first), _flags(second)
    _same_length(first, second)
    n, b, c = len(first), int((first & ~second).sum()), int((~first & second).sum())
    p = min(1.0, float(2 * special.bdtr(min(b, c), b + c, 0.5)))
    centre, adjusted = (c - b) / (n + 2), n + 2
    half = _z() * math.sqrt(((b + c + 1) / adjusted - centre**2) / adjusted)
    return Estimate((c - b) / n, n, max(-1.0, centre - half), min(1.0, centre + half), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (S. Holm, 1979): the chance of one false alarm among them stays at 5 %."""
    p_values = np.asarray(p_values, np.float64)
    if p_values.ndim != 1 or not ((p_values >= 0) & (p_values <= 1)).all():
        raise ValueError(f"p-values should be a list of numbers from 0 to 1, not {p_values}")
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty_like(p_values)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return corrected.tolist()


def _z() -> float:
    return float(special.ndtri((1 + CONFIDENCE) / 2))


def _mean(counts: Sequence[int], of: int) -> tuple[float, float, int]:
    """Mean of counts / of, its standard error, exactly 0 where all are equal, and how many there are."""
    n = len(counts)
    if n < 2:
        raise ValueError(f"a spread over seeds needs two or more of them, not {n}")
    total = sum(counts)
    spread = n * sum(count * count for count in counts) - total * total  # of integers, so exact
    return total / (n * of), math.sqrt(spread / (n - 1)) / n / of, n


def _student(value: float, error: float, n: int, lowest: int) -> tuple[float | None, float | None]:
    """The ends of Student's interval, from `lowest` to 1."""
    if not error:
        return None, None
    half = float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * error
    return max(float(lowest), value - half), min(1.0, value + half)


def _counts(correct: Sequence[int], images: int) -> list[int]:
    images = _whole(images, "images", 1)
    return [_whole(count, "correct", 0, images) for count in correct]


def _whole(value: int, name: str, low: int, high: float = math.inf) -> int:
    # 5.0 is a whole number too, as read from a CSV file.
    whole = isinstance(value, Integral) or (isinstance(value, Real) and float(value).is_integer())
    if whole and low <= value <= high:
        return int(value)
    allowed = f"from {low}" if high == math.inf else f"from {low} to {high:,}"
    raise ValueError(f"{name} should be a whole number {allowed}, not {value}")


def _flags(values: Sequence[bool]) -> np.ndarray:
    flags = np.asarray(values)
    if flags.ndim != 1 or not len(flags):
        raise ValueError("there should be one or more images, in one row")
    if not np.isin(flags, (0, 1)).all():
        raise ValueError("each image should be right or not: true or false, 1 or 0")
    return flags.astype(bool)


def _same_length(first: Sequence, second: Sequence) -> None:
    if len(first) != len(second):
        raise ValueError(f"only pairs can be compared: there are {len(first)} and {len(second)}")
