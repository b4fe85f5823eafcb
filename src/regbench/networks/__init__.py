"""The networks: a file each, found by its name (`model.network` in params.yaml).

A file has a function `build` that returns a `keras.Model` of floats to logits. Networks know nothing about
regularizers: those are attached to a built model (`regbench.regularizers.attach`).
"""

import importlib
from collections.abc import Iterator

import keras

from regbench import params


def build(
    model: params.Model, input_shape: tuple[int, int, int], num_classes: int, synchronized: bool = False
) -> keras.Model:
    """Build the network that params ask for.

    Args:
        model: `params.Model`.
        input_shape: (height, width, channels) of an image.
        num_classes: number of logits.
        synchronized: whether batch normalization takes its statistics over all replicas of a `tf.distribute` strategy.

    Returns:
        `keras.Model`, float [N, height, width, channels] → float32 logits [N, num_classes].
    """
    options = model.model_dump()
    network = importlib.import_module(f"regbench.networks.{options.pop('network')}")
    return network.build(input_shape, num_classes, **options, synchronized=synchronized)


def layers_of(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """The layers of a model and of the models in it, from the input to the output."""
    for layer in model.layers:
        yield from layers_of(layer) if isinstance(layer, keras.Model) else (layer,)


def kernels(model: keras.Model) -> list[tuple[keras.layers.Layer, keras.Variable]]:
    """The layers that have a kernel, from the stem to the head, as (layer, kernel)."""
    kinds = keras.layers.Conv2D | keras.layers.DepthwiseConv2D | keras.layers.Dense
    return [(layer, layer.kernel) for layer in layers_of(model) if isinstance(layer, kinds)]
