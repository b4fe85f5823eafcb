"""The article's MobileNetV2, layer by layer.

M. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018 (arXiv 1801.04381).
"""

import keras

from regbench.layers import Add, BatchNormalization, DepthwiseConv2D, ExpandConv2D, PointwiseConv2D

# (output channels, stride) of the 16 bottlenecks; each expands its input sixfold.
BOTTLENECKS = (
    (24, 2), (24, 1),
    (32, 2), (32, 1), (32, 1),
    (64, 2), (64, 1), (64, 1), (64, 1),
    (96, 1), (96, 1), (96, 1),
    (160, 2), (160, 1), (160, 1),
    (320, 1),
)  # fmt: skip


def mobilenet_v2(
    input_shape,
    num_classes,
    *,
    regularizer=None,
    regularize_depthwise=True,
    head_regularizer=None,
    width=1.0,
    batch_norm=True,
    batch_norm_momentum=0.99,
    synchronized=False,
):
    """Build the network: floats in, logits out.

    No convolution has a bias; each is followed by batch normalization. With equal weights its inference equals
    that of `keras.applications.MobileNetV2` wherever every stride-2 block meets an even map, so for sides that
    32 divides; at odd maps this one pads bottom and right only, as the article does.

    With `batch_norm=False` each convolution has a bias instead, and initial weights that keep the variance of what
    it reads (K. He et al., 2015, arXiv 1502.01852): with Keras's own, the signal fades out over 50 layers.

    Args:
        input_shape: (height, width, channels) of an image.
        num_classes: number of logits.
        regularizer: `keras.Regularizer` of every convolution kernel, or None.
        regularize_depthwise: whether depthwise kernels are among them.
        head_regularizer: `keras.Regularizer` of the kernel and the bias of the final Dense layer, or None.
        batch_norm: whether batch normalization follows each convolution.
        batch_norm_momentum: share of the old value in each update of batch normalization's moving averages.
        synchronized: whether batch normalization takes its statistics over all replicas of a `tf.distribute` strategy.
        width: multiplier of every layer's channels, rounded to a multiple of 8; 1.0 is the article's.

    Returns:
        `keras.Model`, float [N, height, width, channels] → float32 logits [N, num_classes]. Its `losses` holds
        one scalar for each penalised weight: 52 kernels, and 2 more in a penalised head.
    """

    normalization = {"momentum": batch_norm_momentum, "synchronized": synchronized}

    def initializer(gain, taps=None):
        if batch_norm:
            return "glorot_uniform"
        if taps:  # Keras would count a depthwise filter's inputs over all channels
            return keras.initializers.RandomNormal(stddev=(gain / taps) ** 0.5)
        return keras.initializers.VarianceScaling(gain, "fan_in", "truncated_normal")

    def normalize(x, name):
        return BatchNormalization(**normalization, name=f"{name}_bn")(x) if batch_norm else x

    def activate(x, name):
        return keras.layers.ReLU(max_value=6.0, name=f"{name}_relu6")(x)

    def pointwise(x, filters, name, gain):
        x = PointwiseConv2D(
            filters,
            use_bias=not batch_norm,
            kernel_initializer=initializer(gain),
            kernel_regularizer=regularizer,
            name=name,
        )(x)
        return normalize(x, name)

    def expand(x, filters, name):
        if not batch_norm:  # the input is linear: a gain of 1 keeps its variance
            return activate(pointwise(x, filters, name, gain=1.0), name)
        return ExpandConv2D(filters, **normalization, kernel_regularizer=regularizer, name=name)(x)

    def depthwise(x, stride, name):
        # The article pads bottom and right by 1 and takes "valid" at stride 2: just what "same" does on an even map.
        padding = "same"
        if stride == 2 and any(side % 2 for side in x.shape[1:3]):
            x = keras.layers.ZeroPadding2D(((0, 1), (0, 1)), name=f"{name}_pad")(x)
            padding = "valid"
        x = DepthwiseConv2D(
            strides=stride,
            padding=padding,
            use_bias=not batch_norm,
            depthwise_initializer=initializer(2.0, taps=9),
            depthwise_regularizer=regularizer if regularize_depthwise else None,
            name=name,
        )(x)
        return activate(normalize(x, name), name)

    inputs = keras.Input(input_shape, name="image")
    channels = _scaled(32, width)
    x = keras.layers.Conv2D(
        channels,
        3,
        strides=2,
        padding="same",
        use_bias=not batch_norm,
        kernel_initializer=initializer(1.0),
        kernel_regularizer=regularizer,
        name="stem",
    )(inputs)
    x = activate(normalize(x, "stem"), "stem")

    x = depthwise(x, 1, "block0_depthwise")
    channels = _scaled(16, width)
    x = pointwise(x, channels, "block0_project", gain=2.0)

    for index, (filters, stride) in enumerate(BOTTLENECKS, start=1):
        name, shortcut = f"block{index}", x
        x = expand(x, 6 * channels, f"{name}_expand")
        x = depthwise(x, stride, f"{name}_depthwise")
        filters = _scaled(filters, width)
        x = pointwise(x, filters, f"{name}_project", gain=2.0)
        if stride == 1 and channels == filters:
            x = Add(name=f"{name}_add")([shortcut, x])
        channels = filters

    # As in the paper and keras.applications, the last layer never shrinks below 1280.
    x = expand(x, _scaled(1280, max(width, 1.0)), "top")
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    logits = keras.layers.Dense(
        num_classes,
        kernel_regularizer=head_regularizer,
        bias_regularizer=head_regularizer,
        dtype=keras.config.floatx(),  # float32, also where the other layers compute in half precision
        name="head",
    )(x)
    return keras.Model(inputs, logits, name="mobilenet_v2")


def _scaled(channels, width):
    """Channels times width, to the nearest multiple of 8, not below 8 and not more than a tenth too few."""
    scaled = max(8, int(channels * width + 4) // 8 * 8)
    return scaled + 8 if scaled < 0.9 * channels * width else scaled
