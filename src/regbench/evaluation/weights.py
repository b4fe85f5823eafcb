"""The kernel weights of a trained model: by layer, by size, and how many can be removed."""

from collections.abc import Callable, Iterable, Iterator

import keras
import numpy as np

from regbench import networks
from regbench.data.arrays import Split
from regbench.regularizers import penalties

HISTOGRAM_DECADES = (-8.0, 1.0, 0.1)
"""Smallest and largest log₁₀|w| of the weight histogram, and the width of a bin."""


def layer_rows(model: keras.Model, near_zero: float, learning_rate: float) -> Iterator[dict]:
    """A row for each kernel, from the stem to the head; biases are not counted.

    Args:
        model: as trained, with its regularizer attached.
        near_zero: a weight smaller than this counts as near zero.
        learning_rate: the highest one in training.

    Yields:
        {"layer": its name, and of a layer with several kernels which one, "weights": count, "sum_abs": Σ|w|,
        "sum_squares": Σw², "exact_zeros": how many are 0, "near_zero": how many |w| < near_zero, "penalty": what the
        kernel, and the head's bias, add to the loss, "penalty_share": of the whole penalty, "effective_learning_rate":
        learning_rate / Σw² where batch normalization follows and makes the output independent of the kernel's size
        (T. van Laarhoven, 2017, arXiv 1706.05350); else, and of frozen layers, empty}
    """
    total, head = penalty(model), networks.head(model)
    normalized = {id(layer) for layer in networks.normalized(model) if layer.trainable}
    for layer, variable in networks.kernels(model):
        kernel = np.abs(variable.numpy().astype(np.float64))
        squares = float(np.square(kernel).sum())
        own = float(sum(penalties(head.trainable_variables if layer is head else [variable])))
        scale_free = squares and id(layer) in normalized
        yield {
            "layer": networks.name_of(layer, variable),
            "weights": kernel.size,
            "sum_abs": float(kernel.sum()),
            "sum_squares": squares,
            "exact_zeros": int((kernel == 0).sum()),
            "near_zero": int((kernel < near_zero).sum()),
            "penalty": own,
            "penalty_share": own / total if total else 0.0,
            "effective_learning_rate": learning_rate / squares if scale_free else "",
        }


def penalty(layer: keras.layers.Layer) -> float:
    """What the regularizers of the weights of a layer, or of a whole model, add to the loss."""
    return float(sum(penalties(layer.trainable_variables)))


def histogram(model: keras.Model) -> list[tuple[float, float, int]]:
    """All kernel weights by size: rows (log₁₀ of the lower end, of the upper end, how many).

    The first row, from -inf, counts exact zeros and all weights below the first bin; the last row, to inf, those above.
    """
    low, high, width = HISTOGRAM_DECADES
    edges = np.round(np.arange(low, high + width / 2, width), 1)
    sizes = np.concatenate([np.abs(kernel.numpy()).ravel() for _, kernel in networks.kernels(model)])
    counts = np.bincount(np.searchsorted(10.0**edges, sizes, side="right"), minlength=len(edges) + 1)
    return list(zip([-np.inf, *edges.tolist()], [*edges.tolist(), np.inf], counts.tolist(), strict=True))


def prune(
    model: keras.Model, shares: Iterable[float], split: Split, predict: Callable[[Split], np.ndarray]
) -> list[tuple[float, float, float]]:
    """Accuracy on a split with the smallest kernel weights of the whole network set to 0, without further training.

    Magnitude pruning, global and in one shot (S. Han et al., 2015, arXiv 1506.02626). The weights are restored at the
    end.

    Args:
        model: as trained.
        shares: the shares of all kernel weights to set to 0, each from 0 to 1.
        split: the images.
        predict: the model's `predict.predictor`.

    Returns:
        rows (share, |w| below which weights were set to 0, accuracy), one for each share above 0
    """
    variables = [kernel for _, kernel in networks.kernels(model)]
    original = [variable.numpy() for variable in variables]
    sizes = np.sort(np.concatenate([np.abs(weights).ravel() for weights in original]))
    rows = []
    for share in sorted({*shares} - {0.0}):
        threshold = float(sizes[min(round(share * len(sizes)), len(sizes) - 1)])
        for variable, weights in zip(variables, original, strict=True):
            variable.assign(np.where(np.abs(weights) < threshold, 0, weights))
        rows.append((share, threshold, float(np.mean(predict(split).argmax(axis=1) == split.labels))))
    for variable, weights in zip(variables, original, strict=True):
        variable.assign(weights)
    return rows
