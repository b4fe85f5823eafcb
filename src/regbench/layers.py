"""Exact, faster versions of the layers the network is made of.

Each is a subclass of the Keras layer it stands for: same arguments, weights, initial values and `.keras`
config, and the same mathematics, so that models, penalties and checkpoints do not know the difference.
What differs is the TensorFlow operation that does the work. `benchmarks/` has what that brings.
"""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="regbench")
class PointwiseConv2D(keras.layers.Conv2D):
    """1×1 convolution, computed as a matrix product on the channel axis.

    Equals `keras.layers.Conv2D(filters, 1)`. On a CPU, TensorFlow's matrix product is faster than its general
    convolution, most of all in the two gradients.

    Args:
        filters: number of output channels.
        **kwargs: as for `keras.layers.Conv2D`, without `kernel_size`, `strides`, `groups` and dilation.

    Shapes:
        float [N, H, W, C] → float [N, H, W, filters]; the kernel is [1, 1, C, filters].
    """

    def __init__(self, filters, **kwargs):
        super().__init__(filters, kernel_size=1, **kwargs)

    def call(self, inputs):
        channels = inputs.shape[-1]
        shape = tf.shape(inputs)
        outputs = tf.matmul(
            tf.reshape(inputs, [-1, channels]),
            tf.reshape(tf.cast(self.kernel, inputs.dtype), [channels, self.filters]),
        )
        if self.use_bias:
            outputs = tf.nn.bias_add(outputs, tf.cast(self.bias, inputs.dtype))
        outputs = tf.reshape(outputs, tf.concat([shape[:-1], [self.filters]], axis=0))
        outputs.set_shape(inputs.shape[:-1].concatenate(self.filters))
        return outputs if self.activation is None else self.activation(outputs)

    def get_config(self):
        config = super().get_config()
        for fixed in ("kernel_size", "strides", "padding", "dilation_rate", "groups", "data_format"):
            del config[fixed]
        return config


@keras.saving.register_keras_serializable(package="regbench")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization over the last axis of [N, H, W, C], by TensorFlow's fused operation.

    Equals `keras.layers.BatchNormalization()`, moving averages included. Keras composes it of some ten
    elementwise operations; the fused one reads the batch twice forward and twice backward. It returns the
    unbiased variance, n / (n - 1) times the one it normalizes with; Keras averages the biased one, and so do we.

    Args:
        **kwargs: as for `keras.layers.BatchNormalization`, with `axis=-1`, `center` and `scale` as by default.
    """

    def call(self, inputs, training=None, mask=None):
        if not training or not self.trainable or inputs.shape.rank != 4:
            return super().call(inputs, training=training, mask=mask)
        outputs, mean, variance, _, _, _ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma,
            offset=self.beta,
            mean=[],
            variance=[],
            epsilon=self.epsilon,
            is_training=True,
        )
        count = tf.cast(tf.size(inputs) // inputs.shape[-1], variance.dtype)
        biased = variance * (tf.maximum(count - 1.0, 1.0) / count)
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, biased)):
            moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))
        return outputs
