"""The small network: its shape, and that it learns."""

import keras
import numpy as np
import pytest

from regbench import networks


def test_shape(settings):
    model = networks.build(settings(**{"model.network": "small_cnn"}).model, (32, 32, 3), 10)
    assert model.count_params() == 99_450
    assert [layer.name for layer, _ in networks.kernels(model)] == ["conv1", "conv2", "conv3", "conv4", "head"]
    assert model.output_shape == (None, 10)


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", [True, False])
def test_it_learns(settings, cifar10_sample, batch_norm):
    images, labels = cifar10_sample
    keras.utils.set_random_seed(0)
    chosen = settings(**{"model.network": "small_cnn", "model.batch_norm": batch_norm}).model
    model = networks.build(chosen, (32, 32, 3), 10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=["accuracy"], jit_compile=False)
    history = model.fit(images.astype(np.float32) / 127.5 - 1, labels, batch_size=40, epochs=25, verbose=0).history
    assert history["accuracy"][-1] > 0.6
