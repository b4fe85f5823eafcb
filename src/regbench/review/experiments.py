"""DVC experiments and commits as a table: what each changed in params.yaml, and its results. Reads only what Git has.

The newest commit is shown with all regularizers. Other commits, experiments and the workspace are shown only with those
that differ from the revision they are based on. Older formats and damaged files are not an error: "?" marks what can't
be read.
"""

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from regbench.errors import UserError
from regbench.report import results, summary
from regbench.report.verdicts import points
from regbench.review import git, parameters

if TYPE_CHECKING:
    from rich.console import Console

EXPERIMENT = re.compile(r"refs/exps/([0-9a-f]{2})/([0-9a-f]{38,})/(.+)")
"""Where DVC keeps an experiment: below the hash of the commit that it started from."""

CHANGES = 8
"""At most this many changed params are listed for a revision in the terminal."""

WITHOUT_RESULT = ("cluster.", "live.")
"""Sections of params.yaml that no result depends on."""

WORKSPACE = "workspace"


@dataclass(frozen=True)
class Number:
    """A fraction and its 95 % interval. Infinity: can't be read. None: there is no such number."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """The results of one regularizer.

    Attributes:
        regularizer: the key under `reg`.
        validation, test: accuracies.
        difference: test accuracy minus that of the baseline of the same revision.
        verdict: better, worse, can't tell or diverged; empty for the baseline; ? if it can't be read.
        pick: whether validation picks it.
    """

    regularizer: str
    validation: Number
    test: Number
    difference: Number
    verdict: str
    pick: bool = False


@dataclass(frozen=True)
class Revision:
    """The workspace, an experiment or a commit.

    Attributes:
        name: what to call it.
        about: shown beside the name: the subject of a commit, or the base of an experiment.
        params: {key: value}, or None if params.yaml can't be read.
        rows: {regularizer: its results}.
        changes: params that differ from the revision it is based on, one item for each key.
        shown: which of `rows` to show.
    """

    name: str
    about: str
    params: dict[str, Any] | None
    rows: dict[str, Row]
    changes: tuple[str, ...] = ()
    shown: tuple[Row, ...] = ()


def show(commits: int = 3, sort: str | None = None, markdown: bool = False, as_csv: bool = False) -> None:
    """Print the table: for a terminal, as Markdown or as CSV.

    Args:
        commits: how many commits to show: the newest ones that changed a result.
        sort: val, test or name; None: the workspace, then experiments, then commits, newest first.
        markdown, as_csv: print this format instead of the table for a terminal.

    Raises:
        UserError: this is not a Git repository with a commit.
    """
    from rich.console import Console

    found = ordered(revisions(commits), sort)
    if markdown:
        print("\n".join(markdown_lines(found)))
    elif as_csv:
        print(csv_text(found), end="")
    else:
        terminal(found, Console(highlight=False))


# Which revisions there are


def revisions(commits: int = 3) -> list[Revision]:
    """The workspace if it differs, then experiments, then commits with results, newest first."""
    git.require_commit()
    history = _history()
    newest = next(history, None)
    compared = [*itertools.islice(_differing(newest, history), commits)] if newest else []
    experiments = _experiments()
    here = _read(WORKSPACE, "", parameters.PATH.read_bytes, results.PATH.read_bytes, summary.SUMMARY.read_bytes)
    there = next((place for place, it in enumerate(experiments) if _equal(it, here)), None)
    if there is not None:
        experiments[there] = replace(experiments[there], about=f"{experiments[there].about}, in the workspace")
    else:
        workspace = _compared(here, newest)
        if workspace.changes or workspace.shown:
            experiments.insert(0, workspace)
    return [*experiments, *compared]


def _history() -> Iterator[Revision]:
    """The commits that changed a file of results, newest first."""
    paths = map(str, (results.PATH, summary.SUMMARY))
    for line in git.output("log", "--format=%H%x09%h%x09%s", "--", *paths).splitlines():
        yield _committed(*line.split("\t", 2))


def _differing(newest: Revision, older: Iterator[Revision]) -> Iterator[Revision]:
    """The newest commit with all its rows, and older ones with only the rows that differ from the commit before."""
    for place, (now, before) in enumerate(itertools.pairwise(itertools.chain([newest], older, [None]))):
        compared = _compared(now, before, all_rows=place == 0)
        if compared.shown:
            yield compared


def _experiments() -> list[Revision]:
    listed = git.output("for-each-ref", "--sort=-creatordate", "--format=%(objectname)%09%(refname)", "refs/exps")
    bases, found = {}, []
    for line in listed.splitlines():
        commit, _, ref = line.partition("\t")
        if match := EXPERIMENT.fullmatch(ref):
            base = match[1] + match[2]
            if base not in bases:
                bases[base] = _committed(base, base[:7], "")
            found.append(_compared(_committed(commit, match[3], f"on {base[:7]}"), bases[base]))
    return found


def _committed(commit: str, name: str, about: str) -> Revision:
    paths = (parameters.PATH, results.PATH, summary.SUMMARY)
    return _read(name, about, *(lambda path=path: git.blob(commit, path) for path in paths))


def _read(name: str, about: str, params: Any, report: Any, metrics: Any) -> Revision:
    """A revision, from functions that return the bytes of its files, or None if there is no such file."""

    def data(read: Any) -> bytes:
        try:
            return read() or b""
        except OSError:
            return b""

    try:
        flat = parameters.flat(data(params)) or None
    except UserError:
        flat = None
    return Revision(_printable(name), _printable(about), flat, rows(data(report), data(metrics)))


def _equal(one: Revision, other: Revision) -> bool:
    return (one.params, one.rows) == (other.params, other.rows)


def _compared(now: Revision, before: Revision | None, all_rows: bool = False) -> Revision:
    """A revision with `changes` and `shown` filled from a comparison with another one; None: all rows are shown."""
    if before is None:
        return replace(now, shown=tuple(now.rows.values()))
    if now.params is None or before.params is None:
        changes = ("? (params.yaml can't be read)",) if now.params is None else ()
    else:
        changes = tuple(
            _change(key, before.params, now.params)
            for key in parameters.changes(before.params, now.params)
            if not key.startswith(WITHOUT_RESULT)
        )
    # `pick` alone is not a difference: it also changes when another row becomes the best.
    old = {name: replace(row, pick=False) for name, row in before.rows.items()}
    differ = (row for name, row in now.rows.items() if all_rows or replace(row, pick=False) != old.get(name))
    return replace(now, changes=changes, shown=tuple(differ))


def _change(key: str, before: dict[str, Any], now: dict[str, Any]) -> str:
    """A change, written as for `dvc exp run -S`: + before a new key, ~ before a removed one."""
    if key not in now:
        return _printable(f"~{key}")
    if key not in before:
        return _printable(f"+{key} {_value(now[key])}")
    return _printable(f"{key} {_value(before[key])} → {_value(now[key])}")


def _value(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 30 else f"{text[:29]}…"


def _printable(text: str) -> str:
    """The text with ? in place of characters that a terminal could take as commands."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


# What came out


def rows(report: bytes, metrics: bytes) -> dict[str, Row]:
    """{regularizer: its results}, from report.json or, if that can't be read, from metrics/summary.json."""
    for data, row in ((_mapping(report, "rows"), _of_report), (_mapping(metrics), _of_summary)):
        if data:
            found = {_printable(name): row(_printable(name), it) for name, it in data.items()}
            if any(isinstance(it, dict) and "validation_pick" in it for it in data.values()):
                return found
            # Older reports and metrics/summary.json don't say which regularizer validation picks.
            picked = max(found.values(), key=lambda it: _or_least(it.validation.value))
            known = not math.isinf(_or_least(picked.validation.value))
            return found | ({picked.regularizer: replace(picked, pick=True)} if known else {})
    return {"?": _unknown("?")}


def _mapping(data: bytes, *keys: str) -> dict[str, Any]:
    """A part of a JSON file that should be a mapping; empty if it is not."""
    try:
        found = json.loads(data)
        for key in keys:
            found = found[key]
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _of_report(name: str, raw: Any) -> Row:
    if not isinstance(raw, dict):
        return _unknown(name)
    if "diverged" in raw:
        return Row(name, Number(), Number(), Number(), "diverged")
    # The baseline has no difference and no verdict.
    difference = _estimate(raw["difference"]) if "difference" in raw else Number()
    verdict = raw.get("verdict", "" if "difference" not in raw else "?")
    return Row(
        name,
        Number(_fraction(raw.get("validation"))),
        _estimate(raw.get("test")),
        difference,
        _printable(verdict) if isinstance(verdict, str) else "?",
        raw.get("validation_pick") is True,
    )


def _of_summary(name: str, raw: Any) -> Row:
    if not isinstance(raw, dict):
        return _unknown(name)
    if "diverged" in raw:
        return Row(name, Number(), Number(), Number(), "diverged")

    def first(*keys: str) -> Number:  # the second key is from version 0.1
        return Number(_fraction(next((raw[key] for key in keys if key in raw), None)))

    difference = Number(_fraction(raw["difference"])) if "difference" in raw else Number()
    return Row(
        name,
        first("accuracy_validation", "validation_accuracy"),
        first("accuracy_test", "test_accuracy"),
        difference,
        "" if difference.value is None else "?",
    )


def _unknown(name: str) -> Row:
    nothing = Number(math.inf)
    return Row(name, nothing, nothing, nothing, "?")


def _estimate(raw: Any) -> Number:
    if not isinstance(raw, dict):
        return Number(_fraction(raw))
    ends = [_fraction(raw[name]) if name in raw else None for name in ("low", "high")]
    return Number(_fraction(raw.get("value")), *(ends if None not in ends else (None, None)))


def _fraction(value: Any) -> float:
    """A number from a file, or infinity if it can't be read."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number else math.inf


def _or_least(value: float | None) -> float:
    return -math.inf if value is None or math.isinf(value) else value


# In order


def ordered(found: Sequence[Revision], sort: str | None) -> list[Revision]:
    """Revisions and their rows, best first; or revisions by name; or, with None, in the given order."""
    if sort is None:
        return [*found]
    if sort == "name":
        return sorted(found, key=lambda it: it.name)

    def by(row: Row) -> float:
        return _or_least((row.validation if sort == "val" else row.test).value)

    inside = [replace(it, shown=tuple(sorted(it.shown, key=by, reverse=True))) for it in found]
    return sorted(inside, key=lambda it: by(it.shown[0]) if it.shown else -math.inf, reverse=True)


# As text

HEADINGS = ("val %", "test % [95 %]", "difference", "verdict")
LEGEND = (
    "val, test: accuracy; * the best on validation; difference: of test, to the baseline of the same experiment or "
    "commit, in points; +, ~: a key of params.yaml that is new, gone; ?: can't be read"
)


def cells(row: Row) -> tuple[str, str, str, str]:
    """The text below each of `HEADINGS`."""
    return (
        f"{_percent(row.validation)}{'*' if row.pick else ' '}",
        _percent(row.test),
        _points(row.difference),
        row.verdict,
    )


def _percent(number: Number) -> str:
    return _text(number, lambda value: f"{100 * value:.1f}")


def _points(number: Number) -> str:
    return _text(number, points)


def _text(number: Number, words: Any) -> str:
    if number.value is None:
        return ""
    if math.isinf(number.value):
        return "?"
    if number.low is None or math.isinf(number.low + number.high):
        return words(number.value)
    return f"{words(number.value)} [{words(number.low)}, {words(number.high)}]"


def terminal(found: Sequence[Revision], console: "Console") -> None:
    """Print each revision above its rows. If the terminal is too narrow, names are cut, not numbers."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    listed = [(row, cells(row)) for it in found for row in it.shown]
    widths = [max(map(len, column)) for column in zip(HEADINGS, *(texts for _, texts in listed), strict=True)]
    first = max(8, console.width - sum(widths) - len(widths))

    def grid() -> Table:
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_column(no_wrap=True, width=first)
        for wide in widths[:-1]:
            table.add_column(justify="right", no_wrap=True, width=wide)
        table.add_column(no_wrap=True, width=widths[-1])
        return table

    headings = grid()
    headings.add_row("", *HEADINGS)
    console.print(headings, style="dim")
    for it in found:
        line = Text(it.name, style="bold", no_wrap=True, overflow="ellipsis")
        line.append(f"  {it.about}" if it.about else "", style="not bold dim")
        console.print(line, no_wrap=True, overflow="ellipsis")
        named = [*it.changes[:CHANGES], *([f"and {len(it.changes) - CHANGES} more"] if it.changes[CHANGES:] else [])]
        if named:
            console.print(Padding(Text("; ".join(named)), (0, 0, 0, 2)))
        rows = grid()
        for row in it.shown:
            rows.add_row(Text(f"  {row.regularizer}"), *map(Text, cells(row)))
        console.print(rows if it.shown else Text("  the same accuracies", style="dim"))
    console.print(Text(LEGEND, style="dim"))


def markdown_lines(found: Sequence[Revision]) -> list[str]:
    """The lines of a Markdown table. Revisions without rows to show are left out."""

    def escaped(text: str) -> str:
        return re.sub(r"([|*~_<`\\])", r"\\\1", text.strip())

    lines = [f"| name | params | regularizer | {' | '.join(HEADINGS)} |", f"|{'---|' * (len(HEADINGS) + 3)}"]
    for it in found:
        for row in it.shown:
            lines.append(
                f"| {' | '.join(map(escaped, (it.name, '; '.join(it.changes), row.regularizer, *cells(row))))} |"
            )
    return lines


def csv_text(found: Sequence[Revision]) -> str:
    """The table as CSV, fractions with all digits. Numbers that can't be read are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = [f"{name}{end}" for name in ("test", "difference") for end in ("", "_low", "_high")]
    writer.writerow(("name", "params", "regularizer", "validation", *numbers, "verdict"))
    for it in found:
        for row in it.shown:
            values = [row.validation.value]
            values += [end for number in (row.test, row.difference) for end in (number.value, number.low, number.high)]
            known = ["" if value is None or math.isinf(value) else value for value in values]
            writer.writerow((it.name, "; ".join(it.changes), row.regularizer, *known, row.verdict))
    return text.getvalue()
