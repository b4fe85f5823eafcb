"""One line under `reg:` → the penalty it adds to the loss."""

import keras


def l1(strength):
    """strength · Σ|w|, the Lasso's penalty (R. Tibshirani, 1996): constant pull to zero, whatever a weight's size."""
    return keras.regularizers.L1(strength)


def l2(strength):
    """strength · Σw², Tikhonov's penalty: pull in proportion to a weight.

    There is no ½: under plain SGD, PyTorch's `weight_decay=2 * strength` does the same.
    """
    return keras.regularizers.L2(strength)


PENALTIES = {"l1": l1, "l2": l2}


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
