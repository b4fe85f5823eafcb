"""What is measured of one trained model."""

import zipfile
import zlib
from multiprocessing.pool import ThreadPool
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import regbench.layers
import regbench.regularizers  # noqa: F401  (these two register what a model may hold)
from regbench import cores, dataset, files
from regbench.errors import UserError
from regbench.training import kernels, reg_loss

TABLES = {
    "predictions": ("split", "index", "label", "prediction", "confidence", "cross_entropy"),
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
"""The CSV files of a run and their columns."""

CALIBRATION_BINS = 15
HISTOGRAM_DECADES = (-8.0, 1.0, 0.1)
"""Smallest and largest log₁₀|w| of the weight histogram, and the width of a bin."""


def evaluate(settings, name, seed, data="data", out=None):
    """Evaluate `model.keras` of one run; write the files of `runs/NAME-SEED/` that `evaluate` is to make.

    evaluation.json: every number of the run. predictions.csv: a row for each validation and test image.
    layers.csv: a row for each kernel. confusion.csv: labels and predictions of the test images, counted.
    pruning.csv: accuracy with the smallest weights set to 0. weights.csv: a histogram of all kernel weights.
    Of a model that diverged, whose logits are not finite, evaluation.json says just that and the tables are empty.

    Args: as for `training.train`.
    """
    out = Path(out or f"runs/{name}-{seed}")
    try:
        model = keras.saving.load_model(out / "model.keras", compile=False)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{out / 'model.keras'} can't be loaded ({error}); run `dvc repro -f -s train@{name}-{seed}`"
        ) from None
    prepared = dataset.load(data, dataset.SPLITS)
    predict = predictor(model)
    logits = {split: predict(examples) for split, examples in prepared.splits.items()}
    line = settings.regularizer(name)
    evaluation = {"regularizer": name, "strengths": dict(line.strengths), "scope": line.scope, "seed": seed}
    evaluation["diverged"] = not all(np.isfinite(values).all() for values in logits.values())
    if evaluation["diverged"]:
        tables = dict.fromkeys(TABLES, ())
    else:
        measured, tables = measure(model, settings, prepared, logits, predict)
        evaluation |= measured
    files.write_json(out / "evaluation.json", evaluation)
    for table, rows in tables.items():
        files.write_csv(out / f"{table}.csv", TABLES[table], rows)


def measure(model, settings, prepared, logits, predict):
    """All numbers of a model that did not diverge.

    Args:
        model: as trained.
        settings: `params.Params`.
        prepared: `dataset.Dataset` with all splits.
        logits: {split: [N, K]}, the model's.
        predict: its `predictor`.

    Returns:
        (what evaluation.json holds of them, {table: rows} as in `TABLES`)
    """
    splits, predictions = {}, []
    for split, examples in prepared.splits.items():
        splits[split], rows = score(logits[split], examples.labels)
        if split != "train":
            predictions += [(split, *row) for row in rows]
    tested = np.array([row[2:4] for row in predictions if row[0] == "test"])
    confusion = confusion_matrix(*tested.T, len(prepared.classes))

    layers = list(layer_rows(model, settings))
    counted = sum(row["weights"] for row in layers)
    penalty = reg_loss(model)
    for values in splits.values():
        values["loss"] = values["cross_entropy"] + penalty
    validation = splits["validation"]["accuracy"]
    evaluation = {
        "parameters": model.count_params(),
        "kernel_weights": counted,
        "regularized_weights": len(model.losses),
        "exact_zeros": sum(row["exact_zeros"] for row in layers) / counted,
        "near_zero": sum(row["near_zero"] for row in layers) / counted,
        "near_zero_below": settings.evaluate.near_zero,
        "reg_loss": penalty,
        "generalization_gap": splits["train"]["accuracy"] - splits["test"]["accuracy"],
        "test_accuracy_by_class": {
            label: round(float(row[index] / row.sum()), 6) if row.sum() else None
            for index, (label, row) in enumerate(zip(prepared.classes, confusion, strict=True))
        },
        **splits,
    }
    pruned = prune(model, settings.evaluate.pruning, prepared.splits["validation"], predict)
    tables = {
        "predictions": predictions,
        "layers": [[row[column] for column in TABLES["layers"]] for row in layers],
        "confusion": [
            (prepared.classes[label], prepared.classes[prediction], confusion[label, prediction])
            for label, prediction in np.argwhere(confusion).tolist()
        ],
        "weights": weight_histogram(model),
        "pruning": [(0.0, 0.0, validation), *pruned],
    }
    return evaluation, tables


def predictor(model):
    """A function from a split to the model's logits [N, K] of its images, with the weights as they are when called.

    Several batches at once, each by one thread, keep all cores at work and give the same bits on any number of them.
    """
    images = tf.TensorSpec((None, *model.input_shape[1:]), model.inputs[0].dtype)
    network = tf.function(lambda images: model(images, training=False), input_signature=[images])
    size = dataset.EVALUATION_BATCH // cores.EVALUATED_AT_ONCE

    def predict(examples):
        def batch(start):
            return network(tf.cast(np.array(examples.images[start : start + size]), images.dtype)).numpy()

        with ThreadPool(cores.evaluation_threads()) as pool:
            return np.concatenate(pool.map(batch, range(0, len(examples), size), chunksize=1))

    return predict


def score(logits, labels):
    """Accuracy, mean cross-entropy (nats) and calibration error of logits [N, K] against labels [N].

    Returns:
        ({"images": N, "accuracy": …, "cross_entropy": …, "calibration_error": …}, and a row for each image,
        (index, label, prediction, confidence, cross_entropy))
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
        "calibration_error": calibration_error(confidence, prediction == labels),
    }
    columns = (rows, labels, prediction, confidence.round(6), cross_entropy.round(6))
    return summary, list(zip(*(column.tolist() for column in columns), strict=True))


def calibration_error(confidence, correct):
    """Expected calibration error, ECE: Σ over bins of (share of the images) · |mean confidence − accuracy|.

    15 bins of equal width, as C. Guo et al., "On Calibration of Modern Neural Networks", 2017 (arXiv 1706.04599).

    Args:
        confidence: probability of the predicted class, [N], from 0 to 1.
        correct: whether the prediction is right, [N].
    """
    bins = np.minimum((np.asarray(confidence) * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, np.asarray(confidence) - np.asarray(correct), CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(bins))


def confusion_matrix(labels, predictions, classes):
    """How many images of each label got each prediction: int [classes, classes]."""
    return np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)


def layer_rows(model, settings):
    """A row for each layer with a kernel, from the stem to the head; biases are not counted.

    Yields:
        {"layer", "weights": count, "sum_abs": Σ|w|, "sum_squares": Σw², "exact_zeros": how many are 0,
        "near_zero": how many |w| < evaluate.near_zero, "penalty": what the layer's own regularizer adds to the loss,
        "penalty_share": of the whole penalty, "effective_learning_rate": train.learning_rate / Σw², where batch
        normalization follows and makes the output blind to the kernel's size (T. van Laarhoven, 2017,
        arXiv 1706.05350); else empty}
    """
    total = reg_loss(model)
    found = kernels(model)
    for layer, variable in found:
        kernel = np.abs(variable.numpy().astype(np.float64))
        squares = float(np.square(kernel).sum())
        own = float(sum(layer.losses))
        normalized = settings.model.batch_norm and layer is not found[-1][0]
        yield {
            "layer": layer.name,
            "weights": kernel.size,
            "sum_abs": float(kernel.sum()),
            "sum_squares": squares,
            "exact_zeros": int((kernel == 0).sum()),
            "near_zero": int((kernel < settings.evaluate.near_zero).sum()),
            "penalty": own,
            "penalty_share": own / total if total else 0.0,
            "effective_learning_rate": settings.train.learning_rate / squares if normalized and squares else "",
        }


def weight_histogram(model):
    """All kernel weights by size: rows (log₁₀ of the lower end, of the upper end, how many).

    The first row, from -inf, holds the exact zeros and what is below the first bin; the last what is above, to inf.
    """
    low, high, width = HISTOGRAM_DECADES
    edges = np.round(np.arange(low, high + width / 2, width), 1)
    sizes = np.concatenate([np.abs(kernel.numpy()).ravel() for _, kernel in kernels(model)])
    counts = np.bincount(np.searchsorted(10.0**edges, sizes, side="right"), minlength=len(edges) + 1)
    return list(zip([-np.inf, *edges.tolist()], [*edges.tolist(), np.inf], counts.tolist(), strict=True))


def prune(model, shares, examples, predict):
    """Accuracy on `examples` with the smallest kernel weights of the whole network set to 0, not trained again.

    Magnitude pruning, global and in one shot (S. Han et al., 2015, arXiv 1506.02626). The model keeps its weights.

    Args:
        model: as trained.
        shares: which share of all kernel weights to set to 0, from 0 to 1.
        examples: a split.
        predict: the model's `predictor`.

    Returns:
        rows (share, |w| below which weights were set to 0, accuracy), a share above 0 each
    """
    variables = [kernel for _, kernel in kernels(model)]
    original = [variable.numpy() for variable in variables]
    sizes = np.sort(np.concatenate([np.abs(weights).ravel() for weights in original]))
    rows = []
    for share in sorted({*shares} - {0.0}):
        threshold = float(sizes[min(round(share * len(sizes)), len(sizes) - 1)])
        for variable, weights in zip(variables, original, strict=True):
            variable.assign(np.where(np.abs(weights) < threshold, 0, weights))
        rows.append((share, threshold, float(np.mean(predict(examples).argmax(axis=1) == examples.labels))))
    for variable, weights in zip(variables, original, strict=True):
        variable.assign(weights)
    return rows
