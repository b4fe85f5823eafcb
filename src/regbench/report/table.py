"""The numbers of a report as a table: for a terminal of 80 columns, and with more columns as Markdown."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from regbench.report import results
from regbench.report.results import Diverged, Report, Row
from regbench.report.statistics import Estimate
from regbench.report.verdicts import interval, p_value, points

if TYPE_CHECKING:
    from rich.table import Table

LARGEST_CLASS = "largest class"
"""The name of the row of a model that always names it."""

COLUMNS: dict[str, Callable[[Row], str]] = {
    "test %": lambda row: percent(row.test),
    "difference": lambda row: interval(row.difference) if row.difference else "",
    "verdict": lambda row: row.verdict or "",
    "val %": lambda row: f"{100 * row.validation:.1f}{'*' if row.validation_pick else ' '}",
    "reg loss": lambda row: f"{row.reg_loss:.4f}",
}
"""Heading, and what stands below it for a row, in the terminal."""

MORE_COLUMNS: dict[str, Callable[[Row], str]] = {
    "p": lambda row: "" if row.p_corrected is None else p_value(row.p_corrected).removeprefix("= "),
    "sd": lambda row: "" if row.test_sd is None else f"{100 * row.test_sd:.1f}",
    "gap": lambda row: points(row.gap.value),
    "cross-entropy": lambda row: f"{row.cross_entropy:.4f}",
    "calibration error": lambda row: f"{row.calibration_error:.3f}",
    "near zero": lambda row: f"{row.near_zero:.1%}",
    "exactly zero": lambda row: f"{row.exact_zeros:.1%}",
}
"""What report.md has besides."""


def legend(baseline: str | None) -> tuple[str, str]:
    """What the headings mean: of `COLUMNS`, and of `MORE_COLUMNS`."""
    compared = f"test accuracy minus {baseline}'s, in points" if baseline else "no baseline"
    return (
        f"test, val: accuracy [95 % interval], * picked by validation; difference: {compared}",
        "sd: of test accuracy over seeds, in points; gap: training minus test accuracy, in points; near zero, exactly "
        "zero: share of the kernel weights",
    )


def percent(estimate: Estimate) -> str:
    """An accuracy and its interval, if it has one, in percent."""
    ends = "" if estimate.low is None else f" [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
    return f"{100 * estimate.value:.1f}{ends}"


def diverged(row: Diverged, seeds: int) -> str:
    """What stands in place of the numbers."""
    return "diverged" if seeds == 1 else f"diverged, {len(row.diverged)} of {seeds}"


def cells(report: Report, columns: dict[str, Callable[[Row], str]]) -> dict[str, list[str]]:
    """{regularizer: what stands in its row}; where classes are unequal, the largest class's share comes last."""
    found = {}
    for name, row in report.rows.items():
        if isinstance(row, Diverged):
            found[name] = [diverged(row, len(report.seeds)), *[""] * (len(columns) - 1)]
        else:
            found[name] = [cell(row) for cell in columns.values()]
    if report.images and report.images.unequal:
        share = {"test %": report.images.largest_class["test"], "val %": report.images.largest_class["validation"]}
        found[LARGEST_CLASS] = [f"{100 * share[name]:.1f} " if name in share else "" for name in columns]
    return found


def markdown(report: Report) -> list[str]:
    """The table with all columns, a line an item."""
    columns = COLUMNS | MORE_COLUMNS
    return [
        f"| regularizer | {' | '.join(columns)} |",
        f"|{'---|' * (len(columns) + 1)}",
        *(
            f"| {name} | {' | '.join(cell.strip() for cell in row)} |".replace("*", "\\*")
            for name, row in cells(report, columns).items()
        ),
    ]


def terminal(report: Report, width: int = 80) -> "Table":
    """The table as `rich` prints it in so many columns. Where they are too few, names are cut, not numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    rows = cells(report, COLUMNS)
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows.values(), strict=True)]
    table.add_column("", no_wrap=True, max_width=max(6, width - sum(widths) - len(widths)))
    for heading, wide in zip(COLUMNS, widths, strict=True):
        table.add_column(heading, justify="right", no_wrap=True, min_width=wide)
    for name, row in rows.items():
        table.add_row(name, *row)
    return table


def show(path: Path = results.PATH) -> None:
    """Print the table of the last report, what it says, and where its figures are.

    Raises:
        UserError: report.json is missing, in conflict or damaged.
    """
    from rich.console import Console

    report = results.read(path)
    console = Console(highlight=False)
    console.print(terminal(report, console.width))
    console.print(report.legend[0], style="dim", markup=False)
    for sentence in report.verdicts:
        console.print(sentence, markup=False)
    figures = ", ".join(figure for figure, _ in report.figures)
    console.print(f"Report: report.md    Figures: {figures}", markup=False)
    console.print("All curves on one page: dvc plots show    What changed: dvc metrics diff")
