"""Penalties against Keras's own: value and gradient."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from regbench import params, regularizers


@pytest.mark.parametrize(
    ("ours", "plain"),
    [
        (regularizers.L1(0.003), keras.regularizers.L1(0.003)),
        (regularizers.L2(0.003), keras.regularizers.L2(0.003)),
    ],
    ids=["l1", "l2"],
)
def test_equals_keras(ours, plain):
    weight = keras.Variable(np.random.default_rng(0).normal(size=(3, 3, 8, 5)).astype(np.float32))
    weight.assign(keras.ops.where(weight > 1, 0.0, weight))
    observed = []
    for regularizer in (ours, plain):
        with tf.GradientTape() as tape:
            value = 2.0 * regularizer(weight)
        observed.append((float(value), tape.gradient(value, weight.value).numpy()))
    assert observed[0][0] == pytest.approx(observed[1][0], rel=1e-6)
    np.testing.assert_allclose(observed[0][1], observed[1][1], rtol=1e-6)
    again = keras.regularizers.deserialize(keras.regularizers.serialize(ours))
    assert type(again) is type(ours)
    assert float(again(weight)) == float(ours(weight))


def test_a_combination_is_the_sum_of_its_parts():
    penalty = params.Penalty("elastic", (("l1", 1e-5), ("l2", 1e-4)), head=False)
    regularizer, head_regularizer = regularizers.build(penalty)
    weight = np.random.default_rng(0).normal(size=(3, 3, 4)).astype(np.float32)
    expected = 1e-5 * np.abs(weight).sum() + 1e-4 * (weight**2).sum()
    assert float(regularizer(weight)) == pytest.approx(expected, rel=1e-6)
    assert head_regularizer is None
    copy = keras.regularizers.deserialize(keras.regularizers.serialize(regularizer))
    assert float(copy(weight)) == pytest.approx(expected, rel=1e-6)
