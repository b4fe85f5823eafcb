"""Validation accuracy against strength: a table with bars for the terminal, and a picture."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regbench.report.verdicts import interval
from regbench.search.line import Line
from regbench.search.verdict import Baseline, Standing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

NARROWEST = 12
"""Minimum width of the bars, in characters; with less room there are no bars."""

MOST_ROWS = 12
"""Maximum number of rows in the table if there are three or more axes."""

COLORS = {"best": "C2", "can't tell": "C0", "worse": "C3", "diverged": "C3"}

LOWEST = 0.05
"""Bars extend at most this far below and above the best accuracy. Else collapsed strengths would flatten the rest."""


def table(line: Line, found: Sequence[Standing], baseline: Baseline | None, width: int = 80) -> "Table":
    """One row for each point, with a bar.

    In a bar, `●` is the accuracy, `─` the interval of the difference to the best, `┊` the best accuracy. With three
    or more axes, only the best points are shown, best first. Bars are left out if there is no room.
    """
    from rich import box
    from rich.table import Table

    ends = _range(found)
    if len(line.axes) > 2:
        found = sorted(found, key=lambda it: -it.accuracy)[:MOST_ROWS]
    rows = [
        (
            line.label(it.point),
            str(len(it.seeds)),
            f"{100 * it.accuracy:.1f}",
            interval(it.difference) if it.difference else "",
            it.word,
        )
        for it in found
    ]
    if baseline:
        rows.append((baseline.name, "", f"{100 * baseline.validation:.1f}", "", ""))
    headings = (line.key, "seeds", "val %", "to the best", "")
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    cells = width - sum(widths) - len(widths)
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for heading, wide in zip(headings, widths, strict=True):
        shown.add_column(heading, justify="right" if heading in headings[1:4] else "left", no_wrap=True, min_width=wide)
    bars = [_bar(it, ends, cells) for it in found] if cells >= NARROWEST else []
    if bars:
        shown.add_column("", no_wrap=True)
    for row, bar in itertools.zip_longest(rows, bars):
        shown.add_row(*row, *filter(None, [bar]))
    return shown


def draw(line: Line, found: Sequence[Standing], baseline: Baseline | None, path: Path) -> None:
    """Draw a PNG: a curve for one axis, a map for two, and one panel for each axis if there are more."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="whitegrid", context="notebook")
    if len(line.axes) <= 2:
        figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
        (_curve if len(line.axes) == 1 else _map)(axes, line, found, baseline)
    else:
        figure, parts = plt.subplots(
            1, len(line.axes), figsize=(4 * len(line.axes), 4.5), sharey=True, layout="constrained"
        )
        _parts(parts, line, found, baseline)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _curve(axes: "Axes", line: Line, found: Sequence[Standing], baseline: Baseline | None) -> None:
    from matplotlib.ticker import NullFormatter, PercentFormatter

    low, _, top = _range(found)
    strengths = line.axes[0].strengths
    places = [strengths[it.point[0]] for it in found]
    axes.axhline(top, color="0.4", linewidth=1, linestyle=":", zorder=0)
    axes.plot(places, [it.accuracy for it in found], color="0.7", linewidth=1, zorder=1)
    for strength, it in zip(places, found, strict=True):
        errors = [[abs(it.accuracy - end)] for end in _ends(it, top)]
        axes.errorbar(strength, it.accuracy, yerr=errors, fmt="o", color=COLORS[it.word], capsize=4)
        beside = {"xytext": (6, 4), "textcoords": "offset points", "fontsize": 9, "color": "0.4"}
        if it.accuracy > low - LOWEST:
            axes.annotate(str(len(it.seeds)), (strength, it.accuracy), **beside)
        else:  # a collapsed strength: a triangle at the lower edge
            axes.plot(strength, low - LOWEST, "v", color=COLORS[it.word], clip_on=False)
            axes.annotate(f"{it.accuracy:.1%}", (strength, low - LOWEST), **beside)
    if baseline:
        axes.axhline(baseline.validation, color="C1", linestyle="--", linewidth=1, label=baseline.name)
    _legend(axes, found)
    axes.set(ylabel="validation accuracy", xscale="log", xlim=(strengths[0] / 2, strengths[-1] * 2))
    axes.set_xlabel("strength\nnumbers: seeds; bars: 95 % intervals of the difference to the best")
    axes.set_title(line.key if line.key == line.axes[0].kind else f"{line.key}: {line.axes[0].kind}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    if min(it.accuracy for it in found) < low - LOWEST:
        axes.set_ylim(bottom=low - LOWEST)


def _map(axes: "Axes", line: Line, found: Sequence[Standing], baseline: Baseline | None) -> None:
    """A map with one strength on each axis, and accuracy as colour and number."""
    from matplotlib.ticker import PercentFormatter

    low, _, top = _range(found)
    across, up = ([line.axes[axis].strengths[it.point[axis]] for it in found] for axis in (0, 1))
    levels = [it.accuracy for it in found]
    points = axes.scatter(across, up, c=levels, s=900, cmap="viridis", vmin=low - LOWEST, vmax=top, marker="s")
    for x, y, it in zip(across, up, found, strict=True):
        dark = it.accuracy < (low - LOWEST + top) / 2
        text = f"{100 * it.accuracy:.1f}" + {"best": "\nbest", "worse": "\nworse"}.get(it.word, "")
        axes.annotate(text, (x, y), ha="center", va="center", fontsize=7, color="white" if dark else "black")
    for axis, (name, scale) in enumerate((("x", axes.set_xscale), ("y", axes.set_yscale))):
        strengths = line.axes[axis].strengths
        scale("log")
        axes.set(**{f"{name}lim": (strengths[0] / 2, strengths[-1] * 2), f"{name}label": line.axes[axis].kind})
    beside = f"; {baseline.name}: {baseline.validation:.1%}" if baseline else ""
    axes.set_title(f"{line.key}: validation accuracy, %{beside}")
    axes.figure.colorbar(points, ax=axes, format=PercentFormatter(1))


def _parts(parts: Sequence["Axes"], line: Line, found: Sequence[Standing], baseline: Baseline | None) -> None:
    """Accuracy against each strength, one panel each. The other strengths vary within a panel."""
    from matplotlib.ticker import NullFormatter, PercentFormatter

    low, high, top = _range(found)
    for place, (axes, axis) in enumerate(zip(parts, line.axes, strict=True)):
        for it in found:
            strength = axis.strengths[it.point[place]]
            axes.plot(strength, max(it.accuracy, low - LOWEST), "o", color=COLORS[it.word], alpha=0.8)
        if baseline:
            axes.axhline(baseline.validation, color="C1", linestyle="--", linewidth=1, label=baseline.name)
        axes.set(xscale="log", xlabel=axis.kind, xlim=(axis.strengths[0] / 2, axis.strengths[-1] * 2))
        axes.xaxis.set_minor_formatter(NullFormatter())
    _legend(parts[-1], found)
    parts[0].set(ylabel="validation accuracy", ylim=(low - LOWEST, max(high, top) + LOWEST / 5))
    parts[0].yaxis.set_major_formatter(PercentFormatter(1))
    parts[0].figure.suptitle(line.key)


def _legend(axes: "Axes", found: Sequence[Standing]) -> None:
    """A legend of the colours, beside the picture."""
    for word, color in COLORS.items():
        if any(it.word == word for it in found):
            axes.plot([], [], "o", color=color, label=word)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=10)


def _range(found: Sequence[Standing]) -> tuple[float, float, float]:
    """(accuracy where bars begin, accuracy where they end, the best accuracy)."""
    top = next(it.accuracy for it in found if it.word == "best")
    ends = [end for it in found for end in _ends(it, top)]
    return max(min(ends), top - LOWEST), min(max(ends), top + LOWEST), top


def _ends(it: Standing, top: float) -> tuple[float, float]:
    if it.difference is None or it.difference.low is None:
        return it.accuracy, it.accuracy
    return top + it.difference.low, top + it.difference.high


def _bar(it: Standing, ends: tuple[float, float, float], cells: int) -> str:
    low, high, top = ends

    def column(value: float) -> int:
        place = round((cells - 1) * (value - low) / (high - low)) if high > low else 0
        return min(max(place, 0), cells - 1)

    if it.accuracy < low:
        return "◂"
    bar = [" "] * cells
    first, last = map(column, _ends(it, top))
    bar[first : last + 1] = "─" * (last + 1 - first)
    bar[column(top)] = "┊"
    bar[column(it.accuracy)] = "●"
    return "".join(bar).rstrip()
