"""Copies of a model in plain Keras layers and in ours give the same outputs, without what only training needs."""

import keras
import numpy as np
import pytest

from regbench import networks, regularizers
from regbench.evaluation import weights
from regbench.networks import copies, layers, mobilenet_v2, small_cnn
from regbench.params import Regularizer, Term

TOLERANCE = 1e-4
"""Allowed difference between two ways of computing in float32, through 50 layers, as a share of the largest logit."""


def trained(network, images):
    """The network with uint8 input, as if trained: batch normalization has a batch's averages and random scales."""
    inputs = keras.Input(images.shape[1:], dtype="uint8")
    model = keras.Model(inputs, network(keras.layers.Rescaling(1 / 127.5, -1)(inputs)), name="whole")
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        if variable.path.endswith(("gamma", "beta", "bias")):
            variable.assign(rng.normal(1 if "gamma" in variable.path else 0, 0.3, variable.shape))
    model(images, training=True)
    return model


def assert_equal(ours, others):
    """Check that logits depend on the image and are equal within `TOLERANCE`."""
    ours, others = np.asarray(ours, np.float64), np.asarray(others, np.float64)
    assert ours.std(axis=0).mean() > 0.01 * np.abs(ours).max()
    np.testing.assert_allclose(ours, others, rtol=0, atol=TOLERANCE * np.abs(ours).max())


def classes_of(model):
    return [type(layer) for layer in networks.layers_of(model)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        lambda: mobilenet_v2.build((32, 32, 3), 10, width=0.5, batch_norm_momentum=0.0),
        lambda: mobilenet_v2.build((32, 32, 3), 10, width=0.5, batch_norm=False),
        lambda: small_cnn.build((32, 32, 3), 10, batch_norm_momentum=0.0),
    ],
    ids=["mobilenet_v2", "mobilenet_v2 without batch_norm", "small_cnn"],
)
def test_the_same_network_in_plain_layers_and_back(build, cifar10_sample):
    keras.utils.set_random_seed(0)
    images = cifar10_sample[0][::10]
    model = trained(build(), images)
    plain = copies.plain(model)
    fast = copies.fast(plain)
    logits = model(images, training=False)
    assert_equal(logits, plain(images, training=False))
    assert_equal(logits, fast(images, training=False))

    assert {kind.__module__.partition(".")[0] for kind in classes_of(plain)} == {"keras"}
    ours = {layers.PointwiseConv2D, layers.DepthwiseConv2D, layers.BatchNormalization}
    if layers.ExpandConv2D in classes_of(model):
        assert ours <= set(classes_of(fast))
    assert not {keras.layers.DepthwiseConv2D, keras.layers.BatchNormalization} & set(classes_of(fast))
    # Evaluation measures the same numbers of the weights, under the same names.
    line = Regularizer("l2", (Term("l2", 0.001, "all"),))
    rows = []
    for copy in (model, plain, fast):
        assert copy.count_params() == model.count_params()
        regularizers.attach(copy, line)
        rows.append(list(weights.layer_rows(copy, 0.001, 0.1)))
    assert rows[0] == rows[1] == rows[2]


@pytest.mark.slow
def test_what_only_training_needs_is_left_out():
    inputs = keras.Input((8, 8, 3))
    x = layers.PointwiseConv2D(4, kernel_regularizer="l2", kernel_constraint="non_neg", name="project")(inputs)
    x = layers.BatchNormalization(synchronized=True, momentum=0.9, name="project_bn")(x)
    x = keras.layers.Dropout(0.5, name="drop")(layers.ExpandConv2D(6, momentum=0.8, epsilon=1e-4, name="expand")(x))
    x = keras.layers.Flatten(name="flatten")(x)
    model = keras.Model(inputs, keras.layers.Dense(2, activity_regularizer="l1", name="head")(x), name="own")
    model.compile("adam", "mse")
    model.fit(np.ones((4, 8, 8, 3)), np.ones((4, 2)), verbose=0)
    plain = copies.plain(model)
    assert not plain.compiled and plain.losses == []
    assert [layer.name for layer in plain.layers[1:]] == [
        *("project", "project_bn", "expand", "expand_bn", "expand_relu6", "drop", "flatten", "head")
    ]
    configs = [layer.get_config() for layer in plain.layers]
    left = {key: value for config in configs for key, value in config.items() if "regulariz" in key or "constr" in key}
    assert set(left.values()) == {None}
    assert plain.get_layer("project_bn").synchronized is False
    assert (plain.get_layer("project_bn").momentum, plain.get_layer("expand_bn").momentum) == (0.9, 0.8)
    assert plain.get_layer("expand_bn").epsilon == 1e-4
    assert plain.name == "own" and model.compiled


def test_a_network_of_any_layers():
    """Models in models, a layer called twice, operations on tensors, two inputs, and layers that ours can't replace."""
    keras.utils.set_random_seed(0)
    block = keras.Sequential([layers.ExpandConv2D(6, name="expand"), keras.layers.SpatialDropout2D(0.5)], name="block")
    shared = layers.PointwiseConv2D(6, name="shared")
    inner_inputs = keras.Input((8, 8, 6))
    inner = keras.Model(inner_inputs, keras.ops.relu(shared(inner_inputs)) + 1.0, name="inner")
    inputs = {name: keras.Input((8, 8, 3), name=name) for name in ("left", "right")}
    x = block(inputs["left"]) * 2.0 + block(inputs["right"])
    x = shared(inner(x))
    x = keras.layers.Conv2D(6, 1, strides=2, name="strided")(x)
    x = keras.layers.Conv2D(6, 1, groups=2, name="grouped")(x)
    x = keras.layers.Conv2D(6, 1, name="pointwise")(x)
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="double")(x)
    x = keras.layers.LayerNormalization()(keras.layers.Flatten()(x))
    x = keras.layers.BatchNormalization(name="of_vectors")(x)
    model = keras.Model(inputs, {"logits": keras.layers.Dense(3, name="head")(x)})
    rng = np.random.default_rng(0)
    images = {name: rng.normal(size=(5, 8, 8, 3)).astype(np.float32) for name in inputs}
    logits = model(images)["logits"]
    for copy in (copies.plain(model), copies.fast(model), copies.fast(copies.plain(model))):
        assert_equal(logits, copy(images)["logits"])
        assert copy.count_params() == model.count_params()
    fast = copies.fast(copies.plain(model))
    kinds = {name: type(fast.get_layer(name)) for name in ("strided", "grouped", "pointwise", "double")}
    assert kinds.pop("pointwise") is layers.PointwiseConv2D
    assert {kind.__module__.partition(".")[0] for kind in kinds.values()} == {"keras"}


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_is_kept(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = small_cnn.build((16, 16, 3), 4)
        expand = layers.ExpandConv2D(8, name="expand")
        model = keras.Model(model.input, [model.output, expand(model.get_layer("conv2_relu").output)])
    finally:
        keras.config.set_dtype_policy("float32")
    for copy in (copies.plain(model), copies.fast(copies.plain(model))):
        for name in ("conv1", "conv1_bn", "head"):
            assert copy.get_layer(name).dtype_policy == model.get_layer(name).dtype_policy
        for name in ("expand", "expand_bn", "expand_relu6"):
            assert copy.get_layer(name).dtype_policy == expand.dtype_policy
        images = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
        for ours, others in zip(model(images), copy(images), strict=True):
            assert ours.dtype == others.dtype
            np.testing.assert_allclose(np.asarray(ours, float), np.asarray(others, float), rtol=0.05, atol=0.05)
