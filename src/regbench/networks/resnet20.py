"""ResNet-20 for CIFAR: 19 3×3 convolutions in nine residual blocks, and a Dense head.

K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv 1512.03385), section 4.2. A first
convolution, then three stages of three blocks with 16, 32 and 64 channels; the second and the third stage begin with
stride 2. Where a stage changes the shape, the shortcut has no weights either: it takes every second pixel and adds
channels of zeros (the paper's option A). With 10 classes it has 269,722 trainable parameters, the paper's 0.27 million.
"""

import keras

from regbench.networks.layers import BatchNormalization, StemConv2D

CHANNELS = (16, 32, 64)
BLOCKS = 3


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

    Initial weights are by K. He et al., 2015 (arXiv 1502.01852), as in the paper.

    Args:
        input_shape: (height, width, channels) of an image.
        num_classes: number of logits.
        width: multiplier of every layer's channels; 1.0 is the paper's.
        batch_norm: whether batch normalization follows each convolution; else each has a bias.
        batch_norm_momentum: share of the old value in each update of batch normalization's moving averages.
        zero_init_residual: whether the last layer of each block starts at 0 (the scale of batch normalization or,
            without it, the kernel), so that the block starts as its shortcut.
        synchronized: whether batch normalization takes its statistics over all replicas of a `tf.distribute` strategy.

    Returns:
        `keras.Model`, float [N, height, width, channels] → float32 logits [N, num_classes].
    """

    def convolve(x: keras.KerasTensor, filters: int, stride: int, name: str, zero: bool = False) -> keras.KerasTensor:
        kernel = "zeros" if zero and not batch_norm else "he_normal"
        options = {"use_bias": not batch_norm, "kernel_initializer": kernel, "data_format": "channels_last"}
        layer = StemConv2D if name == "stem" else keras.layers.Conv2D
        x = layer(filters, 3, strides=stride, padding="same", **options, name=name)(x)
        if not batch_norm:
            return x
        options = {"momentum": batch_norm_momentum, "synchronized": synchronized}
        return BatchNormalization(gamma_initializer="zeros" if zero else "ones", **options, name=f"{name}_bn")(x)

    def activate(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        return keras.layers.ReLU(name=f"{name}_relu")(x)

    def shortcut(x: keras.KerasTensor, filters: int, stride: int, name: str) -> keras.KerasTensor:
        added = filters - x.shape[-1]
        if stride != 1:
            x = keras.layers.AveragePooling2D(1, stride, data_format="channels_last", name=f"{name}_pixels")(x)
        if added:
            # ZeroPadding2D pads only the two axes in the middle, so channels and width are swapped and swapped back.
            x = keras.layers.Permute((1, 3, 2), name=f"{name}_channels")(x)
            padding = ((0, 0), (added // 2, added - added // 2))
            x = keras.layers.ZeroPadding2D(padding, data_format="channels_last", name=f"{name}_zeros")(x)
            x = keras.layers.Permute((1, 3, 2), name=f"{name}_shortcut")(x)
        return x

    inputs = keras.Input(input_shape, name="image")
    widths = [max(4, round(channels * width)) for channels in CHANNELS]
    x = activate(convolve(inputs, widths[0], 1, "stem"), "stem")
    for stage, filters in enumerate(widths, start=1):
        for block in range(1, BLOCKS + 1):
            name, stride = f"stage{stage}_block{block}", 2 if stage > 1 and block == 1 else 1
            y = activate(convolve(x, filters, stride, f"{name}_conv1"), f"{name}_conv1")
            y = convolve(y, filters, 1, f"{name}_conv2", zero=zero_init_residual)
            x = keras.layers.Add(name=f"{name}_add")([shortcut(x, filters, stride, name), y])
            x = activate(x, name)
    x = keras.layers.GlobalAveragePooling2D(data_format="channels_last", name="pool")(x)
    # In full precision, even if the other layers compute in half precision.
    logits = keras.layers.Dense(num_classes, dtype=keras.config.floatx(), name="head")(x)
    return keras.Model(inputs, logits, name="resnet20")
