"""The kinds of regularizer: a file each, found by its name under `reg:` in params.yaml.

A file's docstring says formula, source and what to expect. `SCOPE` says which weights the kind covers where params do
not; None: it does not act on weights. `HIGHEST` is the highest strength it takes, `WHOLE` says that it takes whole
numbers only, and `EXCLUDES` names the kinds it can't be combined with. Combined kinds act in ascending `ORDER`, 0 by
default, whatever the order in params. Its functions say where it acts. On the weights that it covers:

    penalty(weight)                              → scalar that is added to the loss, at a strength of 1
    before_step(weight, strength, learning_rate) → the weight before the gradient's step
    after_step(weight, strength, learning_rate)  → the weight after it

A kind may remember something of a weight from step to step. Its penalty is then `penalty(weight, memory)`, and

    remember(weight, memory)                     → what is remembered after a step, a tensor; memory is what was before
                                                   it, and None before the first; None: nothing of this weight

On the whole of a training, `strength` being that of params:

    in_network(network, strength)           → the network with layers that act in training only; it shares the others
    on_batch(strength)                      → a Keras layer, {"images": float [B, H, W, C], 0 to 255, "labels": float
                                              [B, K], one-hot} → the same
    optimizer(strength)                     → arguments of `keras.optimizers.SGD`
    climb(weights, gradients, strength)     → what is added to the weights before the gradient of a step is taken there
    stops(history, strength)                → whether training ends after these rows of history; the best row's weights,
                                              by validation cross-entropy, are kept

Several kinds of one line act in the order of their `ORDER`, then of their names. Random numbers are drawn by Keras's
own layers. `training.model` sets their states before each step, so that they are a function of (seed, step). A strength
of 0 is the same as no regularizer.
"""

import importlib
from collections.abc import Callable, Iterable
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
        """Whether it changes the weight `before_step` or `after_step`."""
        return bool(self.having(moment))

    def apply(self, moment: str, weight: tf.Tensor, learning_rate: tf.Tensor) -> tf.Tensor:
        """The weight after all kinds have acted `before_step` or `after_step`."""
        for kind, found in self.having(moment):
            weight = getattr(found, moment)(weight, self.strengths[kind], learning_rate)
        return weight

    def start_memories(self, weight: tf.Tensor) -> None:
        """Make a variable of all that its kinds remember of the weight from step to step."""
        for kind, found in self.having("remember"):
            if (value := found.remember(tf.convert_to_tensor(weight), None)) is not None:
                self.memories[kind] = keras.Variable(value, trainable=False, name=kind)

    def remember(self, weight: tf.Tensor) -> None:
        """Let its kinds remember the weight as a step has left it."""
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
    """The functions of this name of the kinds that a line under `reg:` has, each with its strength, by `ORDER`."""
    kinds = [(_kind(term.kind), term.strength) for term in line.active.values()]
    kinds.sort(key=lambda found: getattr(found[0], "ORDER", 0))
    return [(getattr(kind, function), strength) for kind, strength in kinds if hasattr(kind, function)]


def filter_axes(weight: tf.Tensor) -> list[int]:
    """The axes of a kernel along which one filter extends, all that feeds one output; of a bias none.

    A kernel [h, w, C, 1] is taken for that of a depthwise convolution, with a filter a channel.
    """
    depthwise = len(weight.shape) == 4 and weight.shape[-1] == 1
    return [0, 1, 3] if depthwise else list(range(len(weight.shape) - 1))


def attach(model: keras.Model, line: params.Regularizer) -> None:
    """Set `regularizer` of every weight of a model that a line under `reg:` covers, and of no other.

    Covered are kernels, and of the head, the last Dense layer, the bias too, as in the article. Batch normalization's
    scale and offset and the convolutions' biases are never covered, nor are weights that are frozen.

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
    """What the penalties of weights add to the loss: one scalar for each kind and strength, in fewer operations."""
    covered: dict[tuple[str, float], list[tf.Tensor]] = {}
    for weight in weights:
        if isinstance(weight.regularizer, Regularizer):
            for kind, _ in weight.regularizer.having("penalty"):
                term = (kind, weight.regularizer.strengths[kind])
                covered.setdefault(term, []).append(weight.regularizer.penalty(kind, tf.convert_to_tensor(weight)))
    return [strength * tf.add_n(parts) for (_, strength), parts in covered.items()]


def memories(weights: Iterable[keras.Variable]) -> list[keras.Variable]:
    """What is remembered of weights from step to step: a part of a training's state."""
    held = [weight.regularizer for weight in weights if isinstance(weight.regularizer, Regularizer)]
    return [memory for regularizer in held for memory in regularizer.memories.values()]
