"""What is measured of one trained model."""

import csv
import json
from pathlib import Path

import keras
import numpy as np

from regbench import dataset, layers, regularizers  # noqa: F401  (the last two register what a model may hold)
from regbench.errors import UserError
from regbench.training import reg_loss

KERNEL_LAYERS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)
PREDICTIONS = ("split", "index", "label", "prediction", "confidence", "cross_entropy")


def evaluate(settings, name, seed, data="data", out=None):
    """Evaluate `model.keras` of one run; write `evaluation.json`, `layers.csv` and `predictions.csv` beside it.

    Args: as for `training.train`.
    """
    out = Path(out or f"runs/{name}-{seed}")
    try:
        model = keras.saving.load_model(out / "model.keras", compile=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{out / 'model.keras'} can't be loaded ({error}); run `dvc repro -f train@{name}-{seed}`"
        ) from None
    prepared = dataset.load(data, dataset.SPLITS)
    splits, predictions = {}, []
    for split, examples in prepared.splits.items():
        logits = model.predict(dataset.evaluation_batches(examples), verbose=0)
        splits[split], rows = score(logits, examples.labels)
        if split != "train":
            predictions += [(split, *row) for row in rows]

    near_zero = settings.evaluate.near_zero
    weights = list(layer_weights(model, near_zero))
    kernels = sum(row["weights"] for row in weights)
    evaluation = {
        "regularizer": name,
        "strengths": dict(settings.reg[name]),
        "seed": seed,
        "parameters": model.count_params(),
        "kernel_weights": kernels,
        "penalised_weights": len(model.losses),
        "near_zero": sum(row["near_zero"] for row in weights) / kernels,
        "near_zero_below": near_zero,
        "reg_loss": reg_loss(model),
        "generalization_gap": splits["train"]["accuracy"] - splits["test"]["accuracy"],
        **splits,
    }
    for values in splits.values():
        values["loss"] = values["cross_entropy"] + evaluation["reg_loss"]

    _write(out / "evaluation.json", lambda file: json.dump(evaluation, file, indent=2, allow_nan=False))
    _write_csv(out / "layers.csv", list(weights[0]), (row.values() for row in weights))
    _write_csv(out / "predictions.csv", PREDICTIONS, predictions)


def score(logits, labels):
    """Accuracy and mean cross-entropy (nats) of logits [N, K] against labels [N], and a row for each image.

    Returns:
        ({"images": N, "accuracy": …, "cross_entropy": …}, [(index, label, prediction, confidence, cross_entropy)])
    """
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    rows = np.arange(len(labels))
    prediction = logits.argmax(axis=1)
    cross_entropy = -log_probabilities[rows, labels]
    confidence = np.exp(log_probabilities[rows, prediction])
    summary = {
        "images": len(labels),
        "accuracy": float(np.mean(prediction == labels)),
        "cross_entropy": float(cross_entropy.mean()),
    }
    columns = (rows, labels, prediction, confidence.round(6), cross_entropy.round(6))
    return summary, list(zip(*(column.tolist() for column in columns), strict=True))


def layer_weights(model, near_zero):
    """A row for each layer with a kernel, from the stem to the head; biases are not counted.

    Yields:
        {"layer", "weights": count, "sum_abs": Σ|w|, "sum_squares": Σw², "near_zero": how many |w| < near_zero,
        "penalty": what the layer's own regularizer adds to the loss}
    """
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from layer_weights(layer, near_zero)
        if not isinstance(layer, KERNEL_LAYERS):
            continue
        kernel = np.abs(layer.kernel.numpy().astype(np.float64))
        yield {
            "layer": layer.name,
            "weights": kernel.size,
            "sum_abs": float(kernel.sum()),
            "sum_squares": float(np.square(kernel).sum()),
            "near_zero": int((kernel < near_zero).sum()),
            "penalty": float(sum(layer.losses)),
        }


def _write_csv(path, header, rows):
    def write(file):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)

    _write(path, write)


def _write(path, write):
    """Write beside, then rename: a file is there whole or not at all."""
    beside = path.with_name(f"{path.name}.partial")
    with open(beside, "w", newline="", encoding="utf-8") as file:
        write(file)
    beside.replace(path)
