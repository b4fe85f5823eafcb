"""Measures of a model's weights: each number against its formula, on a small real network."""

import keras
import numpy as np
import pytest

from regbench import networks, regularizers
from regbench.data import arrays
from regbench.evaluation import predict, weights
from regbench.params import Regularizer, Term


@pytest.fixture
def model():
    """Two kernels with known weights, one of them in the head."""
    keras.utils.set_random_seed(0)
    images = keras.Input((4, 4, 3))
    x = keras.layers.Conv2D(5, 3, use_bias=False, name="stem")(images)
    x = keras.layers.GlobalAveragePooling2D()(x)
    network = keras.Model(images, keras.layers.Dense(4, name="head")(x))
    stem, head = network.get_layer("stem").kernel, network.get_layer("head").kernel
    stem.assign(np.linspace(-0.5, 0.5, 135).reshape(3, 3, 3, 5))  # the middle one is 0
    head.assign(np.linspace(1e-4, 2e-3, 20).reshape(5, 4))
    return network


def test_layer_rows_count_and_share(model):
    regularizers.attach(model, Regularizer("l2", (Term("l2", 0.1, "backbone"),)))
    stem, head = weights.layer_rows(model, near_zero=0.001, learning_rate=0.07)
    kernel = np.linspace(-0.5, 0.5, 135)
    assert (stem["layer"], stem["weights"], stem["exact_zeros"], stem["near_zero"]) == ("stem", 135, 1, 1)
    assert stem["sum_abs"] == pytest.approx(np.abs(kernel).sum())
    assert stem["penalty"] == pytest.approx(0.1 * (kernel**2).sum())
    assert (stem["penalty_share"], head["penalty_share"], head["penalty"]) == (1, 0, 0)
    assert (head["exact_zeros"], head["near_zero"]) == (0, int((np.linspace(1e-4, 2e-3, 20) < 0.001).sum()))


def test_only_a_trained_kernel_with_batch_normalization_behind_it_has_an_effective_learning_rate(model):
    def rates(network):
        return [row["effective_learning_rate"] for row in weights.layer_rows(network, 0.001, learning_rate=0.07)]

    assert rates(model) == ["", ""]
    normalize = keras.layers.BatchNormalization()
    behind = model.get_layer("stem").output
    normalized = networks.inserted(model, lambda layer, x: normalize(x) if x.shape == behind.shape else x)
    assert rates(normalized) == [pytest.approx(0.07 / (np.linspace(-0.5, 0.5, 135) ** 2).sum()), ""]
    model.get_layer("stem").trainable = False
    assert rates(normalized) == ["", ""]


def test_penalty_of_a_head_counts_its_bias(model):
    head = model.get_layer("head")
    head.bias.assign([1.0, -2.0, 0.0, 0.5])
    regularizers.attach(model, Regularizer("sparse", (Term("l1", 0.1, "all"), Term("l2", 0.01, "head"))))
    l1, l2 = np.linspace(1e-4, 2e-3, 20).sum() + 3.5, (np.linspace(1e-4, 2e-3, 20) ** 2).sum() + 5.25
    assert weights.penalty(head) == pytest.approx(0.1 * l1 + 0.01 * l2)
    assert weights.penalty(model) == pytest.approx(sum(model.losses))
    regularizers.attach(model, Regularizer("none"))
    assert weights.penalty(model) == 0


def test_histogram_counts_every_weight_once(model):
    rows = weights.histogram(model)
    sizes = np.concatenate([np.abs(kernel.numpy()).ravel() for _, kernel in networks.kernels(model)])
    sizes = sizes.astype(np.float64)
    assert sum(count for _, _, count in rows) == len(sizes) == 155
    assert rows[0] == (-np.inf, -8.0, 1)
    for low, high, count in rows:
        assert count == ((sizes >= 10.0**low) & (sizes < 10.0**high)).sum(), low


def test_pruning_takes_the_smallest_and_leaves_the_model_as_it_was(model, cifar10_sample):
    images, labels = cifar10_sample
    split = arrays.Split(images[:64, :4, :4], labels[:64] % 4, {})
    before = model.get_weights()
    rows = weights.prune(model, (0.9, 0.0, 0.5), split, predict.predictor(model))
    assert [share for share, _, _ in rows] == [0.5, 0.9]
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)
    for share, threshold, accuracy in rows:
        kernels = [np.where(np.abs(kernel) < threshold, 0, kernel) for kernel in before[:2]]
        assert sum((kernel == 0).sum() for kernel in kernels) == pytest.approx(share * 155, abs=2)
        pruned = keras.models.clone_model(model)
        pruned.set_weights([*kernels, before[2]])
        predicted = pruned.predict(split.images.astype(np.float32), verbose=0).argmax(axis=1)
        assert accuracy == pytest.approx(np.mean(predicted == split.labels))
