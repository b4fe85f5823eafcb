"""SGD and its learning rate against Keras's and against formulas."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from regbench.regularizers import Regularizer
from regbench.training.optimizer import SGD
from regbench.training.schedule import LearningRate


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_equals_keras(momentum):
    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=(4, 3)).astype(np.float32) for _ in range(5)]
    updated = []
    for kind in (SGD, keras.optimizers.SGD):
        weight = keras.Variable(np.ones((4, 3), np.float32))
        optimizer = kind(0.1, momentum=momentum)
        for gradient in gradients:
            optimizer.apply_gradients([(tf.constant(gradient), weight)])
        updated.append(weight.numpy())
    np.testing.assert_allclose(*updated, rtol=1e-6)


def test_nesterov_is_refused():
    with pytest.raises(ValueError, match="no Nesterov momentum"):
        SGD(0.1, momentum=0.9, nesterov=True)


def test_saved_and_loaded_with_its_schedule():
    rate = LearningRate(0.1, 20, warmup_steps=4, cooldown_steps=4, cosine=True)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(SGD(rate, momentum=0.9)))
    assert type(again) is SGD and again.momentum == 0.9
    weight = keras.Variable(np.ones(3, np.float32))
    weight.regularizer = Regularizer({"weight_decay": 1.0})
    again.apply_gradients([(tf.zeros(3), weight)])
    assert weight.numpy() == pytest.approx([1 - float(rate(0))] * 3)


def test_what_keras_keeps_private_is_there():
    """`SGD.update_step` and `SGD.swap_averages` use these; Keras may rename them."""
    optimizer = SGD(0.1, momentum=0.9)
    weights = [keras.Variable(np.ones(2)), keras.Variable(np.ones(3))]
    optimizer.build(weights)
    assert [optimizer._get_variable_index(weight.value) for weight in weights] == [0, 1]
    assert all(a is b for a, b in zip(optimizer._trainable_variables, weights, strict=True))
    assert [velocity.shape for velocity in optimizer.momentums] == [(2,), (3,)]
    averaging = SGD(0.1, use_ema=True)
    averaging.build(weights)
    assert [average.shape for average in averaging._model_variables_moving_average] == [(2,), (3,)]


@pytest.mark.parametrize(
    ("cosine", "warmup", "cooldown", "expected"),
    [
        (False, 0, 0, [2, 2, 2, 2, 2, 2, 2, 2, 2, 2]),
        (False, 1, 0, [1, 2, 2, 2, 2, 2, 2, 2, 2, 2]),
        (False, 1, 2, [1, 2, 2, 2, 2, 1.5, 1, 0.5, 0, 0]),
        (True, 0, 0, [*(1 + np.cos(np.pi * step / 8) for step in range(8)), 0, 0]),
        (True, 1, 0, [1, 2, *(1 + np.cos(np.pi * step / 6) for step in range(6)), 0, 0]),
    ],
)
def test_learning_rate(settings, cosine, warmup, cooldown, expected):
    """Four epochs of two steps, at a peak of 2, and two steps after the end."""
    chosen = {"schedule": "cosine" if cosine else "constant", "warmup_epochs": warmup, "cooldown_epochs": cooldown}
    options = settings(**{f"train.{key}": value for key, value in chosen.items()} | {"train.epochs": 4}).train
    rate = LearningRate.of(options.model_copy(update={"learning_rate": 2.0}), steps=2)
    assert [float(rate(step)) for step in range(10)] == pytest.approx(expected, rel=1e-5, abs=1e-6)
