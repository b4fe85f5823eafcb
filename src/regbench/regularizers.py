"""One line under `reg:` → the penalty it adds to the loss."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="regbench")
class L1(keras.regularizers.L1):
    """strength · Σ|w|, the Lasso's penalty (R. Tibshirani, 1996): constant pull to zero, whatever a weight's size.

    Equals `keras.regularizers.L1(strength)`, whose gradient TensorFlow spreads over a tensor of ones first.
    """

    def __call__(self, weight):
        return float(self.l1) * _sum_abs(tf.convert_to_tensor(weight))


@keras.saving.register_keras_serializable(package="regbench")
class L2(keras.regularizers.L2):
    """strength · Σw², Tikhonov's penalty: pull in proportion to a weight.

    There is no ½: under plain SGD, PyTorch's `weight_decay=2 * strength` does the same. Equals
    `keras.regularizers.L2(strength)`, in one pass over the weight forward and one backward.
    """

    def __call__(self, weight):
        return 2.0 * float(self.l2) * tf.nn.l2_loss(weight)


@tf.custom_gradient
def _sum_abs(weight):
    return tf.reduce_sum(tf.abs(weight)), lambda upstream: upstream * tf.sign(weight)


PENALTIES = {"l1": L1, "l2": L2}


@keras.saving.register_keras_serializable(package="regbench")
class Sum(keras.Regularizer):
    """The sum of several penalties of the same weight.

    Args:
        parts: list of `keras.Regularizer`.

    Example:
        >>> Sum([keras.regularizers.L1(1e-5), keras.regularizers.L2(1e-4)])
    """

    def __init__(self, parts):
        self.parts = [keras.regularizers.get(part) for part in parts]

    def __call__(self, weight):
        return sum(part(weight) for part in self.parts)

    def get_config(self):
        return {"parts": [keras.regularizers.serialize(part) for part in self.parts]}


def build(penalty):
    """The regularizers of backbone and head for a `params.Penalty`.

    Returns:
        (regularizer, head_regularizer): each a `keras.Regularizer`, or None for no penalty.
    """
    parts = [PENALTIES[kind](strength) for kind, strength in penalty.strengths]
    regularizer = None if not parts else parts[0] if len(parts) == 1 else Sum(parts)
    return regularizer, regularizer if penalty.head else None
