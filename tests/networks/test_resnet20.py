"""ResNet-20 against the paper's description."""

import keras
import numpy as np
import pytest

from regbench import networks, params, regularizers
from regbench.networks import resnet20


def test_layers_and_parameters():
    model = resnet20.build((32, 32, 3), 10)
    convolutions = [layer for layer, _ in networks.kernels(model)][:-1]
    assert [layer.filters for layer in convolutions] == [16] * 7 + [32] * 6 + [64] * 6
    assert all(layer.kernel_size == (3, 3) and not layer.use_bias for layer in convolutions)
    assert [model.get_layer(f"stage{stage}_block3_relu").output.shape[1:] for stage in (1, 2, 3)] == [
        (32, 32, 16),
        (16, 16, 32),
        (8, 8, 64),
    ]
    # The paper says 0.27 million. Shortcuts have no parameters.
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == 269_722
    assert len(networks.normalized(model)) == 19


@pytest.mark.parametrize("size", [32, 33])
def test_a_shortcut_takes_every_second_pixel_and_adds_zeros(size):
    model = resnet20.build((size, size, 3), 10)
    x = model.get_layer("stage1_block3_relu").output
    shortcut = keras.Model(x, model.get_layer("stage2_block1_shortcut").output)
    maps = np.random.default_rng(0).normal(size=(2, size, size, 16)).astype(np.float32)
    expected = np.pad(maps[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (8, 8)))
    np.testing.assert_array_equal(shortcut(maps), expected)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_blocks_that_start_as_their_shortcut(settings, batch_norm):
    changes = {"model.network": "resnet20", "model.batch_norm": batch_norm, "model.width": 0.5}
    keras.utils.set_random_seed(0)
    model = networks.build(settings(**changes, **{"model.zero_init_residual": True}).model, (32, 32, 3), 10)
    block = keras.Model(model.input, [model.get_layer(f"{name}_relu").output for name in ("stem", "stage1_block3")])
    before, after = block(np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)))
    np.testing.assert_array_equal(before, after)
    assert (
        sum(not weight.numpy().any() for weight in model.trainable_weights if weight.name in ("gamma", "kernel")) == 9
    )


def test_scopes_cover_it():
    model = resnet20.build((32, 32, 3), 10, width=0.25)
    regularizers.attach(model, params.Regularizer("mine", (params.Term("l2", 1.0, "backbone"),)))
    assert len(model.losses) == 19
