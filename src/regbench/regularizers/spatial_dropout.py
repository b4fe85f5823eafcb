"""Sets the share `strength` of the channels before the last convolution to zero, whole maps of an image at once.

Neighbouring pixels of a map are nearly the same, so the network can replace a single dropped pixel, but not a dropped
map. The last convolution that is not depthwise can't rely on single channels. Placed after it, before the mean over the
map, this would equal `dropout`. In evaluation nothing is dropped.

Source: J. Tompson et al., "Efficient Object Localization Using Convolutional Networks", 2015, arXiv 1411.4280.
Usual strengths: 0.05 to 0.3.
Equals `keras.layers.SpatialDropout2D(strength)` before the last convolution. PyTorch: `torch.nn.Dropout2d(strength)`.
"""

import keras

from regbench import networks
from regbench.errors import UserError

SCOPE = None
HIGHEST = 0.99


def in_network(network: keras.Model, strength: float) -> keras.Model:
    """Keras's SpatialDropout2D before the last Conv2D that is not depthwise."""
    depthwise = keras.layers.DepthwiseConv2D
    convolutions = [
        layer
        for layer, _ in networks.kernels(network)
        if isinstance(layer, keras.layers.Conv2D) and not isinstance(layer, depthwise)
    ]
    if not convolutions:
        raise UserError(f"spatial_dropout acts before the last convolution, and {network.name} has none")
    dropout = keras.layers.SpatialDropout2D(strength, seed=0, data_format="channels_last", name="spatial_dropout")
    return networks.inserted(network, lambda layer, inputs: dropout(inputs) if layer is convolutions[-1] else inputs)
