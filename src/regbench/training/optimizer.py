"""SGD that lets regularizers act on a weight before and after each step."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from regbench import regularizers


@keras.saving.register_keras_serializable(package="regbench")
class SGD(keras.optimizers.SGD):
    """`keras.optimizers.SGD` without Nesterov momentum, with what regularizers do to a weight before and after a step.

    A weight whose `regularizer` is a `regularizers.Regularizer` passes through its `before_step` and `after_step`.

    Args: as for `keras.optimizers.SGD`; `nesterov` has to be false.
    """

    def __init__(self, *args: object, **kwargs: object):
        super().__init__(*args, **kwargs)
        if self.nesterov:
            raise ValueError("regbench's SGD has no Nesterov momentum; use keras.optimizers.SGD")

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        # Keras passes the TensorFlow variable. The Keras variable, which has the regularizer, has the same index.
        regularizer = self._trainable_variables[self._get_variable_index(variable)].regularizer
        acting = isinstance(regularizer, regularizers.Regularizer)
        rate = tf.cast(learning_rate, variable.dtype)
        if acting and regularizer.acts("before_step"):
            variable.assign(regularizer.apply("before_step", tf.convert_to_tensor(variable), rate))
        super().update_step(gradient, variable, learning_rate)
        if acting and regularizer.acts("after_step"):
            variable.assign(regularizer.apply("after_step", tf.convert_to_tensor(variable), rate))
        if acting:
            regularizer.remember(variable)

    def apply(self, grads: Sequence[tf.Tensor], trainable_variables: Sequence[keras.Variable] | None = None) -> None:
        """Make one step. Keras would clip each replica's gradient; here the sum of the gradients is clipped."""
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if self.global_clipnorm and replicas > 1:
            clipped, _ = tf.clip_by_global_norm(sum_over_replicas(grads), self.global_clipnorm)
            grads = [gradient / replicas for gradient in clipped]
        super().apply(grads, trainable_variables)

    def finalize_variable_values(self, var_list: list[keras.Variable]) -> None:
        """Do nothing. Keras would replace the weights by their averages after each `fit`, which here is each epoch.

        `swap_averages` does that when it is needed.
        """

    def swap_averages(self) -> None:
        """Exchange the model's weights and their moving averages, if there are any; a second call swaps them back."""
        if self.use_ema:
            for variable, average in zip(self._trainable_variables, self._model_variables_moving_average, strict=True):
                value = tf.identity(variable)
                variable.assign(average)
                average.assign(value)


def of(model: keras.Model) -> SGD:
    """The optimizer of a model; with float16, Keras wraps it in one that scales the loss."""
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def sum_over_replicas(gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The gradients of the whole batch: their sum over all replicas. To be called within a step of each replica."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return list(gradients)
    return context.all_reduce(tf.distribute.ReduceOp.SUM, list(gradients))
