"""The layers' operations in a form that XLA compiles well for a GPU: products, shifts and sums, which it fuses.

Without this, three things are slow on a GPU: cuDNN's depthwise convolutions, its convolution of three channels, and
TensorFlow's gradients of batch normalization. The mathematics is that of the layers.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

Padding = list[tuple[int, int]]
"""[(before, after) of rows, (before, after) of columns], in pixels."""

LANES = 8
"""A matrix product is fast if its inner dimension is a multiple of this."""


def same_padding(inputs: tf.Tensor, window: tuple[int, int], stride: int) -> Padding:
    """What "same" padding adds to maps [N, H, W, C] for a window of (rows, columns)."""
    sides = zip(inputs.shape[1:3], window, strict=True)
    totals = [max((-(-side // stride) - 1) * stride + taps - side, 0) for side, taps in sides]
    return [(total // 2, total - total // 2) for total in totals]


def depthwise(inputs: tf.Tensor, kernel: tf.Tensor, stride: int, padding: Padding) -> tf.Tensor:
    """Depthwise convolution as a sum over the kernel's positions: a shifted map times one weight per channel.

    Both gradients are sums over shifted maps too. TensorFlow's automatic gradients would pad and add nine maps.

    Args:
        inputs: [N, H, W, C].
        kernel: [rows, columns, C, 1].
        stride: of rows and columns.
        padding: with zeros.
    """
    height, width = inputs.shape[1:3]
    rows, columns = places = kernel.shape[:2]

    @tf.custom_gradient
    def convolve(inputs: tf.Tensor, kernel: tf.Tensor) -> Any:
        padded = tf.pad(inputs, [(0, 0), *padding, (0, 0)])
        outputs = sum(kernel[row, column, :, 0] * window for row, column, window in _windows(padded, places, stride))

        def gradients(upstream: tf.Tensor) -> tuple:
            of_kernel = [
                tf.reduce_sum(_whole(window) * _whole(upstream), axis=[0, 1, 2])
                for *_, window in _windows(padded, places, stride)
            ]
            # The inputs' gradient: the flipped kernel over the outputs' gradient, which is spread out by the stride.
            spread = _spread(upstream, stride)
            sides = ((height, rows, padding[0][0], spread.shape[1]), (width, columns, padding[1][0], spread.shape[2]))
            around = [(taps - 1 - before, max(side + before - there, 0)) for side, taps, before, there in sides]
            spread = tf.pad(spread, [(0, 0), *around, (0, 0)])[:, : height + rows - 1, : width + columns - 1]
            of_inputs = sum(
                kernel[rows - 1 - row, columns - 1 - column, :, 0] * window
                for row, column, window in _windows(spread, places, 1)
            )
            return of_inputs, tf.cast(tf.reshape(tf.stack(of_kernel), kernel.shape), kernel.dtype)

        return outputs, gradients

    return convolve(inputs, kernel)


def convolve(inputs: tf.Tensor, kernel: tf.Tensor, stride: int, padding: Padding) -> tf.Tensor:
    """Convolution as one matrix product of all windows with the kernel, for inputs with few channels.

    Args:
        inputs: [N, H, W, C].
        kernel: [rows, columns, C, F].
        stride: of rows and columns.
        padding: with zeros.
    """
    padded = tf.pad(inputs, [(0, 0), *padding, (0, 0)])
    windows = tf.concat([window for *_, window in _windows(padded, kernel.shape[:2], stride)], axis=-1)
    height, width, numbers = windows.shape[1:]
    filters, missing = kernel.shape[-1], -numbers % LANES
    matrix = tf.pad(tf.reshape(windows, [-1, numbers]), [(0, 0), (0, missing)])
    outputs = tf.matmul(matrix, tf.pad(tf.reshape(kernel, [numbers, filters]), [(0, missing), (0, 0)]))
    return tf.reshape(outputs, [-1, height, width, filters])


@tf.custom_gradient
def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: tf.Tensor) -> Any:
    """Batch normalization over the last axis of [N, H, W, C]: outputs, mean [C] and variance [C], biased.

    With x̂ = (x − mean) / √(variance + epsilon) over n pixels and dz the gradient of the outputs, that of x is
    gamma / √(variance + epsilon) · (dz − Σdz/n − x̂ · Σ(dz·x̂)/n) (S. Ioffe, C. Szegedy, 2015, arXiv 1502.03167).
    """
    axes, count = [0, 1, 2], tf.cast(tf.size(x) // x.shape[-1], gamma.dtype)
    whole = _whole(x)
    mean = tf.reduce_mean(whole, axes)
    variance = tf.reduce_mean(tf.square(whole - mean), axes)
    inverse = tf.math.rsqrt(variance + epsilon)
    outputs = tf.cast((whole - mean) * (inverse * gamma) + beta, x.dtype)

    def gradient(upstream: tf.Tensor, *_: tf.Tensor) -> tuple:
        """Gradients of x, gamma and beta. The statistics only feed moving averages, so they need none."""
        upstream, normalized = _whole(upstream), (_whole(x) - mean) * inverse
        of_beta, of_gamma = tf.reduce_sum(upstream, axes), tf.reduce_sum(upstream * normalized, axes)
        of_x = (gamma * inverse) * (upstream - of_beta / count - normalized * (of_gamma / count))
        return tf.cast(of_x, x.dtype), of_gamma, of_beta, None

    return (outputs, mean, variance), gradient


def _windows(maps: tf.Tensor, places: tuple[int, int], stride: int) -> Iterator[tuple[int, int, tf.Tensor]]:
    """Yield (row, column, the pixels under this position of the kernel) for maps that are already padded.

    `places` is the kernel's (number of rows, number of columns).
    """
    height, width = (stride * ((side - taps) // stride) for side, taps in zip(maps.shape[1:3], places, strict=True))
    for row, column in itertools.product(*map(range, places)):
        yield row, column, maps[:, row : row + height + 1 : stride, column : column + width + 1 : stride]


def _spread(maps: tf.Tensor, stride: int) -> tf.Tensor:
    """[N, H, W, C] → [N, H·stride, W·stride, C], with zeros after each pixel."""
    if stride == 1:
        return maps
    height, width, channels = maps.shape[1:]
    zeros = (0, stride - 1)
    maps = tf.pad(tf.reshape(maps, [-1, height, 1, width, 1, channels]), [(0, 0), (0, 0), zeros, (0, 0), zeros, (0, 0)])
    return tf.reshape(maps, [-1, height * stride, width * stride, channels])


def _whole(x: tf.Tensor) -> tf.Tensor:
    """Cast to float32 if it is in half precision."""
    return tf.cast(x, tf.float32) if x.dtype.size < 4 else x
