"""Search strengths: rounds of training, each saved as a DVC experiment; then the verdict.

No file records the progress of a search. Each call looks up the known results of the whole grid in DVC's cache, and the
planner says what is missing.
"""

import contextlib
import dataclasses
import io
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from regbench import files, params
from regbench.errors import UserError
from regbench.params import Params
from regbench.report import runs
from regbench.report.runs import Run
from regbench.review import parameters
from regbench.runner import cluster, local, store
from regbench.search import curve, edit, names, planner, project, verdict
from regbench.search.line import Line, number
from regbench.search.planner import Grid, Point, Round
from regbench.search.verdict import Baseline, Standing


@dataclass(frozen=True)
class Place:
    """Where runs are trained: `--jobs` or `--cluster` of `regbench repro`."""

    jobs: int | None = None
    cluster: str | None = None

    def repro(self) -> None:
        """Bring the results of the working directory up to date."""
        if self.cluster:
            cluster.repro(self.cluster)
        else:
            local.repro(self.jobs)


@dataclass
class Known:
    """What was measured so far. A run is (name under `reg`, seed).

    Attributes:
        right: {run: bool [images], which validation images are right}.
        diverged: runs that diverged; they have no numbers.
    """

    right: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    diverged: set[tuple[str, int]] = field(default_factory=set)

    def read(self, name: str, seed: int) -> None:
        """Read a run of the working directory."""
        run = _run(name, seed)
        if run.diverged:
            self.diverged.add((name, seed))
        else:
            rows = run.tables["evaluation/predictions.csv"]
            flags = [row["label"] == row["prediction"] for row in rows if row["split"] == "validation"]
            self.right[name, seed] = np.array(flags, bool)

    @property
    def images(self) -> int:
        """How many validation images there are; 1 until a run has numbers."""
        return max(map(len, self.right.values()), default=1)

    def flags(self, name: str, seed: int) -> np.ndarray | None:
        """bool [images], which are right; all False for a run that diverged; None for an unknown run."""
        if (name, seed) in self.diverged:
            return np.zeros(self.images, bool)
        return self.right.get((name, seed))

    def of(self, line: Line, seeds: Sequence[int]) -> dict[tuple[Point, int], np.ndarray]:
        """{(point, seed): `flags`} of the known runs of a line."""
        found = {(point, seed): self.flags(line.name(point), seed) for point in _points(line) for seed in seeds}
        return {pair: flags for pair, flags in found.items() if flags is not None}


@dataclass(frozen=True)
class Search:
    """What is searched.

    Attributes:
        lines: each is searched by itself; they are trained in the same rounds.
        text: params.yaml as it was when the search began.
        seeds: in the order in which they are trained.
        home: the user's project.
        trials: how many points Optuna proposes for each line; None: the search moves along each axis instead.
    """

    lines: tuple[Line, ...]
    text: str
    seeds: tuple[int, ...]
    home: Path
    trials: int | None = None

    @cached_property
    def settings(self) -> Params:
        """`text`, parsed."""
        return params.parse(self.text)

    @property
    def name(self) -> str:
        """What the experiments' names begin with."""
        return f"search-{'-'.join(line.key for line in self.lines)}"

    @property
    def baseline(self) -> str | None:
        """The key that the best point is compared with, trained in each round; None: there is no baseline."""
        return self.settings.report.baseline

    def grid(self, line: Line, known: Known) -> Grid:
        """The planner's grid for a line."""
        return Grid(line.shape, self.seeds, known.images, self.trials)

    def rounds(self, line: Line, known: Known) -> list[Round]:
        """A line's rounds as far as they are known."""
        counts = {pair: int(flags.sum()) for pair, flags in known.of(line, self.seeds).items()}
        return planner.rounds(self.grid(line, known), counts)

    def points(self, line: Line, known: Known) -> list[Point]:
        """The points of a line that may have results: all; with `trials`, those of its rounds so far."""
        if self.trials is None:
            return _points(line)
        return sorted({point for it in self.rounds(line, known) for point in it.points})

    def params(self, points: Sequence[tuple[Line, Point]], seeds: Sequence[int]) -> str:
        """The text of params.yaml with one line for each point, and the baseline."""
        reg: dict[str, Any] = {}
        if self.baseline is not None:
            reg[self.baseline] = edit.raw_lines(self.text)[self.baseline]
        reg |= {line.name(point): line.spelled_out(point) for line, point in points}
        return edit.with_sections(self.text, reg, seeds)


def run(search: Search, place: Place, command: str, apply: bool) -> None:
    """Search, print what was found and write it to `.regbench/search/`; with `apply`, set the lines in params.yaml.

    Args:
        search: what to search.
        place: where runs are trained.
        command: the command as typed, for messages.
        apply: whether to change params.yaml.

    Raises:
        UserError: runs failed, or everything diverged.
    """
    _announce(search)
    with project.locked():
        copied = project.copy(search.settings.data.dataset, search.settings.model.weights)
        with contextlib.chdir(copied), said_as(command):
            known = _look(search, Known())
            _train(search, known, place)
            # Look again, so that the new runs are known under both names; see `names`.
            _look(search, known)
            found = {line: ranked(search, line, known) for line in search.lines}
            refused = {line: why for line in search.lines if (why := why_none(search, line, found[line], known))}
            found = {line: standings for line, standings in found.items() if line not in refused}
            if not found:
                raise UserError("; ".join(refused.values()))
            best = max(found, key=lambda line: _top(found[line]).accuracy)
            baseline = _baseline(search, best, _top(found[best]), known)
    for line, standings in found.items():
        _show(search, line, standings, baseline, known, is_best=line == best)
    _paste(search, {line: _top(standings).point for line, standings in found.items()}, apply)
    if refused:
        raise UserError("; ".join(refused.values()))


def seeds_of(settings: Params, count: int) -> tuple[int, ...]:
    """`count` seeds: those of params.yaml first, then the smallest numbers that are not among them."""
    more = (seed for seed in itertools.count() if seed not in settings.seeds)
    return tuple(itertools.islice(itertools.chain(settings.seeds, more), count))


# Training


def _look(search: Search, before: Known) -> Known:
    """The results in DVC's cache and the remote store: of the whole grid or, with `trials`, of all rounds so far."""
    points = {line: search.points(line, before) for line in search.lines}
    text = search.params([(line, point) for line, found in points.items() for point in found], search.seeds)
    for line in _renamed(search):
        text = edit.with_line(text, line.key, line.value((0,) * len(line.axes)))
    project.write_params(text)
    settings = local.begin()
    local.dvc("repro", "plan")
    own = {line.key for line in _renamed(search)}
    wanted = [run for run in settings.runs if run.name not in own]
    _, remote = store.facts()
    here, _ = local.restore([run.key for run in wanted], remote)
    known = Known()
    for run in wanted:
        if f"evaluate@{run.key}" in here:
            known.read(run.name, run.seed)
    if "prepare" in here:
        for line in _renamed(search):
            for point, seed in names.share(line, points[line], search.seeds, here):
                known.read(line.name(point), seed)
    return known


def _train(search: Search, known: Known, place: Place) -> None:
    """Train round after round until the planner has no more. Runs that are known are not trained again."""
    for round_ in itertools.count(1):
        planned = {line: search.rounds(line, known) for line in search.lines}
        now = {line: found[round_ - 1] for line, found in planned.items() if len(found) >= round_}
        if not now:
            return
        points = [(line, point) for line, it in now.items() for point in it.points]
        # A project has one list of seeds. With `trials`, lines with fewer points may ask for fewer seeds; they get all.
        seeds = max((it.seeds for it in now.values()), key=len)
        text, name = search.params(points, seeds), f"{search.name}-{round_}"
        labels = ", ".join(line.text(point) for line, point in points)
        print(f"\nRound {round_}, {name}: {labels}; {_seeds(seeds)}", flush=True)
        lines = [*filter(None, [search.baseline]), *(line.name(point) for line, point in points)]
        wanted = [*itertools.product(lines, seeds)]
        with contextlib.chdir(search.home):
            is_saved = project.is_saved(name, text)
        if not is_saved or any(known.flags(*pair) is None for pair in wanted):
            project.write_params(text)
            place.repro()
            for pair in wanted:
                known.read(*pair)
            project.save_experiment(name, search.home)
        _say_round(now, known)


def _say_round(now: dict[Line, Round], known: Known) -> None:
    for line, it in now.items():
        means = [
            f"{line.label(point)}: {np.mean([known.flags(line.name(point), seed) for seed in it.seeds]):.1%}"
            for point in it.points
        ]
        print(f"{line.key} on validation images: {', '.join(means)}", flush=True)


def _renamed(search: Search) -> list[Line]:
    """The lines whose runs get a second name, the line's key. The baseline's line does not: its key is in use."""
    return [line for line in search.lines if line.key != search.baseline]


def _run(name: str, seed: int) -> Run:
    return runs.read({"reg": [name], "seeds": [seed]})[0]


def _points(line: Line) -> list[Point]:
    return [*itertools.product(*map(range, line.shape))]


# Words


def _announce(search: Search) -> None:
    for line in search.lines:
        grid = search.grid(line, Known())
        axes = " × ".join(
            f"{len(axis.strengths)} strengths of {axis.kind}, {_ends(axis.strengths)}" for axis in line.axes
        )
        print(f"{line.key}: {axes}; {_seeds(search.seeds)}. At most {grid.most} of {grid.trainings} trainings")
    if search.settings.data.validation_images == "test":
        print("Validation images are the test images here (data.validation_images), so test accuracy will be too high")


def ranked(search: Search, line: Line, known: Known) -> list[Standing]:
    """How the trained points of a line do on validation images."""
    flags = known.of(line, search.seeds)
    diverged = {pair for pair in flags if (line.name(pair[0]), pair[1]) in known.diverged}
    return verdict.standings(search.grid(line, known), search.rounds(line, known), flags, diverged)


def why_none(search: Search, line: Line, found: list[Standing], known: Known) -> str | None:
    """Why there is no strength to recommend: the line's best one diverged with some seed. None if it did not."""
    top = _top(found).point
    seeds = [seed for seed in search.seeds if (line.name(top), seed) in known.diverged]
    if not seeds:
        return None
    if all((line.name(it.point), seed) in known.diverged for it in found for seed in it.seeds):
        return f"{line.key} diverged with every strength that was tried; search with --to lower"
    return (
        f"{line.key}: {line.label(top)} is the best of those that were tried with all seeds, and it diverged with "
        f"{_seeds(seeds)}; search with --to lower"
    )


def _top(found: Sequence[Standing]) -> Standing:
    return next(it for it in found if it.word == "best")


def _baseline(search: Search, line: Line, top: Standing, known: Known) -> Baseline | None:
    """The baseline compared with the best point. Only here are test images used, and only for these two."""
    if search.baseline is None:
        return None
    validation = [known.flags(search.baseline, seed) for seed in search.seeds]
    pairs = [(name, seed) for name in (search.baseline, line.name(top.point)) for seed in search.seeds]
    if known.diverged & {*pairs}:
        return verdict.against(search.baseline, validation, None)
    right = [_run(*pair).right for pair in pairs]
    return verdict.against(search.baseline, validation, (right[: len(search.seeds)], right[len(search.seeds) :]))


def _show(
    search: Search, line: Line, found: list[Standing], baseline: Baseline | None, known: Known, is_best: bool
) -> None:
    """Print a line's table and sentences. Write its numbers and sentences to a JSON file, and its picture."""
    from rich.console import Console

    grid = search.grid(line, known)
    said = [*verdict.on_validation(line, grid, found)]
    if baseline and is_best:
        said += verdict.on_test(line, grid, _top(found), baseline)
    spent = len(planner.trained(search.rounds(line, known)))
    beside = f", and {len(search.seeds)} of {search.baseline}" if search.baseline else ""
    share = f"{spent} of the full grid's {grid.trainings} trainings ({spent / grid.trainings:.0%})"
    said.append(f"This took {share}{beside}.")
    place = project.FOLDER / f"{line.key}.png"
    curve.draw(line, found, baseline, place)
    record = {
        "line": dataclasses.asdict(line),
        "seeds": list(search.seeds),
        "trainings": spent,
        "full_grid": grid.trainings,
        "points": [dataclasses.asdict(it) | {"label": line.label(it.point)} for it in found],
        "baseline": dataclasses.asdict(baseline) if baseline and is_best else None,
        "sentences": said,
    }
    files.write_json(place.with_suffix(".json"), record)
    console = Console(highlight=False)
    console.print()
    console.print(curve.table(line, found, baseline, console.width))
    for sentence in said:
        console.print(sentence, markup=False)
    numbers = f"All {len(found)}: {place.with_suffix('.json')}    " if len(found) > curve.MOST_ROWS else ""
    console.print(f"{numbers}Picture: {place}    Experiments: dvc exp show", markup=False)


def _paste(search: Search, points: dict[Line, Point], apply: bool) -> None:
    """Print the lines for params.yaml, or set them."""
    if not apply:
        print("\nFor params.yaml, or the same command with --apply:\n\nreg:")
        for line, point in points.items():
            print(f"  {line.text(point)}")
        return
    path = search.home / parameters.PATH
    text = path.read_text(encoding="utf-8")
    for line, point in points.items():
        text = edit.with_line(text, line.key, line.value(point))
    with files.whole(path) as file:
        file.write(text)
    for line, point in points.items():
        print(f"params.yaml has reg.{line.text(point)} now")
    print("`make repro` takes what was trained from DVC's cache")


def _ends(strengths: Sequence[float]) -> str:
    return f"{number(strengths[0])} to {number(strengths[-1])}"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


# Messages of the runner


class _Renamed(io.TextIOBase):
    """A stream whose text is passed through a function."""

    def __init__(self, stream: TextIO, rename: Callable[[str], str]):
        self.stream, self.rename = stream, rename

    def write(self, text: str) -> int:
        self.stream.write(self.rename(text))
        return len(text)

    def flush(self) -> None:
        self.stream.flush()


@contextlib.contextmanager
def said_as(command: str) -> Iterator[None]:
    """Replace `make repro` by this command in the runner's messages."""

    def rename(text: str) -> str:
        return text.replace("`make repro`", f"`{command}`").replace("`make repro JOBS=1`", "`--jobs 1`")

    try:
        with contextlib.redirect_stderr(_Renamed(sys.stderr, rename)):
            yield
    except UserError as error:
        raise UserError(rename(str(error))) from None
    except KeyboardInterrupt:
        print(f"\ninterrupted; what was trained is kept. `{command}` goes on from here", file=sys.stderr)
        sys.exit(130)
    except SystemExit as ended:
        sys.exit(rename(ended.code) if isinstance(ended.code, str) else ended.code)
