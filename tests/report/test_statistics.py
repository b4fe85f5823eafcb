"""Intervals and tests against published examples, scipy and statsmodels, and simulations of what they promise."""

import gc
import itertools
import math
import warnings

import numpy as np
import pytest
from scipy import stats

from regbench.report import statistics
from regbench.report.statistics import Estimate

# Published examples and definitions


def test_mean_over_seeds_is_students_interval():
    correct, images = [510, 550, 530, 580], 1000
    estimate = statistics.mean_over_seeds(correct, images)
    # t(0.975, 3) = 3.1824, from any table.
    half = 3.1824 * np.std(np.array(correct) / images, ddof=1) / 2
    assert estimate.value == pytest.approx(0.5425)
    assert (estimate.low, estimate.high) == pytest.approx((0.5425 - half, 0.5425 + half), rel=1e-4)
    assert estimate.n == 4


def test_equal_differences_are_equal():
    """0.13 − 0.125 and 0.105 − 0.10 differ only by rounding, but a t-test of them gives p = 9e-16."""
    estimate = statistics.difference_over_seeds([125, 100], [130, 105], 1000)
    assert estimate == Estimate(0.005, n=2, low=None, high=None, p=0.5)


@pytest.mark.parametrize(("seeds", "p"), [(2, 0.5), (3, 0.25), (5, 0.0625), (6, 0.03125)])
def test_without_spread_p_is_the_sign_tests(seeds, p):
    estimate = statistics.difference_over_seeds([10] * seeds, [30] * seeds, 100)
    assert (estimate.p, estimate.low) == (p, None)
    assert p == statistics.smallest_p(seeds) == stats.binomtest(seeds, seeds).pvalue
    assert statistics.difference_over_seeds([10] * seeds, [10] * seeds, 100).p == 1


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5, 6, 8])
@pytest.mark.parametrize("spread", [0.3, 0.5, 0.7, 1, 2, 10])
def test_counts_raise_no_more_false_alarms_than_promised(seeds, spread):
    """About 5 % of pairs that do not differ are called different; up to 6.5 % if the spread is one image or less."""
    rng = np.random.default_rng(seeds)
    differences = np.rint(rng.normal(0, spread, (20_000, seeds)))
    p = np.ones(len(differences))
    varied = np.ptp(differences, axis=1) > 0
    p[varied] = stats.ttest_1samp(differences[varied], 0, axis=1).pvalue
    p[~varied & (differences[:, 0] != 0)] = statistics.smallest_p(seeds)
    for row in range(20):
        first = [500] * seeds
        estimate = statistics.difference_over_seeds(first, [500 + int(it) for it in differences[row]], 1000)
        assert estimate.p == pytest.approx(p[row])
    assert (p < statistics.SIGNIFICANT).mean() < (0.055 if spread > 1 else 0.065)


def test_wilsons_interval():
    n, successes, z = 10_000, 5_460, 1.959964
    p = successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    estimate = statistics.proportion(successes, n)
    assert (estimate.low, estimate.high) == pytest.approx((centre - half, centre + half), abs=1e-7)


def test_difference_of_proportions_is_newcombes_example():
    """R. G. Newcombe (1998), table II, method 10: 56/70 against 48/80 gives 0.0524 to 0.3339."""
    estimate = statistics.difference(statistics.proportion(56, 70), statistics.proportion(48, 80))
    assert estimate.value == pytest.approx(0.2)
    assert (estimate.low, estimate.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_mcnemar_is_exact():
    """By enumeration: the chance of a split at least as uneven as 2 to 7 if each disagreement is a coin toss."""
    first = [True] * 2 + [False] * 7 + [True] * 50 + [False] * 41
    second = [False] * 2 + [True] * 7 + [True] * 50 + [False] * 41
    estimate = statistics.paired_proportions(first, second)
    uneven = sum(abs(sum(tosses) - 4.5) >= 2.5 for tosses in itertools.product((0, 1), repeat=9))
    assert estimate.p == pytest.approx(uneven / 2**9)
    assert (estimate.value, estimate.n) == (0.05, 100)
    assert estimate.low < 0.05 < estimate.high
    same = statistics.paired_proportions(first, first)
    assert same.p == 1 and same.low < 0 < same.high


def test_paired_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = []
    for _ in range(1000):
        draw = rng.choice(4, size=300, p=[0.45, 0.12, 0.08, 0.35])
        estimate = statistics.paired_proportions(draw <= 1, (draw == 0) | (draw == 2))
        held.append(estimate.low <= -0.04 <= estimate.high)
    assert 0.93 < np.mean(held) < 0.975


def test_holm_is_the_step_down_procedure():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]
    assert statistics.holm([0.2]) == [0.2]
    assert statistics.holm([]) == []


# Against scipy and statsmodels, on 10,000 random inputs and on extreme ones

RANDOM = 10_000


def counts_over_seeds():
    """Yield (images, correct [seeds] of one regularizer, of another): random, every fifth without spread; extremes."""
    rng = np.random.default_rng(1)
    for case in range(RANDOM):
        images, seeds = int(rng.choice([1, 2, 5, 40, 400, 10_000])), int(rng.integers(2, 11))
        first, second = rng.binomial(images, rng.uniform(0, 1, (2, 1)), (2, seeds))
        if case % 5 == 0:
            first, second = np.full(seeds, first[0]), np.full(seeds, second[0])
        yield images, first.tolist(), second.tolist()
    for images, seeds in itertools.product((1, 2, 10_000), (2, 3, 5)):
        ends = [0] * seeds, [images] * seeds, [images, *[0] * (seeds - 1)]
        for first, second in itertools.product(ends, ends):
            yield images, first, second


def proportions():
    """(successes, n): random pairs, all pairs with n from 1 to 11, and both extremes of 10,000."""
    rng = np.random.default_rng(2)
    n = rng.choice([1, 2, 3, 10, 80, 2000, 10_000, 1_000_000], RANDOM)
    cases = [*zip(rng.binomial(n, rng.uniform(0, 1, RANDOM)).tolist(), n.tolist(), strict=True)]
    return cases + [(k, n) for n in range(1, 12) for k in range(n + 1)] + [(0, 10_000), (10_000, 10_000)]


def ends(values, low=-1):
    """Student's interval of each row of values, by scipy, limited to `low` and 1: [rows, 2]."""
    interval = stats.t.interval(0.95, values.shape[1] - 1, values.mean(axis=1), stats.sem(values, axis=1))
    return np.clip(np.transpose(interval), low, 1)


def found(estimates):
    return np.array([(it.low, it.high) for it in estimates])


@pytest.mark.slow
def test_seeds_agree_with_scipy_and_statsmodels():
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    cases = [*counts_over_seeds()]
    for seeds in {len(first) for _, first, _ in cases}:
        of = [case for case in cases if len(case[1]) == seeds]
        images = np.array([[images] for images, _, _ in of])
        first, second = (np.array([case[place] for case in of]) for place in (1, 2))
        accuracies, differences = first / images, (second - first) / images
        means = [statistics.mean_over_seeds(first, images) for images, first, _ in of]
        paired = [statistics.difference_over_seeds(first, second, images) for images, first, second in of]

        assert np.allclose([it.value for it in means], accuracies.mean(axis=1), atol=1e-12)
        assert np.allclose([it.value for it in paired], differences.mean(axis=1), atol=1e-12)
        deviations = [statistics.standard_deviation(first, images) for images, first, _ in of]
        assert np.allclose(deviations, accuracies.std(axis=1, ddof=1), atol=1e-12)

        varied = np.ptp(first, axis=1) > 0
        assert all(
            (it.low is None) == (it.high is None) == (not spread) for it, spread in zip(means, varied, strict=True)
        )
        spread = [it for it in means if it.low is not None]
        assert np.allclose(found(spread), ends(accuracies[varied], low=0), atol=1e-9)
        assert all(0 <= it.low <= it.value <= it.high <= 1 for it in spread)

        varied = np.ptp(second - first, axis=1) > 0
        same = [it for it, spread in zip(paired, varied, strict=True) if not spread]
        assert all(it.low is it.high is None and it.p == (0.5 ** (seeds - 1) if it.value else 1) for it in same)
        spread = [it for it, spread in zip(paired, varied, strict=True) if spread]
        assert np.allclose(found(spread), ends(differences[varied]), atol=1e-9)
        assert all(-1 <= it.low <= it.value <= it.high <= 1 for it in spread)
        expected = stats.ttest_rel(second[varied] / images[varied], first[varied] / images[varied], axis=1).pvalue
        assert np.allclose([it.p for it in spread], expected, rtol=1e-6, atol=1e-12)
        sample = weightstats.DescrStatsW(differences[varied].T)
        assert np.allclose([it.p for it in spread], sample.ttest_mean(0)[1], rtol=1e-6, atol=1e-12)


@pytest.mark.slow
def test_proportions_agree_with_scipy_and_statsmodels():
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    cases = proportions()
    successes, n = np.array(cases).T
    estimates = [statistics.proportion(*case) for case in cases]
    low, high = proportion.proportion_confint(successes, n, method="wilson")
    assert np.allclose([it.low for it in estimates], low, atol=1e-9, rtol=0)
    assert np.allclose([it.high for it in estimates], high, atol=1e-9, rtol=0)
    assert all(0 <= it.low <= it.value <= it.high <= 1 for it in estimates)
    for case, estimate in zip(cases[::20], estimates[::20], strict=True):
        interval = stats.binomtest(*case).proportion_ci(0.95, method="wilson")
        assert (estimate.low, estimate.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
    for first, second in itertools.pairwise(range(0, len(cases), 5)):
        estimate = statistics.difference(estimates[first], estimates[second])
        expected = proportion.confint_proportions_2indep(*cases[first], *cases[second], method="newcomb")
        assert (estimate.low, estimate.high) == pytest.approx(np.clip(expected, -1, 1), abs=1e-9)
        assert -1 <= estimate.low <= estimate.value <= estimate.high <= 1


@pytest.mark.slow
def test_pairs_of_images_agree_with_statsmodels():
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    rng = np.random.default_rng(3)
    sizes = rng.choice([1, 2, 3, 10, 80, 400], RANDOM).tolist()
    for size in sizes:
        first, second = rng.random((2, size)) < rng.uniform(0, 1, (2, 1))
        estimate = statistics.paired_proportions(first, second)
        b, c = int((first & ~second).sum()), int((~first & second).sum())
        expected = tables.mcnemar([[0, b], [c, 0]], exact=True).pvalue if b + c else 1
        assert estimate.p == pytest.approx(expected, rel=1e-9)
        # A. Agresti, Y. Min (2005): Wald's interval for the table with ½ added to each cell.
        p12, p21 = (c + 0.5) / (size + 2), (b + 0.5) / (size + 2)
        half = stats.norm.ppf(0.975) * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / (size + 2))
        ends = np.clip((p12 - p21 - half, p12 - p21 + half), -1, 1)
        assert (estimate.low, estimate.high) == pytest.approx(ends, abs=1e-9)
        assert -1 <= estimate.low <= estimate.value <= estimate.high <= 1


@pytest.mark.slow
def test_gaps_and_holm_agree_with_scipy_and_statsmodels(monkeypatch):
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    monkeypatch.setattr(gc, "collect", lambda *_: 0)  # statsmodels calls it; each call takes a quarter of a second
    rng = np.random.default_rng(4)
    for case in range(RANDOM):
        p_values = rng.choice([rng.uniform(0, 1), rng.uniform(0, 0.01), 0, 1, 0.05], int(rng.integers(1, 12)))
        # An adjusted p-value is the smallest level at which the step-down procedure rejects.
        ordered = np.sort(p_values)
        adjusted = [min(1, max((len(ordered) - i) * p for i, p in enumerate(ordered) if p <= it)) for it in p_values]
        assert np.allclose(statistics.holm(p_values), adjusted)
        if case % 20 == 0:
            assert np.allclose(adjusted, multitest.multipletests(p_values, method="holm")[1])
    for _ in range(100):
        (train_images, test_images), seeds = rng.integers(1, 20_000, 2).tolist(), int(rng.integers(2, 8))
        train, test = rng.integers(0, train_images, seeds).tolist(), rng.integers(0, test_images, seeds).tolist()
        gaps = np.array([train]) / train_images - np.array([test]) / test_images
        estimate = statistics.gap_over_seeds(train, train_images, test, test_images)
        assert estimate.value == pytest.approx(gaps.mean(), abs=1e-12)
        assert estimate.low is None or np.allclose(found([estimate]), ends(gaps), atol=1e-9)


# Refused


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: statistics.mean_over_seeds([5], 10), "two or more"),
        (lambda: statistics.mean_over_seeds([], 10), "two or more"),
        (lambda: statistics.mean_over_seeds([5.5, 6], 10), "correct should be a whole number from 0 to 10, not 5.5"),
        (lambda: statistics.mean_over_seeds([math.nan, 6], 10), "whole number"),
        (lambda: statistics.mean_over_seeds([11, 6], 10), "from 0 to 10, not 11"),
        (lambda: statistics.mean_over_seeds([-1, 6], 10), "whole number"),
        (lambda: statistics.mean_over_seeds([0, 0], 0), "images should be a whole number from 1, not 0"),
        (lambda: statistics.difference_over_seeds([1, 2, 3], [1, 2], 10), "there are 3 and 2"),
        (lambda: statistics.difference_over_seeds([1], [1], 10), "two or more"),
        (lambda: statistics.difference_over_seeds([], [], 10), "two or more"),
        (lambda: statistics.gap_over_seeds([1, 2], 10, [1, 2, 3], 10), "there are 2 and 3"),
        (lambda: statistics.proportion(2.5, 10), "whole number"),
        (lambda: statistics.proportion(math.nan, 10), "whole number"),
        (lambda: statistics.proportion(0, 0), "images"),
        (lambda: statistics.proportion(11, 10), "from 0 to 10"),
        (lambda: statistics.proportion("many", 10), "not many"),
        (lambda: statistics.difference(Estimate(0.5, 2), Estimate(0.5, 2)), "an interval"),
        (lambda: statistics.paired_proportions([True], [True, False]), "there are 1 and 2"),
        (lambda: statistics.paired_proportions([], []), "one or more images"),
        (lambda: statistics.paired_proportions([0.5], [1]), "right or not"),
        (lambda: statistics.paired_proportions([math.nan], [1]), "right or not"),
        (lambda: statistics.paired_proportions([[True]], [[True]]), "one row"),
        (lambda: statistics.holm([0.1, math.nan]), "from 0 to 1"),
        (lambda: statistics.holm([1.1]), "from 0 to 1"),
        (lambda: statistics.smallest_p(0), "seeds should be a whole number from 1, not 0"),
    ],
)
def test_nonsense_is_refused_in_words(call, said):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=said):
            call()


def test_whole_numbers_of_other_types_are_counts():
    assert statistics.proportion(np.int64(5), 10.0) == statistics.proportion(5, 10)
