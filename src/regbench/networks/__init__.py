"""The networks: those in the files here, those of `keras.applications`, a user's own (`model.network` in params.yaml).

A network is built by a function that returns a `keras.Model` from float images to logits. Networks know nothing about
regularizers. `regbench.regularizers.attach` attaches those to a built model; to find its layers and weights, it uses
the functions here.
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from regbench import catalogue, params
from regbench.errors import UserError

NOISE = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout2D,
    keras.layers.AlphaDropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
)
"""Layers that act only in training."""


def build(
    model: params.Model,
    input_shape: tuple[int, int, int],
    num_classes: int,
    synchronized: bool = False,
    weights_md5: str | None = None,
) -> keras.Model:
    """Build the network that params ask for, load the weights that it starts from, and freeze layers.

    Args:
        model: `model:` in params.
        input_shape: (height, width, channels) of an image.
        num_classes: number of logits.
        synchronized: whether batch normalization takes its statistics over all replicas of a `tf.distribute` strategy.
        weights_md5: expected MD5 of the weights file; None: not checked.

    Returns:
        a functional `keras.Model`, float [N, height, width, channels] → float32 logits [N, num_classes].

    Raises:
        UserError: the user's own network or weights file is unusable, images are too small, or there is no layer of
            the name in `model.freeze`.
    """
    options = model.model_dump(exclude={"network", "weights", "freeze"}) | {"synchronized": synchronized}
    if model.network in catalogue.networks():
        network = _module(model.network).build(input_shape, num_classes, **options)
    else:
        source = "_applications" if model.network in catalogue.applications() else "_own"
        network = _module(source).build(model.network, input_shape, num_classes, **options)
    if model.weights:
        _module("_weights").load(network, model.weights, weights_md5)
    if model.freeze:
        freeze(network, model.freeze)
    return network


def register(own: str | None) -> None:
    """Import a user's own network, `./file.py:function`, so that its saved models can be loaded; None: do nothing."""
    if own:
        _module("_own").function(own)


# Not an import statement: a plan covers all that is imported by one, and should cover only what its run uses.
def _module(name: str) -> Any:
    return importlib.import_module(f"regbench.networks.{name}")


def freeze(network: keras.Model, name: str) -> None:
    """Freeze all layers up to and including the one of this name: their weights are no longer trained.

    Frozen batch normalization uses its moving averages and does not update them. The name of a model inside the
    network stands for all of its layers. Layers are in Keras's order, from the input to the output.

    Raises:
        UserError: there is no such layer, or no weights would be left to train.
    """
    names = [layer.name for layer in _layers_and_models(network)]
    if name not in names:
        found = catalogue.nearest(name, names)
        hint = f"did you mean {found}? " if found else ""
        last = ", ".join(layer.name for layer, _ in kernels(network)[-4:])
        raise UserError(
            f"model.freeze: {network.name} has no layer {name!r}; {hint}its last ones with weights are {last}"
        )
    for layer in _layers_and_models(network):
        if not isinstance(layer, keras.Model):
            layer.trainable = False
        if layer.name == name:
            break
    if not network.trainable_variables:
        raise UserError(f"model.freeze: {name} leaves nothing to train; the head at least should be trained")


def _layers_and_models(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """The layers of a model. Models in it are included, each after its own layers."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers_and_models(layer)
        yield layer


def layers_of(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """The layers of a model and of the models in it, from the input to the output."""
    return (layer for layer in _layers_and_models(model) if not isinstance(layer, keras.Model))


def parts_of(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers directly inside a layer, without the layers inside those."""
    return layer._flatten_layers(include_self=False, recursive=False)


def batch_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """All batch normalization layers of a model, also those inside other layers."""

    def within(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
        yield layer
        for part in parts_of(layer):
            yield from within(part)

    parts = (part for layer in layers_of(model) for part in within(layer))
    return list({id(part): part for part in parts if isinstance(part, keras.layers.BatchNormalization)}.values())


def kernels(model: keras.Model) -> list[tuple[keras.layers.Layer, keras.Variable]]:
    """The kernels of a model, from the stem to the head, as (layer, kernel).

    A kernel is a weight with two or more axes whose name ends in "kernel". All Keras layers name them so: convolutions,
    `Dense`, `EinsumDense`, attention. `SeparableConv2D` has two kernels. If a layer contains others, their kernels are
    listed with the outer layer.
    """
    found = {}
    for layer in layers_of(model):
        for weight in layer.weights:
            if weight.name.endswith("kernel") and len(weight.shape) >= 2:
                found.setdefault(id(weight), (layer, weight))
    return list(found.values())


def name_of(layer: keras.layers.Layer, kernel: keras.Variable) -> str:
    """The name of a kernel: its layer's name and, if the layer has several kernels, which one."""
    parts = kernel.path.removesuffix("/kernel").split("/")
    return "/".join(parts[parts.index(layer.name) :]) if layer.name in parts else layer.name


def is_depthwise(layer: keras.layers.Layer, kernel: keras.Variable) -> bool:
    """Whether a kernel belongs to a depthwise convolution, in which each filter sees one channel."""
    grouped = getattr(layer, "groups", 1) > 1 and kernel.shape[-2] == 1  # ConvNeXt's
    return grouped or isinstance(layer, keras.layers.DepthwiseConv2D) or kernel.name.startswith("depthwise")


def head(model: keras.Model) -> keras.layers.Dense:
    """The last Dense layer of a model, which gives the logits.

    Raises:
        UserError: the model has no Dense layer.
    """
    found = [layer for layer in layers_of(model) if isinstance(layer, keras.layers.Dense)]
    if not found:
        raise UserError(f"the network {model.name} should end in a keras.layers.Dense layer, its head; it has none")
    return found[-1]


def normalized(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers whose outputs are batch-normalized, by the next layer or by a part of the layer itself."""
    batch_norm = keras.layers.BatchNormalization
    # `ExpandConv2D` contains its batch normalization.
    found = [layer for layer in layers_of(model) if isinstance(getattr(layer, "normalization", None), batch_norm)]
    made_by: dict[int, keras.layers.Layer] = {}
    kept = []  # keeps tensors alive, so that no other tensor gets the same id

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, batch_norm) and args and id(args[0]) in made_by:
            found.append(made_by[id(args[0])])
        outputs = layer(*args, **kwargs)
        made_by[id(outputs)] = layer
        kept.append(outputs)
        return outputs

    rewired(model, call)
    return found


def calls(network: keras.Model) -> list[keras.layers.Layer]:
    """The layers and operations of a functional model, each as often as it is called."""
    found = []

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        found.append(layer)
        return layer(*args, **kwargs)

    rewired(network, call)
    return found


def inserted(network: keras.Model, before: Callable[[keras.layers.Layer, Any], Any]) -> keras.Model:
    """The network with more layers in it. Its existing layers are shared, with their weights.

    Args:
        network: a functional model; it may contain functional and sequential models.
        before: called with each layer and its input, a tensor or a list of tensors. Returns the layer's new input:
            the same one, or the output of inserted layers. It is also called for operations such as `x + y`; if an
            operation takes several tensors, the input is the first one.
    """

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        return layer(before(layer, args[0]), *args[1:], **kwargs) if args else layer(**kwargs)

    return rewired(network, call)


def without_noise(network: keras.Model) -> keras.Model:
    """The network without its dropout and noise layers; the other layers are shared. Itself if it has none of them."""
    if not any(isinstance(layer, NOISE) for layer in layers_of(network)):
        return network
    return rewired(
        network, lambda layer, *args, **kwargs: args[0] if isinstance(layer, NOISE) else layer(*args, **kwargs)
    )


def rewired(model: keras.Model, call: Callable[..., Any], models: bool = False) -> keras.Model:
    """A new model of the same layers and weights, in which `call(layer, *args, **kwargs)` makes each call of a layer.

    `call` also gets the layers of models inside the model, and operations on tensors such as `x + y`. With `models`,
    it also gets the models inside.
    """

    def graph(layer: keras.layers.Layer) -> keras.layers.Layer:
        # Keras can't replace calls in a sequential model, so make it functional. Subclassed models have no graph.
        if isinstance(layer, keras.Sequential):
            layer = keras.Model(layer.inputs, layer.outputs, name=layer.name)
        return rewired(layer, call, models) if isinstance(layer, keras.Model) and hasattr(layer, "inputs") else layer

    def call_all(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        own = isinstance(layer, keras.Model) and not models
        return layer(*args, **kwargs) if own else call(layer, *args, **kwargs)

    return keras.models.clone_model(model, clone_function=graph, call_function=call_all)


def shortcuts(network: keras.Model) -> dict[keras.layers.Layer, int]:
    """{`Add` layer: the index of its input with the longest path}, from the network's input to its output.

    If a layer adds a shortcut and a residual branch, this is the residual branch, even if the shortcut is projected.
    """
    lengths: dict[int, int] = {}
    found, tensors = {}, []

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        outputs = layer(*args, **kwargs)
        into = [lengths.get(id(tensor), 0) for tensor in keras.tree.flatten((args, kwargs))]
        if isinstance(layer, keras.layers.Add):
            found[layer] = into.index(max(into))
        for tensor in keras.tree.flatten(outputs):
            tensors.append(tensor)  # keeps it alive, so that no other tensor gets the same id
            lengths[id(tensor)] = max(into) + 1
        return outputs

    rewired(network, call, models=True)
    return found
