"""What a training reports while it runs: one line per epoch, a log, and views for TensorBoard and DVCLive.

DVC's outputs appear only when a stage has ended. So a separate log, `.regbench/log/RUN.csv`, gets a row after each
epoch; `regbench watch` draws it. The runner makes its table from the printed lines. No result depends on anything here.
"""

import contextlib
import csv
import importlib.util
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from regbench import files, params
from regbench.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOG = Path(".regbench/log")
TENSORBOARD = Path(".regbench/tensorboard")
DVCLIVE = Path("dvclive")
MEASURES = ("cross_entropy", "reg_loss", "accuracy", "val_cross_entropy", "val_accuracy")
COLUMNS = ("epoch", "seconds", "images_per_second", *MEASURES)
PACKAGES = {"tensorboard": "tensorboard", "dvclive": "dvclive"}
"""{key under `live` in params.yaml: the package that it needs}."""


# One line per epoch


@dataclass(frozen=True)
class Epoch:
    """An epoch that has ended.

    Attributes:
        run: the run's key, such as `l2-0`.
        epoch, epochs: its number, from 1, and how many there will be.
        cross_entropy, reg_loss, accuracy: of training; val_cross_entropy, val_accuracy: of validation.
        images_per_second: in training.
        left: estimated seconds for the remaining epochs.
    """

    run: str
    epoch: int
    epochs: int
    cross_entropy: float
    reg_loss: float
    accuracy: float
    val_cross_entropy: float
    val_accuracy: float
    images_per_second: float
    left: float

    def __str__(self) -> str:
        return (
            f"{self.run} epoch {self.epoch}/{self.epochs}: cross-entropy {self.cross_entropy:.4f}, "
            f"reg loss {self.reg_loss:.4f}, accuracy {self.accuracy:.1%}; "
            f"validation cross-entropy {self.val_cross_entropy:.4f}, accuracy {self.val_accuracy:.1%}; "
            f"{self.images_per_second:,.0f} images/s, {clock(self.left)} left"
        )


_LINE = re.compile(
    r"(?P<run>\S+) epoch (?P<epoch>\d+)/(?P<epochs>\d+): cross-entropy (?P<cross_entropy>\S+), "
    r"reg loss (?P<reg_loss>\S+), accuracy (?P<accuracy>\S+)%; "
    r"validation cross-entropy (?P<val_cross_entropy>\S+), accuracy (?P<val_accuracy>\S+)%; "
    r"(?P<images_per_second>[\d,]+) images/s, (?P<left>[\d:]+) left"
)
_DIVERGED = re.compile(r"\S+ diverged: its loss was ")


def parse(line: str) -> Epoch | None:
    """The epoch that a printed line reports; None for any other line."""
    found = _LINE.fullmatch(line.strip())
    if not found:
        return None
    left = sum(60**place * int(part) for place, part in enumerate(reversed(found["left"].split(":"))))
    percents = {name: float(found[name]) / 100 for name in ("accuracy", "val_accuracy")}
    losses = {name: float(found[name]) for name in ("cross_entropy", "reg_loss", "val_cross_entropy")}
    return Epoch(
        run=found["run"],
        epoch=int(found["epoch"]),
        epochs=int(found["epochs"]),
        **losses,
        **percents,
        images_per_second=float(found["images_per_second"].replace(",", "")),
        left=left,
    )


def diverged(run: str, loss: float, epoch: int) -> str:
    """The line that a training prints when it ends because its loss is not finite."""
    return (
        f"{run} diverged: its loss was {loss} in epoch {epoch}; "
        "lower train.learning_rate or the strength of the regularizer"
    )


def says_diverged(line: str) -> bool:
    """Whether a printed line comes from `diverged`."""
    return bool(_DIVERGED.match(line))


def clock(seconds: float) -> str:
    """Seconds as 0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(round(max(0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# The log


class Log:
    """The log of one run, and the views that params.yaml asks for. The log is locked while the training goes on.

    Args:
        run: the run's key.
        rows: the epochs that were trained before, as history has them; the log's other rows are removed.
        views: whether to write the views, too.
    """

    def __init__(self, run: str, rows: Sequence[Mapping] = (), views: bool = True) -> None:
        before = {row["epoch"]: row for row in read(run)}
        rows = [before.get(row["epoch"], {}) | dict(row) for row in rows]
        files.write_csv(log_of(run), COLUMNS, map(_cells, rows))
        self.file = open(log_of(run), "a", newline="", encoding="utf-8")  # noqa: SIM115, for the whole training
        if fcntl:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.views = [VIEWS[name](run, rows) for name in wanted()] if views else []

    def add(self, row: Mapping) -> None:
        """Add an epoch, {column of `COLUMNS`: value}; columns may be missing."""
        csv.writer(self.file, lineterminator="\n").writerow(_cells(row))
        self.file.flush()
        for view in self.views:
            view.add(row)

    def close(self) -> None:
        """Close the views and the log, whose lock is released: the training has ended."""
        self.file.close()
        for view in self.views:
            view.close()


def read(run: str) -> list[dict[str, float]]:
    """The epochs in the log of a run, in order, with NaN for missing values. Empty if there is no log."""
    try:
        text = log_of(run).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    # The last line may be half written.
    return rows_of(text[: text.rfind("\n") + 1].splitlines())


def rows_of(lines: Iterable[str]) -> list[dict[str, float]]:
    """The rows of a log or of a history.csv, {column of `COLUMNS`: value}, with NaN for missing values."""
    found = []
    for row in csv.DictReader(lines):
        numbers = {name: _number(row.get(name)) for name in COLUMNS}
        if numbers["epoch"] >= 1:
            found.append(numbers | {"epoch": int(numbers["epoch"])})
    return found


def training(run: str) -> bool:
    """Whether a process on this machine trains this run now. Always False on Windows."""
    with contextlib.suppress(OSError), open(log_of(run), encoding="utf-8") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def log_of(run: str) -> Path:
    """The path of a run's log."""
    return LOG / f"{run}.csv"


def _cells(row: Mapping) -> list:
    return [row.get(name, "") for name in COLUMNS]


def _number(text: str | None) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan


# Views of other programs


class View(Protocol):
    """Takes the epochs of one run: first `rows`, those that were trained before, then new ones."""

    def __init__(self, run: str, rows: Iterable[Mapping]) -> None: ...

    def add(self, row: Mapping) -> None:
        """Add an epoch."""

    def close(self) -> None:
        """Write what is not written yet."""


class TensorBoard:
    """Event files in `.regbench/tensorboard/RUN`."""

    def __init__(self, run: str, rows: Iterable[Mapping]) -> None:
        from tensorboard.summary import Writer

        folder = TENSORBOARD / run
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier training
        self.writer = Writer(str(folder))
        for row in rows:
            self.add(row)

    def add(self, row: Mapping) -> None:
        """Add an epoch."""
        for name in MEASURES:
            if name in row:
                self.writer.add_scalar(name, row[name], row["epoch"])
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        self.writer.close()


class DVCLive:
    """DVCLive's files in `dvclive/RUN`, which VS Code's extension and Studio show."""

    def __init__(self, run: str, rows: Iterable[Mapping]) -> None:
        import dvclive

        folder = DVCLIVE / run
        shutil.rmtree(folder / "plots", ignore_errors=True)  # of an earlier training
        (folder / "metrics.json").unlink(missing_ok=True)
        # The DVC of a run beside this one reads each dvc.yaml of the project. DVCLive would delete it and write it in
        # pieces; here it appears whole and stays.
        if not (folder / "dvc.yaml").exists():
            with files.whole(folder / "dvc.yaml") as file:
                file.write("metrics:\n- metrics.json\nplots:\n- plots/metrics:\n    x: step\n")
        self.live = dvclive.Live(str(folder), resume=True, save_dvc_exp=False, dvcyaml=None)
        for row in rows:
            self.add(row)

    def add(self, row: Mapping) -> None:
        """Add an epoch."""
        self.live.step = row["epoch"]
        for name in MEASURES:
            if name in row:
                self.live.log_metric(name, row[name])
        self.live.next_step()

    def close(self) -> None:
        """End DVCLive. If a token for Studio is set, wait until Studio has everything."""
        self.live.end()


VIEWS: dict[str, type[View]] = {"tensorboard": TensorBoard, "dvclive": DVCLive}


def wanted(path: str | Path = "params.yaml") -> list[str]:
    """The views that params.yaml asks for.

    They are not in a plan, since no result depends on them. `REGBENCH_LIVE=off` in the environment switches them off.
    It is set on the nodes of a cluster.
    """
    if os.environ.get("REGBENCH_LIVE") == "off":
        return []
    try:
        chosen = params.load(path).live
    except UserError:  # it is being edited while runs train
        return []
    return [name for name in VIEWS if getattr(chosen, name)]


def require(views: Iterable[str]) -> None:
    """Raise a `UserError` if the package for a view is not installed."""
    for name in views:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(
                f"live.{name}: the package {PACKAGES[name]} is not installed; `.venv/bin/pip install -e '.[live]'`, or "
                "set it to false"
            )
