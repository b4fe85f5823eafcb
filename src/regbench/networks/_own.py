"""A user's own network, `model.network: ./my_network.py:build`: import it, build it, and check it.

The function gets the input shape and the number of classes, and those of the options width, batch_norm,
batch_norm_momentum, zero_init_residual and synchronized that it has arguments for. It is called twice with the same
seed, and its network runs on noise, so that errors are reported before an hour of training.
"""

import importlib.util
import inspect
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from regbench import catalogue, networks
from regbench.errors import UserError

IMAGES = 4
"""How many images of noise a network is tried on."""

_imported: set[str] = set()


def function(name: str) -> Callable[..., Any]:
    """Import the file of `./file.py:function`, as `import` would from its folder, and return the function.

    Raises:
        UserError: the file can't be imported; the message has the line that fails.
    """
    path, _ = catalogue.own(name)
    module_name = path.stem
    known = sys.modules.get(module_name)
    if known is not None and module_name not in _imported:
        raise UserError(f"{path}: {module_name} is the name of another module, {known!r}; rename the file")
    spec = importlib.util.spec_from_file_location(module_name, path.resolve())
    module = importlib.util.module_from_spec(spec)
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.insert(0, folder)
    sys.modules[module_name] = module
    _imported.add(module_name)
    try:
        spec.loader.exec_module(module)
        found = getattr(module, name.partition(":")[2])
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} can't be imported: {_where(error, path)}") from None
    if not callable(found):
        raise UserError(f"{name} should be a function; it is {found!r}")
    return found


def build(name: str, input_shape: tuple[int, int, int], num_classes: int, **options: Any) -> keras.Model:
    """Build a user's network and check it: floats in, logits out.

    Args:
        name: `./file.py:function`.
        input_shape: (height, width, channels) of an image.
        num_classes: number of logits.
        **options: those of `model:` in params, and `synchronized`; the function gets those it has arguments for.

    Returns:
        a functional `keras.Model`, float [N, height, width, channels] → float32 logits [N, num_classes].

    Raises:
        UserError: the function fails, or what it returns is not what regbench can train.
    """
    found = function(name)
    taken = {key: value for key, value in options.items() if key in inspect.signature(found).parameters}
    seed = int(np.random.randint(2**31))  # the run's seed decides it

    def built() -> keras.Model:
        keras.utils.set_random_seed(seed)
        try:
            network = found(input_shape, num_classes, **taken)
        except (Exception, SystemExit) as error:
            raise UserError(f"{name} failed: {_where(error, catalogue.own(name)[0])}") from None
        return _functional(network, name)

    network, again = built(), built()
    for problem in _problems(network, again, input_shape, num_classes):
        raise UserError(f"{name}: {problem}")
    return network


def _where(error: BaseException, path: Path) -> str:
    """The last line of the user's own code that led to an error, and the error."""
    what = f"{type(error).__name__}: {error}"
    frames = [
        it
        for it in traceback.extract_tb(error.__traceback__)
        if Path(it.filename).is_relative_to(path.resolve().parent)
        and not Path(it.filename).is_relative_to(catalogue.PACKAGE)
    ]
    if isinstance(error, TypeError) and not frames:
        return f"{what}; it should take input_shape and num_classes"
    if isinstance(error, SyntaxError) or not frames:
        return what
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}: {frames[-1].line}\n  {what}"


def _functional(network: Any, name: str) -> keras.Model:
    """What a function returned, as a functional model of Keras's own class."""
    if not isinstance(network, keras.Model):
        raise UserError(
            f"{name} should return a keras.Model; it returned {type(network).__name__}: {str(network)[:80]}"
        )
    if isinstance(network, keras.Sequential) and not network.built:
        raise UserError(f"{name}: a Sequential model should begin with keras.Input(input_shape)")
    if not hasattr(network, "inputs"):
        raise UserError(
            f"{name} returned a subclass of keras.Model, {type(network).__name__}; regbench needs the graph of layers. "
            "Return keras.Model(inputs, outputs) or keras.Sequential; layers of your own in it are fine"
        )
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        raise UserError(
            f"{name}: the network has {len(network.inputs)} inputs and {len(network.outputs)} outputs, not 1 and 1"
        )
    return keras.Model(network.inputs[0], network.outputs[0], name=network.name)


def _problems(
    network: keras.Model, again: keras.Model, input_shape: tuple[int, int, int], num_classes: int
) -> Iterator[str]:
    """Yield what is wrong with a network, as text. Only the first is reported: the others may follow from it."""
    expected = f"float [N, {', '.join(map(str, input_shape))}]"
    shape = network.input_shape
    fits = len(shape) == 4 and all(side in (None, size) for side, size in zip(shape[1:], input_shape, strict=True))
    if not fits or "float" not in network.input.dtype:
        yield f"its input is {network.input.dtype} {list(shape)}; it should be {expected}"
    if network.output_shape != (None, num_classes):
        yield f"its output is {list(network.output_shape)}; it should be logits [N, {num_classes}], one for each class"
    if network.output.dtype != "float32":
        yield (
            f"its logits are {network.output.dtype}; give the last layer dtype='float32', so that they are in whole "
            "precision whatever train.precision is"
        )
    dense = [layer for layer in networks.layers_of(network) if isinstance(layer, keras.layers.Dense)]
    if not dense or dense[-1].units != num_classes:
        yield f"it should end in a head, keras.layers.Dense({num_classes}), which gives the logits; {_last(dense)}"
    elif dense[-1].activation is not keras.activations.linear:
        yield (
            f"{dense[-1].name} has the activation {dense[-1].activation.__name__}; leave it out, so that it returns "
            "logits"
        )
    if not network.trainable_weights:
        yield "none of its weights is trainable; to freeze some layers, use model.freeze"
    yield from _penalties(network)
    for layer in (part for one in networks.layers_of(network) for part in [one, *networks.parts_of(one)]):
        kind = type(layer)
        if not kind.__module__.startswith("keras.") and not keras.saving.get_registered_object(
            keras.saving.get_registered_name(kind)
        ):
            yield (
                "it can't be loaded after saving: put @keras.saving.register_keras_serializable() above "
                f"{kind.__name__}"
            )
    calls = Counter(id(layer) for layer in networks.calls(network))
    for layer in networks.batch_norms(network):
        if calls[id(layer)] > 1:
            yield f"{layer.name} is called {calls[id(layer)]} times; each call needs a BatchNormalization of its own"
    for one, other in zip(network.weights, again.weights, strict=False):
        if one.shape != other.shape or not np.array_equal(one.numpy(), other.numpy()):
            yield (
                f"built twice with the same seed, {one.path} differs; initial values should come from Keras's "
                "initializers or from NumPy's and Python's global generators"
            )
    yield from _outputs(network, input_shape)


def _last(dense: list[keras.layers.Dense]) -> str:
    return f"its last Dense layer, {dense[-1].name}, has {dense[-1].units} units" if dense else "it has no Dense layer"


def _penalties(network: keras.Model) -> Iterator[str]:
    for weight in network.weights:
        for what in ("regularizer", "constraint"):
            if getattr(weight, what) is not None:
                yield f"{weight.path} has a {what} of its own; name it under reg: in params.yaml instead"
    for layer in networks.layers_of(network):
        if getattr(layer, "activity_regularizer", None) is not None:
            yield f"{layer.name} has an activity_regularizer of its own; name it under reg: in params.yaml instead"


def _outputs(network: keras.Model, input_shape: tuple[int, int, int]) -> Iterator[str]:
    """Yield what is wrong with a network's outputs for images of noise, as text."""
    images = np.random.default_rng(0).uniform(-1, 1, (IMAGES, *input_shape)).astype(np.float32)
    logits, again = (network(images, training=False).numpy() for _ in range(2))
    if not np.array_equal(logits, again, equal_nan=True):
        yield (
            "the same images give different logits each time, starting at layer "
            f"{_first_that_differs(network, images)}; a layer should draw random numbers only if it is called with "
            "training=True"
        )
    if not np.isfinite(logits).all():
        yield "its logits of random images between -1 and 1 are not finite"
    if (logits >= 0).all() and np.allclose(logits.sum(axis=1), 1, atol=1e-3):
        yield "its outputs sum to 1, as those of a softmax; it should return logits, so leave the softmax out"
    try:
        copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(network))
        copy.set_weights(network.get_weights())
    except Exception as error:  # Keras has no single error class for unknown classes and for layers that hold code
        yield (
            f"it can't be loaded after saving ({str(error).strip().partition('. ')[0]}). Write a Lambda as a layer of "
            "your own. It needs @keras.saving.register_keras_serializable() and a get_config with all its arguments"
        )
    else:
        if not np.allclose(copy(images, training=False).numpy(), logits, rtol=1e-3, atol=1e-4):
            yield (
                "after saving and loading, it gives different logits; a layer's get_config should return all its "
                "arguments"
            )


def _first_that_differs(network: keras.Model, images: np.ndarray) -> str:
    """The name of the first layer whose outputs differ between two calls of the network."""
    layers = [layer for layer in network.layers if isinstance(layer.output, keras.KerasTensor)]
    parts = keras.Model(network.input, [layer.output for layer in layers])
    runs = zip(layers, parts(images, training=False), parts(images, training=False), strict=True)
    return next((layer.name for layer, one, other in runs if not np.array_equal(one, other)), layers[-1].name)
