"""The networks of `keras.applications`, by their names: `model.network: ResNet50`.

Each is Keras's own, layer by layer, with global average pooling and a Dense head for the classes. Two things differ
from `keras.applications.NAME(weights=None)`. Images are converted as the architecture's published weights expect, so
those can be loaded (`model.weights`). And the dropout layers of EfficientNets are left out: only `reg:` in params
decides how a network is regularized.
"""

from typing import Any

import keras

from regbench import networks
from regbench.errors import UserError

MEAN, VARIANCE = (0.485, 0.456, 0.406), (0.229**2, 0.224**2, 0.225**2)
"""Of ImageNet's red, green and blue, on a scale from 0 to 1."""


def build(
    name: str,
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: float,
    batch_norm_momentum: float,
    synchronized: bool,
    **_: Any,
) -> keras.Model:
    """Build a network of `keras.applications`: floats in, logits out.

    Args:
        name: the function's name in `keras.applications`.
        input_shape: (height, width, channels) of an image; a single channel is repeated three times.
        num_classes: number of logits.
        width: MobileNets' multiplier of channels, `alpha`; 1.0 for all others.
        batch_norm_momentum: share of the old value in each update of batch normalization's moving averages.
        synchronized: whether batch normalization takes its statistics over all replicas of a `tf.distribute` strategy.

    Returns:
        `keras.Model`, float [N, height, width, channels], from -1 to 1 → float32 logits [N, num_classes].

    Raises:
        UserError: Keras does not build it for images of this shape.
    """
    function = getattr(keras.applications, name)
    module = getattr(keras.applications, function.__module__.rpartition(".")[2])
    height, side, channels = input_shape
    if channels not in (1, 3):
        raise UserError(f"model.network: {name} takes images of 3 channels, or 1; these have {channels}")
    x = keras.Input(input_shape, name="image")
    if channels == 1:
        x = keras.layers.Concatenate(name="three_channels")([x, x, x])
    x = keras.layers.Rescaling(127.5, offset=127.5, name="from_0_to_255")(x)
    options = {"alpha": width} if width != 1.0 else {}
    try:
        base = function(
            include_top=False,
            weights=None,
            input_tensor=module.preprocess_input(x),
            input_shape=(height, side, 3),
            pooling="avg",
            **options,
        )
    except ValueError as error:
        raise UserError(
            f"model.network: Keras does not build {name} for this: {str(error).partition('Received')[0]}"
        ) from None
    for layer in networks.batch_norms(base):
        layer.momentum, layer.synchronized = batch_norm_momentum, synchronized
    if any(_learns_statistics(layer) for layer in base.layers):
        base = _as_published(base)
    base = networks.without_noise(base)
    # In full precision, even if the other layers compute in half precision.
    logits = keras.layers.Dense(num_classes, dtype=keras.config.floatx(), name="head")(base.output)
    return keras.Model(base.inputs[0], logits, name=base.name)


def _as_published(base: keras.Model) -> keras.Model:
    """Replace EfficientNet's layer that should learn mean and variance by one with ImageNet's constants.

    The published weights have the standard deviation in place of the variance. Keras corrects this by a further layer,
    but only with weights="imagenet" (tensorflow#49930). With constants, published and random weights both work.
    """
    normalization = keras.layers.Normalization(mean=MEAN, variance=VARIANCE, name="imagenet")

    def replaced(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        return normalization(args[0]) if _learns_statistics(layer) else layer(*args, **kwargs)

    return networks.rewired(base, replaced)


def _learns_statistics(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.Normalization) and layer.input_mean is None
