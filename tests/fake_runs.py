"""Fake runs: files like those that `train` and `evaluate` write, with known numbers."""

from pathlib import Path

import numpy as np

from regbench import catalogue, files
from regbench.params import Regularizer, Report, Term
from regbench.report.runs import HISTORY_COLUMNS

IMAGES = 400
CORRUPTED = 100
"""How many test images were corrupted."""
CLASSES = [f"class {index}" for index in range(10)]


TWELVE = {
    "none": None,
    "l1": ("l1", 1e-5),
    "l2": ("l2", 1e-4),
    "max_norm": ("max_norm", 3.0),
    "dropout": ("dropout", 0.2),
    "stochastic_depth": ("stochastic_depth", 0.2),
    "gaussian_noise": ("gaussian_noise", 0.1),
    "label_smoothing": ("label_smoothing", 0.1),
    "mixup": ("mixup", 0.2),
    "random_erasing": ("random_erasing", 0.25),
    "ema": ("ema", 0.99),
    "mixup_l2": [("mixup", 0.2), ("l2", 1e-4)],
}
"""Twelve lines of many kinds, for `report_plan`."""


def report_plan(reg=None, seeds=(0,), baseline="none", costs=None, validates_on_test=False):
    """A plan as `plan.read("plans/report.json")` returns it, for `reg`: {name: (kind, strength) or a list of these}.

    It also writes plans/report.json.
    """
    reg = reg or {"none": None, "l1": ("l1", 0.001), "l2": ("l2", 0.001)}
    files.write_json("plans/report.json", {"seeds": list(seeds), "reg": list(reg), "baseline": baseline})
    scope = {kind.name: kind.scope and "all" for kind in catalogue.kinds().values()}
    terms = {
        name: tuple(
            Term(*term, scope.get(term[0], "all"))
            for term in (line if isinstance(line, list) else [line] if line else [])
        )
        for name, line in reg.items()
    }
    return {
        "dataset": "cifar10",
        "image_size": 32,
        "epochs": 3,
        "reg": {name: Regularizer(name, terms[name]) for name in reg},
        "seeds": list(seeds),
        "validates_on_test": validates_on_test,
        "report": Report(baseline=baseline),
        "costs": costs or {},
    }


def right(place, seed):
    """How many of 400 test images are right: 200, plus 40 times the line's place and 8 times the seed; at most all."""
    return min(IMAGES, 200 + 40 * place + 8 * seed)


def write(plan, folder=Path("runs"), test=right, images=IMAGES, largest=40, corrupted=CORRUPTED):
    """Write every run of a plan.

    In validation, 20 fewer images are right than in test; in training, 50 more. Accuracy rises from epoch to epoch.

    Args:
        plan: as `report_plan` returns it.
        folder: where to write.
        test: a function of a regularizer's place and a seed that returns how many test images are right.
        images: in each split.
        largest: how many of them are of the largest class.
        corrupted: how many test images were corrupted.
    """
    for place, name in enumerate(plan["reg"]):
        for seed in plan["seeds"]:
            write_run(Path(folder) / f"{name}-{seed}", place, test(place, seed), images, largest, corrupted)


def write_run(run, place, correct, images=IMAGES, largest=40, corrupted=CORRUPTED):
    """Write one run with `correct` test images right.

    Of the images to be corrupted, the same share is right before corruption. Each level of a corruption makes 5 more of
    them wrong; each level of brightness, 2 more.
    """

    def scores(correct):
        rest = {"accuracy": correct / images, "cross_entropy": 1.25, "confidence": 0.6, "calibration_error": 0.03}
        return {"images": images, "correct": correct, **rest}

    before = correct * corrupted // images
    right = {
        corruption: [max(0, before - loss * level) for level in (1, 2, 3)]
        for corruption, loss in (("gaussian_noise", 5), ("gaussian_blur", 5), ("brightness", 2), ("jpeg", 5))
    }
    shares = dict.fromkeys(("train", "validation", "test"), largest / images)
    evaluation = {
        "diverged": False,
        "exact_zeros": 0.0,
        "near_zero": 0.25,
        "reg_loss": float(place),
        "test_accuracy_by_class": dict.fromkeys(CLASSES, 0.5),
        "majority": shares,
        "train": scores(min(images, correct + 50)),
        "validation": scores(max(0, correct - 20)),
        "test": scores(correct),
    }
    if corrupted:
        evaluation["corrupted"] = {"images": corrupted, "correct_before": before, "correct": right}
    folder = run / "evaluation"
    files.write_json(folder / "evaluation.json", evaluation)
    accuracy = correct / images
    rows = []
    for epoch in (1, 2, 3):
        row = [epoch, place / epoch, place / epoch / 2, place / epoch / 2, 30 + epoch + place, 3, 1.5 - epoch / 10, 0.4]
        rows.append([*row, 1.6 - epoch / 20, accuracy - (3 - epoch) / 10])
    files.write_csv(run / "history.csv", HISTORY_COLUMNS, rows)
    predictions = [("validation", 0, "a.png", 3, 3)]
    predictions += [("test", index, "b.png", 3, 3 if index < correct else 4) for index in range(images)]
    files.write_csv(folder / "predictions.csv", ("split", "index", "file", "label", "prediction"), predictions)
    columns = ("layer", "weights", "sum_squares", "near_zero", "effective_learning_rate")
    layers = [("stem", 864, 3.5 + place, 20, 0.02)]
    for block in range(17):
        layers += [
            (f"block{block}_depthwise", 288, 2.5 + place, 20 + block, 0.03),
            (f"block{block}_project", 512, 2, 9, 0.01),
        ]
    files.write_csv(folder / "layers.csv", columns, [*layers, ("head", 90, 1, 5, "")])
    ends = [-np.inf, *np.arange(-4, 1.0, 0.5).tolist(), np.inf]
    counts = [40 * place, 10, 20, 40, 80, 160, 320, 200, 100 - 3 * place, 50, 10, 0]
    files.write_csv(
        folder / "weights.csv", ("log10_low", "log10_high", "weights"), zip(ends, ends[1:], counts, strict=False)
    )
    pruning = [(0, 0, accuracy), (0.5, 0.01, accuracy / 2), (0.9, 0.1, accuracy / 4)]
    files.write_csv(folder / "pruning.csv", ("pruned", "threshold", "validation_accuracy"), pruning)
    files.write_csv(folder / "confusion.csv", ("label", "prediction", "images"), [("class 3", "class 3", correct)])


def diverge(run):
    """Turn a run that was written into one that diverged in epoch 2."""
    files.write_json(run / "evaluation/evaluation.json", {"diverged": True})
    rows = [[1, 1e9, 1e9, 0, 1e9, 1e9, 1e9, 0.1, 1e9, 0.1], [2, *[""] * (len(HISTORY_COLUMNS) - 1)]]
    files.write_csv(run / "history.csv", HISTORY_COLUMNS, rows)
