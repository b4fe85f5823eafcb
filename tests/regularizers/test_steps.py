"""Kinds that act on a step, on the saved weights or on the end of training, against NumPy and plain Keras."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from regbench.regularizers import early_stopping, ema, gradient_clip, sam
from regbench.training.model import Model
from regbench.training.optimizer import SGD


def gradients(seed):
    """Gradients of two weights, [4, 3] and [5]; they grow with the seed, so some are longer than the limit."""
    rng = np.random.default_rng(seed)
    return [(seed * rng.normal(size=shape)).astype(np.float32) for shape in ((4, 3), (5,))]


def weights():
    return [keras.Variable(np.ones(shape, np.float32)) for shape in ((4, 3), (5,))]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradient_clip_over_five_steps(momentum):
    ours, keras_own = weights(), weights()
    optimizer = SGD(0.1, momentum=momentum, **gradient_clip.optimizer(5.0))
    other = keras.optimizers.SGD(0.1, momentum=momentum, global_clipnorm=5.0)
    expected, velocity = [np.ones((4, 3)), np.ones(5)], [0.0, 0.0]
    shortened = []
    for seed in range(1, 6):
        optimizer.apply_gradients([(tf.constant(g), w) for g, w in zip(gradients(seed), ours, strict=True)])
        other.apply_gradients([(tf.constant(g), w) for g, w in zip(gradients(seed), keras_own, strict=True)])
        length = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in gradients(seed)))
        shortened.append(length > 5)
        for index, gradient in enumerate(gradients(seed)):
            velocity[index] = momentum * velocity[index] - 0.1 * gradient * min(1, 5 / length)
            expected[index] = expected[index] + velocity[index]
    assert {True, False} == set(shortened)
    for weight, by_keras, by_formula in zip(ours, keras_own, expected, strict=True):
        np.testing.assert_array_equal(weight, by_keras)
        np.testing.assert_allclose(weight, by_formula, rtol=1e-5)


def test_ema_over_five_steps():
    ours, none = weights(), weights()
    optimizer, plain = SGD(0.1, momentum=0.9, **ema.optimizer(0.8)), SGD(0.1, momentum=0.9)
    average = None
    for seed in range(1, 6):
        for chosen, updated in ((optimizer, ours), (plain, none)):
            chosen.apply_gradients([(tf.constant(g), w) for g, w in zip(gradients(seed), updated, strict=True)])
        now = [weight.numpy().astype(np.float64) for weight in none]
        average = now if average is None else [0.8 * a + 0.2 * w for a, w in zip(average, now, strict=True)]
    for weight, same in zip(ours, none, strict=True):  # the averages do not act on training
        np.testing.assert_array_equal(weight, same)
    optimizer.finalize_variable_values(ours)
    optimizer.swap_averages()
    for weight, expected in zip(ours, average, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-5)
    optimizer.swap_averages()
    plain.swap_averages()
    for weight, same in zip(ours, none, strict=True):
        np.testing.assert_array_equal(weight, same)


def test_sam_climbs_along_the_gradient():
    found = sam.climb([], [tf.constant(gradient) for gradient in gradients(1)], 0.05)
    length = np.sqrt(sum(np.sum(gradient.astype(np.float64) ** 2) for gradient in gradients(1)))
    for offset, gradient in zip(found, gradients(1), strict=True):
        np.testing.assert_allclose(offset, 0.05 * gradient / length, rtol=1e-5)
    assert np.sqrt(sum(np.sum(offset.numpy() ** 2) for offset in found)) == pytest.approx(0.05, rel=1e-5)


@pytest.mark.parametrize("value", [0.0, np.inf, np.nan])
def test_sam_stays_where_the_gradient_says_nothing(value):
    """In float16 the scaled gradient may be infinite. The step is then skipped, and averages must stay finite."""
    (offset,) = sam.climb([], [tf.constant([value, 0.0])], 0.05)
    np.testing.assert_array_equal(offset, [0, 0])


@pytest.mark.slow
def test_sam_over_three_steps_of_a_network(built, batch):
    """Against two gradients per step from a tape, with a penalty and batch normalization."""
    strength, rate, momentum = 0.5, 0.1, 0.9
    model = built({"sam": strength, "l2": 0.01}, momentum=momentum)
    reference = built({"l2": 0.01}, momentum=momentum)
    averages = [weight for weight in reference.non_trainable_weights if "moving" in weight.path]
    variables = reference.trainable_weights
    velocity = [np.zeros(variable.shape) for variable in variables]
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def gradient():
        with tf.GradientTape() as tape:
            loss = cross_entropy(batch[1], reference(batch[0], training=True)) + sum(reference.losses)
        return float(loss), [g.numpy().astype(np.float64) for g in tape.gradient(loss, variables)]

    for _ in range(3):
        start = [variable.numpy() for variable in variables]
        loss, found = gradient()
        seen = [average.numpy() for average in averages]
        length = np.sqrt(sum(np.sum(g**2) for g in found))
        for variable, g in zip(variables, found, strict=True):
            variable.assign_add((strength * g / length).astype(np.float32))
        _, found = gradient()
        for average, value in zip(averages, seen, strict=True):
            average.assign(value)
        for index, (variable, g) in enumerate(zip(variables, found, strict=True)):
            velocity[index] = momentum * velocity[index] - rate * g
            variable.assign((start[index] + velocity[index]).astype(np.float32))
        recorded = model.train_on_batch(*batch, return_dict=True)
        model.reset_metrics()
        assert recorded["loss"] == pytest.approx(loss, rel=1e-4)
        for ours, expected in zip(model.weights, reference.weights, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=2e-3, atol=2e-5)


def test_sam_sees_the_same_noise_in_both_gradients(built, batch, monkeypatch):
    drawn = []
    call = Model.call

    def note(self, *arguments, **options):
        drawn.append([state.numpy().tolist() for state in self.random_states])
        return call(self, *arguments, **options)

    model = built({"sam": 0.05, "dropout": 0.5})
    monkeypatch.setattr(Model, "call", note)
    model.train_on_batch(*batch)
    assert len(drawn) == 2 and drawn[0] == drawn[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", [{"sam": 0.05}, {"ema": 0.9, "gradient_clip": 0.1}], ids=["sam", "ema and gradient_clip"]
)
def test_float16_scales_the_loss_and_not_the_step(built, batch, line):
    """The steps equal those in float32, up to the precision of float16."""
    moves = []
    for precision in ("float32", "float16"):
        model = built(line, precision=precision)
        before = [weight.numpy() for weight in model.trainable_weights]
        for _ in range(2):
            model.train_on_batch(*batch)
        after = [weight.numpy() for weight in model.trainable_weights]
        moves.append(np.concatenate([(b - a).ravel() for a, b in zip(before, after, strict=True)]))
    lengths = [np.linalg.norm(move) for move in moves]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.03) and lengths[0] > 0
    assert np.dot(*moves) > 0.98 * lengths[0] * lengths[1]


def rows(*losses):
    return [{"val_cross_entropy": loss} for loss in losses]


@pytest.mark.parametrize(
    ("losses", "ends"),
    [
        ([], False),
        ([2.0], False),
        ([2.0, 1.0, 1.5], False),
        ([2.0, 1.0, 1.5, 1.2], True),
        ([2.0, 1.0, 1.0, 1.0], True),  # equally good is not better
        ([2.0, 1.0, 1.5, 0.9, 1.0], False),
        ([np.nan, 1.0, 1.5], False),
        ([np.nan, 1.0, np.nan, np.nan], True),
        ([np.nan, np.nan, np.nan], True),
    ],
)
def test_early_stopping_at_two_epochs(losses, ends):
    assert early_stopping.stops(rows(*losses), 2) == ends
    stops = [early_stopping.stops(rows(*losses[:epochs]), 2) for epochs in range(len(losses))]
    assert not any(stops) or ends, "it would have ended before"
    for first, second in itertools.pairwise([early_stopping.stops(rows(*losses), patience) for patience in (1, 2, 3)]):
        assert first or not second
