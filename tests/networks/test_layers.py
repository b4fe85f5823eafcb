"""Each layer against the plain Keras layer that it replaces, also in programs that use nothing else of regbench."""

import os
import subprocess
import sys
from unittest import mock

import keras
import numpy as np
import pytest
import scratch
import tensorflow as tf
from absl.testing import parameterized
from keras.src import testing
from keras.src.layers.normalization import batch_normalization_test

from regbench.networks import layers, mobilenet_v2


def plain_expand(momentum=0.99, epsilon=1e-3, dtype=None, **options):
    """The plain Keras layers that `ExpandConv2D` replaces."""
    return keras.Sequential(
        [
            keras.layers.Conv2D(7, 1, use_bias=False, dtype=dtype, **options),
            keras.layers.BatchNormalization(momentum=momentum, epsilon=epsilon, dtype=dtype),
            keras.layers.ReLU(6, dtype=dtype),
        ]
    )


CASES = {
    "pointwise": (lambda **k: layers.PointwiseConv2D(7, **k), lambda **k: keras.layers.Conv2D(7, 1, **k)),
    "stem": (lambda **k: layers.StemConv2D(7, 3, **k), lambda **k: keras.layers.Conv2D(7, 3, **k)),
    "depthwise": (lambda **k: layers.DepthwiseConv2D(**k), lambda **k: keras.layers.DepthwiseConv2D(3, **k)),
    "batch_norm": (lambda **k: layers.BatchNormalization(**k), lambda **k: keras.layers.BatchNormalization(**k)),
    "expand": (lambda **k: layers.ExpandConv2D(7, **k), lambda **k: plain_expand(**k)),
}
"""{kind: (ours, Keras's)}"""

SAME = {"padding": "same", "bias_initializer": "random_normal"}
OPTIONS = [
    ("pointwise", {"use_bias": False, "kernel_regularizer": "l2"}),
    ("pointwise", {"use_bias": True, "activation": "relu", "bias_initializer": "random_normal"}),
    ("stem", {"use_bias": False, "padding": "same", "kernel_regularizer": "l2"}),
    ("stem", {"use_bias": True, "strides": 2, "activation": "relu", **SAME}),
    ("stem", {"use_bias": False, "padding": "valid", "strides": 2}),
    ("depthwise", {"use_bias": False, "padding": "same", "depthwise_regularizer": "l2"}),
    ("depthwise", {"use_bias": True, **SAME}),
    ("depthwise", {"use_bias": False, "padding": "valid", "strides": 2}),
    ("depthwise", {"use_bias": False, "padding": "same", "strides": 2, "activation": "relu"}),
    ("depthwise", {"use_bias": True, "strides": 2, **SAME}),
    ("batch_norm", {}),
    ("batch_norm", {"momentum": 0.9, "epsilon": 1e-5}),
    ("batch_norm", {"momentum": 0.0}),
    ("expand", {"kernel_regularizer": "l1"}),
    ("expand", {"momentum": 0.9, "epsilon": 1e-5}),
]
SHAPES = [
    (1, 1, 1, 3),
    (8, 1, 1, 5),
    (1, 2, 2, 3),
    (4, 2, 1, 6),
    (3, 1, 4, 2),
    (2, 5, 3, 4),
    (1, 7, 7, 8),
    (16, 8, 8, 4),
]
SMALL = [(4, 1, 1, 3), (4, 2, 2, 3), (4, 1, 3, 3), (4, 5, 5, 3)]


def observe(layer, inputs, **arguments):
    """Outputs, gradients of inputs and weights, penalties, all variables after the call, and outputs in inference."""
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=True, **arguments)
        upstream = np.random.default_rng(1).normal(size=outputs.shape)
        loss = tf.reduce_sum(outputs * tf.cast(upstream, outputs.dtype))
        loss += tf.cast(sum(layer.losses), loss.dtype)
    gradients = tape.gradient(loss, [inputs, *layer.trainable_variables])
    updated = [tf.convert_to_tensor(variable) for variable in layer.variables]
    return [outputs, *gradients, *layer.losses, *updated, layer(inputs, training=False)]


def observe_both(kind, shape, options, **arguments):
    """[ours, Keras's], each as `observe`, with the same initial weights and inputs."""
    observed = []
    dtype = keras.DTypePolicy(options.get("dtype", "float32")).compute_dtype
    for make in CASES[kind]:
        keras.utils.set_random_seed(3)
        layer = make(**options)
        layer.build(shape)
        inputs = tf.cast(np.random.default_rng(0).normal(2, 3, shape), dtype)
        observed.append([np.asarray(value, np.float64) for value in observe(layer, inputs, **arguments)])
    return observed


def assert_equal(ours, plain, rtol=2e-4, atol=2e-5):
    """Check that numbers are equal up to rounding; `atol` is a share of the largest number or, if larger, of 1."""
    for a, b in zip(ours, plain, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol * max(1, np.abs(b).max(initial=0)))


@pytest.fixture
def way_for_xla(monkeypatch):
    """Make layers compute in the way that they use under XLA."""
    for layer in (layers.StemConv2D, layers.DepthwiseConv2D, layers.BatchNormalization):
        monkeypatch.setattr(layer, "xla", True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=str)
def test_equals_keras(kind, options, shape):
    if options.get("padding") == "valid" and min(shape[1:3]) < 3:
        pytest.skip("a 3×3 window does not fit")
    assert_equal(*observe_both(kind, shape, options))


@pytest.mark.parametrize("shape", [(4, 6, 5, 4), (2, 2, 2, 8), (3, 1, 1, 3)], ids=str)
@pytest.mark.parametrize("kind", ["pointwise", "depthwise", "expand"])
def test_the_same_mathematics_in_double_precision(kind, shape):
    """Only rounding differs, so the other way of computing is not an approximation."""
    options = {"padding": "same"} if kind == "depthwise" else {}
    assert_equal(*observe_both(kind, shape, options | {"dtype": "float64"}), rtol=1e-9, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SMALL, ids=str)
@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize(
    ("way", "dtype"),
    [
        *(("", dtype) for dtype in ("mixed_float16", "mixed_bfloat16", "float16", "bfloat16")),
        ("way for XLA", "mixed_bfloat16"),
    ],
)
def test_half_precision(way, dtype, kind, shape, request):
    """In half precision, our layer is nearly as close to the float32 result as Keras's own layer."""
    if way:
        request.getfixturevalue("way_for_xla")
    options = {"padding": "same"} if kind in ("stem", "depthwise") else {}
    ours, plain = observe_both(kind, shape, options | {"dtype": dtype})
    exact, _ = observe_both(kind, shape, options)
    rounding = 2.0**-7 if "bfloat" in dtype else 2.0**-10
    for a, b, true in zip(ours, plain, exact, strict=True):
        size = max(1, np.abs(true).max())
        assert np.abs(a - true).max() <= 2 * np.abs(b - true).max() + 4 * rounding * size


def test_expansion_is_as_exact_as_keras():
    """For inputs far from 0 and nearly constant, E[x²] − E[x]² would have no correct digit."""
    shape = (8, 8, 8, 4)
    inputs = tf.constant(np.random.default_rng(0).normal(1000, 0.1, shape), tf.float32)
    ours, plain = CASES["expand"]
    outputs = []
    for dtype, make in (("float32", ours), ("float32", plain), ("float64", plain)):
        keras.utils.set_random_seed(3)
        layer = make(dtype=dtype)
        layer.build(shape)
        outputs.append(np.asarray(layer(tf.cast(inputs, dtype), training=True), np.float64))
    ours_off, plain_off = (np.abs(output - outputs[2]).max() for output in outputs[:2])
    assert 0 < ours_off < 2 * plain_off


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_expansion_of_channels_that_cancel_out_is_finite(scale):
    rng = np.random.default_rng(0)
    channel = rng.normal(0, scale, (8, 6, 6, 1))
    inputs = np.concatenate([channel, channel + rng.normal(0, 1e-3, channel.shape), channel], -1).astype(np.float32)
    layer = layers.ExpandConv2D(100)
    layer.build(inputs.shape)
    kernel = rng.normal(size=(1, 1, 3, 100))
    layer.kernel.assign(kernel - kernel.mean(axis=2, keepdims=True))
    assert all(np.isfinite(value).all() for value in observe(layer, tf.constant(inputs)))


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
        outputs, *rest = observe(layer, inputs)
        observed.append([outputs, *rest[: 1 + len(layer.trainable_variables)]])
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


@pytest.mark.parametrize("kind", CASES)
def test_maps_and_batches_of_unknown_size(kind):
    ours, plain = (keras.Sequential([keras.Input((None, None, 3)), make()]) for make in CASES[kind])
    assert ours.output_shape == plain.output_shape
    ours.set_weights(plain.get_weights())
    for shape in ((5, 4, 3, 3), (2, 7, 5, 3)):
        images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        np.testing.assert_allclose(ours(images), plain(images), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SMALL, ids=str)
@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("way", ["", "way for XLA"])
def test_compiled_by_xla(way, kind, shape, request):
    """A training step gives the same numbers if XLA compiles it."""
    if way:
        request.getfixturevalue("way_for_xla")
    options = {**SAME, "use_bias": True} if kind in ("stem", "depthwise") else {}
    layer = CASES[kind][0](**options)
    layer.build(shape)
    weights = layer.get_weights()
    inputs = tf.constant(np.random.default_rng(0).normal(2, 3, shape), tf.float32)
    observed = []
    for jit_compile in (False, True):
        layer.set_weights(weights)
        step = tf.function(lambda inputs: observe(layer, inputs), jit_compile=jit_compile)
        observed.append([np.asarray(value) for value in step(inputs)])
    assert_equal(*observed)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=str)
def test_the_way_for_xla_equals_keras(kind, options, shape, way_for_xla):
    if options.get("padding") == "valid" and min(shape[1:3]) < 3:
        pytest.skip("a 3×3 window does not fit")
    assert_equal(*observe_both(kind, shape, options))


def test_layers_are_switched_to_the_way_for_xla():
    made = [layers.BatchNormalization(), layers.DepthwiseConv2D(), layers.ExpandConv2D(8), keras.layers.ReLU()]
    layers.for_xla(made)

    def switched():
        return [getattr(layer, "normalization", layer).__dict__.get("xla") for layer in made]

    assert switched() == [True, True, True, None]
    with pytest.raises(ValueError, match="traced"), layers.not_for_xla(made):
        assert switched() == [False, False, False, None]
        raise ValueError("while it was traced")
    assert switched() == [True, True, True, None]


# Cases that a layer leaves to Keras or refuses


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((4, 5, 5, 3), {"axis": 1}),
        ((4, 3, 3, 3), {"axis": 1}),
        ((4, 3, 3, 3), {"axis": 2}),
        ((4, 5, 3, 3), {"axis": 3}),
        ((4, 5, 3, 3), {"center": False}),
        ((4, 5, 3, 3), {"scale": False}),
        ((4, 5, 3, 3), {"renorm": True}),
        ((4, 5, 3, 3), {"synchronized": True}),
        ((4, 5, 3, 3), {"dtype": "float64"}),
        ((4, 5), {}),
        ((4, 5, 3), {}),
        ((4, 2, 5, 3, 3), {}),
    ],
    ids=str,
)
def test_batch_normalization_of_any_kind_equals_keras(shape, options):
    assert_equal(*observe_both("batch_norm", shape, options))


@pytest.mark.parametrize("shape", [(4, 5, 3, 3), (4, 5, 3)], ids=str)
def test_batch_normalization_takes_masks(shape):
    mask = tf.constant(np.random.default_rng(2).random(shape[:-1]) < 0.5)
    ours, plain = observe_both("batch_norm", shape, {}, mask=mask)
    assert_equal(ours, plain)
    unmasked, _ = observe_both("batch_norm", shape, {})
    assert np.abs(ours[0] - unmasked[0]).max() > 0.1


def test_batch_normalization_that_is_not_trained():
    shape, observed = (4, 5, 3, 3), []
    for make in CASES["batch_norm"]:
        layer = make()
        layer.build(shape)
        layer.trainable = False
        layer.moving_mean.assign([1.0, 2.0, 3.0])
        inputs = tf.constant(np.random.default_rng(0).normal(size=shape), tf.float32)
        observed.append([np.asarray(layer(inputs, training=True)), layer.moving_mean.numpy()])
    assert_equal(*observed)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {"data_format": "channels_first"}) for kind in ("pointwise", "depthwise", "expand")),
        *((kind, {"dilation_rate": 2}) for kind in ("pointwise", "depthwise", "expand")),
        ("pointwise", {"strides": (2, 2)}),
        ("pointwise", {"kernel_size": 3}),
        ("pointwise", {"groups": 7}),
        ("depthwise", {"kernel_size": (5, 5)}),
        ("depthwise", {"depth_multiplier": 2}),
        ("expand", {"strides": 2}),
        ("expand", {"use_bias": True}),
        ("expand", {"activation": "relu"}),
    ],
    ids=str,
)
def test_refused_when_it_is_made(kind, options):
    (key,) = options
    with pytest.raises(ValueError, match=f"is for {key}=.* only"):
        CASES[kind][0](**options)


@pytest.mark.parametrize("kind", ["pointwise", "depthwise", "expand"])
def test_what_it_fixes_may_be_said(kind):
    layer = CASES[kind][0](strides=(1, 1), dilation_rate=[1, 1], data_format="channels_last")
    assert layer.compute_output_shape((4, 5, 6, 7)) == CASES[kind][1]().compute_output_shape((4, 5, 6, 7))


@pytest.mark.parametrize("kind", ["pointwise", "depthwise", "expand"])
def test_whatever_keras_json_says(kind):
    keras.config.set_image_data_format("channels_first")
    try:
        layer = CASES[kind][0]()
    finally:
        keras.config.set_image_data_format("channels_last")
    layer.build((4, 5, 6, 3))
    assert layer(np.zeros((4, 5, 6, 3), np.float32)).shape == CASES[kind][1]().compute_output_shape((4, 5, 6, 3))


@pytest.mark.parametrize("kind", ["pointwise", "depthwise", "expand"])
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_whole_numbers_are_refused(kind, shape):
    """As Keras does: a kernel cast to integers would be 0 everywhere."""
    layer = CASES[kind][0](**({"padding": "same"} if kind == "depthwise" else {}))
    with pytest.raises((ValueError, TypeError, tf.errors.OpError)):
        layer(tf.ones(shape, tf.int32))


# Keras's own tests


class TestLayers(testing.TestCase):
    """Keras's checks of any layer: config, build, symbolic and eager calls, `fit` under XLA, half precision."""

    @parameterized.product(
        kind=("pointwise", "depthwise"), use_bias=(False, True), input_shape=((2, 1, 1, 4), (2, 2, 2, 4), (2, 5, 4, 4))
    )
    def test_convolutions(self, kind, use_bias, input_shape):
        classes = {"pointwise": layers.PointwiseConv2D, "depthwise": layers.DepthwiseConv2D}
        options = {"filters": 3} if kind == "pointwise" else {"strides": 2}
        plain = CASES[kind][1](padding="same", **options) if kind == "depthwise" else keras.layers.Conv2D(3, 1)
        self.run_layer_test(
            classes[kind],
            init_kwargs={**options, "use_bias": use_bias, "padding": "same"},
            input_shape=input_shape,
            expected_output_shape=plain.compute_output_shape(input_shape),
            expected_num_trainable_weights=1 + use_bias,
            expected_num_non_trainable_weights=0,
            expected_num_losses=0,
            supports_masking=False,
        )

    @parameterized.parameters((2, 1, 1, 4), (2, 5, 4, 4))
    def test_expansion(self, *input_shape):
        self.run_layer_test(
            layers.ExpandConv2D,
            init_kwargs={"filters": 3, "momentum": 0.9, "kernel_regularizer": "l2"},
            call_kwargs={"training": True},
            input_shape=input_shape,
            expected_output_shape=(*input_shape[:-1], 3),
            expected_num_trainable_weights=3,
            expected_num_non_trainable_weights=2,
            expected_num_losses=1,
            supports_masking=False,
        )


@pytest.mark.slow
class TestBatchNormalization(batch_normalization_test.BatchNormalizationTest):
    """Keras's tests of its own layer, with ours in its place."""

    def setUp(self):
        super().setUp()
        replaced = mock.patch.object(batch_normalization_test.layers, "BatchNormalization", layers.BatchNormalization)
        replaced.start()
        self.addCleanup(replaced.stop)


# A program that uses only a model or the layers of regbench

PROGRAM = """
import sys

import keras
import numpy as np

from regbench.networks import layers

KERAS = {
    "depthwise": lambda **options: keras.layers.DepthwiseConv2D(3, **options),
    "pointwise": lambda **options: keras.layers.Conv2D(3, 1, **options),
    "expand": lambda: lambda x: keras.layers.ReLU(6)(
        keras.layers.BatchNormalization()(keras.layers.Conv2D(3, 1, use_bias=False)(x))
    ),
    "normalize": keras.layers.BatchNormalization,
}
OURS = {
    "depthwise": layers.DepthwiseConv2D,
    "pointwise": lambda **options: layers.PointwiseConv2D(3, **options),
    "expand": lambda: layers.ExpandConv2D(3),
    "normalize": layers.BatchNormalization,
}


def build(kinds):
    keras.utils.set_random_seed(0)
    inputs, outputs = [keras.Input((*side, 3)) for side in ((1, 1), (2, 2), (1, 3), (4, 4))], []
    for image in inputs:
        for use_bias, strides, activation in ((True, 1, None), (True, 2, "relu"), (True, 1, "relu6"), (False, 1, None)):
            options = {"use_bias": use_bias, "activation": activation, "bias_initializer": "random_normal"}
            x = kinds["depthwise"](padding="same", strides=strides, **options)(image)
            outputs.append(kinds["pointwise"](**options)(x))
        outputs.append(kinds["normalize"]()(kinds["expand"]()(image)))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse", jit_compile=False)
    return model


ours, plain = models = build(OURS), build(KERAS)
rng = np.random.default_rng(0)
images = [rng.normal(size=(8, *shape[1:])).astype(np.float32) for shape in ours.input_shape]
targets = [np.ones((8, *shape[1:]), np.float32) for shape in ours.output_shape]
for _ in range(2):
    for a, b in zip(*(model.predict(images, verbose=0) for model in models), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    for model in models:
        model.fit(images, targets, batch_size=4, shuffle=False, epochs=2, verbose=0)

network = keras.saving.load_model(sys.argv[1])
images = rng.integers(0, 256, (4, 32, 32, 3)).astype(np.float32)
np.testing.assert_allclose(network.predict(images, verbose=0), network(images), rtol=1e-3, atol=1e-3)
network.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
network.fit(images / 255, np.arange(4), verbose=0)
print("done")
"""


@pytest.mark.slow
def test_predict_and_fit_in_a_program_that_does_not_start_as_ours(tmp_path):
    """TensorFlow rewrites graphs in such a program: with oneDNN it fuses a convolution with the bias after it."""
    saved = tmp_path / "network.keras"
    mobilenet_v2.build((32, 32, 3), 4, width=0.1, batch_norm=False).save(saved)
    environment = os.environ | {"PYTHONPATH": str(scratch.ROOT / "src"), "TF_ENABLE_ONEDNN_OPTS": "1"}
    command = [sys.executable, "-c", PROGRAM, saved]
    done = subprocess.run(command, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
