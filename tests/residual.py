"""A tiny network with two shortcuts, for tests of kinds that act in the network; stands for a file in networks/."""

import sys
from pathlib import Path

import keras

from regbench import catalogue
from regbench.networks.layers import BatchNormalization

# From here on, `model.network: residual` finds it.
sys.modules["regbench.networks.residual"] = sys.modules[__name__]
catalogue.networks()["residual"] = catalogue.Entry("residual", Path(__file__), __doc__)


def build(
    input_shape,
    num_classes,
    *,
    width=1.0,
    batch_norm=True,
    batch_norm_momentum=0.99,
    zero_init_residual=False,
    synchronized=False,
):
    """Floats in, logits out. The second shortcut is projected, and comes second in its Add."""

    def convolve(x, filters, name, size=3, strides=1):
        x = keras.layers.Conv2D(filters, size, strides, padding="same", use_bias=not batch_norm, name=name)(x)
        return BatchNormalization(momentum=batch_norm_momentum, name=f"{name}_bn")(x) if batch_norm else x

    def branch(x, filters, name):
        x = keras.layers.ReLU(name=f"{name}_relu")(convolve(x, filters, f"{name}_conv1"))
        return convolve(x, filters, f"{name}_conv2")

    inputs = keras.Input(input_shape, name="image")
    x = convolve(inputs, 6, "stem", strides=8)
    x = keras.layers.Add(name="block1_add")([x, branch(x, 6, "block1")])
    x = keras.layers.Add(name="block2_add")([branch(x, 8, "block2"), convolve(x, 8, "block2_shortcut", size=1)])
    x = keras.layers.ReLU(name="top_relu")(convolve(x, 12, "top"))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    logits = keras.layers.Dense(num_classes, dtype=keras.config.floatx(), name="head")(x)
    return keras.Model(inputs, logits, name="residual")
