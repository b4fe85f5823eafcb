"""Two commits → what changed between them, as Markdown. Reads only what Git has."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regbench.errors import UserError
from regbench.report import results, statistics, summary, tracked
from regbench.report.results import Diverged, Report, Row
from regbench.report.statistics import SIGNIFICANT, Estimate
from regbench.report.table import diverged, percent
from regbench.report.verdicts import change, interval
from regbench.review import check, git, lockfile, parameters

TEST_IMAGES = "prepared/test"
METRICS = {
    "validation accuracy": lambda row: row.validation,
    "generalization gap": lambda row: row.gap.value,
    "test cross-entropy": lambda row: row.cross_entropy,
    "test calibration error": lambda row: row.calibration_error,
    "test confidence": lambda row: row.confidence,
    "accuracy on corrupted test images": lambda row: row.corrupted,
    "reg loss": lambda row: row.reg_loss,
    "near zero": lambda row: row.near_zero,
    "exactly zero": lambda row: row.exact_zeros,
}
"""Metrics compared besides test accuracy. A value is None if a version did not measure it."""


@dataclass(frozen=True)
class Version:
    """The results of a commit or of the workspace.

    Attributes:
        params: {key: value} of params.yaml, or None if it can't be read.
        report: report.json, or None if it can't be used.
        accuracies: {regularizer: test accuracy, None if it diverged} from metrics/summary.json; empty with a report.
        test_images: MD5 of the test images, or None if dvc.lock does not have it.
        problems: what could not be read, as messages.
    """

    params: dict[str, Any] | None
    report: Report | None
    accuracies: dict[str, float | None]
    test_images: str | None
    problems: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The regularizers, in order."""
        return [*(self.report.rows if self.report else self.accuracies)]

    @property
    def pick(self) -> str | None:
        """The regularizer that validation picks."""
        return self.report.pick if self.report else None


@dataclass(frozen=True)
class Change:
    """How one regularizer changed between two versions.

    Attributes:
        name: the key under `reg`.
        cells: its test accuracy before and now, as text.
        word: better, worse, can't tell, the same, new, gone, or why nothing is compared.
        estimate: how much test accuracy changed; for a new regularizer, its difference to the baseline.
        seeds: how many seeds were compared: those that both versions have; 0 if no seeds were compared.
    """

    name: str
    cells: tuple[str, str]
    word: str
    estimate: Estimate | None = None
    seeds: int = 0


def report(base: str, images: str = "") -> str:
    """Markdown: what changed between the merge base of HEAD and `base`, and the workspace.

    Args:
        base: a Git revision.
        images: what to put before the figures' paths, such as the address of the repository's raw files.

    Raises:
        UserError: there is no such commit, or the results of the workspace can't be read.
    """
    git.require_commit()
    if git.commit(base) is None:
        raise UserError(f"there is no commit {base!r} here; run `git fetch origin` (in CI: fetch the whole history)")
    common = git.merge_base(base, "HEAD")
    return _markdown(f"changes since {base} ({common[:7]})", common, None, images)


def between(first: str, second: str | None = None, images: str = "") -> str:
    """Markdown: what changed from one revision to another, or to the workspace.

    Args:
        first, second: Git revisions or names of DVC experiments; None as `second`: the workspace.
        images: as for `report`.

    Raises:
        UserError: there is no such revision, or the second one's report can't be read.
    """
    git.require_commit()
    before = git.named(first)
    now = None if second is None else git.named(second)
    names = (f"{first} ({before[:7]})", f"{second} ({now[:7]})" if now else "the workspace")
    return _markdown(" → ".join(names), before, now, images)


def _markdown(title: str, base: str, commit: str | None, images: str) -> str:
    """The whole report, from commit `base` to another commit or, with None, to the workspace."""
    stale = check.check() if commit is None else []
    before, now = committed(base), workspace() if commit is None else committed(commit)
    if now.report is None:
        raise UserError(" ".join(now.problems))
    changed = None if None in (before.params, now.params) else parameters.changes(before.params, now.params)
    regularizers = compare(before, now, changed)
    lines = [f"## regbench: {title}", "", _verdict(changed, regularizers, before, now, stale)]
    if stale:
        lines += ["", f"> **Not current**: {check.STALE}.", ">", *(f"> - {line}" for line in stale), ">"]
        lines += [f"> {check.way_out(stale)}"]
    lines += ["", *(f"{problem}\n" for problem in before.problems + now.problems)]
    for heading, part in (
        ("Parameters", _parameters(changed)),
        ("Runs", _runs(before.report, now.report)),
        ("Test accuracy", _accuracies(regularizers, before, now)),
        ("Other metrics", _metrics(before.report, now.report)),
    ):
        lines += [f"### {heading}", "", *part, ""]
    figures = [path for path, _ in now.report.figures if _is_other(path, base, commit)]
    if figures:
        lines += ["### Figures that changed", "", *(f"![{path}]({images}{path})" for path in figures), ""]
    return "\n".join(lines)


# The two versions


def workspace() -> Version:
    """The results in the workspace.

    Raises:
        UserError: one of the files can't be read.
    """
    found = parameters.flat(tracked.read(parameters.PATH))
    return Version(found, results.read(), {}, _test_images(tracked.read(lockfile.LOCK), lockfile.LOCK))


def committed(commit: str) -> Version:
    """The results of a commit. Files that can't be read are reported in its `problems`."""
    problems = []

    def read(path: Path, parse: Any, otherwise: Any) -> Any:
        data, where = git.blob(commit, path), f"{path} of {commit[:7]}"
        try:
            if data is None:
                raise UserError(f"there is no {where}")
            return parse(data, where)
        except UserError as error:
            problems.append(str(error))
            return otherwise

    found = read(parameters.PATH, parameters.flat, None)
    compiled = read(results.PATH, results.parse, None)
    accuracies = {}
    if compiled is None:
        problems[-1] += ". Only accuracies of metrics/summary.json are compared; which runs changed is not known."
        rows = read(summary.SUMMARY, summary.parse, {})
        accuracies = {name: row.get("accuracy_test", row.get("test_accuracy")) for name, row in rows.items()}
    return Version(found, compiled, accuracies, read(lockfile.LOCK, _test_images, None), tuple(problems))


def _test_images(data: bytes, where: str | Path) -> str | None:
    prepare = lockfile.parse(data, where).get("prepare")
    return prepare.outs.get(TEST_IMAGES) if prepare else None


# Regularizer by regularizer


def compare(before: Version, now: Version, changed: dict[str, Any] | None) -> list[Change]:
    """How each regularizer changed; removed ones come last.

    Args:
        before, now: the two versions; `now` has a report.
        changed: the params that changed, by key; None if that is not known.
    """
    if before.test_images and now.test_images:
        same_images = before.test_images == now.test_images
    else:
        same_images = changed is not None and not any(key.startswith("data.") for key in changed)
    names = dict.fromkeys([*now.names, *before.names])
    return [_compare(name, before, now, same_images) for name in names]


def _compare(name: str, before: Version, now: Version, same_images: bool) -> Change:
    cells = _cell(before, name), _cell(now, name)
    new = now.report.rows.get(name)
    if name not in before.names:
        return _new(name, cells, new, now.report)
    if new is None:
        return Change(name, cells, "gone")
    if before.report is None:
        return _by_summary(name, cells, before.accuracies[name], new, same_images)
    old = before.report.rows[name]
    if _md5s(before.report, name) == _md5s(now.report, name):
        return Change(name, cells, "the same")
    if isinstance(new, Diverged):
        return Change(name, cells, "diverged, as before" if isinstance(old, Diverged) else "diverged")
    if isinstance(old, Diverged):
        return Change(name, cells, "diverged before")
    if not same_images or before.report.images.test != now.report.images.test:
        return Change(name, cells, "other data")
    common = [seed for seed in now.report.seeds if seed in before.report.seeds]
    if not common:
        return Change(name, cells, "other seeds")
    runs = [f"{name}-{seed}" for seed in common]
    if all(_md5s(before.report).get(run) == _md5s(now.report).get(run) for run in runs):
        return Change(name, cells, "the same with the seeds in common")
    correct = [
        [row.correct[report.seeds.index(seed)] for seed in common]
        for row, report in ((old, before.report), (new, now.report))
    ]
    return Change(name, cells, *_better_or_worse(*correct, now.report.images.test), len(common))


def _new(name: str, cells: tuple[str, str], row: Row | Diverged, report: Report) -> Change:
    if isinstance(row, Diverged):
        return Change(name, cells, "new, diverged")
    if row.difference is None:
        return Change(name, cells, "new")
    than = {"better": "better than", "worse": "worse than"}.get(row.verdict, "can't tell from")
    return Change(name, cells, f"new, {than} {report.baseline}", row.difference)


def _by_summary(name: str, cells: tuple[str, str], old: float | None, new: Row | Diverged, same_images: bool) -> Change:
    if isinstance(new, Diverged):
        return Change(name, cells, "diverged")
    if old is None:
        return Change(name, cells, "diverged before")
    if not same_images:
        return Change(name, cells, "other data")
    return Change(name, cells, "not tested", Estimate(new.test.value - old, new.test.n))


def _better_or_worse(old: Sequence[int], new: Sequence[int], images: int) -> tuple[str, Estimate]:
    """Whether test accuracy changed, from counts of correct images: paired by seed; one seed as two proportions."""
    if len(new) > 1:
        estimate = statistics.difference_over_seeds(old, new, images)
        real = estimate.p < SIGNIFICANT
    else:
        first, second = (statistics.proportion(counts[0], images) for counts in (new, old))
        estimate = statistics.difference(first, second)
        real = estimate.low > 0 or estimate.high < 0
    return ("can't tell" if not real else "better" if estimate.value > 0 else "worse"), estimate


def _cell(version: Version, name: str) -> str:
    """Test accuracy of a regularizer, with its interval and the number of seeds."""
    if name not in version.names:
        return "–"
    if version.report is None:
        accuracy = version.accuracies[name]
        return "diverged" if accuracy is None else f"{100 * accuracy:.1f}"
    row, seeds = version.report.rows[name], len(version.report.seeds)
    return f"{diverged(row, seeds) if isinstance(row, Diverged) else percent(row.test)}, n = {seeds}"


def _md5s(report: Report, name: str | None = None) -> dict[str, str | None]:
    """{run: MD5 of its evaluation.json}, of one regularizer or all. That file holds all numbers compared here."""
    return {
        run: files.get("evaluation/evaluation.json")
        for run, files in report.runs.items()
        if name in (None, run.rpartition("-")[0])
    }


# Markdown


def _verdict(
    changed: dict[str, Any] | None, regularizers: Sequence[Change], before: Version, now: Version, stale: Sequence[str]
) -> str:
    """The whole report in one line."""
    said = ["The results are not current"] if stale else []
    moved = [it for it in regularizers if it.word != "the same"]
    same = [it.name for it in regularizers if it.word == "the same"]
    if not moved:
        said.append("No result changed" if changed != {} else "No parameter and no result changed")
    elif len(moved) > 4:
        said.append(", ".join(f"{count} {word}" for word, count in Counter(it.word for it in moved).items()))
    else:
        said += [_sentence(it) for it in moved]
    if same and moved:
        said.append(f"{', '.join(same)}: the same")
    if before.pick and before.pick != now.pick:
        said.append(f"Validation picks {now.pick or 'none of them'}, before {before.pick}")
    return f"**{'. '.join(said)}.**"


def _sentence(it: Change) -> str:
    numbers = f" ({change(it.estimate)})" if it.estimate else ""
    if it.word in ("better", "worse"):
        return f"{'With this seed ' if it.seeds == 1 else ''}{it.name} is {it.word} than before{numbers}"
    return f"{it.name}: {it.word}{numbers}"


def _parameters(changed: dict[str, tuple[Any, Any]] | None) -> list[str]:
    """A row for each changed key."""
    if changed is None:
        return ["Not known."]
    if not changed:
        return ["None."]
    rows = (f"| {_escaped(key)} | {_value(old)} | {_value(new)} |" for key, (old, new) in changed.items())
    return ["| parameter | before | now |", "|---|---|---|", *rows]


def _value(value: Any) -> str:
    if value is None:
        return "–"
    return f"`{_escaped(str(value).lower() if isinstance(value, bool) else str(value)).replace('`', chr(39))}`"


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _runs(before: Report | None, now: Report) -> list[str]:
    """Which runs are new, changed or gone."""
    if before is None:
        return ["Not known."]
    old, new = _md5s(before), _md5s(now)
    groups = {
        "new": [run for run in new if run not in old],
        "changed": [run for run in new if run in old and new[run] != old[run]],
        "gone": [run for run in old if run not in new],
    }
    said = [f"- {word}: {_escaped(', '.join(runs))}" for word, runs in groups.items() if runs]
    return said or ["None."]


def _accuracies(regularizers: Sequence[Change], before: Version, now: Version) -> list[str]:
    rows = []
    for it in regularizers:
        # For a new regularizer, the estimate is the difference to the baseline, and `word` names the baseline.
        by = interval(it.estimate) if it.estimate else ""
        if it.seeds not in (0, len(now.report.seeds)):
            by += f", n = {it.seeds}"
        rows.append(f"| {it.name} | {' | '.join(it.cells)} | {by} | {it.word} |")
    picked = ""
    if now.pick:
        other = f", before {before.pick}" if before.pick else ""
        picked = f"Validation picks {now.pick}{', as before' if now.pick == before.pick else other}. "
    common = {it.seeds for it in regularizers if it.seeds} or {len(now.report.seeds)}
    words = "; ".join(
        said
        for said, holds in (
            ("p < 0.05 in a t-test, paired by seed", max(common) > 1),
            (
                "with n = 1 the 95 % interval of the change leaves out 0, which says nothing about other seeds",
                1 in common,
            ),
        )
        if holds
    )
    return [
        "| regularizer | before, % [95 %] | now, % [95 %] | change, points [95 %] | |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"{picked}n counts seeds. better, worse: {words}; each regularizer by itself.",
    ]


def _metrics(before: Report | None, now: Report) -> list[str]:
    """One row for each metric of a regularizer that changed, test accuracy left out."""
    if before is None:
        return ["Not known."]
    old, new = results.measured(before.rows), results.measured(now.rows)
    rows = [
        f"| {name} | {metric} | {_number(value(old[name]))} | {_number(value(new[name]))} |"
        for name in new
        for metric, value in METRICS.items()
        if name in old and value(old[name]) != value(new[name])
    ]
    return ["| regularizer | metric | before | now |", "|---|---|---|---|", *rows] if rows else ["None changed."]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"


def _is_other(path: str, base: str, commit: str | None) -> bool:
    """Whether a file exists in `commit` (None: in the workspace) and differs from the one in `base`."""
    here = Path(path).read_bytes() if commit is None and Path(path).is_file() else None
    now = here if commit is None else git.blob(commit, path)
    return now is not None and now != git.blob(base, path)
