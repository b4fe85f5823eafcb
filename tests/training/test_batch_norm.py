"""Batch normalization's averages, recomputed for any layers, against NumPy; and those that must be left alone."""

import keras
import numpy as np
import pytest

from regbench.data import arrays, prepare
from regbench.networks.layers import BatchNormalization
from regbench.training.batch_norm import PopulationStatistics

KERAS = keras.layers.BatchNormalization
IMAGES, BATCH = 40, 20


@keras.saving.register_keras_serializable(package="test")
class Block(keras.layers.Layer):
    """A layer that contains batch normalization; if `fixed`, that always uses its averages."""

    def __init__(self, fixed=False, **others):
        super().__init__(**others)
        self.bn, self.fixed = KERAS(momentum=0.6, name="inside"), fixed

    def call(self, x, training=None):
        return self.bn(x, training=False if self.fixed else training)


@pytest.fixture
def refreshed(settings, tmp_path, monkeypatch):
    """A function that refreshes the averages of a layer behind others; returns it and its inputs for each batch."""
    monkeypatch.setattr("regbench.data.EVALUATION_BATCH", BATCH)
    chosen = settings(**{"data.train_images": IMAGES})
    prepare.prepare(chosen.data, tmp_path / "prepared")
    split = arrays.load("train", tmp_path / "prepared")
    options = chosen.train.model_copy(update={"batch_norm_images": IMAGES, "flip": False, "moving_averages": False})

    def refresh(layer, *before, trained=True):
        x = images = keras.Input((32, 32, 3), dtype="uint8")
        for first in (keras.layers.Rescaling(1 / 64, offset=-1), *before):
            x = first(x)
        inputs = keras.Model(images, x)
        network = keras.Model(images, layer(x))
        layer.trainable = trained
        in_training = keras.Model(images, network.output)
        in_training.plain = network
        PopulationStatistics(in_training, split, split, {"train": options, "seed": 0}).refresh(0)
        batches = arrays.training_batches(split, batch_size=BATCH, seed=0, flip=False, epoch=0)
        return layer, [inputs(batch.numpy()).numpy() for batch, _ in batches]

    return refresh


def expected(batches, momentum):
    """Mean and variance over two batches; the second has weight 1, the first has weight `momentum`."""
    share = np.array([momentum, 1.0]) / (1.0 + momentum)
    moments = [(batch.mean(axis=(0, 1, 2)), batch.var(axis=(0, 1, 2))) for batch in batches]
    return [share[0] * first + share[1] * second for first, second in zip(*moments, strict=True)]


@pytest.mark.parametrize("kind", [KERAS, BatchNormalization])
@pytest.mark.parametrize("options", [{"momentum": 0.8}, {"momentum": 0.3, "center": False, "scale": False}])
def test_each_layer_has_its_own_momentum(refreshed, kind, options):
    layer, batches = refreshed(kind(**options))
    for average, value in zip(
        (layer.moving_mean, layer.moving_variance), expected(batches, options["momentum"]), strict=True
    ):
        np.testing.assert_allclose(average, value, rtol=1e-4, atol=1e-5)


def test_in_another_layer(refreshed):
    block, batches = refreshed(Block())
    np.testing.assert_allclose(block.bn.moving_variance, expected(batches, 0.6)[1], rtol=1e-4)


def test_without_the_networks_own_noise(refreshed):
    """The statistics are of the network as it is evaluated."""
    layer, batches = refreshed(KERAS(momentum=0.5), keras.layers.Dropout(0.5))
    np.testing.assert_allclose(layer.moving_variance, expected(batches, 0.5)[1], rtol=1e-4)


@pytest.mark.parametrize(
    ("layer", "trained"),
    [
        (KERAS(), False),
        (BatchNormalization(), False),
        (Block(), False),
        (Block(fixed=True), True),
        (KERAS(renorm=True), True),
    ],
    ids=["frozen", "ours, frozen", "in a frozen layer", "called with training=False", "renorm"],
)
def test_averages_that_training_reads_are_left_alone(refreshed, layer, trained):
    initial = {"moving_mean": 0, "moving_variance": 1, "renorm_mean": 0, "renorm_stddev": 1}
    layer, _ = refreshed(layer, trained=trained)
    for weight in layer.weights:
        if weight.name in initial:
            np.testing.assert_array_equal(weight, np.full(3, initial[weight.name]), weight.path)


def test_other_layers_are_refreshed_beside_those(refreshed):
    frozen = KERAS(momentum=0.5, trainable=False)
    layer, batches = refreshed(KERAS(momentum=0.7), frozen)
    np.testing.assert_allclose(layer.moving_mean, expected(batches, 0.7)[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(frozen.moving_variance, np.ones(3))
