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


@keras.saving.register_keras_serializable(package="regbench")
class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """3×3 depthwise convolution whose kernel gradient is fast on small maps.

    Equals `keras.layers.DepthwiseConv2D(3)`. TensorFlow's kernel gradient for the CPU costs as much for a map of
    1×1 as for one of 8×8; at images of 32 pixels, ten of the network's seventeen maps are 2×2 or 1×1. There the
    gradient is summed tap by tap, without the taps that fall outside the map.

    Args:
        **kwargs: as for `keras.layers.DepthwiseConv2D`, without `kernel_size`, depth multiplier and dilation.

    Shapes:
        float [N, H, W, C] → float [N, H', W', C]; the kernel is [3, 3, C, 1].
    """

    def __init__(self, **kwargs):
        super().__init__(kernel_size=3, **kwargs)

    def call(self, inputs):
        height, width = inputs.shape[1:3]
        small = height is not None and width is not None and height * width <= 4
        if not small or self.strides != (1, 1) or self.padding != "same" or self.use_bias:
            return super().call(inputs)
        outputs = _depthwise_small(inputs, tf.cast(self.kernel, inputs.dtype))
        return outputs if self.activation is None else self.activation(outputs)

    def get_config(self):
        config = super().get_config()
        for fixed in ("kernel_size", "depth_multiplier", "dilation_rate", "data_format"):
            del config[fixed]
        return config


@tf.custom_gradient
def _depthwise_small(inputs, kernel):
    """Depthwise convolution, stride 1, "same", of [N, H, W, C] with [3, 3, C, 1]."""
    strides = [1, 1, 1, 1]
    outputs = tf.nn.depthwise_conv2d(inputs, kernel, strides, "SAME")
    height, width, channels = inputs.shape[1:]

    def gradient(upstream):
        taps = []
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                if abs(down) >= height or abs(right) >= width:
                    taps.append(tf.zeros([channels], inputs.dtype))
                    continue
                seen = inputs[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
                met = upstream[:, max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)]
                taps.append(tf.reduce_sum(seen * met, axis=[0, 1, 2]))
        kernel_gradient = tf.reshape(tf.stack(taps), kernel.shape)
        input_gradient = tf.nn.depthwise_conv2d_backprop_input(tf.shape(inputs), kernel, upstream, strides, "SAME")
        return input_gradient, kernel_gradient

    return outputs, gradient
