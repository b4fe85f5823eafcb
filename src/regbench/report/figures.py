"""seaborn figures of the runs. A regularizer has the same colour in all figures, by its place in params.

A drawing function that returns a string instead of a figure says why there is nothing to show.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from regbench.report import summary
from regbench.report.runs import Run, by_name, whole
from regbench.report.statistics import SIGNIFICANT, Estimate

FOLDER = Path("plots")
BESIDE = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5), "frameon": False}
"""Position of a legend: to the right of the picture."""

CORRUPTION_NAMES = {
    "gaussian_noise": "Gaussian noise",
    "gaussian_blur": "Gaussian blur",
    "brightness": "Brightness",
    "jpeg": "JPEG",
}

WITH_BANDS = 6
"""A figure with at most this many lines has bands; more bands would hide the lines."""

Palette = dict[str, tuple[float, float, float]]


def draw(plan: dict, runs: Sequence[Run]) -> list[tuple[Path, str]]:
    """Draw every figure as a PNG into plots/.

    Args:
        plan: plans/report.json, as `regbench.plan.read` returns it.
        runs: as from `runs.read`; regularizers that diverged are left out.

    Returns:
        [(path, caption)] of the figures that show something, in the order of a report. The others are written too,
        since DVC expects them; each of them says why it is empty.
    """
    sns.set_theme(style="whitegrid", context="notebook")
    names = list(plan["reg"])
    palette = dict(zip(names, itertools.cycle(_colors()), strict=False))
    runs = whole(runs)
    curves = pd.DataFrame(summary.curves(runs))
    figures = {
        "effects": (
            lambda: effects(plan, runs, palette),
            "Difference to the baseline with its 95 % interval, and cost, best first",
        ),
        "accuracy": (
            lambda: accuracy(plan, runs, palette),
            "Accuracy, difference to the baseline and generalization gap, with 95 % intervals",
        ),
        "corruptions": (lambda: corruptions(runs, palette), "Accuracy on corrupted test images"),
        "learning_curves": (lambda: learning_curves(curves, palette), "Cross-entropy and accuracy by epoch"),
        "reg_loss": (lambda: reg_loss(curves, palette), "Regularization loss by epoch"),
        "norms": (lambda: norms(curves, palette), "Norm of the kernels by epoch, backbone and head"),
        "weights": (lambda: weights(runs, palette), "How large the weights are at the end"),
        "layers": (lambda: layers(runs, palette), "Each layer's kernel at the end"),
        "pruning": (lambda: pruning(runs, palette), "Validation accuracy with the smallest weights set to 0"),
        "strength": (lambda: strength(plan, runs, palette), "Test accuracy over strength"),
    }
    FOLDER.mkdir(exist_ok=True)
    drawn = []
    for name, (drawing, caption) in figures.items():
        figure = drawing() if runs else "every run diverged"
        if isinstance(figure, str):
            figure = nothing(figure)
        else:
            drawn.append((FOLDER / f"{name}.png", caption))
        # Without matplotlib's version in the metadata, the same picture gives the same bytes.
        figure.savefig(FOLDER / f"{name}.png", dpi=110, bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)
    return drawn


def _colors() -> list[tuple[float, float, float]]:
    """Thirty colours, light and dark: hues alone can't tell a dozen lines apart."""
    dark = sns.color_palette("dark", 10)
    # The orange of "dark" looks like the fourth colour of "colorblind", so it comes late.
    return [*sns.color_palette("colorblind", 10), *dark[3:], *dark[:3], *sns.color_palette("pastel", 10)]


def nothing(why: str) -> Figure:
    """A figure that only says why there is nothing to show."""
    figure, axes = plt.subplots(figsize=(8, 1))
    axes.text(0.5, 0.5, why, ha="center", va="center")
    axes.set_axis_off()
    return figure


def effects(plan: dict, runs: Sequence[Run], palette: Palette) -> Figure | str:
    """Difference to the baseline with its interval, best first; beside it the cost of a step, if it was measured."""
    compared = summary.differences(plan, runs)
    if not compared:
        return "there is no baseline, or nothing to compare with it"
    names = sorted(compared, key=lambda name: -compared[name][0].value)
    costs = {name: 100 * (cost - 1) for name in names if (cost := summary.cost(plan, name)) is not None}
    figure, axes = plt.subplots(
        1,
        1 + bool(costs),
        figsize=(7.5 + 3 * bool(costs), 1.4 + 0.42 * len(names)),
        sharey=True,
        squeeze=False,
        width_ratios=(2.2, 1) if costs else None,
        layout="constrained",
    )
    left, right = axes[0][0], axes[0][-1]
    for position, name in enumerate(names):
        estimate, p = compared[name]
        _interval(left, estimate, position, palette[name], percent=100, filled=p < SIGNIFICANT)
    baseline = summary.baseline_of(plan, runs)
    left.axvline(0, color="0.4", linewidth=1)
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.5, -0.5)
    left.set(title=f"Test accuracy − {baseline}'s", xlabel="points   ● better or worse   ○ can't tell")
    left.grid(axis="y", visible=False)
    _at_least(left, 2)
    if costs:
        widest = max(1.0, *map(abs, costs.values()))
        for position, name in enumerate(names):
            value = costs.get(name)
            if value is not None:
                right.barh(position, value, height=0.55, color=palette[name])
            words = "not measured" if value is None else f"{value:+.0f} %".replace("-", "−")
            right.text(max(value or 0, 0) + 0.04 * widest, position, words, va="center", fontsize="small")
        right.axvline(0, color="0.4", linewidth=1)
        right.set_xlim(min(0, 1.1 * min(costs.values())), 1.5 * widest)
        right.set(title="Cost", xlabel="extra time of a step, %")
        right.grid(axis="y", visible=False)
    return figure


def corruptions(runs: Sequence[Run], palette: Palette) -> Figure | str:
    """Accuracy without corruption and at three levels, mean over seeds; one panel for each corruption."""
    rows = [
        {"regularizer": run.name, "corruption": corruption, "level": level, "accuracy": count / corrupted.images}
        for run in runs
        if (corrupted := run.evaluation.corrupted)
        for corruption, counts in corrupted.correct.items()
        for level, count in enumerate([corrupted.correct_before, *counts])
    ]
    if not rows:
        return "evaluate.corrupted_images is 0"
    table = pd.DataFrame(rows)
    shown = list(dict.fromkeys(table["corruption"]))
    figure, panels = plt.subplots(
        1, len(shown), figsize=(2.9 * len(shown), 4), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, corruption in zip(panels[0], shown, strict=True):
        _lines(table[table["corruption"] == corruption], "level", "accuracy", palette, axes, marker="o")
        axes.set(title=CORRUPTION_NAMES.get(corruption, corruption), xlabel="level", ylabel="test accuracy")
        axes.set_xticks(range(4), ["none", "1", "2", "3"])
        axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    handles, labels = panels[0][0].get_legend_handles_labels()
    for axes in panels[0]:
        axes.get_legend().remove()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    return figure


def accuracy(plan: dict, runs: Sequence[Run], palette: Palette) -> Figure:
    """With intervals: accuracy on test (filled) and training images (hollow), difference to the baseline, gap."""
    groups, compared, images = by_name(runs), summary.differences(plan, runs), summary.images(runs)
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(11.5, 1.5 + 0.5 * len(groups)), sharey=True, width_ratios=(1.5, 1, 1)
    )
    for position, (name, group) in enumerate(groups.items()):
        _interval(left, summary.accuracy(group, "train"), position - 0.17, palette[name], filled=False)
        _interval(left, summary.accuracy(group), position + 0.17, palette[name])
        if name in compared:
            _interval(middle, compared[name][0], position, palette[name], percent=100)
        _interval(right, summary.gap(group), position, palette[name], percent=100)
    left.set_yticks(range(len(groups)), list(groups))
    left.set_ylim(len(groups) - 0.5, -0.5)
    left.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))
    left.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
    left.set(title="Accuracy", xlabel="test ●   training ○" + ("   largest class ⋯" if images.unequal else ""))
    if images.unequal:
        left.axvline(images.largest_class["test"], color="0.4", linewidth=1, linestyle=":")
    baseline = summary.baseline_of(plan, runs)
    middle.set(title=f"Test accuracy − {baseline}'s" if baseline else "No baseline", xlabel="points")
    right.set(title="Generalization gap", xlabel="training − test, points")
    for axes in (middle, right):
        axes.axvline(0, color="0.4", linewidth=1)
    _at_least(left, 0.05)
    _at_least(middle, 2)
    _at_least(right, 2)
    for axes in (left, middle, right):
        axes.grid(axis="y", visible=False)
    figure.tight_layout()
    return figure


def learning_curves(curves: pd.DataFrame, palette: Palette) -> Figure:
    """Cross-entropy and accuracy by epoch, training dashed, validation solid; bands are ranges over seeds."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), sharex=True)
    for axes, metric, label in ((left, "cross_entropy", "cross-entropy"), (right, "accuracy", "accuracy")):
        both = pd.concat(
            [
                curves.assign(split="validation", value=curves[f"val_{metric}"]),
                curves.assign(split="training", value=curves[metric]),
            ]
        )
        _by_epoch(both, "value", palette, axes, style="split", dashes={"validation": "", "training": (3, 2)})
        axes.set(title=label.capitalize(), xlabel="epoch", ylabel=label)
        _whole_epochs(axes, curves)
    right.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
    _one_legend(left, right)
    figure.tight_layout()
    return figure


def reg_loss(curves: pd.DataFrame, palette: Palette) -> Figure | str:
    """Reg loss after each epoch: the whole, and the part of the Dense head; bands are ranges over seeds."""
    penalised = curves[curves.groupby("regularizer")["reg_loss"].transform("max") > 0]
    if not len(penalised):
        return "no line adds a penalty to the loss"
    figure, axes = plt.subplots(figsize=(8, 4))
    parts = pd.concat(
        [
            penalised.assign(part="whole", value=penalised["reg_loss"]),
            penalised.assign(part="head", value=penalised["reg_loss_head"]),
        ]
    )
    _by_epoch(parts[parts["value"] > 0], "value", palette, axes, style="part", dashes={"whole": "", "head": (3, 2)})
    axes.set_yscale("log")
    sns.move_legend(axes, **BESIDE)
    axes.set(title="Regularization loss", xlabel="epoch", ylabel="sum of penalties (log scale)")
    _whole_epochs(axes, curves)
    return figure


def norms(curves: pd.DataFrame, palette: Palette) -> Figure:
    """√Σw² of the kernels after each epoch, backbone and head."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), sharex=True)
    for axes, part in ((left, "backbone"), (right, "head")):
        _by_epoch(curves, f"norm_{part}", palette, axes)
        axes.set(title=f"Norm of the {part}", xlabel="epoch", ylabel="√Σw²", ylim=(0, 1.05 * axes.get_ylim()[1]))
        _whole_epochs(axes, curves)
    _one_legend(left, right)
    figure.tight_layout()
    return figure


def weights(runs: Sequence[Run], palette: Palette) -> Figure:
    """Share of the kernel weights by size, mean over seeds."""
    figure, axes = plt.subplots(figsize=(8, 4))
    for name, group in by_name(runs).items():
        counts = sum(pd.DataFrame(run.tables["evaluation/weights.csv"])["weights"] for run in group)
        ends = pd.DataFrame(group[0].tables["evaluation/weights.csv"])[["log10_low", "log10_high"]]
        inner = ends["log10_low"] > -math.inf
        zeros = counts[~inner].sum() / counts.sum()
        label = f"{name} ({zeros:.0%} smaller, or 0)" if zeros >= 0.005 else name
        axes.stairs(
            (counts / counts.sum())[inner][:-1],
            [*ends["log10_low"][inner]],
            color=palette[name],
            linewidth=1.8,
            label=label,
        )
    axes.xaxis.set_major_formatter(lambda exponent, _: f"$10^{{{exponent:.0f}}}$")
    axes.set(title="Size of the kernel weights", xlabel="|w|", ylabel="share of all, per tenth of a decade")
    axes.legend(**BESIDE)
    return figure


def layers(runs: Sequence[Run], palette: Palette) -> Figure:
    """By layer, from the stem to the head: root mean square weight, near-zero share, effective learning rate."""
    table = pd.concat([pd.DataFrame(run.tables["evaluation/layers.csv"]).assign(regularizer=run.name) for run in runs])
    table["rms"] = (table["sum_squares"] / table["weights"]) ** 0.5
    table["zero"] = table["near_zero"] / table["weights"]
    table["rate"] = pd.to_numeric(table["effective_learning_rate"], errors="coerce")
    order = list(dict.fromkeys(table["layer"]))
    table["place"] = table["layer"].map(order.index)
    shown = [("rms", "√(mean of w²)", "log"), ("zero", "near zero", "linear"), ("rate", "learning rate / Σw²", "log")]
    shown = [panel for panel in shown if table[panel[0]].notna().any()]
    figure, panels = plt.subplots(len(shown), 1, figsize=(11, 2.4 * len(shown)), sharex=True, layout="constrained")
    for axes, (column, label, scale) in zip(panels, shown, strict=True):
        _lines(table[table[column].notna()], "place", column, palette, axes, marker=".")
        axes.set(ylabel=label, yscale=scale, xlabel="")
        axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    panels[0].set_title("Kernel by kernel, from the stem to the head")
    ticks = [place for place, name in enumerate(order) if name.endswith("_depthwise") or name == "head"]
    panels[-1].set_xticks(ticks, [order[tick].replace("_depthwise", "") for tick in ticks], rotation=60, ha="right")
    handles, labels = panels[0].get_legend_handles_labels()
    for axes in panels:
        axes.get_legend().remove()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    return figure


def pruning(runs: Sequence[Run], palette: Palette) -> Figure | str:
    """Validation accuracy over the share of kernel weights that were set to 0; bands are ranges over seeds."""
    table = pd.concat([pd.DataFrame(run.tables["evaluation/pruning.csv"]).assign(regularizer=run.name) for run in runs])
    if table["pruned"].nunique() == 1:
        return "evaluate.pruning names no share above 0"
    figure, axes = plt.subplots(figsize=(8, 4))
    _lines(table, "pruned", "validation_accuracy", palette, axes, marker="o")
    axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    axes.set(title="Accuracy after pruning", xlabel="smallest kernel weights set to 0", ylabel="validation accuracy")
    axes.set_ylim(0, None)
    sns.move_legend(axes, **BESIDE)
    return figure


def strength(plan: dict, runs: Sequence[Run], palette: Palette) -> Figure | str:
    """Test accuracy against strength, with the baseline as a band; one panel for each kind and scope with several."""
    groups, panels = by_name(runs), {}
    for name in groups:
        terms = plan["reg"][name].terms
        if len(terms) == 1 and terms[0].strength > 0:
            panels.setdefault((terms[0].kind, terms[0].scope), []).append((terms[0].strength, name))
    panels = {of: points for of, points in panels.items() if len({strength for strength, _ in points}) > 1}
    if not panels:
        return "no kind has two strengths"
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    size = (max(5, 3.8 * columns), 3.6 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    baseline = summary.baseline_of(plan, runs)
    for panel, ((kind, scope), points) in zip(axes.flat, panels.items(), strict=False):
        values = sorted(points)
        estimates = [summary.accuracy(groups[name]) for _, name in values]
        panel.plot([value for value, _ in values], [estimate.value for estimate in estimates], color="0.6", zorder=1)
        for (value, name), estimate in zip(values, estimates, strict=True):
            _interval(panel, estimate, value, palette[name], upright=True)
        panel.set(title=f"{kind}, {scope.replace('_', ' ')}" if scope else kind, xlabel="strength", xscale="log")
        panel.set_xlim(values[0][0] / 5, values[-1][0] * 5)
        panel.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    for place, panel in enumerate(axes.flat):
        panel.set_visible(place < len(panels))
        if baseline:
            reference = summary.accuracy(groups[baseline])
            if reference.low is not None:
                panel.axhspan(reference.low, reference.high, color=palette[baseline], alpha=0.18, linewidth=0)
            panel.axhline(reference.value, color=palette[baseline], linestyle="--", label=baseline)
            panel.legend(loc="best", frameon=False)
        panel.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
    for panel in axes[:, 0]:
        panel.set_ylabel("test accuracy")
    _at_least(axes[0][0], 0.05, "y")
    return figure


def _interval(
    axes: Axes,
    estimate: Estimate,
    position: float,
    color: tuple[float, float, float],
    *,
    filled: bool = True,
    percent: float = 1,
    upright: bool = False,
) -> None:
    """A dot with its interval, if it has one."""
    value = percent * estimate.value
    errors = None if estimate.low is None else [[value - percent * estimate.low], [percent * estimate.high - value]]
    x, y = (position, value) if upright else (value, position)
    axes.errorbar(
        x,
        y,
        **{"yerr" if upright else "xerr": errors},
        fmt="o",
        color=color,
        markerfacecolor=color if filled else "white",
        capsize=4,
        zorder=2,
    )


def _at_least(axes: Axes, span: float, direction: str = "x") -> None:
    """Widen an axis that is narrower than `span`, so that tiny differences do not look large."""
    low, high = getattr(axes, f"get_{direction}lim")()
    if high - low < span:
        getattr(axes, f"set_{direction}lim")((low + high - span) / 2, (low + high + span) / 2)


def _lines(table: pd.DataFrame, x: str, y: str, palette: Palette, axes: Axes, **style: object) -> None:
    """One line for each regularizer, the mean over seeds; with few regularizers, the range over seeds as a band."""
    names = [name for name in palette if name in set(table["regularizer"])]
    band = ("pi", 100) if len(names) <= WITH_BANDS else None
    sns.lineplot(table, x=x, y=y, hue="regularizer", palette=palette, hue_order=names, ax=axes, errorbar=band, **style)


def _by_epoch(curves: pd.DataFrame, y: str, palette: Palette, axes: Axes, **style: object) -> None:
    _lines(curves, "epoch", y, palette, axes, marker="o" if curves["epoch"].nunique() <= 30 else None, **style)


def _one_legend(left: Axes, right: Axes) -> None:
    """One legend for two panels, to the right of both."""
    left.get_legend().remove()
    sns.move_legend(right, **BESIDE)


def _whole_epochs(axes: Axes, curves: pd.DataFrame) -> None:
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0.7, curves["epoch"].max() + 0.3)
