"""What has become of a model's kernel weights: by layer, by size, and how many can be removed."""

from collections.abc import Callable, Iterable, Iterator

import keras
import numpy as np

from regbench.data.arrays import Split
from regbench.networks import kernels
from regbench.regularizers import penalties

HISTOGRAM_DECADES = (-8.0, 1.0, 0.1)
"""Smallest and largest log₁₀|w| of the weight histogram, and the width of a bin."""


def layer_rows(model: keras.Model, near_zero: float, learning_rate: float, batch_norm: bool) -> Iterator[dict]:
    """A row for each layer with a kernel, from the stem to the head; biases are not counted.

    Args:
        model: as trained, with its regularizer attached.
        near_zero: a weight smaller than this counts as near zero.
        learning_rate: of the training, at its highest.
        batch_norm: whether batch normalization follows each convolution.

    Yields:
        {"layer", "weights": count, "sum_abs": Σ|w|, "sum_squares": Σw², "exact_zeros": how many are 0,
        "near_zero": how many |w| < near_zero, "penalty": what the layer's weights add to the loss,
        "penalty_share": of the whole penalty, "effective_learning_rate": learning_rate / Σw², where batch normalization
        follows and makes the output independent of the kernel's size (T. van Laarhoven, 2017, arXiv 1706.05350); else
        empty}
    """
    total = penalty(model)
    found = kernels(model)
    for layer, variable in found:
        kernel = np.abs(variable.numpy().astype(np.float64))
        squares = float(np.square(kernel).sum())
        own = penalty(layer)
        normalized = batch_norm and layer is not found[-1][0]
        yield {
            "layer": layer.name,
            "weights": kernel.size,
            "sum_abs": float(kernel.sum()),
            "sum_squares": squares,
            "exact_zeros": int((kernel == 0).sum()),
            "near_zero": int((kernel < near_zero).sum()),
            "penalty": own,
            "penalty_share": own / total if total else 0.0,
            "effective_learning_rate": learning_rate / squares if normalized and squares else "",
        }


def penalty(layer: keras.layers.Layer) -> float:
    """What the regularizers of the weights of a layer, or of a whole model, add to the loss."""
    return float(sum(penalties(layer.trainable_variables)))


def histogram(model: keras.Model) -> list[tuple[float, float, int]]:
    """All kernel weights by size: rows (log₁₀ of the lower end, of the upper end, how many).

    The first row, from -inf, holds the exact zeros and what is below the first bin; the last what is above, to inf.
    """
    low, high, width = HISTOGRAM_DECADES
    edges = np.round(np.arange(low, high + width / 2, width), 1)
    sizes = np.concatenate([np.abs(kernel.numpy()).ravel() for _, kernel in kernels(model)])
    counts = np.bincount(np.searchsorted(10.0**edges, sizes, side="right"), minlength=len(edges) + 1)
    return list(zip([-np.inf, *edges.tolist()], [*edges.tolist(), np.inf], counts.tolist(), strict=True))


def prune(
    model: keras.Model, shares: Iterable[float], split: Split, predict: Callable[[Split], np.ndarray]
) -> list[tuple[float, float, float]]:
    """Accuracy on a split with the smallest kernel weights of the whole network set to 0, not trained again.

    Magnitude pruning, global and in one shot (S. Han et al., 2015, arXiv 1506.02626). The model keeps its weights.

    Args:
        model: as trained.
        shares: which share of all kernel weights to set to 0, from 0 to 1.
        split: the images.
        predict: the model's `predict.predictor`.

    Returns:
        rows (share, |w| below which weights were set to 0, accuracy), one for each share above 0
    """
    variables = [kernel for _, kernel in kernels(model)]
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
