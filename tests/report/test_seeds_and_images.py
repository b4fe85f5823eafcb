"""Differences over seeds and images, and power: against simulations and closed forms."""

import math

import numpy as np
import pytest
from scipy import stats

from regbench.report import statistics
from regbench.report.statistics import Estimate

SEEDS, IMAGES = 3, 2000


def flags(rng, seeds=SEEDS, images=IMAGES, seed_spread=0.05, image_spread=0.3, difference=0.0):
    """Simulate two regularizers: which images each has right, [seeds, images], and the true difference in accuracy.

    An image is right if a normal number is below 0.2; for the second regularizer, below 0.2 + `difference`. The number
    is a sum of four parts: the difficulty of the image (shared by all runs), the effect of the regularizer on the image
    (shared by its seeds), the effect of the regularizer's seed (shared by its images), and noise.
    """
    difficulty = rng.normal(0, 0.8, images)

    def draw(better):
        common = difficulty + rng.normal(0, image_spread, images)
        noise = rng.normal(0, 1, (seeds, images)) + rng.normal(0, seed_spread, (seeds, 1))
        return common + noise < 0.2 + better

    whole = math.sqrt(0.8**2 + image_spread**2 + 1 + seed_spread**2)
    truth = stats.norm.cdf((0.2 + difference) / whole) - stats.norm.cdf(0.2 / whole)
    return draw(0.0), draw(difference), truth


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize(
    ("seed_spread", "image_spread"), [(0.1, 0.0), (0.02, 0.5), (0.0, 0.3)], ids=["seeds", "images", "noise"]
)
def test_intervals_hold_the_truth_and_alarms_are_as_rare_as_promised(seeds, seed_spread, image_spread):
    rng, cases = np.random.default_rng(seeds), 600
    sizes = {"seeds": seeds, "images": 400, "seed_spread": seed_spread, "image_spread": image_spread}
    held, alarms, narrow = [], [], []
    for case in range(cases):
        first, second, truth = flags(rng, difference=0.2 * (case % 2), **sizes)
        estimate = statistics.difference_over_seeds_and_images(first, second)
        if estimate.low is None:
            continue
        held.append(estimate.low <= truth <= estimate.high)
        if not case % 2:
            alarms.append(estimate.p < statistics.SIGNIFICANT)
            assert alarms[-1] == (estimate.low > 0 or estimate.high < 0)
        plain = statistics.difference_over_seeds(first.sum(axis=1).tolist(), second.sum(axis=1).tolist(), 400)
        narrow.append(plain.low <= truth <= plain.high)
        assert estimate.low <= plain.low + 1e-12 and plain.high - 1e-12 <= estimate.high
    # Allow three standard errors of a share of 5 %.
    assert np.mean(held) > 0.95 - 3 * math.sqrt(0.05 * 0.95 / len(held))
    assert np.mean(alarms) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / len(alarms))
    if image_spread == 0.5 and seeds > 3:
        assert np.mean(narrow) < 0.93  # the interval of the t-test over seeds alone is too narrow


def test_without_a_common_part_it_is_the_paired_t_test():
    first = np.zeros((4, 200), bool)
    second = first.copy()
    for seed, (start, end) in enumerate([(0, 10), (10, 25), (30, 34), (40, 49)]):  # no image in two seeds
        second[seed, start:end] = True
    assert statistics.standard_error_of_images(first, second) == 0
    estimate = statistics.difference_over_seeds_and_images(first, second)
    expected = stats.ttest_rel(second.mean(axis=1), first.mean(axis=1))
    assert estimate.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(expected.confidence_interval()), abs=1e-12)


def test_the_standard_error_of_images_is_that_of_the_model():
    """By analysis of variance: √((mean square of images − residual mean square) / (seeds · images))."""
    first, second, _ = flags(np.random.default_rng(1))
    differences = second.astype(float) - first
    of_images, of_seeds = differences.mean(axis=0, keepdims=True), differences.mean(axis=1, keepdims=True)
    rest = differences - of_images - of_seeds + differences.mean()
    square = SEEDS * ((of_images - differences.mean()) ** 2).sum() / (IMAGES - 1)
    residual = (rest**2).sum() / ((IMAGES - 1) * (SEEDS - 1))
    expected = math.sqrt((square - residual) / (SEEDS * IMAGES))
    assert statistics.standard_error_of_images(first, second) == pytest.approx(expected)
    # With one seed, it is the whole standard error of images.
    single = statistics.standard_error_of_images(first[:1], second[:1])
    assert single == pytest.approx(differences[0].std(ddof=1) / math.sqrt(IMAGES))


def test_no_spread_over_seeds_is_no_interval():
    first = np.zeros((2, 50), bool)
    second = first.copy()
    second[:, :10] = True
    assert statistics.difference_over_seeds_and_images(first, second) == Estimate(0.2, n=2, p=0.5)


def test_the_common_spread_is_that_of_a_block_design():
    """By two-way analysis of variance. Pairs may be missing: a row of one value adds nothing; an exact fit stays 0."""
    rng = np.random.default_rng(2)
    table = rng.normal(0, 1, (4, 3))
    rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    spread, freedom = statistics.residual(table)
    assert (spread, freedom) == (pytest.approx(math.sqrt((rest**2).sum() / 6)), 6)
    with_a_single = np.vstack([table, [5.0, np.nan, np.nan]])
    assert statistics.residual(with_a_single) == (pytest.approx(spread), 6)
    exact = np.add.outer([0.1, 0.2, 0.4], [0.0, 0.05])
    exact[2, 1] = np.nan
    assert statistics.residual(exact) == (0.0, 1)
    assert statistics.residual([[0.5]]) == statistics.residual([[np.nan]]) == (0.0, 0)


def test_a_common_spread_does_with_one_seed():
    first, second, _ = flags(np.random.default_rng(3))
    estimate = statistics.difference_with_common_spread(first[:1], second[:1], spread=0.02, freedom=4)
    value = second[0].mean() - first[0].mean()
    images = (second[0].astype(float) - first[0]).std(ddof=1) / math.sqrt(IMAGES)
    half = math.hypot(stats.t.ppf(0.975, 4) * 0.02 * math.sqrt(2), stats.norm.ppf(0.975) * images)
    assert (estimate.low, estimate.high) == pytest.approx((value - half, value + half))
    assert (estimate.p < 0.05) == (abs(value) > half)


def test_power_is_that_of_the_paired_t_test():
    power = pytest.importorskip("statsmodels.stats.power").TTestPower()
    for seeds in (2, 3, 5, 10, 30):
        for difference in (0.005, 0.01, 0.02):
            expected = power.power(difference / 0.01, seeds, 0.05)
            found = statistics.power(difference, 0.01, seeds)
            assert math.isnan(expected) or found == pytest.approx(expected, abs=1e-4)
            assert found == pytest.approx(statistics.power(-difference, 0.01, seeds))
    needed = math.ceil(power.solve_power(effect_size=1.2, alpha=0.05, power=0.8))
    assert statistics.seeds_needed(0.012, 0.01) == needed
    detectable = power.solve_power(nobs=5, alpha=0.05, power=0.8)
    assert statistics.detectable(0.01, 5) == pytest.approx(0.01 * detectable, rel=1e-4)


def test_power_with_images_is_how_often_a_difference_is_found():
    rng, seeds, images, spread, difference = np.random.default_rng(4), 5, 0.006, 0.01, 0.02
    means = difference + rng.normal(0, images, 20_000)
    drawn = means[:, None] + rng.normal(0, spread, (20_000, seeds))
    half = np.hypot(
        stats.t.ppf(0.975, seeds - 1) * drawn.std(axis=1, ddof=1) / math.sqrt(seeds), stats.norm.ppf(0.975) * images
    )
    found = (np.abs(drawn.mean(axis=1)) > half).mean()
    assert statistics.power(difference, spread, seeds, images) == pytest.approx(found, abs=0.01)
    # More seeds do not reduce the error of images.
    assert statistics.seeds_needed(0.01, 0.01, images=0.006) is None
    assert statistics.detectable(0.01, 100, images=0.006) > 2.8 * 0.006


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: statistics.difference_over_seeds_and_images([[True]], [[True], [False]]), "only pairs"),
        (lambda: statistics.difference_over_seeds_and_images([[True, False]], [[True, True]]), "two or more"),
        (lambda: statistics.standard_error_of_images([], []), "one seed or more"),
        (lambda: statistics.standard_error_of_images([[1], [1, 0]], [[1], [1]]), "the same images"),
        (lambda: statistics.power(0.1, 0.0, 3), "above 0"),
        (lambda: statistics.power(0.1, math.nan, 3), "above 0"),
        (lambda: statistics.power(0.1, 0.1, 1), "seeds should be a whole number from 2"),
    ],
)
def test_nonsense_is_refused_in_words(call, said):
    with pytest.raises(ValueError, match=said):
        call()
