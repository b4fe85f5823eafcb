"""Read what `train` and `evaluate` wrote for the runs that a plan names."""

import csv
import hashlib
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from regbench.errors import UserError

REMOVED = Path(".regbench/removed")
OUTPUTS = ("model.keras", "history.csv", "evaluation")
"""The files and folders of a run, below runs/RUN/."""

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
COLUMNS = {
    "history.csv": HISTORY_COLUMNS,
    "evaluation/layers.csv": ("layer", "weights", "sum_squares", "near_zero", "effective_learning_rate"),
    "evaluation/weights.csv": ("log10_low", "log10_high", "weights"),
    "evaluation/pruning.csv": ("pruned", "validation_accuracy"),
    "evaluation/predictions.csv": ("split", "label", "prediction"),
}
"""The tables of a run, and the columns that a report reads from them."""


class Scores(BaseModel):
    """How well a model does on one split."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    images: int = Field(ge=1)
    correct: int = Field(ge=0)
    cross_entropy: float
    confidence: float
    calibration_error: float

    @property
    def accuracy(self) -> float:
        """The share of images that the model gets right."""
        return self.correct / self.images


class Corrupted(BaseModel):
    """How many of the same test images are right under corruptions.

    Attributes:
        images: how many there are.
        correct_before: how many are right without corruption.
        correct: {corruption: how many are right at levels 1, 2, 3}.
    """

    model_config = ConfigDict(frozen=True)

    images: int = Field(ge=1)
    correct_before: int = Field(ge=0)
    correct: dict[str, list[int]] = Field(min_length=1)

    @property
    def accuracy(self) -> float:
        """Mean over corruptions and levels."""
        counts = [count for levels in self.correct.values() for count in levels]
        return sum(counts) / (self.images * len(counts))


class Evaluation(BaseModel):
    """What a report reads from evaluation.json."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    train: Scores
    validation: Scores
    test: Scores
    majority: dict[str, float]
    test_accuracy_by_class: dict[str, float | None]
    reg_loss: float
    near_zero: float
    exact_zeros: float
    kernel_weights: int = 0
    frozen_kernel_weights: int = 0
    corrupted: Corrupted | None = None


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: the key under `reg`.
        seed: its seed.
        folder: where its files are.
        evaluation: None if it diverged: its loss or its logits stopped being finite, so there are no numbers.
        tables: {file below `folder`: rows}; a row is {column: value}, numbers as floats.
    """

    name: str
    seed: int
    folder: Path
    evaluation: Evaluation | None
    tables: dict[str, list[dict]]

    @property
    def key(self) -> str:
        """Its name in DVC, such as `l2-0`."""
        return f"{self.name}-{self.seed}"

    @property
    def diverged(self) -> bool:
        """Whether it diverged, so that it has no numbers."""
        return self.evaluation is None

    @property
    def history(self) -> list[dict]:
        """One row for each epoch."""
        return self.tables["history.csv"]

    @property
    def norm(self) -> float:
        """√Σw² of all kernels."""
        return math.sqrt(sum(row["sum_squares"] for row in self.tables["evaluation/layers.csv"]))

    @property
    def effective_learning_rate(self) -> float | None:
        """Median over the layers that have one; None if no layer has."""
        rates = [row["effective_learning_rate"] for row in self.tables["evaluation/layers.csv"]]
        return median([rate for rate in rates if rate != ""]) if any(rate != "" for rate in rates) else None

    @cached_property
    def right(self) -> list[bool]:
        """Which test images the model gets right, in their order."""
        rows = self.tables["evaluation/predictions.csv"]
        return [row["label"] == row["prediction"] for row in rows if row["split"] == "test"]

    @cached_property
    def md5s(self) -> dict[str, str]:
        """{file below `folder`: its MD5} of history.csv and of all files in evaluation/, read by a report or not."""
        paths = [self.folder / "history.csv", *sorted(path for path in (self.folder / "evaluation").rglob("*"))]
        return {
            path.relative_to(self.folder).as_posix(): hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
            for path in paths
            if path.is_file()
        }


def read(plan: dict, folder: Path = Path("runs")) -> list[Run]:
    """The runs that a report's plan names, regularizers in the order of params.

    Raises:
        UserError: a run is missing or damaged.
    """
    runs = [_read(name, seed, folder) for name in plan["reg"] for seed in plan["seeds"]]
    tested = {run.key: _tested(run.evaluation) for run in runs if not run.diverged}
    if len({*tested.values()}) > 1:
        usual = Counter(tested.values()).most_common(1)[0][0]
        other = [key for key, images in tested.items() if images != usual]
        raise UserError(f"{', '.join(other)} were measured on other test images than the rest; run `make repro`")
    return runs


def _tested(evaluation: Evaluation) -> tuple[int, int]:
    """How many test images there were, and how many corrupted ones."""
    return evaluation.test.images, evaluation.corrupted.images if evaluation.corrupted else 0


def _read(name: str, seed: int, folder: Path) -> Run:
    run = folder / f"{name}-{seed}"
    try:
        text = (run / "evaluation/evaluation.json").read_bytes()
        tables = {table: _table(run / table, columns) for table, columns in COLUMNS.items()}
        # The last epoch of a training that diverged has no numbers, even if its model can still be evaluated.
        ended_early = any(isinstance(row["val_accuracy"], str) for row in tables["history.csv"])
        diverged = ended_early or _Divergence.model_validate_json(text).diverged
        evaluation = None if diverged else Evaluation.model_validate_json(text)
        found = Run(name, seed, run, evaluation, tables)
        if evaluation and (len(found.right), sum(found.right)) != (evaluation.test.images, evaluation.test.correct):
            raise ValueError("predictions.csv and evaluation.json do not fit")
    except (OSError, ValueError, csv.Error) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise UserError(f"{run} is missing or damaged ({reason}); run `dvc repro evaluate@{name}-{seed}`") from None
    return found


class _Divergence(BaseModel):
    diverged: bool = False


def _table(path: Path, columns: Sequence[str]) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if missing := [column for column in columns if column not in (reader.fieldnames or ())]:
            raise ValueError(f"{path.name} has no column {missing[0]}")
        rows = [{column: _number(row[column]) for column in columns} for row in reader]
    return rows


def _number(text: str | None) -> float | str:
    if text is None:
        raise ValueError("a row is too short")
    try:
        return float(text)
    except ValueError:
        return text


def by_name(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """{regularizer: its runs, one for each seed}, in order."""
    groups = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    return groups


def whole(runs: Iterable[Run]) -> list[Run]:
    """The runs of the regularizers of which no run diverged."""
    runs = list(runs)
    diverged = {run.name for run in runs if run.diverged}
    return [run for run in runs if run.name not in diverged]


def set_aside(plan: dict, folder: Path = Path("runs"), removed: Path = REMOVED) -> list[str]:
    """Move what the plan does not name from `folder` to `removed`; nothing is deleted.

    DVC treats all of runs/ as the report's input. If folders of removed runs stayed there, the report would be out of
    date in a clone that does not have them.

    Returns:
        what was moved, relative to `folder`
    """
    moved = []
    for path in _foreign(plan, folder):
        name = path.relative_to(folder).as_posix()
        target = removed / name
        count = 1
        while target.exists():
            count += 1
            target = removed / f"{name}.{count}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)
        moved.append(name)
    return moved


def _foreign(plan: dict, folder: Path) -> Iterator[Path]:
    named = {f"{name}-{seed}" for name in plan["reg"] for seed in plan["seeds"]}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name not in named:
            yield path
        elif path.is_dir():
            yield from (inner for inner in sorted(path.iterdir()) if inner.name not in OUTPUTS)
