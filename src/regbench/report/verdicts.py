"""What the numbers say, in sentences for people."""

from collections.abc import Iterator, Sequence

from regbench.report import statistics
from regbench.report.results import Diverged, Images, Row, measured
from regbench.report.runs import Run
from regbench.report.statistics import SIGNIFICANT, Estimate


def sentences(
    rows: dict[str, Row | Diverged], seeds: Sequence[int], baseline: str | None, images: Images | None
) -> Iterator[str]:
    """Sentences about runs that diverged, each comparison with the baseline, validation's pick, and the method.

    Args:
        rows: as from `summary.rows`.
        seeds: the same for each regularizer.
        baseline: the regularizer that others are compared with; None: there is none.
        images: None if every run diverged.
    """
    for name, row in rows.items():
        if isinstance(row, Diverged):
            yield from (_diverged(name, seed, epoch) for seed, epoch in row.diverged)
    if isinstance(rows.get(baseline), Diverged):
        yield f"{baseline} is the baseline and diverged, so nothing is compared with it."
    if not images:
        return
    compared = {name: row for name, row in measured(rows).items() if row.difference}
    for name, row in compared.items():
        yield _comparison(name, row, baseline, len(seeds))
    for name, row in measured(rows).items():
        if row.validation_pick:
            yield f"Validation picks {name}: {row.validation:.1%} there, {row.test.value:.1%} on test."
    if not any(row.validation_pick for row in measured(rows).values()):
        yield "Validation images are the test images here, so validation can't choose between regularizers."
    if images.unequal:
        yield (
            f"Classes are unequal: a model that always names the largest class has {images.largest_class['test']:.1%} "
            f"on test, {images.largest_class['validation']:.1%} on validation."
        )
    yield from _basis(compared, len(seeds), images.test)


def frozen(layer: str | None, runs: Sequence[Run]) -> Iterator[str]:
    """A sentence about weights that were not trained, if `model.freeze` names a layer."""
    measured = [run.evaluation for run in runs if not run.diverged and run.evaluation.kernel_weights]
    if layer and measured:
        share = measured[0].frozen_kernel_weights / measured[0].kernel_weights
        yield f"Frozen up to {layer}: {share:.0%} of the kernel weights, without penalty."


def _diverged(name: str, seed: int, epoch: int) -> str:
    lower = "lower train.learning_rate" + ("" if name == "none" else " or its strength")
    return f"{name} diverged with seed {seed} in epoch {epoch}: {lower}."


def _comparison(name: str, row: Row, baseline: str, seeds: int) -> str:
    numbers = f"{change(row.difference)}, p {p_value(row.p_corrected)}"
    if seeds == 1:
        if row.verdict == "can't tell":
            return f"The data can't tell the model with {name} from the model with {baseline}: {numbers}."
        return f"The model with {name} is {row.verdict} than the model with {baseline} on these test images: {numbers}."
    if row.verdict == "can't tell":
        return f"The data can't tell {name} from {baseline}: {numbers}."
    return f"{name} is {row.verdict} than {baseline}: {numbers}."


def _basis(compared: dict[str, Row], seeds: int, test_images: int) -> Iterator[str]:
    """What intervals and p-values mean, and how much this number of seeds can show."""
    corrected = f" p-values are corrected for {len(compared)} comparisons (Holm)." if len(compared) > 1 else ""
    values = " and the p-values (McNemar's exact test)" if compared else ""
    if seeds == 1:
        yield (
            f"n = 1 seed, {test_images:,} test images. The 95 % intervals{values} are about these "
            f"models and the choice of test images.{corrected} They say nothing about other seeds: add "
            "some to `seeds`."
        )
        return
    paired = " Differences and p-values are paired by seed and by image, and cover other test images too."
    yield (
        f"n = {seeds} seeds, {test_images:,} test images. The 95 % intervals are Student's, over seeds."
        f"{paired if compared else ''}{corrected}"
    )
    if compared and statistics.smallest_p(seeds) >= SIGNIFICANT:
        enough = next(n for n in range(seeds, 100) if statistics.smallest_p(n) < SIGNIFICANT)
        yield (
            f"{seeds} seeds are few. The t-test assumes that differences over seeds are normal. A sign test does not, "
            f"and with {seeds} seeds its p is {statistics.smallest_p(seeds):.3g} at best; with {enough} seeds it can "
            f"be {statistics.smallest_p(enough):.3f}."
        )
    same = [name for name, row in compared.items() if row.difference.low is None]
    if same:
        yield (
            f"Each seed has the same difference for {', '.join(same)}. Without any spread there is no interval, and p "
            "is the sign test's."
        )


# Numbers as text


def points(fraction: float) -> str:
    """A fraction as percentage points, with its sign."""
    return f"{round(100 * fraction, 1) + 0.0:+.1f}".replace("-", "−")  # + 0.0 turns −0.0 into 0.0


def interval(estimate: Estimate) -> str:
    """A difference in points with its interval, if it has one."""
    ends = "" if estimate.low is None else f" [{points(estimate.low)}, {points(estimate.high)}]"
    return points(estimate.value) + ends


def change(estimate: Estimate) -> str:
    """A difference in points with unit and interval, for a sentence."""
    value, _, ends = interval(estimate).partition(" ")
    return f"{value} points {ends}".rstrip()


def p_value(p: float) -> str:
    """A p-value with its relation: `= 0.012`, `< 0.001`."""
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"
