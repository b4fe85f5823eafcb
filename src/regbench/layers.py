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
        outputs = tf.matmul(
            tf.reshape(inputs, [-1, channels]),
            tf.reshape(tf.cast(self.kernel, inputs.dtype), [channels, self.filters]),
        )
        if self.use_bias:
            outputs = tf.nn.bias_add(outputs, tf.cast(self.bias, inputs.dtype))
        outputs = _as_map(outputs, inputs, self.filters)
        return outputs if self.activation is None else self.activation(outputs)

    def get_config(self):
        config = super().get_config()
        for fixed in ("kernel_size", "strides", "padding", "dilation_rate", "groups", "data_format"):
            del config[fixed]
        return config


def _as_map(matrix, like, channels):
    """[N·H·W, channels] → [N, H, W, channels], with N, H and W of `like`."""
    height, width = like.shape[1:3]
    if height is None or width is None:
        height, width = tf.unstack(tf.shape(like)[1:3])
    return tf.reshape(matrix, [-1, height, width, channels])


@keras.saving.register_keras_serializable(package="regbench")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization over the last axis of [N, H, W, C], by TensorFlow's fused operation.

    Equals `keras.layers.BatchNormalization()`, moving averages included. Keras composes it of some ten
    elementwise operations; the fused one reads the batch twice forward and twice backward, and updates the
    averages as well. Its variance is the unbiased one, n / (n - 1) times what Keras averages; a moving variance
    that is scaled before and after makes up for it. In inference a product and a sum are faster.

    Args:
        **kwargs: as for `keras.layers.BatchNormalization`, with `axis=-1`, `center` and `scale` as by default.
    """

    averages = True
    """Whether a call in training updates the moving averages; false where nobody is going to read them."""

    def call(self, inputs, training=None, mask=None):
        # The fused operation knows neither double precision nor several replicas' common statistics.
        if inputs.shape.rank != 4 or inputs.dtype == tf.float64 or self.synchronized:
            return super().call(inputs, training=training, mask=mask)
        training = bool(training) and self.trainable
        if not training and inputs.dtype == tf.float32:
            # On a CPU the fused operation takes twice as long, and with 24 channels seven times.
            scale = self.gamma * tf.math.rsqrt(self.moving_variance + self.epsilon)
            return inputs * scale + (self.beta - self.moving_mean * scale)
        fused = _fused_batch_norm(inputs.dtype)
        if training and not self.averages:
            none = tf.zeros([0])
            return fused(x=inputs, scale=self.gamma, offset=self.beta, mean=none, variance=none, epsilon=self.epsilon).y
        count = tf.cast(tf.size(inputs) // inputs.shape[-1], tf.float32)
        unbiased = count / tf.maximum(count - 1.0, 1.0) if training else 1.0
        outputs, mean, variance, *_ = fused(
            x=inputs,
            scale=self.gamma,
            offset=self.beta,
            mean=self.moving_mean,
            variance=self.moving_variance * unbiased,
            epsilon=self.epsilon,
            exponential_avg_factor=1.0 - self.momentum,
            is_training=training,
        )
        if training:
            self.moving_mean.assign(mean)
            self.moving_variance.assign(variance / unbiased)
        return outputs


def _fused_batch_norm(dtype):
    """The oldest version of the operation where it will do: one kernel, but half precision takes the newest.

    Only of the oldest does TensorFlow know that nobody asks for gradients by its statistics; for any other it makes
    zeros, an eighth of all operations in the graph of a training step.
    """
    return tf.raw_ops.FusedBatchNorm if dtype == tf.float32 else tf.raw_ops.FusedBatchNormV3


@keras.saving.register_keras_serializable(package="regbench")
class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """3×3 depthwise convolution that is fast on small maps.

    Equals `keras.layers.DepthwiseConv2D(3)`. TensorFlow's kernel gradient for "same" padding on a CPU costs as
    much for a map of 1×1 as for one of 8×8; at images of 32 pixels, ten of the network's seventeen maps are 2×2
    or 1×1. With the same padding given in numbers it takes another way, and a map of 1×1 meets the kernel's
    centre only.

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
        if not small or self.padding != "same" or self.strides not in ((1, 1), (2, 2)):
            return super().call(inputs)
        stride = self.strides[0]
        kernel = tf.cast(self.kernel, inputs.dtype)
        if height == width == 1:
            outputs = inputs * kernel[1, 1, :, 0]
        else:
            padding = [[0, 0], _same_padding(height, stride), _same_padding(width, stride), [0, 0]]
            outputs = tf.nn.depthwise_conv2d(inputs, kernel, [1, stride, stride, 1], padding)
        if self.use_bias:
            outputs = tf.nn.bias_add(outputs, tf.cast(self.bias, inputs.dtype))
        return outputs if self.activation is None else self.activation(outputs)

    def get_config(self):
        config = super().get_config()
        for fixed in ("kernel_size", "depth_multiplier", "dilation_rate", "data_format"):
            del config[fixed]
        return config


def _same_padding(side, stride):
    """[before, after]: what "same" stands for, with a window of 3."""
    total = max((-(-side // stride) - 1) * stride + 3 - side, 0)
    return [total // 2, total - total // 2]


@keras.saving.register_keras_serializable(package="regbench")
class Add(keras.layers.Add):
    """The sum of inputs of one shape, as a shortcut adds them.

    Equals `keras.layers.Add()`, which would have inputs of different shapes repeated to fit: while the number of
    images in a batch is not known, each gradient comes with operations that find out that nothing is to be summed.

    Shapes:
        a list of float [N, H, W, C] → float [N, H, W, C].
    """

    def _merge_function(self, inputs):
        return tf.add_n(inputs)


@keras.saving.register_keras_serializable(package="regbench")
class ExpandConv2D(PointwiseConv2D):
    """The expansion of a bottleneck in one layer: 1×1 convolution, batch normalization, ReLU6.

    Equals `keras.layers.Conv2D(filters, 1, use_bias=False)`, `BatchNormalization()` and `ReLU(6)` one after the
    other. An expansion has few inputs X [n, C] and many outputs Y = X·W [n, F], and batch normalization is linear
    in Y but for its statistics, which follow from those of X:

        mean(Y) = mean(X)·W        var(Y) = diag(Wᵀ·cov(X)·W)

    So Y is never read to be normalized: gamma / √(var + epsilon) scales W before the product. Backward it is the
    same: with P = Xᵀ·dZ, Σ dZ·Y = diag(Wᵀ·P), and both gradients follow from P, cov(X) and W. Besides products of
    matrices, the large maps are passed over once forward, by ReLU6, and twice backward. X is centred first, so
    nothing is lost to cancellation.

    That pays while a map has many more pixels than channels; else the three steps are done one by one.

    Args:
        filters: number of output channels.
        momentum: of the moving averages.
        epsilon: added to the variance.
        synchronized: whether batch normalization takes its statistics over all replicas of a `tf.distribute` strategy.
        **kwargs: as for `PointwiseConv2D`, without `use_bias` and `activation`.

    Shapes:
        float [N, H, W, C] → float [N, H, W, filters], from 0 to 6.
    """

    def __init__(self, filters, momentum=0.99, epsilon=1e-3, synchronized=False, **kwargs):
        super().__init__(filters, use_bias=False, **kwargs)
        self.normalization = BatchNormalization(
            momentum=momentum,
            epsilon=epsilon,
            synchronized=synchronized,
            dtype=self.dtype_policy,
            name=f"{self.name}_bn",
        )

    def build(self, input_shape):
        super().build(input_shape)
        self.normalization.build((*input_shape[:-1], self.filters))

    def call(self, inputs, training=None):
        norm = self.normalization
        height, width, channels = inputs.shape[1:]
        # The extra products cost in proportion to channels², what they save in proportion to pixels.
        pays = height is not None and width is not None and 4 * height * width > channels
        if not pays or norm.synchronized or self.compute_dtype not in ("float32", "float64"):
            return tf.nn.relu6(norm(super().call(inputs), training=training))
        matrix = tf.reshape(inputs, [-1, channels])
        kernel = tf.reshape(tf.convert_to_tensor(self.kernel), [channels, self.filters])
        if training and norm.trainable:
            gamma, beta = tf.convert_to_tensor(norm.gamma), tf.convert_to_tensor(norm.beta)
            outputs, mean, variance = _expand(matrix, kernel, gamma, beta, tf.constant(norm.epsilon, matrix.dtype))
            if norm.averages:
                for moving, batch in ((norm.moving_mean, mean), (norm.moving_variance, variance)):
                    moving.assign(moving * norm.momentum + batch * (1.0 - norm.momentum))
        else:
            scale = norm.gamma * tf.math.rsqrt(norm.moving_variance + norm.epsilon)
            outputs = tf.nn.bias_add(tf.matmul(matrix, kernel * scale), norm.beta - norm.moving_mean * scale)
            outputs = tf.nn.relu6(outputs)
        return _as_map(outputs, inputs, self.filters)

    def get_config(self):
        config = super().get_config()
        for fixed in ("use_bias", "activation", "bias_initializer", "bias_regularizer", "bias_constraint"):
            del config[fixed]
        return config | {key: getattr(self.normalization, key) for key in ("momentum", "epsilon", "synchronized")}


@tf.custom_gradient
def _expand(x, kernel, gamma, beta, epsilon):
    """ReLU6 of the batch-normalized x·kernel, [n, C]·[C, F] → [n, F]; mean [F] and variance [F] of the product."""
    count = tf.cast(tf.shape(x)[0], x.dtype)
    mean = tf.reduce_mean(x, axis=0)
    centred = x - mean
    # cov(X)·W, [C, F]
    moments = tf.matmul(tf.matmul(centred, centred, transpose_a=True) / count, kernel)
    variance = tf.reduce_sum(kernel * moments, axis=0)
    inverse = tf.math.rsqrt(variance + epsilon)
    scaled = kernel * (gamma * inverse)
    outputs = tf.nn.relu6(tf.nn.bias_add(tf.matmul(centred, scaled), beta))

    def gradient(upstream, *_):
        """Of x, kernel, gamma and beta; the statistics only feed moving averages, which have none."""
        upstream = tf.raw_ops.Relu6Grad(gradients=upstream, features=outputs)
        product = tf.matmul(centred, upstream, transpose_a=True)
        d_beta = tf.raw_ops.BiasAddGrad(out_backprop=upstream)
        d_gamma = tf.reduce_sum(kernel * product, axis=0) * inverse
        scale = gamma * inverse
        d_kernel = scale * (product - moments * (inverse * d_gamma))
        d_x = (
            tf.matmul(upstream, scaled, transpose_b=True)
            - tf.matmul(centred, tf.matmul(kernel * (scale * inverse * d_gamma / count), kernel, transpose_b=True))
            - tf.linalg.matvec(kernel, scale * d_beta / count)
        )
        return d_x, d_kernel, d_gamma, d_beta, None

    return (outputs, tf.linalg.matvec(kernel, mean, transpose_a=True), variance), gradient
