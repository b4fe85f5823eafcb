"""The article's MobileNetV2, layer by layer.

M. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018 (arXiv 1801.04381). With 10
classes it has 2,270,794 parameters, 52 convolution kernels and a Dense head.
"""

import keras

from regbench.networks.layers import BatchNormalization, DepthwiseConv2D, ExpandConv2D, PointwiseConv2D, StemConv2D

# (output channels, stride) of the 16 bottlenecks; each expands its input sixfold.
BOTTLENECKS = (
    (24, 2), (24, 1),
    (32, 2), (32, 1), (32, 1),
    (64, 2), (64, 1), (64, 1), (64, 1),
    (96, 1), (96, 1), (96, 1),
    (160, 2), (160, 1), (160, 1),
    (320, 1),
)  # fmt: skip


def build(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: float = 1.0,
    batch_norm: bool = True,
    batch_norm_momentum: float = 0.99,
    zero_init_residual: bool = False,
    synchronized: bool = False,
) -> keras.Model:
    """Build the network: floats in, logits out.

    No convolution has a bias; each is followed by batch normalization. With equal weights, inference equals that
    of `keras.applications.MobileNetV2` if every stride-2 block gets a map with even sides, so for image sides that
    are multiples of 32. Odd maps are padded only at the bottom and on the right here, as in the article.

    With `batch_norm=False` each convolution has a bias instead, and initial weights that keep the variance of its
    input (K. He et al., 2015, arXiv 1502.01852): with Keras's default ones, the signal fades out over 50 layers.

    Args:
        input_shape: (height, width, channels) of an image.
        num_classes: number of logits.
        width: multiplier of every layer's channels, which are rounded to a multiple of 8; 1.0 is the article's.
            The last convolution has at least 1280 channels.
        batch_norm: whether batch normalization follows each convolution.
        batch_norm_momentum: share of the old value in each update of batch normalization's moving averages.
        zero_init_residual: whether the last batch normalization of each block with a shortcut starts with a scale of
            0, so that the block starts as the identity (P. Goyal et al., 2017, arXiv 1706.02677, section 5.1).
        synchronized: whether batch normalization takes its statistics over all replicas of a `tf.distribute` strategy.

    Returns:
        `keras.Model`, float [N, height, width, channels] → float32 logits [N, num_classes].
    """

    def initializer(gain: float, taps: int | None = None) -> str | keras.Initializer:
        if batch_norm:
            return "glorot_uniform"
        if taps:  # a depthwise filter has `taps` inputs; Keras would count those of all channels
            return keras.initializers.RandomNormal(stddev=(gain / taps) ** 0.5)
        return keras.initializers.VarianceScaling(gain, "fan_in", "truncated_normal")

    normalization = {"momentum": batch_norm_momentum, "synchronized": synchronized}

    def normalize(x: keras.KerasTensor, name: str, gamma: str = "ones") -> keras.KerasTensor:
        return BatchNormalization(**normalization, gamma_initializer=gamma, name=f"{name}_bn")(x) if batch_norm else x

    def activate(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        return keras.layers.ReLU(max_value=6.0, name=f"{name}_relu6")(x)

    def pointwise(x: keras.KerasTensor, filters: int, name: str, gain: float) -> keras.KerasTensor:
        options = {"use_bias": not batch_norm, "kernel_initializer": initializer(gain)}
        return PointwiseConv2D(filters, **options, name=name)(x)

    def expand(x: keras.KerasTensor, filters: int, name: str) -> keras.KerasTensor:
        if not batch_norm:  # the input is linear: a gain of 1 keeps its variance
            return activate(pointwise(x, filters, name, gain=1.0), name)
        return ExpandConv2D(filters, **normalization, name=name)(x)

    def depthwise(x: keras.KerasTensor, stride: int, name: str) -> keras.KerasTensor:
        # At stride 2 the article pads bottom and right by 1 and uses "valid". On an even map, "same" does just that.
        padding = "same"
        if stride == 2 and any(side % 2 for side in x.shape[1:3]):
            x = keras.layers.ZeroPadding2D(((0, 1), (0, 1)), name=f"{name}_pad")(x)
            padding = "valid"
        options = {"use_bias": not batch_norm, "depthwise_initializer": initializer(2.0, taps=9)}
        x = DepthwiseConv2D(strides=stride, padding=padding, **options, name=name)(x)
        return activate(normalize(x, name), name)

    inputs = keras.Input(input_shape, name="image")
    channels = _scaled(32, width)
    options = {"use_bias": not batch_norm, "kernel_initializer": initializer(1.0)}
    x = StemConv2D(channels, 3, strides=2, padding="same", **options, name="stem")(inputs)
    x = activate(normalize(x, "stem"), "stem")

    x = depthwise(x, 1, "block0_depthwise")
    channels = _scaled(16, width)
    x = normalize(pointwise(x, channels, "block0_project", gain=2.0), "block0_project")

    for index, (filters, stride) in enumerate(BOTTLENECKS, start=1):
        name, shortcut, filters = f"block{index}", x, _scaled(filters, width)
        residual = stride == 1 and channels == filters
        x = expand(x, 6 * channels, f"{name}_expand")
        x = depthwise(x, stride, f"{name}_depthwise")
        x = pointwise(x, filters, f"{name}_project", gain=2.0)
        x = normalize(x, f"{name}_project", gamma="zeros" if residual and zero_init_residual else "ones")
        if residual:
            x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
        channels = filters

    # As in the paper and keras.applications, the last layer never shrinks below 1280.
    x = expand(x, _scaled(1280, max(width, 1.0)), "top")
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    # In full precision, even if the other layers compute in half precision.
    logits = keras.layers.Dense(num_classes, dtype=keras.config.floatx(), name="head")(x)
    return keras.Model(inputs, logits, name="mobilenet_v2")


def _scaled(channels: int, width: float) -> int:
    """Channels times width, rounded to a multiple of 8; at least 8, and at least nine tenths of the exact value."""
    scaled = max(8, int(channels * width + 4) // 8 * 8)
    return scaled + 8 if scaled < 0.9 * channels * width else scaled
