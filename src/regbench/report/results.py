"""report.json: everything that report.md and the terminal's table show, and the runs it was made from."""

import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from regbench.params import NAME
from regbench.report import tracked
from regbench.report.statistics import SIGNIFICANT, Estimate

PATH = Path("report.json")
FIGURE = re.compile(r"plots/[a-z_]+\.png")


class Record(BaseModel):
    """A part of report.json. Unknown keys and values of other types are rejected; instances are frozen."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Row(Record):
    """The numbers of one regularizer. Accuracies, gap and shares are fractions; means are over seeds.

    Attributes:
        kinds: the kinds of regularizer in the line.
        strengths: one for each kind; empty in reports of older versions.
        correct: how many test images each seed has right, in the order of `Report.seeds`.
        test: test accuracy.
        test_sd: its standard deviation over seeds; None with one seed.
        difference: test accuracy minus the baseline's.
        p_corrected: p of `difference` by Holm's correction for the number of regularizers compared.
        verdict: better, worse or can't tell, by `p_corrected`.
        validation: validation accuracy.
        validation_pick: whether `validation` is the best of all; False for all if validation images are test images.
        gap: training minus test accuracy.
        cross_entropy: on test images, without penalty.
        confidence: mean probability of the predicted class, on test images.
        calibration_error: on test images.
        corrupted: accuracy on corrupted test images, mean over corruptions and levels; None: not measured.
        corruptions: {corruption: accuracy on those images without it and at levels 1, 2, 3}.
        reg_loss: the penalty at the end.
        near_zero: share of the kernel weights below `evaluate.near_zero`.
        exact_zeros: share of the kernel weights that are 0.
        norm: √Σw² of all kernels.
        effective_learning_rate: learning rate / Σw² of a kernel, median over those that batch normalization follows.
        cost: time of a step relative to one without regularizer, by `make bench`; None: a kind was not measured.
    """

    kinds: tuple[str, ...] = ()
    strengths: tuple[float, ...] = ()
    correct: tuple[int, ...]
    test: Estimate
    test_sd: float | None = None
    difference: Estimate | None = None
    p_corrected: float | None = None
    verdict: str | None = None
    validation: float
    validation_pick: bool
    gap: Estimate
    cross_entropy: float
    confidence: float | None = None
    calibration_error: float
    corrupted: float | None = None
    corruptions: dict[str, tuple[float, ...]] = {}
    reg_loss: float
    near_zero: float
    exact_zeros: float
    norm: float | None = None
    effective_learning_rate: float | None = None
    cost: float | None = None


class Diverged(Record):
    """A regularizer that diverged with one seed or more, so that it has no numbers.

    Attributes:
        diverged: (seed, last epoch) of each run that diverged.
    """

    diverged: tuple[tuple[int, int], ...]


class Images(Record):
    """The images that the runs were measured on.

    Attributes:
        test: how many test images.
        corrupted: how many of them were corrupted.
        classes: how many classes.
        largest_class: {split: share of its largest class}, the accuracy of a model that always predicts this class.
    """

    test: int
    corrupted: int = 0
    classes: int
    largest_class: dict[str, float]

    @property
    def unequal(self) -> bool:
        """Whether the largest class has more test images than if all classes were equally large."""
        return round(self.largest_class["test"] * self.test) > -(-self.test // self.classes)


class Report(Record):
    """All of report.json.

    Attributes:
        dataset, image_size, epochs: from the plan.
        baseline: the regularizer that others are compared with; None: there is none, or it diverged.
        seeds: the same for each regularizer.
        images: None if every run diverged.
        rows: {regularizer: its numbers}, in the order of params.
        verdicts: what the numbers say, in sentences.
        legend: what the headings mean, three texts as from `table.legend`.
        figures: (path, caption) of each.
        plan: MD5 of plans/report.json.
        runs: {run: {file below runs/RUN: MD5}}, what the report was made from.
    """

    dataset: str
    image_size: int
    epochs: int
    baseline: str | None = None
    seeds: tuple[int, ...]
    images: Images | None = None
    rows: dict[str, Row | Diverged]
    verdicts: tuple[str, ...]
    legend: tuple[str, ...]
    figures: tuple[tuple[str, str], ...]
    plan: str
    runs: dict[str, dict[str, str]]

    @property
    def pick(self) -> str | None:
        """The regularizer that validation picks."""
        return next((name for name, row in measured(self.rows).items() if row.validation_pick), None)


def measured(rows: dict[str, Row | Diverged]) -> dict[str, Row]:
    """The rows with numbers, without diverged ones."""
    return {name: row for name, row in rows.items() if isinstance(row, Row)}


def verdict(difference: float, p: float) -> str:
    """better, worse or can't tell: whether a difference is real at 5 %."""
    return "can't tell" if p >= SIGNIFICANT else "better" if difference > 0 else "worse"


def read(path: Path = PATH) -> Report:
    """The report in the workspace.

    Raises:
        UserError: it is missing, in conflict or damaged.
    """
    return parse(tracked.read(path), path)


def parse(data: bytes, where: str | Path) -> Report:
    """A report from a file's bytes; `where` is what to call it in messages."""
    try:
        report = Report.model_validate_json(tracked.text(data, where))
        if unknown := [name for name in report.rows if not NAME.fullmatch(name)]:
            raise ValueError(f"rows: {unknown[0]!r} is no name of a regularizer")
        if report.baseline not in (None, *report.rows):
            raise ValueError(f"baseline: {report.baseline!r} has no row")
        if strange := [path for path, _ in report.figures if not FIGURE.fullmatch(path)]:
            raise ValueError(f"figures: {strange[0]!r} is no figure")
        for name, row in measured(report.rows).items():
            images = report.images.test if report.images else 0
            if len(row.correct) != len(report.seeds) or not all(0 <= count <= images for count in row.correct):
                raise ValueError(f"rows.{name}.correct does not fit the seeds and images")
        return report
    except ValidationError as error:
        first = error.errors()[0]
        raise tracked.damaged(where, f"{'.'.join(map(str, first['loc'])) or 'JSON'}: {first['msg']}") from None
    except ValueError as error:
        raise tracked.damaged(where, error) from None
