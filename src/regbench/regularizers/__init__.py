"""The kinds of regularizer: one file for each, found by the kind's name under `reg:` in params.yaml.

A file's docstring gives formula, source and what to expect. `SCOPE` says which weights the kind covers unless params
say otherwise; None means that it does not act on weights. `HIGHEST` is the highest strength it takes, `WHOLE` says that
it takes whole numbers only, and `EXCLUDES` names the kinds it can't be combined with. Combined kinds act in ascending
`ORDER`, 0 by default, whatever their order in params. The file's functions say where the kind acts. On the weights that
it covers:

    penalty(weight)                              → scalar that is added to the loss, at a strength of 1
    before_step(weight, strength, learning_rate) → the weight before the gradient's step
    after_step(weight, strength, learning_rate)  → the weight after it

A kind may remember a tensor for a weight from step to step. Its penalty is then `penalty(weight, memory)`, and

    remember(weight, memory)                     → the tensor to remember after a step, or None to remember nothing for
                                                   this weight; memory is the tensor so far, None at first

On a whole training, with `strength` from params:

    in_network(network, strength)           → the network with added layers that act in training only; it shares all
                                              other layers
    on_batch(strength)                      → a Keras layer, {"images": float [B, H, W, C], 0 to 255, "labels": float
                                              [B, K], one-hot} → the same
    optimizer(strength)                     → arguments of `keras.optimizers.SGD`
    climb(weights, gradients, strength)     → offsets; the gradient of the step is taken at weights + offsets
    stops(history, strength)                → whether training ends after these rows of history; the weights of the row
                                              with the lowest validation cross-entropy are kept

Several kinds of one line act by ascending `ORDER`, and by name where it is equal. Keras's generators draw the random
numbers. `training.model` sets their states before each step, so that the numbers are a function of (seed, step). A
strength of 0 is the same as no regularizer.
"""

import importlib
from collections.abc import Callable, Iterable
from types import ModuleType

import keras
import tensorflow as tf

from regbench import networks, params


@keras.saving.register_keras_serializable(package="regbench")
class Regularizer(keras.Regularizer):
    """What a line under `reg:` does to one weight.

    A call returns the sum of the penalties, as with any `keras.Regularizer`. `training.optimizer.SGD` makes it act
    before and after each step (`apply`).

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
        self.memories: dict[str, keras.Variable] = {}

    def __call__(self, weight: tf.Tensor) -> tf.Tensor:
        weight = tf.convert_to_tensor(weight)
        parts = [self.strengths[kind] * self.penalty(kind, weight) for kind, _ in self.having("penalty")]
        return sum(parts) if parts else tf.zeros([], weight.dtype)

    def penalty(self, kind: str, weight: tf.Tensor) -> tf.Tensor:
        """The penalty of one kind at a strength of 1."""
        memory = (tf.convert_to_tensor(self.memories[kind]),) if kind in self.memories else ()
        return self.kinds[kind].penalty(weight, *memory)

    def acts(self, moment: str) -> bool:
        """Whether any kind changes the weight at this moment, "before_step" or "after_step"."""
        return bool(self.having(moment))

    def apply(self, moment: str, weight: tf.Tensor, learning_rate: tf.Tensor) -> tf.Tensor:
        """The weight after all kinds have acted at this moment, "before_step" or "after_step"."""
        for kind, found in self.having(moment):
            weight = getattr(found, moment)(weight, self.strengths[kind], learning_rate)
        return weight

    def start_memories(self, weight: tf.Tensor) -> None:
        """Make a variable for each kind that remembers something about the weight from step to step."""
        for kind, found in self.having("remember"):
            if (value := found.remember(tf.convert_to_tensor(weight), None)) is not None:
                self.memories[kind] = keras.Variable(value, trainable=False, name=kind)

    def remember(self, weight: tf.Tensor) -> None:
        """Update what the kinds remember, after a step has changed the weight."""
        for kind, memory in self.memories.items():
            memory.assign(self.kinds[kind].remember(tf.convert_to_tensor(weight), tf.convert_to_tensor(memory)))

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


def acting(line: params.Regularizer, function: str) -> list[tuple[Callable, float]]:
    """(function, strength) of each kind of a line under `reg:` that has a function of this name, by `ORDER`."""
    kinds = [(_kind(term.kind), term.strength) for term in line.active.values()]
    kinds.sort(key=lambda found: getattr(found[0], "ORDER", 0))
    return [(getattr(kind, function), strength) for kind, strength in kinds if hasattr(kind, function)]


def filter_axes(weight: tf.Tensor) -> list[int]:
    """The axes of a kernel along which one filter extends; empty for a bias. A filter is all weights of one output.

    A kernel [h, w, C, 1] counts as that of a depthwise convolution, with one filter for each channel.
    """
    depthwise = len(weight.shape) == 4 and weight.shape[-1] == 1
    return [0, 1, 3] if depthwise else list(range(len(weight.shape) - 1))


def attach(model: keras.Model, line: params.Regularizer) -> None:
    """Set `regularizer` of every weight of a model that a line under `reg:` covers, and set it to None for all others.

    A line can cover kernels and, as in the article, the bias of the head, which is the last Dense layer. It never
    covers batch normalization's scale and offset, the convolutions' biases and frozen weights.

    Args:
        model: a `keras.Model`, built.
        line: `params.Regularizer`.
    """
    for variable in model.variables:
        variable.regularizer = None
    head, trained = networks.head(model), {id(weight) for weight in model.trainable_variables}
    backbone = [
        (layer, kernel) for layer, kernel in networks.kernels(model) if layer is not head and id(kernel) in trained
    ]
    covered = {"head": [weight for weight in head.weights if id(weight) in trained]}
    covered["backbone"] = [kernel for _, kernel in backbone]
    covered["all"] = covered["backbone"] + covered["head"]
    depthwise = {id(kernel) for layer, kernel in backbone if networks.is_depthwise(layer, kernel)}
    covered["no_depthwise"] = [weight for weight in covered["all"] if id(weight) not in depthwise]
    strengths: dict[int, dict[str, float]] = {}
    for term in line.active.values():
        for weight in covered[term.scope] if term.scope else ():
            strengths.setdefault(id(weight), {})[term.kind] = term.strength
    for weight in covered["all"]:
        if id(weight) in strengths:
            weight.regularizer = Regularizer(strengths[id(weight)])
            weight.regularizer.start_memories(weight)


def penalties(weights: Iterable[keras.Variable]) -> list[tf.Tensor]:
    """The penalties of weights, to add to the loss: one scalar for each kind and strength, to need fewer operations."""
    covered: dict[tuple[str, float], list[tf.Tensor]] = {}
    for weight in weights:
        if isinstance(weight.regularizer, Regularizer):
            for kind, _ in weight.regularizer.having("penalty"):
                term = (kind, weight.regularizer.strengths[kind])
                covered.setdefault(term, []).append(weight.regularizer.penalty(kind, tf.convert_to_tensor(weight)))
    return [strength * tf.add_n(parts) for (_, strength), parts in covered.items()]


def memories(weights: Iterable[keras.Variable]) -> list[keras.Variable]:
    """The variables that kinds remember for these weights from step to step. They are part of a training's state."""
    held = [weight.regularizer for weight in weights if isinstance(weight.regularizer, Regularizer)]
    return [memory for regularizer in held for memory in regularizer.memories.values()]
