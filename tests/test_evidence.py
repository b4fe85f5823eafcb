"""Intervals and tests against published examples, and against their own definition by simulation or enumeration."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from regbench import evidence


def test_mean_over_seeds_is_students_interval_and_test():
    values = [0.51, 0.55, 0.53, 0.58]
    estimate = evidence.mean_over_seeds(values)
    # t(0.975, 3) = 3.1824, from any table.
    half = 3.1824 * np.std(values, ddof=1) / 2
    assert estimate.value == pytest.approx(0.5425)
    assert (estimate.low, estimate.high) == pytest.approx((0.5425 - half, 0.5425 + half), rel=1e-4)
    assert estimate.n == 4
    assert estimate.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


@pytest.mark.parametrize(("values", "p"), [([0.0, 0.0], 1.0), ([0.25, 0.25], 1.0)])
def test_seeds_that_agree_to_the_last_digit(values, p):
    estimate = evidence.mean_over_seeds(values)
    assert (estimate.low, estimate.high, estimate.p) == (values[0], values[0], p)


def test_proportion_is_wilsons_interval():
    n, successes, z = 10_000, 5_460, 1.959964
    p = successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    estimate = evidence.proportion(successes, n)
    assert (estimate.low, estimate.high) == pytest.approx((centre - half, centre + half), abs=1e-7)
    assert evidence.proportion(0, 20).low == 0
    assert evidence.proportion(20, 20).high == 1


def test_difference_of_proportions_is_newcombes_example():
    """R. G. Newcombe (1998), table II, method 10: 56/70 against 48/80 gives 0.0524 to 0.3339."""
    estimate = evidence.difference(evidence.proportion(56, 70), evidence.proportion(48, 80))
    assert estimate.value == pytest.approx(0.2)
    assert (estimate.low, estimate.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_mcnemar_is_exact():
    """By enumeration: the chance of a split as uneven as 2 to 7 when each disagreement is a coin's toss."""
    first = [True] * 2 + [False] * 7 + [True] * 50 + [False] * 41
    second = [False] * 2 + [True] * 7 + [True] * 50 + [False] * 41
    estimate = evidence.paired_proportions(first, second)
    uneven = sum(abs(sum(tosses) - 4.5) >= 2.5 for tosses in itertools.product((0, 1), repeat=9))
    assert estimate.p == pytest.approx(uneven / 2**9)
    assert (estimate.value, estimate.n) == (0.05, 100)
    assert estimate.low < 0.05 < estimate.high
    assert evidence.paired_proportions(first, first).p == 1
    assert evidence.paired_proportions(first, first).low < 0 < evidence.paired_proportions(first, first).high


def test_paired_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = []
    for _ in range(1000):
        draw = rng.choice(4, size=300, p=[0.45, 0.12, 0.08, 0.35])
        estimate = evidence.paired_proportions(draw <= 1, (draw == 0) | (draw == 2))
        held.append(estimate.low <= -0.04 <= estimate.high)
    assert 0.93 < np.mean(held) < 0.975


def test_holm_is_the_step_down_procedure():
    assert evidence.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert evidence.holm([0.6, 0.7]) == [1.0, 1.0]
    assert evidence.holm([0.2]) == [0.2]
    assert evidence.holm([]) == []
