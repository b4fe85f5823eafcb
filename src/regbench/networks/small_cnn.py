"""A small convolutional network: four 3×3 convolutions, each with max pooling by 2, and a Dense head.

It is for trying things out: it starts and trains in a fraction of MobileNetV2's time. With 10 classes it has 99,450
parameters.
"""

import keras

from regbench.networks.layers import BatchNormalization, StemConv2D

FILTERS = (16, 32, 64, 128)


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

    Args: as for `mobilenet_v2.build`, but channels are rounded to whole numbers, at least 4. There are no residual
        branches, so `zero_init_residual` changes nothing.

    Returns:
        `keras.Model`, float [N, height, width, channels] → float32 logits [N, num_classes].
    """
    inputs = x = keras.Input(input_shape, name="image")
    for index, filters in enumerate(FILTERS, start=1):
        options = {"padding": "same", "use_bias": not batch_norm, "data_format": "channels_last"}
        layer = StemConv2D if index == 1 else keras.layers.Conv2D
        x = layer(max(4, round(filters * width)), 3, **options, name=f"conv{index}")(x)
        if batch_norm:
            normalization = {"momentum": batch_norm_momentum, "synchronized": synchronized}
            x = BatchNormalization(**normalization, name=f"conv{index}_bn")(x)
        x = keras.layers.ReLU(name=f"conv{index}_relu")(x)
        x = keras.layers.MaxPooling2D(data_format="channels_last", name=f"conv{index}_pool")(x)
    x = keras.layers.GlobalAveragePooling2D(data_format="channels_last", name="pool")(x)
    logits = keras.layers.Dense(num_classes, dtype=keras.config.floatx(), name="head")(x)
    return keras.Model(inputs, logits, name="small_cnn")
