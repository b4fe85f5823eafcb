"""The content of each block that `blocks` fills, as Markdown, from the committed JSON and the catalogue."""

import datetime
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from regbench import catalogue
from regbench.errors import UserError
from regbench.report import results, tracked, verdicts
from regbench.report.results import Diverged, Report, Row
from regbench.report.statistics import Estimate, difference_over_seeds, mean_over_seeds

LABEL = re.compile(r"^(?=[A-Z][^.:;\n]*: |Equals )", re.MULTILINE)
"""The start of a docstring line such as `Source: …`. Each such line becomes a list item."""

MADE = Path("docs/results.json")
"""Where, when and from which commit the committed results were made; the results themselves contain no times."""

BENCHMARKS = Path("benchmarks/results.json")
ARTICLE = Path("docs/article/article.json")
RECIPE = Path("docs/recipe.json")
SEARCH = Path("benchmarks/search.json")
SEEDS = Path("benchmarks/seeds.json")
COVERAGE = Path("benchmarks/coverage.json")
AVERAGES = Path("docs/article/32px.json")
AT_224 = Path("docs/article/224px.json")
BATCH_NORM = Path("docs/batch_norm/results.json")
STUDY = Path("docs/study/results.json")


def _results(folder: Path | None = None) -> str:
    """The committed results of params.yaml; with `folder`, those of the study there, sorted best first."""
    (report, made), rows = _report(folder), []
    ordered = [*report.rows.items()]
    if folder:
        ordered.sort(key=lambda it: -1 if isinstance(it[1], Diverged) else it[1].test.value, reverse=True)
    for name, row in ordered:
        if isinstance(row, Diverged):
            rows.append((name, "diverged", "", "", ""))
            continue
        compared = _compared(row.difference, row.p_corrected, row.verdict)
        rows.append((_with_strength(name, row), _percent(row.test), *compared))
    baseline = report.baseline or "the baseline"
    heading = ("regularizer", "test accuracy, % [95 %]", f"difference to {baseline}, points [95 %]", "p", "verdict")
    images = report.images.test if report.images else 0
    minutes = f"; {made['minutes']} minutes" if "minutes" in made else ""
    return f"{table(heading, rows)}\n\n{_seeds(report)}, {images:,} test images; {where(made)}{minutes}"


def _article() -> str:
    """The committed results next to the article's."""
    (report, made), article = _report(), read(ARTICLE)
    rows = []
    for name, accuracy in article["validation_accuracy"].items():
        row, printed = report.rows.get(name), article["reg_loss"].get(name)
        # Only results with the article's dataset, kind and strength are comparable.
        line = ((), ()) if name == "none" else ((name,), (article["strength"],))
        same = isinstance(row, Row) and report.dataset == "cifar10" and (row.kinds, row.strengths) == line
        here = (f"{row.test.value:.1%}", f"{row.reg_loss:.4f}") if same else ("–", "–")
        rows.append((name, f"{accuracy:.1%}", here[0], f"{printed[-1]:.4f}" if printed else "–", here[1]))
    heading = (
        "regularizer",
        f"article: validation accuracy, epoch {article['epochs']}",
        "here: test accuracy",
        f"article: reg loss, epoch {article['epochs']}",
        f"here: reg loss, epoch {report.epochs}",
    )
    return f"{table(heading, rows)}\n\nHere: {_seeds(report)}; {where(made)}. Article: n = 1, as printed there."


def _trainings() -> str:
    """Times of one training, the article's way and regbench, by image size and batch size."""
    part = _part("trainings")
    units = {"step_ms": "step, ms", "epoch_seconds": "epoch, s", "first_step_seconds": "first step, s"}
    rows = [
        (
            f"{row['image_size']} px, {row['batch_size']}",
            unit,
            *(_spread(row[way][key], 1) for way in ("article", "regbench")),
            f"{row['ratio'][key]:.2f}",
        )
        for row in part["table"]
        for key, unit in units.items()
    ]
    n = part["table"][0]["article"]["step_ms"]["n"]
    heading = ("image, batch", "median (lowest–highest)", "article's way", "regbench", "ratio")
    return f"n = {n} processes a side, alternating; {where(part)}.\n\n{table(heading, rows)}"


def _comparison() -> str:
    """Times of the whole comparison, the article's way and regbench, on each processor model."""
    parts, rows = [*map(_of_machine, read(BENCHMARKS)["comparison"])], []
    for part in parts:
        for article in part["article"]:
            own = ", the article's own" * (article["batch_size"] != part["batch_size"])
            rows.append(
                (
                    part["processor"],
                    part["commit"],
                    f"batch {article['batch_size']}{own}",
                    f"{part['runs']} × {_spread(article['seconds_a_run'], 0)} s",
                    f"{_spread(part['regbench_seconds'], 0)} s",
                    _spread(article["ratio"], 2),
                    article["ratio"]["n"],
                )
            )
    heading = ("processor", "commit", "the article's way with", "it takes", "regbench", "ratio", "n")
    notes = [
        f"{where(part)}: both sides alternate. regbench: {part['runs']} runs of {part['epochs']} epochs, batch "
        f"{part['batch_size']}, from prepare to the table. By itself, prepare takes "
        f"{part['prepare_seconds_of_it']:.0f} s (n = 1), the report {_spread(part['report_seconds'], 1)} s (n = "
        f"{part['report_seconds']['n']}), and `dvc repro` with nothing to do "
        f"{_spread(part['no_op_repro_seconds'], 1)} s (n = {part['no_op_repro_seconds']['n']})."
        for part in parts
    ]
    return "\n\n".join([table(heading, rows), *notes])


def _ablation() -> str:
    """What each optimization saves, measured by switching it off."""
    part = _part("ablation")
    rows = [
        (name, f"{row['epoch_seconds']:+.1f}".replace("-", "−"), f"{row['first_step_seconds']:+.1f}".replace("-", "−"))
        for name, row in part["without_percent"].items()
        if name not in ("A", "A again")
    ]
    noise = part["noise_percent"]
    note = (
        f"{part['image_size']} px, batch {part['batch_size']}, epochs of {part['images']:,} images, n = {part['n']}, "
        f"alternating; {where(part)}. Two measurements of the same code differed from their common median by up to "
        f"{noise['epoch_seconds']} % of an epoch and {noise['first_step_seconds']} % of the first step."
    )
    return f"{note}\n\n{table(('switched off', 'epoch, % slower', 'first step, % slower'), rows)}"


def _kinds() -> str:
    """What a step of each kind costs."""
    part = _part("kinds")
    found = {name: row for name, row in part.items() if isinstance(row, dict) and "step" in row}
    rows = [
        (name, f"{row['strength']:g}", _spread(row["step"], 2))
        for name, row in sorted(found.items(), key=lambda it: it[1]["step"]["median"])
    ]
    n = next(iter(found.values()))["step"]["n"]
    return f"n = {n}, alternating; {where(part)}.\n\n{table(('kind', 'strength', 'step, times that of none'), rows)}"


def _others() -> str:
    """Single measurements, each with its machine."""
    rows = []

    def add(part: str, words: str, value: Callable[[dict], str], n: int = 1) -> None:
        if part in read(BENCHMARKS):
            found = _part(part)
            rows.append((words, value(found), n, where(found)))

    add("prepare", "preparing all of CIFAR-10", lambda it: f"{_spread(it['from_tfds_seconds'], 1)} s", 3)
    add("prepare", "the same with its download", lambda it: f"{it['download_included_seconds']:.0f} s")
    add("all_of_cifar10", "an epoch of 50,000 images, 10,000 to validate", lambda it: f"{it['epoch_seconds']:.0f} s")
    add("all_of_cifar10", "its peak of memory", lambda it: f"{it['peak_mb'] / 1000:.1f} GB")
    add("pipeline", "the input pipeline alone", lambda it: f"{it['images_per_second']:,} images/s", 5)
    add(
        "larger_than_memory",
        "an epoch of 40,000 images of 224 px, 5.8 GB, within 2 GB of memory, the network at 32 px",
        lambda it: f"{it['seconds']:.0f} s",
    )
    return table(("what", "median", "n", "machine, date"), rows)


def _agreement() -> str:
    """How far the weights of regbench, and of a control, are from the article's after 500 steps."""
    part = _part("agreement")
    far = part["relative_difference"]["500"]
    return (
        f"After 500 steps, its weights were {100 * far['regbench']:.1f} % of their norm away from the article's. The "
        f"control, the article's network with one kernel moved, was {100 * far['control']:.1f} % away (n = 1; "
        f"{where(part)})."
    )


def _search() -> str:
    """What a search picks and what the full grid picks."""
    found = _of_machine(read(SEARCH))
    rows = [
        (
            ", ".join(map(str, it["seeds"])),
            it["searched"],
            it["grid"],
            ", ".join(it["not_told_from_the_grids"]),
            f"{it['trainings']} of {it['of']} ({it['share']:.0%})",
        )
        for it in found["repetitions"]
    ]
    heading = ("seeds", "the search picks", "the full grid picks", "not told from the grid's pick", "trainings")
    images = found["repetitions"][0]["validation_images"]
    return (
        f"{found['network']}, images and epochs of the default, {images:,} validation images, n = {len(rows)}; "
        f"{where(found)}.\n\n{table(heading, rows)}"
    )


def _averages() -> str:
    """The article's setting, evaluated with moving and with recomputed averages of batch normalization."""
    found = _of_machine(read(AVERAGES))
    last = {
        name: {
            reading: [round(run[reading][-1] * found["images"]) for run in seeds]
            for reading in ("moving", "recomputed")
        }
        for name, seeds in found["runs"].items()
    }
    baseline, rows = last["none"], []
    for name, correct in last.items():
        lag = difference_over_seeds(correct["moving"], correct["recomputed"], found["images"])
        to_none = ("", "")
        if name != "none":
            to_none = tuple(
                verdicts.interval(difference_over_seeds(baseline[reading], correct[reading], found["images"]))
                for reading in ("moving", "recomputed")
            )
        means = (_percent(mean_over_seeds(correct[reading], found["images"])) for reading in ("moving", "recomputed"))
        rows.append((name, *means, verdicts.interval(lag), *to_none))
    heading = (
        "regularizer",
        "moving averages, % [95 %]",
        "recomputed averages, % [95 %]",
        "recomputed − moving, points",
        "to none, moving",
        "to none, recomputed",
    )
    n = len(found["runs"]["none"])
    return (
        f"{table(heading, rows)}\n\nn = {n} seeds, {found['images']:,} test images, {found['train_images']:,} training "
        f"images; {where(found)}; {found['minutes']} minutes"
    )


def _article_at_224() -> str:
    """The article's own setting next to the numbers that the article prints: after its last epoch and by epoch."""
    found, article = _of_machine(read(AT_224)), read(ARTICLE)
    runs = {name: seeds[0] for name, seeds in found["runs"].items()}

    def by_epoch(columns: dict[str, list[float]], written: str) -> str:
        # A run that was cut off has fewer epochs.
        rows = itertools.zip_longest(*([format(value, written) for value in values] for values in columns.values()))
        return table(("epoch", *columns), [(epoch, *(cell or "" for cell in row)) for epoch, row in enumerate(rows, 1)])

    penalties = {
        f"{name}, {place}": values
        for name, printed in article["reg_loss"].items()
        if name in runs
        for place, values in (("article", printed), ("here", runs[name]["reg_loss"]))
    }
    accuracies = {f"{name}, {way}": run[way] for name, run in runs.items() for way in ("moving", "recomputed")}
    parts = [
        "Reg loss:",
        by_epoch(penalties, ".3f"),
        "Accuracy on test images, with moving and with recomputed averages:",
        by_epoch(accuracies, ".1%"),
        f"n = 1 seed, {found['images']:,} test images, {found['train_images']:,} training images; {where(found)}. "
        f"{found.get('note', '')}".rstrip(),
    ]
    if all(len(values) == article["epochs"] for values in accuracies.values()):
        ways = {"article": article["validation_accuracy"]}
        ways |= {
            f"here, {way} averages": {name: run[way][-1] for name, run in runs.items()}
            for way in ("moving", "recomputed")
        }
        rows = [(name, *(_beside_none(accuracy, name) for accuracy in ways.values())) for name in runs]
        parts = [
            f"Accuracy on test images after epoch {article['epochs']}, and the difference to none in points:",
            table(("regularizer", *ways), rows),
            *parts,
        ]
    return "\n\n".join(parts)


def _beside_none(accuracy: dict[str, float], name: str) -> str:
    """An accuracy and, in brackets, its difference to that of `none`."""
    difference = "" if name == "none" else f" ({verdicts.points(accuracy[name] - accuracy['none'])})"
    return f"{accuracy[name]:.1%}{difference}"


def _batch_norm() -> str:
    """`none` and `l2`, each with and without batch normalization."""
    found, rows = _of_machine(read(BATCH_NORM)), []
    for batch_norm, part in found["batch_norm"].items():
        for name, row in part["rows"].items():
            norms = part["curves"][name]["norm_backbone"]
            rows.append((batch_norm, *_row_of_seeds(name, row), f"{norms[0]:.1f} → {norms[-1]:.1f}"))
    heading = ("batch norm", *SEEDS_HEADING, f"norm of the backbone, epoch 1 → {len(norms)}")
    note = f"sd: over seeds, in points. n = {found['seeds']} seeds, {found['images']:,} test images; {where(found)}"
    return f"{table(heading, rows)}\n\n{note}; {found['minutes']} minutes"


def _study() -> str:
    """What a search over l1 and l2 found."""
    found, parts = _of_machine(read(STUDY)), []
    heading = ("strength", "seeds", "validation, %", "difference to the best, points [95 %]", "verdict")
    for kind, searched in found["searches"].items():
        rows = []
        for it in searched["points"]:
            difference = verdicts.interval(Estimate(**it["difference"])) if it["difference"] else ""
            rows.append((it["label"], len(it["seeds"]), f"{100 * it['accuracy']:.1f}", difference, it["word"]))
        parts += [f"**{kind}**", table(heading, rows), " ".join(searched["sentences"])]
    return "\n\n".join([*parts, where(found)])


def _seeds_apart() -> str:
    """The default settings with nine seeds and with three of them at a time, on the machine with the most results."""
    found = _of_machine(max(read(SEEDS), key=lambda record: len(record["results"])))
    rows = [
        (f"{it['seeds'][0]} to {it['seeds'][-1]}", *_row_of_seeds(name, row))
        for it in found["results"]
        for name, row in it["rows"].items()
    ]
    note = f"sd: over seeds, in points. {found['results'][0]['images']:,} test images; {where(found)}."
    return f"{table(('seeds', *SEEDS_HEADING), rows)}\n\n{note}"


def _makes() -> str:
    """The default settings with seeds 0 to 2, on each processor model."""
    records = [*map(_of_machine, read(SEEDS))]
    rows = [
        (record["processor"], record["commit"], *_row_of_seeds(name, row))
        for record in records
        for name, row in record["results"][0]["rows"].items()
    ]
    images = records[0]["results"][0]["images"]
    notes = [f"n = 3 seeds, {images:,} test images.", *(f"{where(record)}." for record in records)]
    return f"{table(('processor', 'commit', *SEEDS_HEADING), rows)}\n\n{' '.join(notes)}"


SEEDS_HEADING = ("regularizer", "test accuracy, % [95 %]", "sd", "difference to none, points", "p", "verdict")


def _row_of_seeds(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    """The cells below `SEEDS_HEADING`, from a row of report.json that has several seeds."""
    difference = Estimate(**row["difference"]) if row["difference"] else None
    compared = _compared(difference, row["p_corrected"], row["verdict"])
    return name, _percent(Estimate(**row["test"])), f"{100 * row['test_sd']:.2f}", *compared


def _recipe(part: str) -> str:
    """How the default's settings were chosen."""
    return _as_measured(_of_machine(read(RECIPE)[part]))


def _as_measured(part: dict[str, Any]) -> str:
    """A note and a table whose heading and rows are already in the JSON."""
    made = where(part, besides=part["heading"])
    return f"{part['note']}; {made}.\n\n{table(tuple(part['heading']), part['rows'])}"


def _catalogue() -> str:
    """Each kind of regularizer: its name, its docstring, what it covers."""
    sections = []
    for kind in catalogue.kinds().values():
        first, *paragraphs, facts = kind.docstring.split("\n\n")
        items = [f"- {' '.join(item.split())}" for item in LABEL.split(facts) if item.strip()]
        covers = f"Covers, unless a scope says otherwise: `{kind.scope}`" if kind.scope else f"Acts on {kind.acts_on}"
        items.append(f"- {covers}.")
        sections.append("\n\n".join([f"### {kind.name}", first, *paragraphs, "\n".join(items)]))
    return "\n" + "\n\n".join(sections) + "\n"


BLOCKS: dict[str, Callable[[], str]] = {
    "results": _results,
    "study_kinds": lambda: _results(Path("docs/kinds")),
    "article": _article,
    "trainings": _trainings,
    "comparison": _comparison,
    "ablation": _ablation,
    "kinds": _kinds,
    "others": _others,
    "agreement": _agreement,
    "scale": lambda: _as_measured(_part("dvc_at_scale")),
    "cluster": lambda: _as_measured(_part("cluster")),
    "gpu": lambda: _as_measured(_part("gpu")),
    "search": _search,
    "coverage": lambda: _as_measured(_of_machine(read(COVERAGE))),
    "seeds": _seeds_apart,
    "makes": _makes,
    "averages": _averages,
    "article_at_224": _article_at_224,
    "batch_norm": _batch_norm,
    "study": _study,
    "ten_epochs": lambda: _recipe("ten_epochs"),
    "misled": lambda: _recipe("misled"),
    "recipe": lambda: _recipe("none"),
    "recipe_of_l1": lambda: _recipe("l1"),
    "tried": lambda: _recipe("tried"),
    "second_make": lambda: _recipe("second_make"),
    "catalogue": _catalogue,
}


# Sources and words


def _report(folder: Path | None = None) -> tuple[Report, dict[str, Any]]:
    """report.json, and where and when it was made; for a study, the copies of both in `folder`."""
    path, noted = (folder / results.PATH, folder / MADE.name) if folder else (results.PATH, MADE)
    made = read(noted)
    if made.get("report_md5") != md5(path):
        raise UserError(f"{noted} belongs to another version of {path}" + ("" if folder else "; run `make docs`"))
    return results.read(path), made


def _part(name: str) -> dict[str, Any]:
    return _of_machine(read(BENCHMARKS)[name])


def _of_machine(part: dict[str, Any]) -> dict[str, Any]:
    return part | part["machine"]


def read(path: Path) -> Any:
    """A committed JSON file. Raises a `UserError` if it is missing, damaged or has conflict markers."""
    try:
        return json.loads(tracked.text(tracked.read(path), path))
    except ValueError as error:
        raise tracked.damaged(path, error) from None


def md5(path: Path) -> str:
    """The MD5 of a committed file."""
    return hashlib.md5(tracked.read(path), usedforsecurity=False).hexdigest()


def table(heading: tuple[str, ...], rows: list[tuple]) -> str:
    """A Markdown table."""
    lines = [heading, ("---",) * len(heading), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def where(made: dict[str, Any], besides: Sequence[str] = ()) -> str:
    """Machine, date and commit of a measurement. A part that is among the table headings `besides` is left out."""
    date = datetime.date.fromisoformat(made["date"])
    said = f"{date.day} {date:%B %Y}"
    if "machine" not in besides:
        said = f"{made['processor']}, {made['cores']} cores, {made.get('gpu') or 'no GPU'}; {said}"
    if "commit" not in besides:
        said += f", commit {made['commit']}" if made.get("commit") else ", version 0.1's code"
    return said


def _seeds(report: Report) -> str:
    return f"n = {len(report.seeds)} {'seed' if len(report.seeds) == 1 else 'seeds'}"


def _with_strength(name: str, row: Row) -> str:
    """`l2, 0.001`; for a combination, only its name."""
    return f"{name}, {row.strengths[0]:g}" if row.kinds == (name,) and row.strengths else name


def _percent(estimate: Any) -> str:
    ends = "" if estimate.low is None else f" [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
    return f"{100 * estimate.value:.1f}{ends}"


def _compared(difference: Estimate | None, p: float | None, verdict: str | None) -> tuple[str, ...]:
    """Three cells: the difference with its interval, p and the verdict; empty for the baseline."""
    if difference is None or p is None:
        return "", "", ""
    return verdicts.interval(difference), _p(p), verdict or ""


def _p(p: float) -> str:
    return verdicts.p_value(p).removeprefix("= ")


def _spread(values: dict[str, float], digits: int) -> str:
    """A median, with the lowest and highest value if there are several."""
    median, low, high = (f"{values[key]:,.{digits}f}" for key in ("median", "low", "high"))
    return median if values["n"] == 1 else f"{median} ({low}–{high})"
