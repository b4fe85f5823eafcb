"""One line under `reg:` → what it adds to the loss, or does to the weights at each step.

The catalogue: one function for each of `params.KINDS`, of the same name. A `penalty` takes a weight and returns what
to add to the loss at a strength of 1. A function marked `before_step` or `after_step` takes a weight and an amount,
learning rate × strength, and returns what the weight becomes; `training.SGD` calls it.
"""

import keras
import tensorflow as tf

PENALTIES, BEFORE_STEP, AFTER_STEP, TOTALS = {}, {}, {}, {}


def penalty(function):
    """Mark weight → scalar as a kind of regularizer."""
    PENALTIES[function.__name__] = function
    return function


def total_of(kind):
    """Mark weights → sum of a penalty over them, where there is a faster way than one weight after the other."""

    def mark(function):
        TOTALS[kind.__name__] = function
        return function

    return mark


def before_step(function):
    """Mark (weight, amount) → weight as a kind of regularizer, applied before the gradient's step."""
    BEFORE_STEP[function.__name__] = function
    return function


def after_step(function):
    """Mark (weight, amount) → weight as a kind of regularizer, applied after the gradient's step."""
    AFTER_STEP[function.__name__] = function
    return function


@penalty
def l1(weight):
    """strength · Σ|w|, the Lasso's penalty (R. Tibshirani, 1996): constant pull to zero, whatever a weight's size.

    Equals `keras.regularizers.L1(strength)`.
    """
    return tf.reduce_sum(tf.abs(weight))


@total_of(l1)
@tf.custom_gradient
def _l1(*weights):
    # The gradient that TensorFlow derives of a sum fills a tensor as large as the weight with ones.
    def gradients(upstream):
        return [upstream * tf.sign(weight) for weight in weights]

    return tf.add_n([l1(weight) for weight in weights]), gradients


@penalty
def l2(weight):
    """strength · Σw², Tikhonov's penalty: pull in proportion to a weight.

    There is no ½: under plain SGD, PyTorch's `weight_decay=2 * strength` does the same. Equals
    `keras.regularizers.L2(strength)`, in one pass over the weight forward and one backward.
    """
    return 2.0 * tf.nn.l2_loss(weight)


@total_of(l2)
def _l2(*weights):
    return 2.0 * tf.add_n([tf.nn.l2_loss(weight) for weight in weights])


@penalty
def orthogonal(weight):
    """strength · ‖WᵀW − I‖²_F, soft orthogonality (N. Bansal et al., 2018, arXiv 1810.09102).

    W is the kernel as a matrix, [inputs of a filter, filters]. With more filters than inputs the columns can't all
    be orthogonal; the rows are pulled to be then, ‖WWᵀ − I‖²_F. A depthwise kernel [h, w, C, 1] is C filters on a
    channel each, so WᵀW is diagonal: Σ (‖w_c‖² − 1)². A bias is no matrix and adds nothing.
    """
    if weight.shape.rank < 2:
        return tf.zeros([], weight.dtype)
    if weight.shape.rank == 4 and weight.shape[-1] == 1:
        norms = tf.reduce_sum(tf.square(weight), axis=(0, 1, 3))
        return 2.0 * tf.nn.l2_loss(norms - 1.0)
    matrix = tf.reshape(weight, [-1, weight.shape[-1]])
    inputs, filters = matrix.shape
    gram = tf.matmul(matrix, matrix, transpose_a=inputs >= filters, transpose_b=inputs < filters)
    return 2.0 * tf.nn.l2_loss(gram - tf.eye(min(inputs, filters), dtype=gram.dtype))


@before_step
def weight_decay(weight, amount):
    """w · (1 − learning rate · strength), decoupled weight decay (I. Loshchilov, F. Hutter, 2019, arXiv 1711.05101).

    As PyTorch's AdamW has it, with the same strength. Under SGD without momentum it equals l2 at half the strength.
    """
    return weight * (1.0 - amount)


@after_step
def proximal_l1(weight, amount):
    """sign(w) · max(|w| − learning rate · strength, 0), the proximal step of l1, or soft threshold.

    Proximal gradient descent, ISTA (A. Beck, M. Teboulle, 2009): the same minimum as l1, with weights that are
    exactly zero, which a gradient's step never hits.
    """
    return tf.sign(weight) * tf.maximum(tf.abs(weight) - amount, 0.0)


@keras.saving.register_keras_serializable(package="regbench")
class Regularizer(keras.Regularizer):
    """All that a line under `reg:` does to one weight, as the `regularizer` of a layer's weight.

    Called, it is the sum of its penalties; `training.SGD` takes `before_step` and `after_step` from it.

    Args:
        strengths: {kind: strength}.

    Example:
        >>> Regularizer({"l1": 1e-5, "l2": 1e-4})
    """

    def __init__(self, strengths):
        self.strengths = dict(strengths)

    def __call__(self, weight):
        weight = tf.convert_to_tensor(weight)
        parts = [strength * _total(kind, [weight]) for kind, strength in self.strengths.items() if kind in PENALTIES]
        return sum(parts) if parts else tf.zeros([], weight.dtype)

    @property
    def acts_before(self):
        """Whether `before_step` changes anything."""
        return any(kind in BEFORE_STEP for kind in self.strengths)

    @property
    def acts_after(self):
        """Whether `after_step` changes anything."""
        return any(kind in AFTER_STEP for kind in self.strengths)

    def before_step(self, weight, learning_rate):
        """The weight as the gradient's step should find it."""
        return self._applied(BEFORE_STEP, weight, learning_rate)

    def after_step(self, weight, learning_rate):
        """The weight as it should be after the gradient's step."""
        return self._applied(AFTER_STEP, weight, learning_rate)

    def _applied(self, functions, weight, learning_rate):
        for kind, strength in self.strengths.items():
            if kind in functions:
                weight = functions[kind](weight, learning_rate * strength)
        return weight

    def get_config(self):
        return {"strengths": self.strengths}


def penalties(weights):
    """What the penalties of all weights add to the loss: the sum of their regularizers, in fewer operations.

    Args:
        weights: `keras.Variable`s; one whose `regularizer` is no `Regularizer` adds nothing.

    Returns:
        a list of scalars, one for each kind and strength
    """
    covered = {}
    for weight in weights:
        if isinstance(weight.regularizer, Regularizer):
            for kind, strength in weight.regularizer.strengths.items():
                if kind in PENALTIES:
                    covered.setdefault((kind, strength), []).append(tf.convert_to_tensor(weight))
    return [strength * _total(kind, members) for (kind, strength), members in covered.items()]


def _total(kind, weights):
    """A penalty at a strength of 1, over some weights."""
    if kind in TOTALS:
        return TOTALS[kind](*weights)
    return tf.add_n([PENALTIES[kind](weight) for weight in weights])


def build(line):
    """What a `params.Regularizer` covers, as arguments of `mobilenet.mobilenet_v2`.

    A covered head is its kernel and its bias, as in the article. Batch normalization's scale and offset and the
    biases of a network without it are never covered.
    """
    regularizer = Regularizer(dict(line.strengths)) if line.strengths else None
    return {
        "regularizer": None if line.scope == "head" else regularizer,
        "regularize_depthwise": line.scope != "no_depthwise",
        "head_regularizer": None if line.scope == "backbone" else regularizer,
    }
