"""Which strengths to train next, given what was measured so far.

Nothing here reads a file or a clock: the rounds depend on the counts only. So a search that was killed continues from
DVC's cache, and needs no state file.

1. Every third strength of an axis, with one seed.
2. The neighbours of the best of them, with the same seed; with two axes, this step is done twice.
3. The best point and the nearest ones tried on either side, with two seeds, then four, and so on, up to all seeds. A
   point is dropped when its difference to the best shows, at 95 %, that it is worse.

This is successive halving (K. Jamieson, A. Talwalkar, 2016). It also assumes that neighbouring strengths give similar
accuracies. With three axes or more, or on demand, `proposals` replaces the first two steps, and the best few points
enter step 3.
"""

import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from regbench.report import statistics
from regbench.search import proposals

EVERY = 3
"""The first round trains every third strength; the second trains the neighbours of the best."""

SHARE = 0.4
"""A search may take at most this share of the full grid's trainings."""

SMALLEST_GRID = 9
"""A smaller grid gets the budget of a grid with nine strengths. Its own budget would not last to the final round."""

FINALISTS = 3
"""How many of the proposed points get a second seed."""

Point = tuple[int, ...]
"""For each axis, the index of a strength."""

Counts = Mapping[tuple[Point, int], int]
"""{(point, seed): how many validation images are right}; 0 for a run that diverged."""


@dataclass(frozen=True)
class Grid:
    """What could be trained.

    Attributes:
        shape: how many strengths each axis has.
        seeds: in the order in which they are trained, two or more.
        images: how many validation images there are.
        trials: how many points `proposals` gives; None: the search moves along each axis instead.
    """

    shape: tuple[int, ...]
    seeds: tuple[int, ...]
    images: int
    trials: int | None = None

    @property
    def trainings(self) -> int:
        """How many trainings the full grid has."""
        return int(np.prod(self.shape)) * len(self.seeds)

    @property
    def most(self) -> int:
        """How many trainings a search may take. It takes more only if the best point needs them to have all seeds."""
        if self.trials:
            return min(self.trainings, self.trials + FINALISTS * (len(self.seeds) - 1))
        return min(self.trainings, int(SHARE * max(int(np.prod(self.shape)), SMALLEST_GRID) * len(self.seeds)))


@dataclass(frozen=True)
class Round:
    """All of these points with all of these seeds; earlier rounds may have trained some of the pairs."""

    points: tuple[Point, ...]
    seeds: tuple[int, ...]

    @property
    def pairs(self) -> set[tuple[Point, int]]:
        """The (point, seed) pairs of the round."""
        return set(itertools.product(self.points, self.seeds))


def rounds(grid: Grid, counts: Counts) -> list[Round]:
    """The rounds that the counts determine. The last one has pairs without a count, unless the search is done."""
    found = []
    for it in _rounds(grid, counts):
        found.append(it)
        if not it.pairs <= counts.keys():
            break
    return found


def trained(planned: Sequence[Round]) -> set[tuple[Point, int]]:
    """All (point, seed) pairs that the rounds train."""
    return set().union(*(it.pairs for it in planned))


def best(points: Sequence[Point], seeds: Sequence[int], counts: Counts) -> Point:
    """The point with the most validation images right; among equal ones, the weakest regularizer."""
    return min(points, key=lambda point: (-_total(point, seeds, counts), point))


def _rounds(grid: Grid, counts: Counts) -> Iterator[Round]:
    """Yield the rounds in order. Ask for the next one only when `counts` has all pairs of this one."""
    seeds = grid.seeds[:1]
    if grid.trials:
        tried = yield from _proposed(grid, grid.trials, seeds, counts)
        finalists = sorted(tried, key=lambda point: (-_total(point, seeds, counts), point))[:FINALISTS]
    else:
        tried = yield from _coarse_then_finer(grid, seeds, counts)
        top = best(tried, seeds, counts)
        finalists = sorted({top, *_next_tried(top, tried)})
    spent = set(itertools.product(tried, seeds))
    while True:
        finalists = _not_worse(finalists, seeds, grid, counts)
        if len(seeds) == len(grid.seeds):
            return
        seeds = grid.seeds[: 2 * len(seeds)]
        finalists = _affordable(finalists, seeds, grid, counts, spent)
        yield (it := Round(tuple(finalists), seeds))
        spent |= it.pairs


def _coarse_then_finer(grid: Grid, seeds: tuple[int, ...], counts: Counts) -> Generator[Round, None, Sequence[Point]]:
    """The rounds with one seed; returns what was tried."""
    tried = [*itertools.product(*map(_coarse, grid.shape))]
    yield Round(tuple(tried), seeds)
    for _ in grid.shape:  # the best point may be one step away on each axis
        before, tried = tried, sorted({*tried, *_beside(best(tried, seeds, counts), grid.shape)})
        if tried != before:
            yield Round(tuple(tried), seeds)
    return tried


def _proposed(
    grid: Grid, trials: int, seeds: tuple[int, ...], counts: Counts
) -> Generator[Round, None, Sequence[Point]]:
    """The rounds with one seed, for proposed points; returns what was tried."""
    tried: list[Point] = []
    for batch in proposals.batches(grid.shape, trials, lambda point: _total(point, seeds, counts)):
        tried = sorted({*tried, *batch})
        yield Round(tuple(tried), seeds)
    return tried


def _coarse(size: int) -> list[int]:
    """Evenly spaced places on an axis, one for every `EVERY` strengths."""
    count = -(-size // EVERY)
    return [int((place + 0.5) * size / count) for place in range(count)]


def _beside(point: Point, shape: Sequence[int]) -> Iterator[Point]:
    for axis, size in enumerate(shape):
        for place in (point[axis] - 1, point[axis] + 1):
            if 0 <= place < size:
                yield (*point[:axis], place, *point[axis + 1 :])


def _next_tried(point: Point, tried: Sequence[Point]) -> Iterator[Point]:
    """For each axis, the nearest tried points below and above that differ from the point on this axis only."""
    for axis, place in enumerate(point):
        on_axis = [it for it in tried if it[:axis] + it[axis + 1 :] == point[:axis] + point[axis + 1 :]]
        below, above = ([it for it in on_axis if sign * (it[axis] - place) > 0] for sign in (-1, 1))
        yield from [max(below)] if below else []
        yield from [min(above)] if above else []


def _not_worse(points: Sequence[Point], seeds: Sequence[int], grid: Grid, counts: Counts) -> list[Point]:
    """The points without those that validation shows, at 95 %, to be worse than the best one.

    With one seed, two proportions are compared. With several, pairs by seed, with one spread for all points.
    """
    top = best(points, seeds, counts)
    if len(seeds) == 1:

        def is_worse(point: Point) -> bool:
            first, second = (statistics.proportion(counts[it, seeds[0]], grid.images) for it in (top, point))
            return statistics.difference(first, second).low > 0
    else:
        table = [[counts[point, seed] / grid.images for seed in seeds] for point in points]
        spread, freedom = statistics.residual(table)
        student = special.stdtrit(freedom, 0.975) if freedom else np.inf
        half = student * spread * (2 / len(seeds)) ** 0.5

        def is_worse(point: Point) -> bool:
            behind = _total(top, seeds, counts) - _total(point, seeds, counts)
            return behind / (grid.images * len(seeds)) > half

    return [point for point in points if point == top or not is_worse(point)]


def _affordable(
    points: Sequence[Point], seeds: Sequence[int], grid: Grid, counts: Counts, spent: set[tuple[Point, int]]
) -> list[Point]:
    """The best points: as many as the budget allows with these seeds, if the best one is still to get all seeds."""
    known = [seed for seed in seeds if all((point, seed) in spent for point in points)]
    order = sorted(points, key=lambda point: (-_total(point, known, counts), point))
    while len(order) > 1:
        new = set(itertools.product(order, seeds)) - spent
        if len(spent) + len(new) + len(grid.seeds) - len(seeds) <= grid.most:
            break
        order.pop()
    return sorted(order)


def _total(point: Point, seeds: Sequence[int], counts: Counts) -> int:
    return sum(counts[point, seed] for seed in seeds)
