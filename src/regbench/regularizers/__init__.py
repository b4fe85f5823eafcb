"""The kinds of regularizer: a file each, found by its name under `reg:` in params.yaml.

A file's docstring says formula, source and what to expect. `SCOPE` says which weights the kind covers where params do
not. Its functions say where it acts:

    penalty(weight)               → scalar that is added to the loss, at a strength of 1
    before_step(weight, amount)   → the weight before the gradient's step; amount is learning rate × strength
    after_step(weight, amount)    → the weight after it
"""

import importlib
from collections.abc import Iterable
from types import ModuleType

import keras
import tensorflow as tf

from regbench import networks, params


@keras.saving.register_keras_serializable(package="regbench")
class Regularizer(keras.Regularizer):
    """All that a line under `reg:` does to one weight.

    Called, it is the sum of its penalties, as any `keras.Regularizer`. `training.optimizer.SGD` calls `before_step` and
    `after_step`.

    Args:
        strengths: {kind: strength}.

    Example:
        >>> Regularizer({"l1": 1e-5, "l2": 1e-4})
    """

    def __init__(self, strengths: dict[str, float]):
        if wrong := [f"{kind}: {value}" for kind, value in strengths.items() if not 0 <= value < float("inf")]:
            raise ValueError(f"a strength is a finite number from 0; got {', '.join(wrong)}")
        self.strengths = dict(strengths)
        self.kinds = {kind: _kind(kind) for kind in strengths}

    def __call__(self, weight: tf.Tensor) -> tf.Tensor:
        weight = tf.convert_to_tensor(weight)
        parts = [self.strengths[kind] * found.penalty(weight) for kind, found in self.having("penalty")]
        return sum(parts) if parts else tf.zeros([], weight.dtype)

    def acts(self, moment: str) -> bool:
        """Whether it changes the weight `before_step` or `after_step`."""
        return bool(self.having(moment))

    def apply(self, moment: str, weight: tf.Tensor, learning_rate: tf.Tensor) -> tf.Tensor:
        """The weight after all kinds have acted `before_step` or `after_step`."""
        for kind, found in self.having(moment):
            weight = getattr(found, moment)(weight, learning_rate * self.strengths[kind])
        return weight

    def having(self, function: str) -> list[tuple[str, ModuleType]]:
        """The kinds that have a function of this name, as (name, module)."""
        return [(kind, found) for kind, found in self.kinds.items() if hasattr(found, function)]

    def get_config(self) -> dict:
        return {"strengths": self.strengths}


def _kind(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError:
        raise ValueError(f"unknown kind of regularizer: {name!r}") from None


def attach(model: keras.Model, line: params.Regularizer) -> None:
    """Set the `regularizer` of every weight of a model that a line under `reg:` covers, and no other.

    Covered are kernels, and of the head, the last Dense layer, the bias too, as in the article. Batch normalization's
    scale and offset and the convolutions' biases are never covered.

    Args:
        model: a `keras.Model`, built.
        line: `params.Regularizer`.
    """
    for variable in model.variables:
        variable.regularizer = None
    *backbone, (head, _) = networks.kernels(model)
    covered = {"head": [head.kernel, *([head.bias] if head.use_bias else [])]}
    covered["backbone"] = [kernel for _, kernel in backbone]
    covered["all"] = covered["backbone"] + covered["head"]
    depthwise = [layer.kernel for layer, _ in backbone if isinstance(layer, keras.layers.DepthwiseConv2D)]
    covered["no_depthwise"] = [weight for weight in covered["all"] if not any(weight is it for it in depthwise)]
    strengths: dict[int, dict[str, float]] = {}
    for term in line.terms:
        for weight in covered[term.scope]:
            strengths.setdefault(id(weight), {})[term.kind] = term.strength
    for weight in covered["all"]:
        if id(weight) in strengths:
            weight.regularizer = Regularizer(strengths[id(weight)])


def penalties(weights: Iterable[keras.Variable]) -> list[tf.Tensor]:
    """What the penalties of weights add to the loss: one scalar for each kind and strength, in fewer operations."""
    covered: dict[tuple[str, float], list[tf.Tensor]] = {}
    for weight in weights:
        if isinstance(weight.regularizer, Regularizer):
            for kind, found in weight.regularizer.having("penalty"):
                term = (kind, weight.regularizer.strengths[kind])
                covered.setdefault(term, []).append(found.penalty(tf.convert_to_tensor(weight)))
    return [strength * tf.add_n(parts) for (_, strength), parts in covered.items()]
