"""Copies of a network: in Keras's own layers, and in the faster ones of `networks.layers`."""

from collections.abc import Callable
from typing import Any

import keras

from regbench.networks import layers


def plain(model: keras.Model) -> keras.Model:
    """Copy a model into Keras's own layers, so that it loads without regbench.

    Regularizers, constraints, loss and optimizer are left out, and so is batch normalization over all replicas: only
    training needs them. An `ExpandConv2D` becomes three layers, NAME, NAME_bn and NAME_relu6; every other layer keeps
    its name. In inference the copy gives the same outputs, up to rounding.

    Args:
        model: functional or sequential, with any layers, and possibly models, in it.
    """
    return _copy(model, _plain)


def fast(model: keras.Model) -> keras.Model:
    """Copy a model, and replace layers by those of `networks.layers` that compute the same faster on a CPU.

    Args:
        model: functional or sequential, with any layers, and possibly models, in it.
    """
    return _copy(model, _fast)


def _plain(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    if type(layer) is layers.ExpandConv2D:
        relu6 = keras.layers.ReLU(6, name=f"{layer.name}_relu6", dtype=layer.dtype_policy)
        return [*_plain_version(layer), *_plain(layer.normalization), relu6]
    return _plain_version(layer)


def _plain_version(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    plain_class = next(kind for kind in type(layer).__mro__ if kind.__module__ != layers.__name__)
    config = plain_class.get_config(layer)
    config |= {key: None for key in config if key.endswith(("_regularizer", "_constraint"))}
    if plain_class is keras.layers.BatchNormalization:
        config["synchronized"] = False
    return [plain_class.from_config(config)]


def _fast(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    kind, config = type(layer), layer.get_config()
    for ours in (layers.PointwiseConv2D, layers.BatchNormalization, layers.DepthwiseConv2D):
        fixed = getattr(ours, "FIXED", {})
        if kind is ours.__base__ and all(getattr(layer, key) in (value, (value,) * 2) for key, value in fixed.items()):
            return [ours.from_config(layers.without(config, *fixed))]
    return [kind.from_config(config)]


def _copy(model: keras.Model, versions: Callable[[keras.layers.Layer], list[keras.layers.Layer]]) -> keras.Model:
    """Copy a model and its weights.

    Args:
        versions: gives the new layers that replace a layer. Called one after another, they compute the same; together
            they have the same weights, in the same order.
    """
    copies: dict[keras.layers.Layer, list[keras.layers.Layer]] = {}
    following: dict[keras.layers.Layer, list[keras.layers.Layer]] = {}

    def graph(model: keras.Model) -> keras.Model:
        sequential = isinstance(model, keras.Sequential)
        ends = (model.inputs, model.outputs) if sequential else (model.input, model.output)
        # A plain `keras.Model`, not compiled, whatever class the original has.
        bare = keras.Model(*ends, name=model.name)
        return keras.models.clone_model(bare, clone_function=copied, call_function=call)

    def copied(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, keras.Model) and hasattr(layer, "inputs"):
            return graph(layer)
        if layer not in copies:
            copies[layer] = versions(layer)
            following[copies[layer][0]] = copies[layer][1:]
        return copies[layer][0]

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        outputs = layer(*args, **kwargs)
        for after in following.get(layer, ()):
            outputs = after(outputs)
        return outputs

    copy = graph(model)
    for layer, made in copies.items():
        if isinstance(layer, keras.layers.Layer):  # else an operation on tensors, such as a sum
            weights = layer.get_weights()
            for version in made:
                count = len(version.weights)
                version.set_weights(weights[:count])
                del weights[:count]
    return copy
