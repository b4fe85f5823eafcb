"""Exact, faster versions of the layers that networks are made of.

Each is a subclass of the Keras layer it replaces, with the same arguments, weights, initial values and mathematics, so
models, penalties and checkpoints need not know the difference. Only the TensorFlow operations differ; `benchmarks/` has
the speedup. In cases that a layer does not cover, it uses Keras's own code, or raises an error when it is made. All use
data_format "channels_last", whatever the user's keras.json says.

`for_xla` switches layers to operations that XLA compiles well for a GPU (`_compiled`).
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import keras
import tensorflow as tf

from regbench.networks import _compiled as compiled


@keras.saving.register_keras_serializable(package="regbench")
class PointwiseConv2D(keras.layers.Conv2D):
    """1×1 convolution, computed as a matrix product on the channel axis.

    Equals `keras.layers.Conv2D(filters, 1)`. On a CPU, TensorFlow's matrix product is faster than its general
    convolution, especially in the two gradients.

    Args:
        filters: number of output channels.
        **kwargs: as for `keras.layers.Conv2D`, without `kernel_size`, `strides`, `groups` and dilation.

    Shapes:
        float [N, H, W, C] → float [N, H, W, filters]; the kernel is [1, 1, C, filters].
    """

    FIXED: ClassVar[dict] = {
        "kernel_size": 1,
        "strides": 1,
        "dilation_rate": 1,
        "groups": 1,
        "data_format": "channels_last",
    }

    def __init__(self, filters: int, **kwargs: Any):
        super().__init__(filters, **_with_fixed(self, kwargs))

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return _activated(self, self.product(inputs))

    def product(self, inputs: tf.Tensor) -> tf.Tensor:
        """The convolution, with the bias and without the activation."""
        channels = inputs.shape[-1]
        kernel = tf.reshape(tf.convert_to_tensor(self.kernel), [channels, self.filters])
        outputs = _biased(self, tf.matmul(tf.reshape(inputs, [-1, channels]), kernel))
        return _as_map(outputs, inputs, self.filters)

    def get_config(self) -> dict:
        return without(super().get_config(), *self.FIXED)


@keras.saving.register_keras_serializable(package="regbench")
class StemConv2D(keras.layers.Conv2D):
    """Convolution for the few channels of an image.

    Equals `keras.layers.Conv2D`. Under XLA, inputs of up to `FEW` channels are convolved as a matrix product; all other
    cases use Keras's own code. cuDNN is slow for three channels: the kernel's gradient took 8.6 of the 22 ms of a step
    (224 pixels, batch 64, NVIDIA H200).

    Args:
        **kwargs: as for `keras.layers.Conv2D`, without `groups` and dilation.
    """

    FIXED: ClassVar[dict] = {"dilation_rate": 1, "groups": 1, "data_format": "channels_last"}
    FEW = 4
    xla = False
    """Whether it is compiled by XLA (`for_xla`)."""

    def __init__(self, filters: int, kernel_size: int | tuple[int, int], **kwargs: Any):
        super().__init__(filters, kernel_size, **_with_fixed(self, kwargs))

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        height, width, channels = inputs.shape[1:]
        known = height is not None and width is not None and self.strides[0] == self.strides[1]
        if not self.xla or not known or channels > self.FEW:
            return super().call(inputs)
        kernel = tf.convert_to_tensor(self.kernel)
        outputs = compiled.convolve(inputs, kernel, self.strides[0], _padding(self, inputs))
        return _activated(self, _biased(self, outputs))

    def get_config(self) -> dict:
        return without(super().get_config(), *self.FIXED)


@keras.saving.register_keras_serializable(package="regbench")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization over the last axis of [N, H, W, C], by TensorFlow's fused operation.

    Equals `keras.layers.BatchNormalization()`, moving averages included. Keras uses about ten elementwise operations.
    The fused operation reads the batch twice forward and twice backward, and also updates the averages. It averages the
    unbiased variance, n / (n - 1) times the one that Keras averages, so the moving variance is scaled before and after.
    In inference a product and a sum are faster.

    In training under XLA it uses `_compiled.normalize`.

    Keras's own code is used for a mask, `renorm`, `synchronized`, another axis, `center` or `scale` switched off,
    inputs that are not maps or not in the compute dtype, double precision (except in training under XLA), and half
    precision in inference under XLA.

    Args:
        **kwargs: as for `keras.layers.BatchNormalization`.
    """

    xla = False
    """Whether it is compiled by XLA (`for_xla`)."""

    averages = True
    """Whether a call in training updates the moving averages; false if nothing will read them."""

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None) -> tf.Tensor:
        usual = self.center and self.scale and not self.renorm and not self.synchronized and self.axis in (-1, 3)
        if mask is not None or not usual or inputs.shape.rank != 4 or inputs.dtype != self.compute_dtype:
            return super().call(inputs, training=training, mask=mask)
        training = bool(training) and self.trainable
        if self.xla and training and self.variable_dtype in ("float32", "float64"):
            epsilon = tf.constant(self.epsilon, self.variable_dtype)
            outputs, mean, variance = compiled.normalize(
                inputs, tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta), epsilon
            )
            self.update_averages(mean, variance)
            return outputs
        if self.variable_dtype != "float32" or (self.xla and inputs.dtype != tf.float32):
            return super().call(inputs, training=training)
        if not training and inputs.dtype == tf.float32:
            # On a CPU the fused operation takes twice as long, and with 24 channels seven times.
            scale = self.gamma * tf.math.rsqrt(self.moving_variance + self.epsilon)
            return inputs * scale + (self.beta - self.moving_mean * scale)
        fused = tf.raw_ops.FusedBatchNormV3
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

    def update_averages(self, mean: tf.Tensor, variance: tf.Tensor) -> None:
        """Update the moving averages with a batch's mean and biased variance, both [C]; only if `averages` is true."""
        if self.averages:
            for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))


@keras.saving.register_keras_serializable(package="regbench")
class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """3×3 depthwise convolution that is fast on small maps.

    Equals `keras.layers.DepthwiseConv2D(3)`. On a CPU, TensorFlow's gradients for "same" padding are slow on maps of up
    to 4 pixels. With images of 32×32 pixels, ten of the seventeen maps in MobileNetV2 are 2×2 or 1×1. The kernel's
    gradient is three times as fast if the same padding is given as numbers; a 1×1 map needs only the kernel's centre.

    Args:
        **kwargs: as for `keras.layers.DepthwiseConv2D`, without `kernel_size`, depth multiplier and dilation.

    Shapes:
        float [N, H, W, C] → float [N, H', W', C]; the kernel is [3, 3, C, 1].
    """

    FIXED: ClassVar[dict] = {
        "kernel_size": 3,
        "depth_multiplier": 1,
        "dilation_rate": 1,
        "data_format": "channels_last",
    }
    xla = False
    """Whether it is compiled by XLA (`for_xla`)."""

    def __init__(self, **kwargs: Any):
        super().__init__(**_with_fixed(self, kwargs))

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        height, width = inputs.shape[1:3]
        known = height is not None and width is not None and self.strides in ((1, 1), (2, 2))
        stride, kernel = self.strides[0], tf.convert_to_tensor(self.kernel)
        if known and self.xla:
            outputs = compiled.depthwise(inputs, kernel, stride, _padding(self, inputs))
        elif not known or height * width > 4 or self.padding != "same":
            return super().call(inputs)
        else:
            outputs = inputs * kernel[1, 1, :, 0] if height == width == 1 else _depthwise(inputs, kernel, stride)
        return _activated(self, _biased(self, outputs))

    def get_config(self) -> dict:
        return without(super().get_config(), *self.FIXED)


def _depthwise(inputs: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    """3×3 depthwise convolution with "same" padding; the kernel's gradient gets the padding as numbers.

    The forward operation does not: with oneDNN, TensorFlow would fuse it with the bias that follows, lose the numbers
    and abort the process.
    """
    strides = [1, stride, stride, 1]
    rows, columns = compiled.same_padding(inputs, (3, 3), stride)
    paddings = [0, 0, *rows, *columns, 0, 0]

    @tf.custom_gradient
    def convolve(inputs: tf.Tensor, kernel: tf.Tensor) -> Any:
        def gradients(upstream: tf.Tensor) -> tuple:
            of_inputs = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
                input_sizes=tf.shape(inputs), filter=kernel, out_backprop=upstream, strides=strides, padding="SAME"
            )
            of_kernel = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
                input=inputs,
                filter_sizes=kernel.shape,
                out_backprop=upstream,
                strides=strides,
                padding="EXPLICIT",
                explicit_paddings=paddings,
            )
            return of_inputs, of_kernel

        return tf.nn.depthwise_conv2d(inputs, kernel, strides, "SAME"), gradients

    return convolve(inputs, kernel)


@keras.saving.register_keras_serializable(package="regbench")
class ExpandConv2D(PointwiseConv2D):
    """The expansion of a bottleneck in one layer: 1×1 convolution, batch normalization, ReLU6.

    Equals `keras.layers.Conv2D(filters, 1, use_bias=False)`, `BatchNormalization()` and `ReLU(6)` one after the other.
    An expansion has few inputs X [n, C] and many outputs Y = X·W [n, F]. Apart from its statistics, batch normalization
    is linear in Y, and the statistics of Y follow from those of X:

        mean(Y) = mean(X)·W        var(Y) = diag(Wᵀ·cov(X)·W)

    So normalizing does not read Y: gamma / √(var + epsilon) scales W before the product. The backward pass is similar:
    with P = Xᵀ·dZ, Σ dZ·Y = diag(Wᵀ·P), and both gradients follow from P, cov(X) and W. Besides matrix products, there
    is one pass over the large maps forward, by ReLU6, and two backward. X is centred first, so a mean far from 0 costs
    no precision. If a filter's inputs nearly cancel each other out, so that Y is a thousandth of X, var(Y) is less
    precise than Keras's.

    This is faster if a map has more pixels than a quarter of its channels; else the three steps are done one by one.

    Args:
        filters: number of output channels.
        momentum: of the moving averages.
        epsilon: added to the variance.
        synchronized: whether batch normalization takes its statistics over all replicas of a `tf.distribute` strategy.
        **kwargs: as for `PointwiseConv2D`, without bias and activation.

    Shapes:
        float [N, H, W, C] → float [N, H, W, filters], from 0 to 6.
    """

    FIXED: ClassVar[dict] = PointwiseConv2D.FIXED | {"use_bias": False, "activation": None}

    def __init__(
        self, filters: int, momentum: float = 0.99, epsilon: float = 1e-3, synchronized: bool = False, **kwargs: Any
    ):
        super().__init__(filters, **kwargs)
        self.normalization = BatchNormalization(
            momentum=momentum,
            epsilon=epsilon,
            synchronized=synchronized,
            dtype=self.dtype_policy,
            name=f"{self.name}_bn",
        )

    def build(self, input_shape: tuple) -> None:
        super().build(input_shape)
        self.normalization.build((*input_shape[:-1], self.filters))

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        norm = self.normalization
        height, width, channels = inputs.shape[1:]
        # The cost of the extra products grows with channels², what they save grows with pixels.
        pays = height is not None and width is not None and 4 * height * width > channels
        if not pays or norm.synchronized or norm.xla or self.compute_dtype not in ("float32", "float64"):
            return tf.nn.relu6(norm(self.product(inputs), training=training))
        matrix = tf.reshape(inputs, [-1, channels])
        kernel = tf.reshape(tf.convert_to_tensor(self.kernel), [channels, self.filters])
        gamma, beta = tf.convert_to_tensor(norm.gamma), tf.convert_to_tensor(norm.beta)
        if training and norm.trainable:
            outputs, mean, variance = _expand(matrix, kernel, gamma, beta, tf.constant(norm.epsilon, matrix.dtype))
            norm.update_averages(mean, variance)
        else:
            scale = gamma * tf.math.rsqrt(norm.moving_variance + norm.epsilon)
            outputs = tf.nn.bias_add(tf.matmul(matrix, kernel * scale), beta - norm.moving_mean * scale)
            outputs = tf.nn.relu6(outputs)
        return _as_map(outputs, inputs, self.filters)

    def get_config(self) -> dict:
        config = without(super().get_config(), "bias_initializer", "bias_regularizer", "bias_constraint")
        return config | {key: getattr(self.normalization, key) for key in ("momentum", "epsilon", "synchronized")}


@tf.custom_gradient
def _expand(x: tf.Tensor, kernel: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: tf.Tensor) -> Any:
    """ReLU6 of the batch-normalized x·kernel, [n, C]·[C, F] → [n, F]; mean [F] and variance [F] of the product."""
    count = tf.cast(tf.shape(x)[0], x.dtype)
    mean = tf.reduce_mean(x, axis=0)
    centred = x - mean
    # cov(X)·W, [C, F]
    moments = tf.matmul(tf.matmul(centred, centred, transpose_a=True) / count, kernel)
    # Rounding could make the variance negative if channels cancel each other out.
    variance = tf.maximum(tf.reduce_sum(kernel * moments, axis=0), 0)
    inverse = tf.math.rsqrt(variance + epsilon)
    scaled = kernel * (gamma * inverse)
    outputs = tf.nn.relu6(tf.nn.bias_add(tf.matmul(centred, scaled), beta))

    def gradient(upstream: tf.Tensor, *_: tf.Tensor) -> tuple:
        """Gradients of x, kernel, gamma and beta. The statistics only feed moving averages, so they need none."""
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


def for_xla(layers: Iterable[keras.layers.Layer], xla: bool = True) -> None:
    """Switch layers to the operations that are fastest with XLA, or without it; the mathematics is the same."""
    for part in _switched(layers):
        part.xla = xla


@contextlib.contextmanager
def not_for_xla(layers: Iterable[keras.layers.Layer]) -> Iterator[None]:
    """Switch layers to operations for use without XLA, while a function that XLA does not compile is traced."""
    before = [(part, part.xla) for part in _switched(layers)]
    for part, _ in before:
        part.xla = False
    try:
        yield
    finally:
        for part, xla in before:
            part.xla = xla


def _switched(layers: Iterable[keras.layers.Layer]) -> Iterator[keras.layers.Layer]:
    """Yield those of the layers, and of the normalizations in them, that have operations for XLA."""
    for layer in layers:
        for part in (layer, getattr(layer, "normalization", layer)):
            if isinstance(part, (StemConv2D, BatchNormalization, DepthwiseConv2D)):
                yield part


def _padding(layer: keras.layers.Layer, inputs: tf.Tensor) -> compiled.Padding:
    """The zeros that a convolution of this layer adds around its inputs."""
    if layer.padding == "valid":
        return [(0, 0), (0, 0)]
    return compiled.same_padding(inputs, layer.kernel_size, layer.strides[0])


def _biased(layer: keras.layers.Layer, outputs: tf.Tensor) -> tf.Tensor:
    return tf.nn.bias_add(outputs, tf.convert_to_tensor(layer.bias)) if layer.use_bias else outputs


def _activated(layer: keras.layers.Layer, outputs: tf.Tensor) -> tf.Tensor:
    return outputs if layer.activation is None else layer.activation(outputs)


def _as_map(matrix: tf.Tensor, like: tf.Tensor, channels: int) -> tf.Tensor:
    """[N·H·W, channels] → [N, H, W, channels], with N, H and W of `like`."""
    height, width = like.shape[1:3]
    if height is None or width is None:
        height, width = tf.unstack(tf.shape(like)[1:3])
    return tf.reshape(matrix, [-1, height, width, channels])


def _with_fixed(layer: keras.layers.Layer, given: dict) -> dict:
    """The arguments given to a layer, and those in its `FIXED`; raises a ValueError if they contradict each other."""
    for key, value in layer.FIXED.items():
        if given.get(key) not in (None, value, (value, value), [value, value]):
            raise ValueError(
                f"regbench's {type(layer).__name__} is for {key}={value!r} only, not {given[key]!r}; "
                "use the layers of keras.layers there"
            )
    return given | layer.FIXED


def without(config: dict, *keys: str) -> dict:
    """A layer's configuration without these keys."""
    return {key: value for key, value in config.items() if key not in keys}
