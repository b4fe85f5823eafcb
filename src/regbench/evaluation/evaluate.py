"""One trained model and the prepared images → runs/KEY/evaluation/."""

import csv
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from regbench import files, networks, regularizers
from regbench.data import SPLITS, arrays
from regbench.errors import UserError
from regbench.evaluation import accuracy, corruptions, saved, weights
from regbench.evaluation.predict import predictor
from regbench.networks.copies import fast

TABLES = {
    "predictions": ("split", "index", "file", "label", "prediction", "confidence", "cross_entropy"),
    "layers": (
        "layer",
        "weights",
        "sum_abs",
        "sum_squares",
        "exact_zeros",
        "near_zero",
        "penalty",
        "penalty_share",
        "effective_learning_rate",
    ),
    "confusion": ("label", "prediction", "images"),
    "weights": ("log10_low", "log10_high", "weights"),
    "pruning": ("pruned", "threshold", "validation_accuracy"),
}
"""The CSV files of an evaluation and their columns."""


def evaluate(plan: dict[str, Any], prepared: Path = Path("prepared"), runs: Path = Path("runs")) -> None:
    """Evaluate `model.keras` of one run; write the folder `evaluation` beside it, whole or not at all.

    evaluation.json: every number of the run. predictions.csv: a row for each validation and test image.
    layers.csv: a row for each kernel. confusion.csv: labels and predictions of the test images, counted.
    pruning.csv: accuracy with the smallest weights set to 0. weights.csv: a histogram of all kernel weights.
    If the model diverged (its logits are not finite), evaluation.json has only seed, regularizer and "diverged",
    and the tables are empty.

    Args:
        plan: of `evaluate`, as `regbench.plan.read` returns it.
        prepared: the folder that `prepare` wrote.
        runs: the folder of all runs.

    Raises:
        UserError: the model or the images are missing or damaged.
    """
    run = runs / plan["run"]
    networks.register(plan["own_network"])
    model = _load(run / "model.keras", plan["run"])
    regularizers.attach(model, plan["regularizer"])
    splits = {name: arrays.load(name, prepared) for name in SPLITS}
    splits["train"] = arrays.sample(splits["train"], plan["evaluate"].train_images)
    names = {name: _files(prepared / name / "files.csv", len(splits[name])) for name in ("validation", "test")}
    predict = predictor(model)
    logits = {name: predict(split) for name, split in splits.items()}
    evaluation = {
        "seed": plan["seed"],
        "regularizer": [dataclasses.asdict(term) for term in plan["regularizer"].terms],
        "diverged": not all(np.isfinite(values).all() for values in logits.values()),
    }
    tables = dict.fromkeys(TABLES, ())
    if not evaluation["diverged"]:
        measured, tables = measure(plan, model, splits, logits, predict, names)
        evaluation |= measured

    beside = run / "evaluation.partial"
    shutil.rmtree(beside, ignore_errors=True)
    files.write_json(beside / "evaluation.json", evaluation)
    for table, rows in tables.items():
        files.write_csv(beside / f"{table}.csv", TABLES[table], rows)
    shutil.rmtree(run / "evaluation", ignore_errors=True)
    beside.replace(run / "evaluation")


def _load(path: Path, run: str) -> keras.Model:
    try:
        return fast(saved.load(path))
    except UserError as error:
        raise UserError(f"{error}; run `dvc repro -f -s train@{run}`") from None


def _files(path: Path, images: int) -> list[str]:
    """Where each image of a split came from."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            found = [row["file"] for row in csv.DictReader(file)]
        if len(found) != images or None in found:
            raise ValueError(f"it should have {images} rows")
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UserError(f"{path} is damaged ({error}); run `dvc repro -f prepare`") from None
    return found


def measure(
    plan: dict[str, Any],
    model: keras.Model,
    splits: dict[str, arrays.Split],
    logits: dict[str, np.ndarray],
    predict: Callable[[arrays.Split], np.ndarray],
    names: dict[str, list[str]],
) -> tuple[dict[str, Any], dict[str, list]]:
    """All numbers of a model that did not diverge.

    Args:
        plan: of `evaluate`.
        model: as trained, with its regularizer attached.
        splits: all splits, by name; train is the sample that is measured.
        logits: {split: the model's logits [N, K]}.
        predict: the model's `predictor`.
        names: {split: where each image came from}, for validation and test.

    Returns:
        (the numbers for evaluation.json, {table: rows} as in `TABLES`)
    """
    options = plan["evaluate"]
    classes = splits["test"].info["classes"]
    scores, predictions = {}, []
    for name, split in splits.items():
        scores[name], rows = accuracy.score(logits[name], split.labels)
        if name in names:
            predictions += [(name, row[0], file, *row[1:]) for row, file in zip(rows, names[name], strict=True)]
    tested = logits["test"].argmax(axis=1)
    confusion = accuracy.confusion_matrix(splits["test"].labels, tested, len(classes))

    penalty = weights.penalty(model)
    for values in scores.values():
        values["loss"] = values["cross_entropy"] + penalty
    layers = list(weights.layer_rows(model, options.near_zero, plan["learning_rate"]))
    counted = sum(row["weights"] for row in layers)
    trained = {id(weight) for weight in model.trainable_variables}
    evaluation = {
        "parameters": model.count_params(),
        "kernel_weights": counted,
        "frozen_kernel_weights": sum(
            int(np.prod(kernel.shape)) for _, kernel in networks.kernels(model) if id(kernel) not in trained
        ),
        "regularized_weights": sum(variable.regularizer is not None for variable in model.trainable_variables),
        "exact_zeros": sum(row["exact_zeros"] for row in layers) / counted,
        "near_zero": sum(row["near_zero"] for row in layers) / counted,
        "near_zero_below": options.near_zero,
        "reg_loss": penalty,
        "generalization_gap": scores["train"]["accuracy"] - scores["test"]["accuracy"],
        "test_accuracy_by_class": {
            label: round(float(row[index] / row.sum()), 6) if row.sum() else None
            for index, (label, row) in enumerate(zip(classes, confusion, strict=True))
        },
        "majority": {name: accuracy.majority(split.labels) for name, split in splits.items()},
        **scores,
        **corruptions.score(splits["test"], options.corrupted_images, tested == splits["test"].labels, predict),
    }
    pruned = weights.prune(model, options.pruning, splits["validation"], predict)
    tables = {
        "predictions": predictions,
        "layers": [[row[column] for column in TABLES["layers"]] for row in layers],
        "confusion": [
            (classes[label], classes[prediction], confusion[label, prediction])
            for label, prediction in np.argwhere(confusion).tolist()
        ],
        "weights": weights.histogram(model),
        "pruning": [(0.0, 0.0, scores["validation"]["accuracy"]), *pruned],
    }
    return evaluation, tables
