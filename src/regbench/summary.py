"""Many runs → one row a regularizer, the curves that `dvc plots` overlays, and the verdict in words.

What counts are the keys of params, not the folders that lie in `runs/`: removed keys leave files behind.
"""

import csv
import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from regbench import errors, evidence, files
from regbench.errors import UserError

SUMMARY = Path("metrics/summary.json")
CURVES = Path("plots/curves.csv")
REPORT = Path("report.md")
HISTORY_COLUMNS = (
    "epoch",
    "reg_loss",
    "reg_loss_backbone",
    "reg_loss_head",
    "norm_backbone",
    "norm_head",
    "cross_entropy",
    "accuracy",
    "val_cross_entropy",
    "val_accuracy",
)
CURVE_COLUMNS = ("regularizer", "seed", *HISTORY_COLUMNS)

TABLES = ("history", "layers", "weights", "pruning")
"""The CSV files of a run that a report is made of, besides its predictions."""

MEANS = {
    "validation_accuracy": lambda run: run["validation"]["accuracy"],
    "test_cross_entropy": lambda run: run["test"]["cross_entropy"],
    "test_calibration_error": lambda run: run["test"]["calibration_error"],
    "generalization_gap": lambda run: run["generalization_gap"],
    "reg_loss": lambda run: run["reg_loss"],
    "exact_zeros": lambda run: run["exact_zeros"],
    "near_zero": lambda run: run["near_zero"],
}
"""What stands in the summary as the mean over seeds; accuracies, gap and shares of weights are fractions."""


@dataclass(frozen=True)
class Run:
    """What `train` and `evaluate` left of one run. The tables are lists of dicts, numbers as floats."""

    folder: Path
    name: str
    seed: int
    evaluation: dict
    history: list
    layers: list
    weights: list
    pruning: list

    @property
    def diverged(self):
        """Whether its loss or its logits stopped being finite; there are no numbers of such a run."""
        return self.evaluation.get("diverged", False)

    @cached_property
    def correct(self):
        """Which test images the model has right, in their order: list of bool."""
        return [
            row["label"] == row["prediction"] for row in _table(self.folder, "predictions") if row["split"] == "test"
        ]


def read_runs(settings, folder="runs"):
    """The `Run`s that params name, regularizers in the order of params.

    Raises:
        UserError: a run is missing or damaged.
    """
    runs = []
    for name in settings.reg:
        for seed in settings.train.seeds:
            run = Path(folder) / f"{name}-{seed}"
            try:
                evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
                tables = {table: _table(run, table) for table in TABLES}
                (run / "predictions.csv").stat()
            except (OSError, ValueError, TypeError) as error:
                raise UserError(
                    f"{run} is missing or damaged ({error}); run `dvc repro evaluate@{name}-{seed}`"
                ) from None
            runs.append(Run(run, name, seed, evaluation, **tables))
    return runs


def _table(folder, name):
    def number(text):
        try:
            return float(text)
        except ValueError:
            return text

    with open(folder / f"{name}.csv", newline="", encoding="utf-8") as file:
        return [{key: number(value) for key, value in row.items()} for row in csv.DictReader(file)]


def by_name(runs):
    """{regularizer: its runs, one a seed}, in order."""
    groups = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    return groups


def whole(runs):
    """The runs of regularizers that diverged with no seed."""
    diverged = {run.name for run in runs if run.diverged}
    return [run for run in runs if run.name not in diverged]


def baseline_of(settings, groups):
    """`report.baseline`, or None where it is not among the groups: it may have diverged."""
    return settings.report.baseline if settings.report.baseline in groups else None


def accuracy(group, split="test"):
    """Accuracy of one regularizer on a split: mean over seeds, or of one seed with the interval of a proportion."""
    values = [run.evaluation[split]["accuracy"] for run in group]
    if len(values) > 1:
        return evidence.mean_over_seeds(values)
    images = group[0].evaluation[split]["images"]
    return evidence.proportion(round(values[0] * images), images)


def gap(group):
    """Generalization gap of one regularizer: mean over seeds, or of one seed by its two proportions."""
    if len(group) > 1:
        return evidence.mean_over_seeds([run.evaluation["generalization_gap"] for run in group])
    return evidence.difference(accuracy(group, "train"), accuracy(group, "test"))


def against(baseline, group):
    """Test accuracy of one regularizer minus the baseline's: paired by seed, or by image where there is one seed."""
    if len(group) > 1:
        pairs = zip(baseline, group, strict=True)
        return evidence.mean_over_seeds(
            [run.evaluation["test"]["accuracy"] - base.evaluation["test"]["accuracy"] for base, run in pairs]
        )
    return evidence.paired_proportions(baseline[0].correct, group[0].correct)


def differences(settings, runs):
    """{regularizer: (`evidence.Estimate` of its difference to the baseline, p-value after Holm's correction)}."""
    groups = by_name(whole(runs))
    baseline = baseline_of(settings, groups)
    found = {name: against(groups[baseline], group) for name, group in groups.items() if name != baseline and baseline}
    corrected = evidence.holm([estimate.p for estimate in found.values()])
    return {name: (estimate, p) for (name, estimate), p in zip(found.items(), corrected, strict=True)}


def summarize(settings, runs):
    """{regularizer: {metric: number}}, rounded to 6 digits: what `dvc metrics diff` shows.

    `test_accuracy` has the ends of its 95 % interval, as has `difference`, that to the baseline, with Holm's
    `p_value`. `validation_pick` is 1 for the regularizer with the best validation accuracy, else 0. Of a regularizer
    that diverged there is only `diverged`, with how many seeds.
    """
    compared = differences(settings, runs)
    summary = {}
    for name, group in by_name(runs).items():
        if diverged := sum(run.diverged for run in group):
            summary[name] = {"diverged": diverged, "seeds": len(group)}
            continue
        tested = accuracy(group)
        row = {"test_accuracy": tested.value, "test_accuracy_low": tested.low, "test_accuracy_high": tested.high}
        if len(group) > 1:
            row["test_accuracy_sd"] = evidence.standard_deviation([run.evaluation["test"]["accuracy"] for run in group])
        if name in compared:
            estimate, p = compared[name]
            row |= {
                "difference": estimate.value,
                "difference_low": estimate.low,
                "difference_high": estimate.high,
                "p_value": p,
            }
        row |= {metric: sum(value(run.evaluation) for run in group) / len(group) for metric, value in MEANS.items()}
        summary[name] = {metric: round(value, 6) for metric, value in row.items()} | {"seeds": len(group)}
    best = max(summary, key=lambda name: summary[name].get("validation_accuracy", -1.0))
    for name, row in summary.items():
        if "diverged" not in row:
            row["validation_pick"] = int(name == best)
    return summary


def curves(runs):
    """A row for each run and epoch: {column of `CURVE_COLUMNS`: value}. What diverged is left out: it has no scale."""
    return [
        {"regularizer": run.name, "seed": run.seed}
        | {column: row[column] for column in HISTORY_COLUMNS}
        | {"epoch": int(row["epoch"])}
        for run in whole(runs)
        for row in run.history
    ]


def write(settings, runs):
    """Write metrics/summary.json and plots/curves.csv; returns summary and curves."""
    summary, rows = summarize(settings, runs), curves(runs)
    files.write_json(SUMMARY, summary)
    files.write_csv(CURVES, CURVE_COLUMNS, (row.values() for row in rows))
    return summary, rows


def verdicts(settings, runs, summary):
    """What the numbers say, a sentence each, for people.

    Args:
        settings: `params.Params`.
        runs: as from `read_runs`.
        summary: as from `summarize`.
    """
    for run in runs:
        if run.diverged:
            yield (
                f"{run.name} diverged with seed {run.seed} in epoch {run.history[-1]['epoch']:.0f}: lower "
                "train.learning_rate or its strength."
            )
    kept = whole(runs)
    if not kept:
        return
    groups = by_name(kept)
    seeds, baseline = len(settings.train.seeds), baseline_of(settings, groups)
    compared = [name for name in groups if name != baseline] if baseline else []
    for name in compared:
        row = summary[name]
        numbers = f"{points(row['difference'])} points {_interval(row)}, p {_p(row['p_value'])}"
        word = verdict(row)
        if word == "can't tell":
            yield f"Between {name} and {baseline} the data can't tell: {numbers}."
        elif seeds > 1:
            yield f"{name} is {word} than {baseline}: {numbers}."
        else:
            yield f"The model with {name} is {word} than the one with {baseline} on these test images: {numbers}."
    pick = next(name for name in groups if summary[name]["validation_pick"])
    row = summary[pick]
    yield f"Validation picks {pick}: {row['validation_accuracy']:.1%} there, {row['test_accuracy']:.1%} on test."
    test_images = kept[0].evaluation["test"]["images"]
    several = f" p-values are corrected for {len(compared)} comparisons (Holm)." if len(compared) > 1 else ""
    if seeds > 1:
        yield (
            f"n = {seeds} seeds, {test_images:,} test images. Intervals of 95 % are Student's over seeds, differences "
            f"paired by seed.{several}"
        )
    else:
        yield (
            f"n = 1 seed, {test_images:,} test images. Intervals of 95 % are for the choice of test images, p-values "
            f"by McNemar's exact test.{several} What another seed would give they don't know: add to train.seeds."
        )


def verdict(row):
    """better, worse or can't tell: whether a row's difference to the baseline is real at 5 %."""
    return "can't tell" if row["p_value"] >= 0.05 else "better" if row["difference"] > 0 else "worse"


def points(fraction):
    """A fraction as percentage points, with its sign."""
    return f"{round(100 * fraction, 1) + 0.0:+.1f}".replace("-", "−")  # + 0.0: no sign of zero


def _interval(row, key="difference"):
    return f"[{points(row[f'{key}_low'])}, {points(row[f'{key}_high'])}]"


def _p(p):
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


def test_cell(row):
    """Test accuracy and its interval, in percent, or that the regularizer diverged."""
    if "diverged" in row:
        return "diverged" if row["seeds"] == 1 else f"diverged, {row['diverged']} of {row['seeds']}"
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * row[f"test_accuracy{end}"] for end in ("", "_low", "_high")))


def _where(key, cell):
    """`cell`, empty for a row that has no such key: not compared, one seed, diverged."""
    return lambda row: cell(row) if key in row else ""


COLUMNS = {
    "test %": test_cell,
    "difference": _where("difference", lambda row: f"{points(row['difference'])} {_interval(row)}"),
    "verdict": _where("difference", verdict),
    "val %": _where(
        "validation_accuracy",
        lambda row: f"{100 * row['validation_accuracy']:.1f}{'*' if row['validation_pick'] else ' '}",
    ),
    "reg loss": _where("reg_loss", lambda row: f"{row['reg_loss']:.4f}"),
}
"""The table for a terminal of 80 columns: heading, and what stands below it for a row of the summary."""

MORE_COLUMNS = {
    "p": _where("p_value", lambda row: _p(row["p_value"]).removeprefix("= ")),
    "sd": _where("test_accuracy_sd", lambda row: f"{100 * row['test_accuracy_sd']:.1f}"),
    "gap": _where("generalization_gap", lambda row: points(row["generalization_gap"])),
    "cross-entropy": _where("test_cross_entropy", lambda row: f"{row['test_cross_entropy']:.4f}"),
    "calibration error": _where("test_calibration_error", lambda row: f"{row['test_calibration_error']:.3f}"),
    "near zero": _where("near_zero", lambda row: f"{row['near_zero']:.1%}"),
    "exactly zero": _where("exact_zeros", lambda row: f"{row['exact_zeros']:.1%}"),
}
"""What report.md has besides."""

LEGEND = "test, val: accuracy [95 % interval], * picked by validation; difference: to {baseline}, in points"
MORE_LEGEND = (
    "sd: of test accuracy over seeds, gap: training − test accuracy, in points; zeros: share of the kernel weights"
)


def legend(settings):
    """What the headings of `COLUMNS` mean."""
    return LEGEND.format(baseline=settings.report.baseline or "no baseline")


def table(summary):
    """The summary as a `rich` table, a row a regularizer."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=str(SUMMARY),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True)
    cells = {heading: [cell(row) for row in summary.values()] for heading, cell in COLUMNS.items()}
    for heading, column in cells.items():
        # Where it is too narrow for all, names give way, not numbers.
        table.add_column(heading, justify="right", no_wrap=True, min_width=max(map(len, (heading, *column))))
    for name, *row in zip(summary, *cells.values(), strict=True):
        table.add_row(name, *row)
    return table


def write_report(settings, runs, summary, figures):
    """Write report.md: table, verdict in words, figures, and which files it was made of.

    Args:
        settings: `params.Params`.
        runs: as from `read_runs`.
        summary: as from `summarize`.
        figures: [(path, caption)], as from `figures.draw`.
    """
    chosen, options = settings.data, settings.train
    columns = COLUMNS | MORE_COLUMNS
    lines = [
        "# Report",
        "",
        f"{chosen.dataset}, {chosen.image_size} px, {options.epochs} epochs. Made by `dvc repro` from `params.yaml`; "
        "all digits are in `metrics/summary.json`.",
        "",
        f"| regularizer | {' | '.join(columns)} |",
        f"|{'---|' * (len(columns) + 1)}",
        *(
            f"| {name} | {' | '.join(cell(row).strip() for cell in columns.values())} |"
            for name, row in summary.items()
        ),
        "",
        f"{legend(settings)}; {MORE_LEGEND}.".replace("*", "\\*"),
        "",
        *(f"- {sentence}" for sentence in verdicts(settings, runs, summary)),
    ]
    for path, caption in figures:
        lines += ["", f"![{caption}]({path.as_posix()})"]
    lines += ["", "<!-- Made of, as MD5 and path:"]
    for run in runs:
        for name in ("evaluation.json", *(f"{table}.csv" for table in (*TABLES, "predictions"))):
            md5 = hashlib.md5((run.folder / name).read_bytes(), usedforsecurity=False).hexdigest()
            lines.append(f"{md5}  {(run.folder / name).as_posix()}")
    lines.append("-->")
    with files.whole(REPORT) as file:
        file.write("\n".join(lines) + "\n")


def made_of(text):
    """{path: MD5} of the files that a report.md says it was made of."""
    return {path: md5 for md5, path in re.findall(r"^([0-9a-f]{32})  (.+)$", text, re.MULTILINE)}


def show():
    """Print the table of the last report, what it says, and where its figures are."""
    from rich.console import Console

    from regbench import params

    settings = params.load()
    try:
        summary = json.loads(SUMMARY.read_text(encoding="utf-8"))
        said = [line[2:] for line in REPORT.read_text(encoding="utf-8").splitlines() if line.startswith("- ")]
    except (OSError, ValueError) as error:
        raise UserError(f"{SUMMARY} or {REPORT} can't be read ({error}); run `dvc repro`") from None
    console = Console()
    console.print(table(summary))
    console.print(legend(settings), style="dim", highlight=False)
    for sentence in said:
        console.print(sentence, highlight=False)
    console.print(f"Report: {REPORT}    Figures: {', '.join(map(str, sorted(Path('plots').glob('*.png'))))}")
    console.print("All curves on one page: dvc plots show    What changed: dvc metrics diff")


if __name__ == "__main__":
    errors.run(show)
