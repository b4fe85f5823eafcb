"""What a search has found, in numbers and in sentences."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from regbench.report import results, statistics
from regbench.report.statistics import SIGNIFICANT, Estimate
from regbench.report.verdicts import change, p_value
from regbench.search import planner
from regbench.search.line import Line
from regbench.search.planner import Grid, Point, Round

Flags = Mapping[tuple[Point, int], np.ndarray]
"""{(point, seed): bool [images], which validation images are right}; all False for a run that diverged."""

MOST_NAMED = 4
"""A sentence names at most this many points."""

FEW, MANY = 3, 10
"""Numbers of seeds for which the smallest detectable difference is given, besides the number that was trained."""


@dataclass(frozen=True)
class Standing:
    """How a point does on validation images.

    Attributes:
        point: the point.
        seeds: the seeds that it was trained with.
        accuracy: the best point's mean over all seeds plus `difference`, so that points with few seeds are comparable.
        difference: its accuracy minus the best point's, with common seeds and images; None for the best point.
        word: best, can't tell, worse, or diverged.
    """

    point: Point
    seeds: tuple[int, ...]
    accuracy: float
    difference: Estimate | None
    word: str


@dataclass(frozen=True)
class Baseline:
    """The baseline and how the best point compares with it.

    Attributes:
        name: its key under `reg`.
        validation: its mean accuracy on validation images.
        difference: test accuracy of the best point minus the baseline's; None if a run diverged.
        spread: standard deviation of that difference over seeds; 0 if it is the same for all seeds.
        images: standard error of that difference over images, from `statistics.standard_error_of_images`.
    """

    name: str
    validation: float
    difference: Estimate | None = None
    spread: float = 0.0
    images: float = 0.0


def standings(
    grid: Grid, planned: Sequence[Round], flags: Flags, diverged: Collection[tuple[Point, int]] = ()
) -> list[Standing]:
    """How each trained point does, in the order of the grid. The best one has all seeds.

    The spread over seeds is estimated from all points together (`statistics.residual`). A point below the best is
    called worse if p, corrected for the number of points (Holm), is below 5 %.
    """
    pairs = planner.trained(planned)
    counts = {pair: int(flags[pair].sum()) for pair in pairs}
    top = planner.best(planned[-1].points, planned[-1].seeds, counts)
    seeds_of = {point: tuple(seed for seed in grid.seeds if (point, seed) in pairs) for point, _ in sorted(pairs)}
    usable = pairs - {*diverged}
    table = [
        [counts[point, seed] / grid.images if (point, seed) in usable else np.nan for seed in grid.seeds]
        for point in seeds_of
    ]
    spread, freedom = statistics.residual(table)
    level = np.mean([flags[top, seed].mean() for seed in grid.seeds])

    def behind(point: Point) -> Estimate:
        first, second = ([flags[it, seed] for seed in seeds_of[point]] for it in (top, point))
        if spread:
            return statistics.difference_with_common_spread(first, second, spread, freedom)
        # No spread, for example because only the best has a second seed: compare two models, of the first seed.
        return statistics.paired_proportions(first[0], second[0])

    differences = {point: behind(point) for point in seeds_of if point != top}
    corrected = dict(zip(differences, statistics.holm([it.p for it in differences.values()]), strict=True))

    def word(point: Point) -> str:
        if point == top:
            return "best"
        if any((point, seed) in diverged for seed in seeds_of[point]):
            return "diverged"
        # With few seeds a point may look better. That never counts: the best one was chosen with all seeds.
        return "worse" if differences[point].value < 0 and corrected[point] < SIGNIFICANT else "can't tell"

    return [
        Standing(
            point,
            seeds,
            float(level) + (differences[point].value if point != top else 0.0),
            differences.get(point),
            word(point),
        )
        for point, seeds in seeds_of.items()
    ]


def against(name: str, validation: Sequence[np.ndarray], test: tuple[Sequence, Sequence] | None) -> Baseline:
    """The baseline compared with the best point.

    Args:
        name: the baseline's key.
        validation: bool [images] for each seed of the baseline.
        test: bool [seeds, images] of the baseline and of the best point; None if a run diverged.
    """
    level = float(np.mean([flags.mean() for flags in validation]))
    if test is None:
        return Baseline(name, level)
    first, second = np.asarray(test[0], bool), np.asarray(test[1], bool)
    difference = statistics.difference_over_seeds_and_images(first, second)
    spread = float((second.mean(axis=1) - first.mean(axis=1)).std(ddof=1))
    return Baseline(
        name, level, difference, spread if difference.low is not None else 0.0,
        statistics.standard_error_of_images(first, second),
    )  # fmt: skip


def on_validation(line: Line, grid: Grid, found: Sequence[Standing]) -> Iterator[str]:
    """Which point is best, and which can't be told from it."""
    top = next(it for it in found if it.word == "best")
    yield (
        f"{line.key}: {line.label(top.point)} is best on validation, {top.accuracy:.1%} with {len(grid.seeds)} seeds "
        f"and {grid.images:,} images. {_others(line, found)}"
    )
    for axis, place in zip(line.axes, top.point, strict=True):
        if place in (0, len(axis.strengths) - 1):
            end = "--from lower" if place == 0 else "--to higher"
            yield f"It is at the end of what was searched for {axis.kind}; search on with {end}."


def _others(line: Line, found: Sequence[Standing]) -> str:
    near = [it.point for it in found if it.word in ("best", "can't tell")]
    if len(near) == 1:
        return "Every other one that was trained is worse."
    if len(line.axes) == 1:
        # Name only the ends of the range if every trained point in it can't be told from the best.
        inside = [it for it in found if near[0] <= it.point <= near[-1]]
        if len(inside) == len(near):
            return f"{line.label(near[0])} to {line.label(near[-1])} can't be told from it."
    labels = [line.label(it.point) for it in found if it.word == "can't tell"]
    named = "; ".join(labels) if len(labels) <= MOST_NAMED else f"{len(labels)} others"
    return f"{named} can't be told from it."


def on_test(line: Line, grid: Grid, top: Standing, baseline: Baseline) -> Iterator[str]:
    """How the best point compares with the baseline, and which differences how many seeds can show."""
    if baseline.difference is None:
        yield f"{baseline.name} diverged with some seed, so nothing is compared with it."
        return
    difference = baseline.difference
    said = results.verdict(difference.value, difference.p)
    more = ""
    if said == "can't tell" and baseline.spread and difference.value:
        enough = statistics.seeds_needed(difference.value, baseline.spread, baseline.images)
        more = f" {enough} seeds would do." if enough else f" {statistics.MOST_SEEDS} seeds would not do."
    yield (
        f"{line.key} {line.label(top.point)} against {baseline.name} on test images, read for these two only: "
        f"{change(difference)}, p {p_value(difference.p)}: {said}.{more}"
    )
    if baseline.validation >= top.accuracy:
        yield f"On validation images {baseline.name} is not behind: {baseline.validation:.1%}."
    if baseline.spread:
        smallest = ", ".join(
            f"{n} seeds {100 * statistics.detectable(baseline.spread, n, baseline.images):.1f}"
            for n in sorted({len(grid.seeds), FEW, MANY})
        )
        yield (
            f"Over seeds this difference has a standard deviation of {100 * baseline.spread:.1f} points. The smallest "
            f"difference that is found in 4 of 5 cases, in points: with {smallest}."
        )
