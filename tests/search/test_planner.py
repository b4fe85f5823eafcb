"""Which strengths are trained next: rounds worked out by hand, and simulations of how well and cheaply they choose."""

import itertools

import numpy as np
import pytest
from scipy import stats

from regbench.search import planner
from regbench.search.planner import Grid, Round

IMAGES = 2000
NINE = Grid((9,), (0, 1, 2), IMAGES)


def everything(grid, accuracy):
    """The counts of the whole grid; `accuracy` is a function of a point and a seed."""
    points = itertools.product(*map(range, grid.shape))
    return {(point, seed): round(accuracy(point, seed) * grid.images) for point in points for seed in grid.seeds}


def played(grid, counts):
    """The rounds of a search that gets, after each round, only the counts that this round asked for."""
    known, found = {}, []
    while True:
        now = planner.rounds(grid, known)
        if planner.trained(now) <= known.keys():
            assert now == found
            return found
        assert now[:-1] == found, "an earlier round has changed"
        found = now
        known |= {pair: counts[pair] for pair in found[-1].pairs}


def hill(top, width=3.0, level=0.6, height=0.05):
    """An accuracy function for `everything`: one axis or more, highest at `top`, the same for all seeds."""

    def accuracy(point, seed):
        far = sum((place - best) ** 2 for place, best in zip(point, top, strict=True))
        return level + height * np.exp(-far / width**2)

    return accuracy


def test_coarse_then_finer_then_more_seeds():
    noise = {(3, 0): 0.004, (1, 1): 0.012, (4, 1): 0.008, (3, 2): 0.02}
    smooth = hill((3,))
    counts = everything(NINE, lambda point, seed: smooth(point, seed) + noise.get((point[0], seed), 0.0))
    assert played(NINE, counts) == [
        Round(((1,), (4,), (7,)), (0,)),
        Round(((1,), (3,), (4,), (5,), (7,)), (0,)),
        Round(((1,), (3,), (4,)), (0, 1)),
        # The budget is ten trainings, 40 % of 27. Eight are used, so two are left.
        Round(((3,), (4,)), (0, 1, 2)),
    ]


@pytest.mark.parametrize("size", range(2, 30))
def test_the_first_round_covers_an_axis(size):
    grid = Grid((size,), (0, 1), IMAGES)
    first = [point[0] for point in planner.rounds(grid, {})[0].points]
    assert len(first) == -(-size // 3)
    # No place is more than two steps from a tried one, and the second round closes gaps of two.
    assert max(min(abs(place - it) for it in first) for place in range(size)) <= 2
    for top in range(size):
        found = played(grid, everything(grid, hill((top,))))
        chosen = planner.best(found[-1].points, found[-1].seeds, everything(grid, hill((top,))))
        assert abs(chosen[0] - top) <= 1


def test_two_axes():
    grid = Grid((7, 9), (0, 1, 2), IMAGES)
    found = played(grid, everything(grid, hill((3, 3), width=4.0)))
    assert len(found[0].points) == 9 and found[0].seeds == (0,)
    assert found[1].points == tuple(sorted({*found[0].points, (2, 4), (4, 4), (3, 3), (3, 5)}))
    assert (3, 3) in found[-1].points and found[-1].seeds == (0, 1, 2)
    assert len(planner.trained(found)) < 0.15 * grid.trainings


def test_what_is_worse_beyond_its_interval_is_dropped():
    """A strength that has collapsed gets no second seed; one that two seeds show to be worse gets no third."""
    counts = everything(NINE, hill((4,), width=10.0))
    counts[(3,), 1] += 20
    counts |= {((5,), seed): 200 for seed in NINE.seeds}
    assert [it.points for it in played(NINE, counts)][2:] == [((3,), (4,)), ((3,), (4,))]
    counts |= {((3,), seed): counts[(4,), seed] - 40 - seed for seed in NINE.seeds}
    assert [it.points for it in played(NINE, counts)][2:] == [((3,), (4,)), ((4,),)]


def test_a_run_that_diverged_counts_as_nothing_right():
    counts = everything(NINE, hill((7,)))
    counts |= {((place,), seed): 0 for place in (6, 7, 8) for seed in NINE.seeds}
    found = played(NINE, counts)
    assert planner.best(found[-1].points, NINE.seeds, counts) == (5,)
    assert played(NINE, dict.fromkeys(counts, 0))[-1].seeds == NINE.seeds


def test_equal_ones_choose_the_weakest():
    counts = everything(NINE, lambda point, seed: 0.5)
    assert planner.best(sorted({point for point, _ in counts}), NINE.seeds, counts) == (0,)


def test_a_cocktail_of_three_is_proposed():
    """With 30 trainings of one seed Optuna finds a point near the top of 729. The same counts give the same rounds."""
    grid = Grid((9, 9, 9), (0, 1, 2), IMAGES, trials=30)
    accuracy = hill((6, 2, 4))
    counts = everything(grid, accuracy)
    found = played(grid, counts)
    assert [len(it.points) for it in found] == [4, 8, 12, 16, 20, 24, 28, 30, 3, 2]
    assert [it.seeds for it in found] == [(0,)] * 8 + [(0, 1), (0, 1, 2)]
    assert len(planner.trained(found)) == 35 <= grid.most
    top = planner.best(found[-1].points, grid.seeds, counts)
    better = sum(accuracy(point, 0) > accuracy(top, 0) for point in itertools.product(range(9), repeat=3))
    assert better < 0.05 * 729


def test_more_is_proposed_than_there_is():
    grid = Grid((2, 2), (0, 1), IMAGES, trials=30)
    found = played(grid, everything(grid, hill((1, 1))))
    assert len(planner.trained(found)) <= grid.most == 8
    assert len(found[-2].points) == 4 and found[-1].seeds == (0, 1)


@pytest.mark.parametrize(("seeds", "rounds"), [(2, [1, 1, 2]), (3, [1, 1, 2, 3]), (10, [1, 1, 2, 4, 8, 10])])
def test_seeds_double(seeds, rounds):
    grid = Grid((9,), tuple(range(seeds)), IMAGES)
    assert [len(it.seeds) for it in played(grid, everything(grid, hill((4,))))] == rounds


def simulated(rng, spread):
    """True accuracies [9 strengths] and measured ones [9, 3 seeds].

    The truth is a bump, then a collapse. Each seed shifts all strengths, and each run has its own noise.
    """
    places = np.arange(9)
    truth = 0.6 + rng.uniform(0, 0.04) * np.exp(-(((places - (top := rng.uniform(0, 8))) / rng.uniform(1, 2.5)) ** 2))
    collapse = top + rng.uniform(1.5, 4)
    truth -= rng.choice([0.1, 0.3]) / (1 + np.exp(-(places - collapse) * rng.uniform(1, 2.5)))
    return truth, truth[:, None] + rng.normal(0, 0.01, (1, 3)) + rng.normal(0, spread, (9, 3))


def full_grids_pick(accuracies):
    """The strength with the best mean over three seeds, and bool [9]: which a paired t-test can't tell from it."""
    pick = accuracies.mean(axis=1).argmax()
    behind = accuracies[pick] - np.delete(accuracies, pick, axis=0)
    can_not_tell = np.insert(stats.ttest_1samp(behind, 0, axis=1).pvalue >= 0.05, pick, True)
    return pick, can_not_tell


@pytest.mark.parametrize("spread", [0.005, 0.01, 0.02])
def test_the_full_grids_pick_at_two_fifths_of_its_trainings(spread):
    rng = np.random.default_rng(0)
    within, lost, lost_by_the_grid, taken = [], [], [], []
    for _ in range(300):
        truth, accuracies = simulated(rng, spread)
        counts = everything(NINE, lambda point, seed, known=accuracies: min(1, max(0, known[point[0], seed])))
        found = planner.rounds(NINE, counts)
        (pick,) = planner.best(found[-1].points, found[-1].seeds, counts)
        full, can_not_tell = full_grids_pick(accuracies)
        within.append(can_not_tell[pick])
        lost.append(truth.max() - truth[pick])
        lost_by_the_grid.append(truth.max() - truth[full])
        taken.append(len(planner.trained(found)))
        assert found[-1].seeds == NINE.seeds
    assert max(taken) <= 0.4 * NINE.trainings
    assert np.mean(within) > 0.95
    # The search loses at most a quarter of a point of true accuracy against the full grid.
    assert np.mean(lost) - np.mean(lost_by_the_grid) < 0.0025
