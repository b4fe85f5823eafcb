"""A report's numbers as tables: for a terminal of 80 columns only what answers the question, as Markdown more."""

import csv
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from regbench.report import results
from regbench.report.results import Diverged, Report, Row, measured
from regbench.report.statistics import Estimate
from regbench.report.verdicts import interval, points

if TYPE_CHECKING:
    from rich.table import Table

LOG = Path(".regbench/log")
"""Where training logs the seconds of each epoch. The outputs of the pipeline contain no times."""

LARGEST_CLASS = "largest class"
"""The row of a model that always predicts the largest class."""

Columns = dict[str, Callable[[Row], str]]
"""{heading: function that gives the text below it for a row}."""

# Kinds grouped by what they act on. Columns about it are shown for them; some also if the numbers call for it.
SPARSE = {"l1", "proximal_l1", "group_lasso"}
OF_WEIGHTS = SPARSE | {"l2", "orthogonal", "weight_decay", "max_norm"}
OF_OUTPUTS = {"label_smoothing", "mixup", "cutmix"}


def terminal_columns(report: Report) -> Columns:
    """What answers the question, as narrow as possible: if there are differences, only these have intervals."""
    compared = any(row.difference for row in measured(report.rows).values())
    columns: Columns = {"test %": lambda row: f"{100 * row.test.value:.1f}" if compared else percent(row.test)}
    if compared:
        columns["difference"] = lambda row: interval(row.difference) if row.difference else ""
        columns["verdict"] = lambda row: row.verdict or ""
    columns["val %"] = lambda row: f"{100 * row.validation:.1f}{'*' if row.validation_pick else ' '}"
    if report.images and report.images.corrupted:
        columns["corrupted"] = lambda row: "" if row.corrupted is None else f"{100 * row.corrupted:.1f}"
    return columns


def answer_columns(report: Report) -> Columns:
    """What answers the question in report.md."""
    return (
        terminal_columns(report)
        | {"test %": lambda row: percent(row.test)}
        | {
            "gap": lambda row: points(row.gap.value),
            "cross-entropy": lambda row: f"{row.cross_entropy:.4f}",
            "calibration error": lambda row: f"{row.calibration_error:.3f}",
        }
    )


def effect_columns(found: dict[str, Row | Diverged]) -> Columns:
    """What the lines did to weights and outputs, and what they cost. Only columns that say something about a line."""
    rows = list(measured(found).values())
    kinds = {kind for row in rows for kind in row.kinds}
    penalised = any(row.reg_loss for row in rows)
    weights = penalised or kinds & OF_WEIGHTS
    shares = [row.near_zero for row in rows]
    told: dict[str, tuple[object, Callable[[Row], str]]] = {
        "reg loss": (penalised, lambda row: f"{row.reg_loss:.4f}"),
        "near zero": (
            kinds & SPARSE or max(shares, default=0) - min(shares, default=0) >= 0.01,
            lambda row: f"{row.near_zero:.1%}",
        ),
        "exactly zero": (
            kinds & SPARSE or any(row.exact_zeros >= 0.0005 for row in rows),
            lambda row: f"{row.exact_zeros:.1%}",
        ),
        "norm": (weights, lambda row: _digits(row.norm)),
        "effective learning rate": (
            weights and any(row.effective_learning_rate for row in rows),
            lambda row: _digits(row.effective_learning_rate),
        ),
        "confidence": (
            kinds & OF_OUTPUTS and any(row.confidence for row in rows),
            lambda row: "" if row.confidence is None else f"{row.confidence:.1%}",
        ),
        "step time": (
            any(row.cost and row.kinds for row in rows),
            lambda row: "" if row.cost is None else f"× {row.cost:.2f}",
        ),
    }
    return {heading: cell for heading, (shown, cell) in told.items() if shown}


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


EXPLAINED = {
    "reg loss": "what the line adds to the loss at the end",
    "near zero": "share of the kernel weights below `evaluate.near_zero`",
    "exactly zero": "share of the kernel weights that are 0",
    "norm": "√Σw² of all kernels",
    "effective learning rate": "learning rate / Σw² of a kernel, median over those that batch normalization follows",
    "confidence": "mean probability of the predicted class, on test images",
    "step time": "relative to a step without regularizer, by `make bench`",
}
"""What the headings of `effect_columns` mean."""


def legend(baseline: str | None, corrupted: int, found: dict[str, Row | Diverged]) -> tuple[str, str, str]:
    """What the headings mean, in three texts.

    Args:
        baseline: what others are compared with; None: nothing is compared.
        corrupted: how many test images were corrupted.
        found: {regularizer: its numbers}.

    Returns:
        the meanings for the terminal's table, for the other columns of report.md's first table, for its second table
    """
    picked = any(row.validation_pick for row in measured(found).values())
    said = ["test, val: accuracy" + ", * picked by validation" * picked]
    said.append(f"difference: test accuracy minus {baseline}'s, in points" if baseline else "no baseline")
    if corrupted:
        said.append(
            f"corrupted: accuracy in % on {corrupted:,} test images under noise, blur, brightness and JPEG, mean of 3 "
            "levels each"
        )
    return (
        "; ".join([*said, "[ ]: 95 % interval"]),
        "gap: training minus test accuracy, in points",
        "; ".join(f"{heading}: {EXPLAINED[heading]}" for heading in effect_columns(found)),
    )


def percent(estimate: Estimate) -> str:
    """An accuracy and its interval, if it has one, in percent."""
    ends = "" if estimate.low is None else f" [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
    return f"{100 * estimate.value:.1f}{ends}"


def diverged(row: Diverged, seeds: int) -> str:
    """The text in place of the numbers of a regularizer that diverged."""
    return "diverged" if seeds == 1 else f"diverged, {len(row.diverged)} of {seeds}"


def cells(report: Report, columns: Columns) -> dict[str, list[str]]:
    """{regularizer: the cells of its row}; if classes are unequal, the last row has the share of the largest class."""
    found = {}
    widest = "difference" if "difference" in columns else "test %"
    for name, row in report.rows.items():
        if isinstance(row, Diverged):
            found[name] = [diverged(row, len(report.seeds)) if heading == widest else "" for heading in columns]
        else:
            found[name] = [cell(row) for cell in columns.values()]
    if report.images and report.images.unequal:
        share = {"test %": report.images.largest_class["test"], "val %": report.images.largest_class["validation"]}
        found[LARGEST_CLASS] = [f"{100 * share[name]:.1f} " if name in share else "" for name in columns]
    return found


def markdown(report: Report) -> list[str]:
    """The lines of report.md's first table, which answers the question."""
    columns = answer_columns(report)
    return _markdown(columns, cells(report, columns))


def effects(report: Report) -> list[str]:
    """The lines of the table of what each line did to weights and outputs; empty if no column says something."""
    columns = effect_columns(report.rows)
    rows = {name: [cell(row) for cell in columns.values()] for name, row in measured(report.rows).items()}
    return _markdown(columns, rows) if columns else []


def _markdown(columns: Columns, rows: dict[str, list[str]]) -> list[str]:
    return [
        f"| regularizer | {' | '.join(columns)} |",
        f"|{'---|' * (len(columns) + 1)}",
        *(f"| {name} | {' | '.join(cell.strip() for cell in row)} |".replace("*", "\\*") for name, row in rows.items()),
    ]


def seconds(report: Report, log: Path = LOG) -> dict[str, float]:
    """{regularizer: seconds of one training epoch}, median over epochs and seeds; only those that were trained here.

    The first epoch is left out if there are more: the network is compiled in it.
    """
    found = {}
    for name in measured(report.rows):
        runs = [_seconds(log / f"{name}-{seed}.csv") for seed in report.seeds]
        if logged := [median(epochs[1:] or epochs) for epochs in runs if epochs]:
            found[name] = median(logged)
    return found


def _seconds(path: Path) -> list[float]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [float(row["seconds"]) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):  # not trained here, or killed while it was written
        return []


def terminal(report: Report, width: int = 80, cost: dict[str, float] | None = None) -> "Table":
    """The table, for `rich` to print. If the terminal is too narrow, names are cut, not numbers.

    Args:
        report: what it shows.
        width: of the terminal, in characters.
        cost: {regularizer: seconds per epoch}; None or empty: the column is left out.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    columns = terminal_columns(report)
    rows = cells(report, columns)
    headings = list(columns)
    if cost:
        headings.append("s/epoch")
        for name, row in rows.items():
            row.append(f"{cost[name]:.1f}" if name in cost else "")
    widths = [max(map(len, column)) for column in zip(headings, *rows.values(), strict=True)]
    table.add_column("", no_wrap=True, max_width=max(6, width - sum(widths) - len(widths)))
    for heading, wide in zip(headings, widths, strict=True):
        table.add_column(heading, justify="right", no_wrap=True, min_width=wide)
    for name, row in rows.items():
        table.add_row(name, *row)
    return table


def show(path: Path = results.PATH) -> None:
    """Print the table of the last report, what it says, and where its figures are.

    Raises:
        UserError: report.json is missing, has conflict markers or is damaged.
    """
    from rich.console import Console

    report = results.read(path)
    console = Console(highlight=False)
    cost = seconds(report)
    console.print(terminal(report, console.width, cost))
    said = [report.legend[0], *(["s/epoch: seconds of training an epoch, when last trained here"] if cost else [])]
    console.print("; ".join(said), style="dim", markup=False)
    for sentence in report.verdicts:
        console.print(sentence, markup=False)
    figures = ", ".join(figure for figure, _ in report.figures)
    console.print(f"Report: report.md    Figures: {figures}", markup=False)
    console.print("All curves on one page: dvc plots show    What changed: dvc metrics diff")
