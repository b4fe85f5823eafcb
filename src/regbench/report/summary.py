"""Runs → one row of numbers for each regularizer, the metrics for `dvc metrics diff`, the curves for `dvc plots`."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from pydantic import FiniteFloat, TypeAdapter, ValidationError

from regbench import files
from regbench.report import results, statistics, tracked
from regbench.report.results import Diverged, Images, Row
from regbench.report.runs import HISTORY_COLUMNS, Corrupted, Run, by_name, whole
from regbench.report.statistics import Estimate

SUMMARY = Path("metrics/summary.json")
CURVES = Path("plots/curves.csv")
CURVE_COLUMNS = ("regularizer", "seed", *HISTORY_COLUMNS)


# One regularizer


def accuracy(group: Sequence[Run], split: str = "test") -> Estimate:
    """Accuracy on a split: the mean over seeds; for one seed, a proportion with its interval."""
    scores = [getattr(run.evaluation, split) for run in group]
    if len(scores) > 1:
        return statistics.mean_over_seeds([score.correct for score in scores], scores[0].images)
    return statistics.proportion(scores[0].correct, scores[0].images)


def gap(group: Sequence[Run]) -> Estimate:
    """Training minus test accuracy: the mean over seeds; for one seed, the difference of two proportions."""
    if len(group) == 1:
        return statistics.difference(accuracy(group, "train"), accuracy(group))
    train, test = ([getattr(run.evaluation, split) for run in group] for split in ("train", "test"))
    return statistics.gap_over_seeds(
        [score.correct for score in train], train[0].images, [score.correct for score in test], test[0].images
    )


def against(baseline: Sequence[Run], group: Sequence[Run]) -> Estimate:
    """Test accuracy minus the baseline's: paired by image, and by seed if there are several."""
    if len(group) == 1:
        return statistics.paired_proportions(baseline[0].right, group[0].right)
    first, second = ([run.right for run in runs] for runs in (baseline, group))
    return statistics.difference_over_seeds_and_images(first, second)


# All of them


def baseline_of(plan: dict, runs: Sequence[Run]) -> str | None:
    """`report.baseline`; None if there is none or it diverged."""
    baseline = plan["report"].baseline
    return baseline if any(run.name == baseline for run in whole(runs)) else None


def differences(plan: dict, runs: Sequence[Run]) -> dict[str, tuple[Estimate, float]]:
    """{regularizer: (its difference to the baseline, p after Holm's correction)}, the baseline itself left out."""
    groups, baseline = by_name(whole(runs)), baseline_of(plan, runs)
    if baseline is None:
        return {}
    found = {name: against(groups[baseline], group) for name, group in groups.items() if name != baseline}
    corrected = statistics.holm([estimate.p for estimate in found.values()])
    return {name: (estimate, p) for (name, estimate), p in zip(found.items(), corrected, strict=True)}


def rows(plan: dict, runs: Sequence[Run]) -> dict[str, Row | Diverged]:
    """{regularizer: its numbers}, in the order of params."""
    kept, compared = by_name(whole(runs)), differences(plan, runs)
    validation = {name: fmean(run.evaluation.validation.accuracy for run in group) for name, group in kept.items()}
    pick = None if plan["validates_on_test"] else max(validation, key=validation.get, default=None)
    found = {}
    for name, group in by_name(runs).items():
        if name not in kept:
            found[name] = Diverged(diverged=tuple((run.seed, _last_epoch(run)) for run in group if run.diverged))
            continue
        evaluations = [run.evaluation for run in group]
        corrupted = [it.corrupted for it in evaluations if it.corrupted]
        rates = [rate for run in group if (rate := run.effective_learning_rate) is not None]
        correct, images = tuple(it.test.correct for it in evaluations), evaluations[0].test.images
        estimate, p = compared.get(name, (None, None))
        found[name] = Row(
            kinds=tuple(term.kind for term in plan["reg"][name].terms),
            strengths=tuple(float(term.strength) for term in plan["reg"][name].terms),
            correct=correct,
            test=accuracy(group),
            test_sd=statistics.standard_deviation(correct, images) if len(group) > 1 else None,
            difference=estimate,
            p_corrected=p,
            verdict=results.verdict(estimate.value, p) if estimate else None,
            validation=validation[name],
            validation_pick=name == pick,
            gap=gap(group),
            cross_entropy=fmean(it.test.cross_entropy for it in evaluations),
            confidence=fmean(it.test.confidence for it in evaluations),
            calibration_error=fmean(it.test.calibration_error for it in evaluations),
            corrupted=fmean(it.accuracy for it in corrupted) if corrupted else None,
            corruptions=_by_level(corrupted),
            reg_loss=fmean(it.reg_loss for it in evaluations),
            near_zero=fmean(it.near_zero for it in evaluations),
            exact_zeros=fmean(it.exact_zeros for it in evaluations),
            norm=fmean(run.norm for run in group),
            effective_learning_rate=fmean(rates) if rates else None,
            cost=cost(plan, name),
        )
    return found


def _by_level(corrupted: Sequence[Corrupted]) -> dict[str, tuple[float, ...]]:
    """{corruption: accuracy without it and at each level}, means over seeds."""
    if not corrupted:
        return {}
    found = {}
    for corruption in corrupted[0].correct:
        counts = zip(*([it.correct_before, *it.correct[corruption]] for it in corrupted), strict=True)
        found[corruption] = tuple(fmean(seeds) / corrupted[0].images for seeds in counts)
    return found


def cost(plan: dict, name: str) -> float | None:
    """Time of a step relative to one without regularizer: product over a line's kinds; None: one is not measured."""
    costs = [plan["costs"].get(term.kind) for term in plan["reg"][name].terms]
    return None if None in costs else math.prod(costs)


def _last_epoch(run: Run) -> int:
    return int(run.history[-1]["epoch"]) if run.history else 0


def images(runs: Sequence[Run]) -> Images | None:
    """The images that were measured on, or None if every run diverged."""
    for run in whole(runs):
        evaluation = run.evaluation
        share = {split: evaluation.majority[split] for split in ("validation", "test")}
        return Images(
            test=evaluation.test.images,
            corrupted=evaluation.corrupted.images if evaluation.corrupted else 0,
            classes=len(evaluation.test_accuracy_by_class),
            largest_class=share,
        )
    return None


def summarize(found: dict[str, Row | Diverged]) -> dict[str, dict[str, float]]:
    """{regularizer: {metric: number}}, rounded to 6 digits: what `dvc metrics diff` shows.

    DVC sorts metrics by name, so the names begin with what is read first. Only `difference` depends on another
    regularizer, the baseline. So if the strength of any other one changes, only its own metrics change, at most six.
    The rest is in report.json.
    """
    summary = {}
    for name, row in found.items():
        if isinstance(row, Diverged):
            summary[name] = {"diverged": len(row.diverged)}
            continue
        metrics = {
            "accuracy_test": row.test.value,
            "accuracy_test_corrupted": row.corrupted,
            "accuracy_validation": row.validation,
            "difference": row.difference and row.difference.value,
            "gap": row.gap.value,
            "reg_loss": row.reg_loss,
        }
        summary[name] = {metric: round(value, 6) for metric, value in metrics.items() if value is not None}
    return summary


def parse(data: bytes, where: str | Path = SUMMARY) -> dict[str, dict[str, float]]:
    """A summary from its bytes; `where` is what to call it in messages.

    Raises:
        UserError: it has conflict markers or is damaged.
    """
    try:
        return _SUMMARY.validate_json(tracked.text(data, where))
    except ValidationError as error:
        raise tracked.damaged(where, error.errors()[0]["msg"]) from None


_SUMMARY = TypeAdapter(dict[str, dict[str, FiniteFloat]])


def curves(runs: Sequence[Run]) -> list[dict]:
    """One row for each run and epoch: {column of `CURVE_COLUMNS`: value}. Regularizers that diverged are left out."""
    return [
        {"regularizer": run.name, "seed": run.seed} | row | {"epoch": int(row["epoch"])}
        for run in whole(runs)
        for row in run.history
    ]


def write(found: dict[str, Row | Diverged], runs: Sequence[Run]) -> None:
    """Write metrics/summary.json and plots/curves.csv."""
    files.write_json(SUMMARY, summarize(found))
    files.write_csv(CURVES, CURVE_COLUMNS, (row.values() for row in curves(runs)))
