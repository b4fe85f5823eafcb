"""Many runs → one row a regularizer, and the curves that `dvc plots` overlays.

What counts are the keys of params, not the folders that lie in `runs/`: removed keys leave files behind.
"""

import csv
import json
from pathlib import Path

from regbench import errors
from regbench.errors import UserError

SUMMARY = Path("metrics/summary.json")
CURVES = Path("plots/curves.csv")
HISTORY_COLUMNS = ("epoch", "reg_loss", "cross_entropy", "accuracy", "val_cross_entropy", "val_accuracy")
CURVE_COLUMNS = ("regularizer", "seed", *HISTORY_COLUMNS)

METRICS = {
    "test_accuracy": lambda run: run["test"]["accuracy"],
    "test_cross_entropy": lambda run: run["test"]["cross_entropy"],
    "validation_accuracy": lambda run: run["validation"]["accuracy"],
    "train_accuracy": lambda run: run["train"]["accuracy"],
    "generalization_gap": lambda run: run["generalization_gap"],
    "reg_loss": lambda run: run["reg_loss"],
    "near_zero": lambda run: run["near_zero"],
}
"""What stands in the summary, each the mean over seeds; accuracies, gap and near_zero are fractions."""


def read_runs(settings, folder="runs"):
    """The evaluation and the history of each run that params name.

    Returns:
        [(evaluation: dict, history: list of dict, numbers as floats)], regularizers in the order of params.

    Raises:
        UserError: a run is missing or damaged.
    """
    runs = []
    for name in settings.reg:
        for seed in settings.train.seeds:
            run = Path(folder) / f"{name}-{seed}"
            try:
                evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
                with open(run / "history.csv", newline="", encoding="utf-8") as file:
                    history = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
            except (OSError, ValueError, TypeError) as error:
                raise UserError(
                    f"{run} is missing or damaged ({error}); run `dvc repro evaluate@{name}-{seed}`"
                ) from None
            runs.append((evaluation, history))
    return runs


def summarize(runs):
    """{regularizer: {metric: mean over seeds}}, rounded to 6 digits, with `seeds`, how many there are."""
    by_name = {}
    for evaluation, _ in runs:
        by_name.setdefault(evaluation["regularizer"], []).append(evaluation)
    return {
        name: {metric: round(sum(map(value, group)) / len(group), 6) for metric, value in METRICS.items()}
        | {"seeds": len(group)}
        for name, group in by_name.items()
    }


def curves(runs):
    """A row for each run and epoch: {column of `CURVE_COLUMNS`: value}."""
    return [
        {"regularizer": evaluation["regularizer"], "seed": evaluation["seed"]}
        | {column: row[column] for column in HISTORY_COLUMNS}
        | {"epoch": int(row["epoch"])}
        for evaluation, history in runs
        for row in history
    ]


def write(runs):
    """Write metrics/summary.json and plots/curves.csv; returns summary and curves."""
    summary, rows = summarize(runs), curves(runs)
    SUMMARY.parent.mkdir(exist_ok=True)
    CURVES.parent.mkdir(exist_ok=True)
    SUMMARY.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    with open(CURVES, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CURVE_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return summary, rows


def table(summary):
    """The summary as a `rich` table, a row a regularizer."""
    from rich import box
    from rich.table import Table

    table = Table(
        title="metrics/summary.json",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True)
    for heading in ("test acc", "test c-e", "val acc", "train acc", "gap", "reg loss", "near 0", "seeds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in summary.items():
        table.add_row(
            name,
            f"{row['test_accuracy']:.1%}",
            f"{row['test_cross_entropy']:.4f}",
            f"{row['validation_accuracy']:.1%}",
            f"{row['train_accuracy']:.1%}",
            f"{100 * row['generalization_gap']:+.1f}",
            f"{row['reg_loss']:.4f}",
            f"{row['near_zero']:.1%}",
            str(row["seeds"]),
        )
    return table


def show():
    """Print the table of the last report, and where its figures are."""
    from rich.console import Console

    try:
        summary = json.loads(SUMMARY.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{SUMMARY} can't be read ({error}); run `dvc repro`") from None
    console = Console()
    console.print(table(summary))
    console.print("acc: accuracy; c-e: cross-entropy, without penalty; gap: train − test accuracy", style="dim")
    console.print(f"Figures: {', '.join(map(str, sorted(Path('plots').glob('*.png'))))}")
    console.print("All curves on one page: dvc plots show    What changed: dvc metrics diff")


if __name__ == "__main__":
    errors.run(show)
