"""The network against `keras.applications.MobileNetV2` and against the article's numbers."""

import keras
import numpy as np
import pytest

from regbench import params, regularizers
from regbench.mobilenet import mobilenet_v2


@pytest.mark.parametrize("size", [32, 64, 96])
def test_equals_keras_applications(size):
    keras.utils.set_random_seed(0)
    ours = mobilenet_v2((size, size, 3), 10)
    theirs = keras.applications.MobileNetV2((size, size, 3), weights=None, classes=10, classifier_activation=None)
    rng = np.random.default_rng(0)
    # Moving averages and batch norm's parameters away from 0 and 1, so that a swapped pair would show.
    weights = [
        np.abs(w + rng.normal(0, 0.05, w.shape)).astype(np.float32) if w.ndim == 1 else w for w in ours.get_weights()
    ]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    images = rng.uniform(-1, 1, (4, size, size, 3)).astype(np.float32)
    a, b = ours(images, training=False).numpy(), theirs(images, training=False).numpy()
    assert np.abs(b).max() > 0.01
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def test_parameters_and_layers():
    model = mobilenet_v2((32, 32, 3), 10)
    assert model.count_params() == 2_270_794
    kernels = [w for w in model.trainable_variables if w.path.endswith("kernel")]
    assert len(kernels) == 53
    assert model.losses == []
    assert mobilenet_v2((32, 32, 1), 3).output_shape == (None, 3)


@pytest.mark.parametrize("width", [0.35, 1.4])
def test_width_scales_as_keras_applications(width):
    ours = mobilenet_v2((32, 32, 3), 10, width=width)
    theirs = keras.applications.MobileNetV2((32, 32, 3), alpha=width, weights=None, classes=10)
    assert [w.shape for w in ours.weights] == [w.shape for w in theirs.weights]


@pytest.mark.parametrize(("name", "penalised", "initial"), [("none", 0, 0), ("l1", 52, 87.0), ("l2", 54, 5.05)])
def test_the_articles_penalties(settings, name, penalised, initial):
    """52 convolution kernels; with L2 also kernel and bias of the head. Initial values as in ARTICLE.md."""
    regularizer, head_regularizer = regularizers.build(settings().penalty(name))
    keras.utils.set_random_seed(0)
    model = mobilenet_v2((32, 32, 3), 10, regularizer=regularizer, head_regularizer=head_regularizer)
    assert len(model.losses) == penalised
    assert float(sum(model.losses)) == pytest.approx(initial, rel=0.01)
    # Each penalised weight counts once: the formula over the weights themselves gives the same sum.
    weights = [w.numpy().astype(np.float64) for w in model.trainable_variables if w.path.endswith("kernel")]
    if name == "l1":
        head = model.get_layer("head").kernel.numpy()
        expected = 0.001 * (sum(np.abs(w).sum() for w in weights) - np.abs(head).sum())
        assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-5)
    if name == "l2":
        assert float(sum(model.losses)) == pytest.approx(0.001 * sum((w**2).sum() for w in weights), rel=1e-5)


def test_a_combination_is_the_sum_of_its_parts():
    penalty = params.Penalty("elastic", (("l1", 1e-5), ("l2", 1e-4)), head=False)
    regularizer, head_regularizer = regularizers.build(penalty)
    weight = np.random.default_rng(0).normal(size=(3, 3, 4)).astype(np.float32)
    expected = 1e-5 * np.abs(weight).sum() + 1e-4 * (weight**2).sum()
    assert float(regularizer(weight)) == pytest.approx(expected, rel=1e-6)
    assert head_regularizer is None
    copy = keras.regularizers.deserialize(keras.regularizers.serialize(regularizer))
    assert float(copy(weight)) == pytest.approx(expected, rel=1e-6)
