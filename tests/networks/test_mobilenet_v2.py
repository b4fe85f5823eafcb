"""The network against `keras.applications.MobileNetV2` and against the article's numbers."""

import keras
import numpy as np
import pytest

from regbench import networks, params, regularizers
from regbench.networks import layers, mobilenet_v2


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 64, 96])
def test_equals_keras_applications(size):
    keras.utils.set_random_seed(0)
    ours = mobilenet_v2.build((size, size, 3), 10)
    theirs = keras.applications.MobileNetV2((size, size, 3), weights=None, classes=10, classifier_activation=None)
    rng = np.random.default_rng(0)
    # Change batch norm's averages and parameters from 0 and 1, so that a swapped pair would show.
    weights = [
        np.abs(w + rng.normal(0, 0.05, w.shape)).astype(np.float32) if w.ndim == 1 else w for w in ours.get_weights()
    ]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    images = rng.uniform(-1, 1, (4, size, size, 3)).astype(np.float32)
    a, b = ours(images, training=False).numpy(), theirs(images, training=False).numpy()
    assert np.abs(b).max() > 0.01
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


@pytest.mark.slow
def test_parameters_and_layers():
    model = mobilenet_v2.build((32, 32, 3), 10)
    assert model.count_params() == 2_270_794
    kernels = [w for w in model.trainable_variables if w.path.endswith("kernel")]
    assert len(kernels) == 53
    assert model.losses == []
    assert mobilenet_v2.build((32, 32, 1), 3).output_shape == (None, 3)


@pytest.mark.slow
@pytest.mark.parametrize("width", [0.35, 1.4])
def test_width_scales_as_keras_applications(width):
    ours = mobilenet_v2.build((32, 32, 3), 10, width=width)
    theirs = keras.applications.MobileNetV2((32, 32, 3), alpha=width, weights=None, classes=10)
    assert [w.shape for w in ours.weights] == [w.shape for w in theirs.weights]


def test_found_by_its_name(settings):
    model = networks.build(settings(**{"model.width": 0.35}).model, (32, 32, 3), 10)
    assert (model.name, model.output_shape) == ("mobilenet_v2", (None, 10))
    assert [layer.name for layer, _ in networks.kernels(model)][:3] == ["stem", "block0_depthwise", "block0_project"]
    assert len(networks.kernels(model)) == 53


@pytest.mark.slow
def test_residual_branches_that_start_at_zero(cifar10_sample):
    """A block with a shortcut is then the identity. There are ten such blocks, and no other weights differ."""
    keras.utils.set_random_seed(0)
    plain = mobilenet_v2.build((32, 32, 3), 10)
    keras.utils.set_random_seed(0)
    zero = mobilenet_v2.build((32, 32, 3), 10, zero_init_residual=True)
    differing = [a.path for a, b in zip(plain.weights, zero.weights, strict=True) if (a.numpy() != b.numpy()).any()]
    assert len(differing) == 10 and all(path.endswith("_project_bn/gamma") for path in differing)
    block = keras.Model(zero.input, [zero.get_layer(f"block{number}_add").output for number in (4, 5)])
    before, after = block(cifar10_sample[0][:4] / 127.5 - 1)
    np.testing.assert_array_equal(before, after)


def test_without_batch_normalization_the_signal_keeps_its_size(cifar10_sample):
    keras.utils.set_random_seed(0)
    model = mobilenet_v2.build((32, 32, 3), 10, batch_norm=False)
    assert not any("moving" in weight.path or weight.path.endswith("gamma") for weight in model.weights)
    assert sum(weight.path.endswith("bias") for weight in model.weights) == 53
    blocks = keras.Model(model.input, [model.get_layer(f"block{index}_project").output for index in range(17)])
    sizes = [float(np.std(block)) for block in blocks(cifar10_sample[0][::10] / 127.5 - 1)]
    assert min(sizes) > 0.1 and max(sizes) < 10


@pytest.fixture
def double_precision():
    for precision in ("float64", "float32"):
        keras.config.set_floatx(precision)
        keras.config.set_dtype_policy(precision)
        if precision == "float64":
            yield


@pytest.mark.slow
@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(("size", "xla"), [(32, False), (41, False), (41, True)])
def test_equals_the_articles_network_in_training(size, xla, cifar10_sample):
    """The same seed gives the same initial weights and, in double precision, the same weights after two steps."""
    import article

    images, labels = (part[::10] for part in cifar10_sample)
    images = keras.ops.image.resize(images.astype(np.float64), (size, size)) / 127.5 - 1
    trained = []
    for network in (mobilenet_v2.build, article.network):
        keras.utils.set_random_seed(7)
        model = network((size, size, 3), 10)
        layers.for_xla(model.layers, xla)
        regularizers.attach(model, params.Regularizer("l2", (params.Term("l2", 0.001, "backbone"),)))
        initial = model.get_weights()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        # Tracing takes most of the time, so only one of the two sizes is traced.
        model.compile(keras.optimizers.SGD(0.05), loss, jit_compile=False, run_eagerly=size == 41)
        model.fit(images, labels, batch_size=20, epochs=1, shuffle=False, verbose=0)
        trained.append((initial, model.get_weights()))
    (our_initial, ours), (their_initial, theirs) = trained
    for a, b in zip(our_initial, their_initial, strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(weight.dtype == np.float64 for weight in ours)
    for a, b, initial in zip(ours, theirs, their_initial, strict=True):
        assert (b != initial).any()
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)
