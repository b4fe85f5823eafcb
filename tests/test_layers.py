"""Each layer against the plain Keras layer it stands for: outputs, gradients, moving averages, initial values."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from regbench import layers


def plain_expand(momentum=0.99, epsilon=1e-3, **options):
    """What `ExpandConv2D` stands for."""
    return keras.Sequential(
        [
            keras.layers.Conv2D(7, 1, use_bias=False, **options),
            keras.layers.BatchNormalization(momentum=momentum, epsilon=epsilon),
            keras.layers.ReLU(6),
        ]
    )


CASES = {
    "pointwise": (lambda **k: layers.PointwiseConv2D(7, **k), lambda **k: keras.layers.Conv2D(7, 1, **k)),
    "depthwise": (lambda **k: layers.DepthwiseConv2D(**k), lambda **k: keras.layers.DepthwiseConv2D(3, **k)),
    "batch_norm": (lambda **k: layers.BatchNormalization(**k), lambda **k: keras.layers.BatchNormalization(**k)),
    "expand": (lambda **k: layers.ExpandConv2D(7, **k), lambda **k: plain_expand(**k)),
}
OPTIONS = [
    ("pointwise", {"use_bias": False, "kernel_regularizer": "l2"}),
    ("pointwise", {"use_bias": True, "activation": "relu"}),
    ("depthwise", {"use_bias": False, "padding": "same", "depthwise_regularizer": "l2"}),
    ("depthwise", {"use_bias": True, "padding": "same"}),
    ("depthwise", {"use_bias": False, "padding": "valid", "strides": 2}),
    ("depthwise", {"use_bias": False, "padding": "same", "strides": 2, "activation": "relu"}),
    ("batch_norm", {}),
    ("batch_norm", {"momentum": 0.9, "epsilon": 1e-5}),
    ("expand", {"kernel_regularizer": "l1"}),
    ("expand", {"momentum": 0.9, "epsilon": 1e-5}),
]
SHAPES = [(1, 1, 1, 3), (8, 1, 1, 5), (1, 2, 2, 3), (4, 2, 1, 6), (2, 5, 3, 4), (1, 7, 7, 8), (16, 8, 8, 4)]


def observe(layer, inputs, upstream):
    """Outputs, gradients for input and weights, penalties and updated weights of one training step's call."""
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=True)
        loss = tf.reduce_sum(outputs * upstream(outputs.shape)) + sum(layer.losses)
    gradients = tape.gradient(loss, [inputs, *layer.trainable_variables])
    inference = layer(inputs, training=False)
    return [outputs, *gradients, *layer.losses, *layer.variables, inference]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=str)
def test_equals_keras(kind, options, shape):
    if options.get("padding") == "valid" and min(shape[1:3]) < 3:
        pytest.skip("a 3×3 window does not fit")
    rng = np.random.default_rng(0)
    inputs = tf.constant(rng.normal(2, 3, shape), tf.float32)

    def upstream(shape):
        return np.random.default_rng(1).normal(size=shape).astype(np.float32)

    observed = []
    for make in CASES[kind]:
        keras.utils.set_random_seed(3)
        layer = make(**options)
        layer.build(shape)
        observed.append(observe(layer, inputs, upstream))
    ours, plain = observed
    assert len(ours) == len(plain)
    for a, b in zip(ours, plain, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("shape", [(4, 6, 5, 4), (2, 2, 2, 8), (3, 1, 1, 3)], ids=str)
@pytest.mark.parametrize("kind", ["pointwise", "depthwise", "expand"])
def test_the_same_mathematics_in_double_precision(kind, shape):
    """Rounding apart, nothing is left: the other way of computing is not an approximation."""
    inputs = tf.constant(np.random.default_rng(0).normal(2, 3, shape))
    observed = []
    for make in CASES[kind]:
        keras.config.set_dtype_policy("float64")
        try:
            keras.utils.set_random_seed(3)
            layer = make(padding="same") if kind == "depthwise" else make()
        finally:
            keras.config.set_dtype_policy("float32")
        layer.build(shape)
        observed.append(observe(layer, inputs, lambda shape: np.random.default_rng(1).normal(size=shape)))
    for a, b in zip(*observed, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-9, atol=1e-10)


def test_expansion_is_as_exact_as_keras():
    """Inputs far from 0 and nearly constant, where E[x²] − E[x]² would have no digit left."""
    shape = (8, 8, 8, 4)
    inputs = tf.constant(np.random.default_rng(0).normal(1000, 0.1, shape), tf.float32)
    ours, plain = CASES["expand"]
    outputs = []
    for policy, make in (("float32", ours), ("float32", plain), ("float64", plain)):
        keras.config.set_dtype_policy(policy)
        try:
            keras.utils.set_random_seed(3)
            layer = make()
        finally:
            keras.config.set_dtype_policy("float32")
        layer.build(shape)
        outputs.append(np.asarray(layer(tf.cast(inputs, policy), training=True), np.float64))
    ours_off, plain_off = (np.abs(output - outputs[2]).max() for output in outputs[:2])
    assert 0 < ours_off < 2 * plain_off


@pytest.mark.parametrize("shape", [(8, 5, 3, 4), (4, 2, 2, 8), (1, 1, 1, 3)], ids=str)
@pytest.mark.parametrize("kind", ["batch_norm", "expand"])
def test_without_moving_averages_all_else_is_the_same(kind, shape):
    inputs = tf.constant(np.random.default_rng(0).normal(2, 3, shape), tf.float32)
    observed = []
    for averages in (True, False):
        keras.utils.set_random_seed(3)
        layer = CASES[kind][0]()
        layer.build(shape)
        getattr(layer, "normalization", layer).averages = averages
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=True)
            loss = tf.reduce_sum(outputs * np.random.default_rng(1).normal(size=outputs.shape).astype(np.float32))
        observed.append([outputs, *tape.gradient(loss, [inputs, *layer.trainable_variables])])
        moved = [bool(np.any(mean.numpy())) for mean in layer.variables if "moving_mean" in mean.path]
        assert moved == [averages]
    for a, b in zip(*observed, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=str)
def test_saved_and_loaded(kind, options, tmp_path):
    model = keras.Sequential([keras.Input((5, 5, 4)), CASES[kind][0](**options)])
    images = np.random.default_rng(0).normal(size=(3, 5, 5, 4)).astype(np.float32)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(model(images), loaded(images))
    assert len(loaded.losses) == len(model.losses)
    assert type(loaded.layers[0]) is type(model.layers[0])


def test_batch_of_unknown_size():
    model = keras.Sequential([keras.Input((4, 4, 3)), layers.PointwiseConv2D(2), layers.BatchNormalization()])
    assert model.output_shape == (None, 4, 4, 2)
    assert model.predict(np.zeros((5, 4, 4, 3), np.float32), verbose=0).shape == (5, 4, 4, 2)


def test_add_equals_keras(tmp_path):
    pair = [tf.constant(np.random.default_rng(seed).normal(size=(3, 5, 4, 2)), tf.float32) for seed in (0, 1)]
    observed = []
    for layer in (layers.Add(), keras.layers.Add()):
        with tf.GradientTape() as tape:
            tape.watch(pair)
            outputs = layer(pair)
        observed.append([outputs, *tape.gradient(outputs, pair, output_gradients=pair[1])])
    for ours, plain in zip(*observed, strict=True):
        np.testing.assert_array_equal(ours, plain)

    inputs = [keras.Input((5, 4, 2)), keras.Input((5, 4, 2))]
    keras.Model(inputs, layers.Add()(inputs)).save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert type(loaded.layers[-1]) is layers.Add
    np.testing.assert_array_equal(loaded(pair), pair[0] + pair[1])
