"""SGD that lets regularizers act on a weight before and after each step."""

import keras
import tensorflow as tf

from regbench import regularizers


@keras.saving.register_keras_serializable(package="regbench")
class SGD(keras.optimizers.SGD):
    """`keras.optimizers.SGD` without Nesterov's momentum, and what regularizers do to a weight before and after.

    A weight whose `regularizer` is a `regularizers.Regularizer` passes through its `before_step` and `after_step`.

    Args: as for `keras.optimizers.SGD`; `nesterov` has to be false.
    """

    def __init__(self, *args: object, **kwargs: object):
        super().__init__(*args, **kwargs)
        if self.nesterov:
            raise ValueError("regbench's SGD has no Nesterov momentum; use keras.optimizers.SGD")

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        # Keras passes TensorFlow's variable. Keras's own, which knows its regularizer, has the same index.
        regularizer = self._trainable_variables[self._get_variable_index(variable)].regularizer
        acting = isinstance(regularizer, regularizers.Regularizer)
        rate = tf.cast(learning_rate, variable.dtype)
        if acting and regularizer.acts("before_step"):
            variable.assign(regularizer.apply("before_step", tf.convert_to_tensor(variable), rate))
        super().update_step(gradient, variable, learning_rate)
        if acting and regularizer.acts("after_step"):
            variable.assign(regularizer.apply("after_step", tf.convert_to_tensor(variable), rate))
