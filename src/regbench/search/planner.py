"""Which strengths to train next, of what was measured so far.

Nothing here reads a file or a clock: rounds are a function of the counts. So a search that was killed goes on from what
DVC's cache holds, and no file of its own has to be true.

1. Every third strength of an axis, with one seed.
2. What lies beside the best of them, with the same seed; with two axes, once more.
3. The best and the next ones tried on either side, with two seeds, then four, and so on, to all. One that is worse than
   the best beyond its interval is dropped.

This is successive halving (K. Jamieson, A. Talwalkar, 2016). It also assumes that neighbouring strengths give similar
accuracies. With three axes or more, or on demand, `proposals` takes the place of the first two steps, and the best few
go on.
"""

import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from regbench.report import statistics
from regbench.search import proposals

EVERY = 3
"""The first round trains every third strength; the second trains those between, beside the best."""

SHARE = 0.4
"""The largest share of a full grid's trainings."""

SMALLEST_GRID = 9
"""A smaller grid gets the budget of a grid with nine strengths. Its own would end before the last round."""

FINALISTS = 3
"""How many of the proposed points get a second seed."""

Point = tuple[int, ...]
"""A place on each axis: which of its strengths."""

Counts = Mapping[tuple[Point, int], int]
"""{(point, seed): how many validation images are right}; 0 of a run that diverged."""


@dataclass(frozen=True)
class Grid:
    """What could be trained.

    Attributes:
        shape: how many strengths each axis has.
        seeds: in the order in which they are trained, two or more.
        images: how many validation images there are.
        trials: how many points are proposed; None: steps along each axis.
    """

    shape: tuple[int, ...]
    seeds: tuple[int, ...]
    images: int
    trials: int | None = None

    @property
    def trainings(self) -> int:
        """How many the full grid has."""
        return int(np.prod(self.shape)) * len(self.seeds)

    @property
    def most(self) -> int:
        """How many a search may take, where the best does not need more to have all seeds."""
        if self.trials:
            return min(self.trainings, self.trials + FINALISTS * (len(self.seeds) - 1))
        return min(self.trainings, int(SHARE * max(int(np.prod(self.shape)), SMALLEST_GRID) * len(self.seeds)))


@dataclass(frozen=True)
class Round:
    """All of these points with all of these seeds; some of it may be known from rounds before."""

    points: tuple[Point, ...]
    seeds: tuple[int, ...]

    @property
    def pairs(self) -> set[tuple[Point, int]]:
        """What is trained in it."""
        return set(itertools.product(self.points, self.seeds))


def rounds(grid: Grid, counts: Counts) -> list[Round]:
    """The rounds as far as counts tell; of the last one some are missing, unless the search is done."""
    found = []
    for it in _rounds(grid, counts):
        found.append(it)
        if not it.pairs <= counts.keys():
            break
    return found


def trained(planned: Sequence[Round]) -> set[tuple[Point, int]]:
    """What rounds train, each once."""
    return set().union(*(it.pairs for it in planned))


def best(points: Sequence[Point], seeds: Sequence[int], counts: Counts) -> Point:
    """The point that has most validation images right; of equal ones the weakest regularizer."""
    return min(points, key=lambda point: (-_total(point, seeds, counts), point))


def _rounds(grid: Grid, counts: Counts) -> Iterator[Round]:
    """Each round; it may be asked for the next one only when `counts` has all of this one."""
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
    for _ in grid.shape:  # what is best may lie a step away on each axis
        before, tried = tried, sorted({*tried, *_beside(best(tried, seeds, counts), grid.shape)})
        if tried != before:
            yield Round(tuple(tried), seeds)
    return tried


def _proposed(
    grid: Grid, trials: int, seeds: tuple[int, ...], counts: Counts
) -> Generator[Round, None, Sequence[Point]]:
    """The same, of proposed points."""
    tried: list[Point] = []
    for batch in proposals.batches(grid.shape, trials, lambda point: _total(point, seeds, counts)):
        tried = sorted({*tried, *batch})
        yield Round(tuple(tried), seeds)
    return tried


def _coarse(size: int) -> list[int]:
    """Places on an axis, spread evenly, one of `EVERY`."""
    count = -(-size // EVERY)
    return [int((place + 0.5) * size / count) for place in range(count)]


def _beside(point: Point, shape: Sequence[int]) -> Iterator[Point]:
    for axis, size in enumerate(shape):
        for place in (point[axis] - 1, point[axis] + 1):
            if 0 <= place < size:
                yield (*point[:axis], place, *point[axis + 1 :])


def _next_tried(point: Point, tried: Sequence[Point]) -> Iterator[Point]:
    """On each axis, the nearest ones below and above that differ on no other."""
    for axis, place in enumerate(point):
        on_axis = [it for it in tried if it[:axis] + it[axis + 1 :] == point[:axis] + point[axis + 1 :]]
        below, above = ([it for it in on_axis if sign * (it[axis] - place) > 0] for sign in (-1, 1))
        yield from [max(below)] if below else []
        yield from [min(above)] if above else []


def _not_worse(points: Sequence[Point], seeds: Sequence[int], grid: Grid, counts: Counts) -> list[Point]:
    """Those that validation does not show to be worse than the best one, at 95 %.

    Of one seed, as two proportions. Of several, paired by seed, the spread over seeds that of all points together.
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
    """The best ones, as many as may have these seeds while the best one can still have all."""
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
