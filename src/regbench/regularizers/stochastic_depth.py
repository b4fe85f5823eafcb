"""Leaves out residual branches at random, drawn for each image and step: the last with probability `strength`.

The probability rises linearly over the network's L shortcuts: branch l is left out with probability strength · l / L,
and scaled up where it stays. Where it is left out, only its shortcut remains, so a deep network trains as many shallow
ones. In evaluation nothing is left out. It is for networks with shortcuts, such as mobilenet_v2.

Source: G. Huang et al., "Deep Networks with Stochastic Depth", 2016, arXiv 1603.09382.
Usual strengths: 0.1 to 0.5; 0.2 in EfficientNet.
Equals `keras.layers.Dropout(rate, noise_shape=(None, 1, 1, 1))` before each `Add`. PyTorch:
`torchvision.ops.StochasticDepth(rate, "row")`; timm: `drop_path_rate`.
"""

from typing import Any

import keras

from regbench import networks
from regbench.errors import UserError

SCOPE = None
HIGHEST = 0.99


def in_network(network: keras.Model, strength: float) -> keras.Model:
    """Keras's Dropout of a whole branch for an image at once, on the longest of the branches that each Add adds up."""
    branches = networks.shortcuts(network)
    if not branches:
        raise UserError(
            f"stochastic_depth leaves out residual branches, and {network.name} has none: no layer keras.layers.Add. "
            "Choose another model.network, such as mobilenet_v2, or another regularizer"
        )
    places = {layer: place for place, layer in enumerate(branches, start=1)}

    def before(layer: keras.layers.Layer, inputs: Any) -> Any:
        if layer not in places:
            return inputs
        summands, index, place = list(inputs), branches[layer], places[layer]
        images_apart = (None, *(1 for _ in summands[index].shape[1:]))
        rate = strength * place / len(places)
        drop = keras.layers.Dropout(rate, images_apart, seed=0, name=f"stochastic_depth{place}")
        summands[index] = drop(summands[index])
        return summands

    return networks.inserted(network, before)
