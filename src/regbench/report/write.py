"""The last stage of the pipeline: makes the results that Git tracks from all runs."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regbench import files
from regbench.plan import FOLDER as PLANS
from regbench.report import figures, results, summary, table, verdicts
from regbench.report.results import Diverged, Report, Row
from regbench.report.runs import REMOVED, Run, read, set_aside

MARKDOWN = Path("report.md")
DIGITS = 6
"""How many significant digits a number has in report.json."""


def report(plan: dict[str, Any], runs: Path = Path("runs")) -> None:
    """Write metrics/summary.json, plots/, report.json and report.md.

    Args:
        plan: plans/report.json, as `regbench.plan.read` returns it.
        runs: the folder of the runs; what the plan does not name is moved out of it.

    Raises:
        UserError: a run is missing or damaged.
    """
    if moved := set_aside(plan, runs):
        print(f"moved out of {runs}/ to {REMOVED}/, since params.yaml does not name it: {', '.join(moved)}")
    found = read(plan, runs)
    rows = summary.rows(plan, found)
    summary.write(rows, found)
    compiled = compile_report(plan, found, rows, figures.draw(plan, found))
    files.write_json(results.PATH, _rounded(compiled.model_dump(mode="json", exclude_none=True)))
    with files.whole(MARKDOWN) as file:
        file.write(markdown(results.read()))
    seeds = "1 seed" if len(compiled.seeds) == 1 else f"{len(compiled.seeds)} seeds"
    chosen = (
        f"; validation picks {compiled.pick}" if compiled.pick else "" if compiled.images else "; every run diverged"
    )
    print(f"{MARKDOWN}: {', '.join(rows)}, {seeds}{chosen}")


def compile_report(
    plan: dict[str, Any], runs: Sequence[Run], rows: dict[str, Row | Diverged], drawn: Sequence[tuple[Path, str]]
) -> Report:
    """The content of report.json, before its numbers are rounded.

    Args:
        plan: as for `report`.
        runs: as from `runs.read`.
        rows: from `summary.rows`.
        drawn: the figures, from `figures.draw`.
    """
    baseline, images = summary.baseline_of(plan, runs), summary.images(runs)
    seeds = tuple(plan["seeds"])
    sentences = (
        *verdicts.sentences(rows, seeds, plan["report"].baseline, images),
        *verdicts.frozen(plan.get("freeze"), runs),
    )
    return Report(
        dataset=plan["dataset"],
        image_size=plan["image_size"],
        epochs=plan["epochs"],
        baseline=baseline,
        seeds=seeds,
        images=images,
        rows=rows,
        verdicts=sentences,
        legend=table.legend(baseline, images.corrupted if images else 0, rows),
        figures=tuple((path.as_posix(), caption) for path, caption in drawn),
        plan=hashlib.md5((PLANS / "report.json").read_bytes(), usedforsecurity=False).hexdigest(),
        runs={run.key: run.md5s for run in runs},
    )


def markdown(report: Report) -> str:
    """report.md: tables, verdicts and figures."""
    epochs = "1 epoch" if report.epochs == 1 else f"{report.epochs} epochs"
    lines = [
        "# Report",
        "",
        f"{report.dataset}, {report.image_size} px, {epochs}. Made by `dvc repro` from `params.yaml`; "
        "more digits are in `report.json`.",
        "",
        *table.markdown(report),
        "",
        "; ".join(report.legend[:2]).replace("*", "\\*") + ".",
        "",
        *(f"- {sentence}" for sentence in report.verdicts),
    ]
    if effects := table.effects(report):
        lines += ["", "## What it did to the weights and outputs", "", *effects, "", f"{'; '.join(report.legend[2:])}."]
    lines += ["", "## Figures"]
    for path, caption in report.figures:
        lines += ["", f"![{caption}]({path})"]
    return "\n".join(lines) + "\n"


def _rounded(value: Any) -> Any:
    """A JSON value with each number rounded to `DIGITS` significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
