"""Is the difference real? Intervals and tests, each with its formula; all intervals are of 95 %.

Accuracies are counts: how many images are right, out of how many. Means and spreads over seeds are computed from the
integers, so that equal differences are equal.
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

POWER = 0.8
"""The probability of finding a true difference for which `seeds_needed` and `detectable` are computed."""

ROUNDING = 1e-12
"""A spread of accuracies below this is floating-point error."""

MOST_SEEDS = 100
"""Nobody will train more seeds than this."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval.

    Attributes:
        value: as measured.
        n: the number of observations: seeds or images.
        low: lower end of the interval. `low` and `high` are None if seeds show no spread to estimate them from.
        high: upper end.
        p: the two-sided p-value of "the true value is 0"; None if that was not tested.
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
        images: how many images there are.
    """
    value, error, n = _mean(_counts(correct, images), images)
    return Estimate(value, n, *_student(value, error, n, lowest=0))


def difference_over_seeds(first: Sequence[int], second: Sequence[int], images: int) -> Estimate:
    """Accuracy of the second minus that of the first, paired by seed: Student's interval and the t-test against 0.

    If the difference is the same with every seed, there is no spread, and a t-test would give p = 0 for any difference,
    even with two seeds. Then there is no interval, and p is the sign test's, `smallest_p` of the seeds; 1 if all
    differences are 0. In simulations of regularizers that do not differ, this calls 5 % of them different, and at most
    6.5 % if the spread is about one image.

    Args:
        first, second: how many images each seed has right, in the same order of seeds.
        images: how many images there are.
    """
    first, second = _counts(first, images), _counts(second, images)
    _same_length(first, second)
    value, error, n = _mean([there - here for here, there in zip(first, second, strict=True)], images)
    same = smallest_p(n) if value else 1.0
    p = float(2 * special.stdtr(n - 1, -abs(value) / error)) if error else same
    return Estimate(value, n, *_student(value, error, n, lowest=-1), p)


def difference_over_seeds_and_images(first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]]) -> Estimate:
    """Accuracy of the second minus that of the first, paired by seed and by image: for other seeds and other images.

    Runs share their seeds and all runs share the images, so the mean difference has two independent parts of error:

    - of seeds: s / √n, where s is the spread of the n differences; Student's, with n − 1 degrees of freedom;
    - of images: √c, where c is the covariance that the differences of two seeds have over images, divided by the number
      of images. All seeds have this part in common because they are tested on the same images, so more seeds do not
      make it smaller.

    The half-width of the interval is √((t s / √n)² + z² c): the squares of both half-widths are added. The p-value is
    the level at which the interval just reaches 0. With c = 0 both are those of the paired t-test. In simulations with
    2, 3, 5 and 10 seeds the interval holds the true difference 94.5 to 97.5 % of the time; the interval of the t-test
    over seeds alone holds it only 84.5 % of the time in the worst case (docs/statistics.md, benchmarks/coverage.py).

    Sources: N. Obuchowski, H. Rockette, 1995, and B. Gallas, 2006, for the two parts (readers and cases of radiology
    are seeds and images here); G. Zou, A. Donner, 2008, for the sum of squares, which is Newcombe's too.

    Without any spread over seeds there is no interval, and p is the sign test's, as in `difference_over_seeds`.

    Args:
        first, second: bool [n, images], which images each seed has right, in the same order of seeds.
    """
    first, second = _table_of_flags(first), _table_of_flags(second)
    if first.shape != second.shape:
        raise ValueError(f"only pairs can be compared: there are {first.shape} and {second.shape} seeds and images")
    seeds, images = first.shape
    plain = difference_over_seeds(first.sum(axis=1).tolist(), second.sum(axis=1).tolist(), images)
    if plain.low is None:
        return plain
    error = standard_error_of_images(first, second)
    spread = float((second.sum(axis=1) - first.sum(axis=1)).std(ddof=1)) / images
    half, p = _two_parts(plain.value, spread / math.sqrt(seeds), seeds - 1, error)
    return Estimate(plain.value, seeds, max(-1.0, plain.value - half), min(1.0, plain.value + half), p)


def standard_error_of_images(first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]]) -> float:
    """√c of `difference_over_seeds_and_images`: how much the choice of test images shifts a difference.

    One seed can't show what seeds have in common. Then the result is the whole standard error of images, an upper
    bound.

    Args:
        first, second: bool [n, images].
    """
    differences = _table_of_flags(second).astype(np.int64) - _table_of_flags(first)
    seeds, images = differences.shape
    if images < 2:
        return 0.0
    single = float(differences.var(axis=1, ddof=1).sum())
    if seeds == 1:
        return math.sqrt(single / images)
    common = (float(differences.sum(axis=0).var(ddof=1)) - single) / (seeds * (seeds - 1))
    return math.sqrt(max(0.0, common) / images)


def difference_with_common_spread(
    first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]], spread: float, freedom: int
) -> Estimate:
    """As `difference_over_seeds_and_images`, with a given spread of one run, estimated from many regularizers.

    Few seeds say little about the spread of one difference. If several regularizers have the same spread, all of them
    together say more about it (`residual`). Then one seed is enough.

    Args:
        first, second: bool [n, images].
        spread: standard deviation of an accuracy, without what seeds have in common; from `residual`.
        freedom: its degrees of freedom, at least 1.
    """
    first, second = _table_of_flags(first), _table_of_flags(second)
    seeds, images = first.shape
    value = int(second.sum() - first.sum()) / (seeds * images)
    error = spread * math.sqrt(2 / seeds)
    half, p = _two_parts(value, error, freedom, standard_error_of_images(first, second))
    return Estimate(value, seeds, max(-1.0, value - half), min(1.0, value + half), p)


def residual(table: Sequence[Sequence[float]]) -> tuple[float, int]:
    """The standard deviation of what neither a row nor a column explains, and its degrees of freedom.

    That is the error of a block design, in which each seed is a block of regularizers (R. A. Fisher, 1935). It is
    fitted by least squares, so pairs may be missing. A complete table has (rows − 1) · (columns − 1) degrees of
    freedom.

    Args:
        table: accuracies [regularizers, seeds], NaN for a missing pair.

    Returns:
        (standard deviation, degrees of freedom); (0.0, 0) if there is nothing to estimate it from.
    """
    values = np.asarray(table, np.float64)
    rows, columns = np.nonzero(np.isfinite(values))
    if not len(rows):
        return 0.0, 0
    design = np.concatenate([np.eye(values.shape[0])[rows], np.eye(values.shape[1])[columns]], axis=1)
    measured = values[rows, columns]
    solution, _, rank, _ = np.linalg.lstsq(design, measured, rcond=None)
    freedom = len(measured) - int(rank)
    if not freedom:
        return 0.0, 0
    spread = math.sqrt(float(((measured - design @ solution) ** 2).sum()) / freedom)
    return spread if spread > ROUNDING else 0.0, freedom


def power(difference: float, spread: float, seeds: int, images: float = 0.0) -> float:
    """The probability that a test with this number of seeds finds a true difference, at 5 %.

    Args:
        difference: the true difference.
        spread: standard deviation of the paired differences over seeds, above 0.
        seeds: how many, at least 2.
        images: the standard error of images, from `standard_error_of_images`. With 0 this is the power of the paired
            t-test.
    """
    seeds = _whole(seeds, "seeds", 2)
    if not spread > 0:
        raise ValueError(f"a spread should be above 0, not {spread}")
    # The spread that these seeds will show is not known. The power is averaged over its chi-squared distribution.
    nodes, weights = np.polynomial.legendre.leggauss(64)
    shown = spread * np.sqrt(special.chdtri(seeds - 1, (1 - nodes) / 2) / (seeds - 1))
    half = np.hypot(_t(seeds - 1) * shown / math.sqrt(seeds), _z() * images)
    error = math.hypot(spread / math.sqrt(seeds), images)
    beyond = special.ndtr((difference - half) / error) + special.ndtr((-difference - half) / error)
    return float((weights * beyond).sum() / 2)


def seeds_needed(
    difference: float, spread: float, images: float = 0.0, chance: float = POWER, most: int = MOST_SEEDS
) -> int | None:
    """How many seeds find a true difference with probability `chance`; None if `most` seeds do not."""
    return next((n for n in range(2, most + 1) if power(difference, spread, n, images) >= chance), None)


def detectable(spread: float, seeds: int, images: float = 0.0, chance: float = POWER) -> float:
    """The smallest true difference that these seeds find with probability `chance`; arguments as for `power`."""
    low, high = 0.0, spread
    while power(high, spread, seeds, images) < chance:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, spread, seeds, images) < chance else (low, middle)
    return high


def gap_over_seeds(train: Sequence[int], train_images: int, test: Sequence[int], test_images: int) -> Estimate:
    """Training minus test accuracy: mean over two or more seeds with Student's interval.

    Args:
        train, test: how many images each seed has right, in the same order of seeds.
        train_images, test_images: how many images there are.
    """
    train, test = _counts(train, train_images), _counts(test, test_images)
    _same_length(train, test)
    gaps = [right * test_images - other * train_images for right, other in zip(train, test, strict=True)]
    value, error, n = _mean(gaps, train_images * test_images)
    return Estimate(value, n, *_student(value, error, n, lowest=-1))


def smallest_p(seeds: int) -> float:
    """The smallest p that a sign test of paired differences can give with n seeds, ½ⁿ⁻¹: all have the same sign.

    A sign test assumes nothing about the distribution of the differences. Student's t-test assumes that they are
    normal, so its p can be smaller.
    """
    return 0.5 ** (_whole(seeds, "seeds", 1) - 1)


def standard_deviation(correct: Sequence[int], images: int) -> float:
    """Standard deviation of the accuracies of two or more seeds, with n − 1 in the denominator."""
    _, error, n = _mean(_counts(correct, images), images)
    return error * math.sqrt(n)


def proportion(correct: int, images: int) -> Estimate:
    """Accuracy with Wilson's score interval (E. B. Wilson, 1927)."""
    images = _whole(images, "images", 1)
    correct = _whole(correct, "correct", 0, images)
    z, share = _z(), correct / images
    centre = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    # At the ends the formula gives 0 and 1, apart from rounding.
    low = 0.0 if correct == 0 else centre - half
    high = 1.0 if correct == images else centre + half
    return Estimate(share, images, low, high)


def difference(first: Estimate, second: Estimate) -> Estimate:
    """First minus second of two independent proportions; the squared half-widths of Wilson's intervals are added.

    Method 10 of R. G. Newcombe, "Interval estimation for the difference between independent proportions", 1998.
    For two models on the same images the interval is wider than necessary.
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
    exact one, a binomial test of c among b + c. The interval is Wald's with ½ added to each of b and c, and 2 to n
    (A. Agresti, Y. Min, 2005). It says how much these two models differ on images of this kind, and nothing about
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
    """p-values corrected for their number (S. Holm, 1979): the chance of any false alarm at 5 % stays at most 5 %."""
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


def _t(freedom: int) -> float:
    return float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2))


def _two_parts(value: float, seeds: float, freedom: int, images: float) -> tuple[float, float]:
    """Half-width and p-value of a difference whose error has two parts, `seeds` and `images`, both standard errors."""

    def half(tail: float) -> float:
        return math.hypot(float(special.stdtrit(freedom, tail)) * seeds, float(special.ndtri(tail)) * images)

    # Bisection for the tail probability at which the interval just reaches 0.
    low, high = 0.0, 0.5
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if half(middle) > abs(value) else (low, middle)
    return half((1 - CONFIDENCE) / 2), 2 * high


def _mean(counts: Sequence[int], of: int) -> tuple[float, float, int]:
    """Mean of counts / of, its standard error (exactly 0 if all counts are equal), and the number of counts."""
    n = len(counts)
    if n < 2:
        raise ValueError(f"a spread over seeds needs two or more of them, not {n}")
    total = sum(counts)
    spread = n * sum(count * count for count in counts) - total * total  # of integers, so exact
    return total / (n * of), math.sqrt(spread / (n - 1)) / n / of, n


def _student(value: float, error: float, n: int, lowest: int) -> tuple[float | None, float | None]:
    """The ends of Student's interval, limited to `lowest` and 1; None if the error is 0."""
    if not error:
        return None, None
    half = _t(n - 1) * error
    return max(float(lowest), value - half), min(1.0, value + half)


def _counts(correct: Sequence[int], images: int) -> list[int]:
    images = _whole(images, "images", 1)
    return [_whole(count, "correct", 0, images) for count in correct]


def _whole(value: int, name: str, low: int, high: float = math.inf) -> int:
    # 5.0 counts as a whole number: numbers read from a CSV file are floats.
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


def _table_of_flags(rows: Sequence[Sequence[bool]]) -> np.ndarray:
    flags = [_flags(row) for row in rows]
    if not flags or len({len(row) for row in flags}) > 1:
        raise ValueError("each seed should have the same images, and there should be one seed or more")
    return np.array(flags)


def _same_length(first: Sequence, second: Sequence) -> None:
    if len(first) != len(second):
        raise ValueError(f"only pairs can be compared: there are {len(first)} and {len(second)}")
