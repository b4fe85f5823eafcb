"""The catalogue against Keras's own penalties, and against NumPy over several steps of the optimizer."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from regbench import catalogue, params, regularizers
from regbench.networks import mobilenet_v2
from regbench.regularizers import Regularizer
from regbench.training.optimizer import SGD

SHAPES = {"pointwise": (1, 1, 6, 9), "wide": (3, 3, 4, 5), "depthwise": (3, 3, 8, 1), "dense": (7, 4), "bias": (5,)}


def random(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def soft_orthogonality(weight):
    """‖WᵀW − I‖² and its gradient 4·W·(WᵀW − I), in NumPy; W is the kernel as the matrix that acts on its inputs."""
    if weight.ndim == 1:
        return 0.0, np.zeros_like(weight)
    if weight.ndim == 4 and weight.shape[3] == 1:
        channels = weight.shape[2]
        matrix = np.zeros((9 * channels, channels))
        for channel in range(channels):
            matrix[9 * channel : 9 * channel + 9, channel] = weight[:, :, channel, 0].ravel()
        excess = matrix.T @ matrix - np.eye(channels)
        gradient = 4 * matrix @ excess
        blocks = [gradient[9 * channel : 9 * channel + 9, channel].reshape(3, 3) for channel in range(channels)]
        return np.sum(excess**2), np.stack(blocks, axis=-1)[..., None]
    matrix = weight.reshape(-1, weight.shape[-1]).astype(np.float64)
    tall = matrix if len(matrix) >= matrix.shape[1] else matrix.T
    excess = tall.T @ tall - np.eye(tall.shape[1])
    gradient = 4 * tall @ excess
    return np.sum(excess**2), (gradient if tall is matrix else gradient.T).reshape(weight.shape)


def filters(weight):
    """A kernel as the matrix [inputs of a filter, filters], and a function that turns such a matrix into a kernel."""
    depthwise = weight.ndim == 4 and weight.shape[3] == 1
    matrix = weight.reshape(-1, weight.shape[2] if depthwise else weight.shape[-1])
    return matrix, lambda matrix: matrix.reshape(weight.shape)


def group_lasso(weight):
    if weight.ndim == 1:
        return 0.0, np.zeros_like(weight)
    matrix, as_kernel = filters(weight)
    lengths = np.linalg.norm(matrix, axis=0)
    return len(matrix) ** 0.5 * lengths.sum(), as_kernel(len(matrix) ** 0.5 * matrix / lengths)


def spectral_norm(weight):
    """σ² and its gradient 2σ·u·vᵀ; for a depthwise kernel, those of its longest filter."""
    if weight.ndim == 1:
        return 0.0, np.zeros_like(weight)
    matrix, as_kernel = filters(weight)
    if weight.ndim == 4 and weight.shape[3] == 1:
        lengths = np.linalg.norm(matrix, axis=0)
        return lengths.max() ** 2, as_kernel(2 * matrix * (lengths == lengths.max()))
    left, values, right = np.linalg.svd(matrix)
    return values[0] ** 2, as_kernel(2 * values[0] * np.outer(left[:, 0], right[0]))


FORMULAS = {
    "group_lasso": group_lasso,
    "l1": lambda w: (np.abs(w).sum(), np.sign(w)),
    "l2": lambda w: ((w**2).sum(), 2 * w),
    "orthogonal": soft_orthogonality,
    "spectral_norm": spectral_norm,
}
"""{kind: function of a weight that returns the penalty at strength 1 and its gradient}"""

ON_WEIGHTS = [name for name, kind in catalogue.kinds().items() if kind.scope]


def step_by_formula(kind, strength, weight, gradient, rate, velocity, momentum):
    """Compute one step of SGD in double precision; returns the new weight and the new velocity."""
    if kind in FORMULAS:
        gradient = gradient + strength * FORMULAS[kind](weight)[1]
    if kind == "weight_decay":
        weight = weight - rate * strength * weight
    velocity = momentum * velocity - rate * gradient
    weight = weight + velocity
    if kind == "proximal_l1":
        weight = np.sign(weight) * np.maximum(np.abs(weight) - rate * strength, 0)
    if kind == "max_norm" and weight.ndim > 1:
        matrix, as_kernel = filters(weight)
        weight = as_kernel(matrix * np.minimum(1, strength / np.linalg.norm(matrix, axis=0)))
    return weight, velocity


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", ON_WEIGHTS)
def test_every_kind_equals_its_formula_over_five_steps(kind, shape, momentum):
    strength, rate = 2.0 if kind == "max_norm" else 0.02, 0.05
    start = random(shape)
    gradients = [random(shape, seed) for seed in range(1, 6)]
    variable = keras.Variable(start)
    variable.regularizer = Regularizer({kind: strength})
    optimizer = SGD(rate, momentum=momentum)

    @tf.function
    def step(gradient):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(variable.value * gradient) + variable.regularizer(variable)
        optimizer.apply_gradients([(tape.gradient(loss, variable.value), variable)])

    expected, velocity = start.astype(np.float64), np.zeros(shape)
    for gradient in gradients:
        step(tf.constant(gradient))
        expected, velocity = step_by_formula(kind, strength, expected, gradient, rate, velocity, momentum)
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-4, atol=2e-6)
    if kind in FORMULAS:
        value = float(variable.regularizer(variable))
        assert value == pytest.approx(strength * FORMULAS[kind](expected)[0], rel=1e-4, abs=1e-9)
    else:
        assert float(variable.regularizer(variable)) == 0


def test_proximal_l1_gives_exact_zeros_that_l1_does_not():
    zeros = {}
    for kind in ("l1", "proximal_l1"):
        variable = keras.Variable(random((50, 20)) * 0.1)
        variable.regularizer = Regularizer({kind: 0.1})
        optimizer = SGD(0.1)
        for _ in range(10):
            with tf.GradientTape() as tape:
                loss = 0.5 * tf.reduce_sum(tf.square(variable.value)) + variable.regularizer(variable)
            optimizer.apply_gradients([(tape.gradient(loss, variable.value), variable)])
        zeros[kind] = int((variable.numpy() == 0).sum())
    assert zeros["l1"] == 0
    assert zeros["proximal_l1"] > 300


def test_max_norm_leaves_short_filters_as_they_are_and_equals_keras_otherwise():
    weight = random((3, 3, 4, 5)) * np.array([0.01, 0.1, 1, 10, 0], np.float32)
    regularizer = Regularizer({"max_norm": 2.0})
    limited = regularizer.apply("after_step", tf.constant(weight), 0.1).numpy()
    np.testing.assert_array_equal(limited[..., [0, 1, 4]], weight[..., [0, 1, 4]])
    np.testing.assert_allclose(limited, keras.constraints.MaxNorm(2.0, axis=(0, 1, 2))(weight), rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 3, 4, 2), (3, 3, 8, 1)])
def test_a_filter_of_zeros_has_no_gradient_in_group_lasso(shape):
    weight = random(shape)
    weight[..., 3, 0] = 0
    weight[..., 0] = 0 if shape[-1] > 1 else weight[..., 0]
    with tf.GradientTape() as tape:
        value = tape.watch(variable := tf.constant(weight)) or Regularizer({"group_lasso": 1.0})(variable)
    gradient = tape.gradient(value, variable).numpy()
    assert np.isfinite(gradient).all()
    assert (gradient[weight == 0] == 0).all() and (gradient != 0).any()


def test_spectral_norm_follows_the_weights_by_power_iteration():
    """It starts at the exact singular vector and iterates once per step. It becomes exact if the weights stay."""
    variable = keras.Variable(random((3, 3, 4, 20)))
    regularizer = variable.regularizer = Regularizer({"spectral_norm": 0.02})
    regularizer.start_memories(variable)
    optimizer = SGD(0.05)
    vector = np.linalg.svd(filters(variable.numpy().astype(np.float64))[0])[2][0]
    for step in range(6):
        matrix, as_kernel = filters(variable.numpy().astype(np.float64))
        with tf.GradientTape() as tape:
            penalty = regularizer(variable)
            loss = tf.reduce_sum(variable.value * random(variable.shape, step // 3)) + penalty
        gradient = tape.gradient(loss, variable.value)
        assert float(penalty) == pytest.approx(0.02 * np.sum((matrix @ vector) ** 2), rel=1e-4)
        expected = random(variable.shape, step // 3) + as_kernel(0.04 * np.outer(matrix @ vector, vector))
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)
        optimizer.apply_gradients([(gradient, variable)])
        matrix = filters(variable.numpy().astype(np.float64))[0]
        vector = matrix.T @ (matrix @ vector)
        vector /= np.linalg.norm(vector)
    exact = 0.02 * spectral_norm(variable.numpy().astype(np.float64))[0]
    assert float(regularizer(variable)) < 0.999 * exact
    for _ in range(100):
        regularizer.remember(variable)
    assert float(regularizer(variable)) == pytest.approx(exact, rel=1e-4)
    last = regularizer.memories["spectral_norm"].numpy()
    variable.assign(tf.zeros(variable.shape))
    regularizer.remember(variable)
    np.testing.assert_array_equal(regularizer.memories["spectral_norm"], last)


def test_weight_decay_is_l2_at_half_the_strength_without_momentum():
    ends = []
    for strengths in ({"weight_decay": 0.02}, {"l2": 0.01}):
        variable = keras.Variable(random((6, 5)))
        variable.regularizer = Regularizer(strengths)
        optimizer = SGD(0.1)
        for seed in range(1, 6):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(variable.value * random((6, 5), seed)) + variable.regularizer(variable)
            optimizer.apply_gradients([(tape.gradient(loss, variable.value), variable)])
        ends.append(variable.numpy())
    np.testing.assert_allclose(*ends, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("ours", "plain"),
    [({"l1": 0.003}, keras.regularizers.L1(0.003)), ({"l2": 0.003}, keras.regularizers.L2(0.003))],
    ids=["l1", "l2"],
)
def test_equals_keras(ours, plain):
    weight = keras.Variable(random((3, 3, 8, 5)))
    weight.assign(keras.ops.where(weight > 1, 0.0, weight))
    ours, observed = Regularizer(ours), []
    for regularizer in (ours, plain):
        with tf.GradientTape() as tape:
            value = 2.0 * regularizer(weight)
        observed.append((float(value), tape.gradient(value, weight.value).numpy()))
    assert observed[0][0] == pytest.approx(observed[1][0], rel=1e-6)
    np.testing.assert_allclose(observed[0][1], observed[1][1], rtol=1e-6)
    again = keras.regularizers.deserialize(keras.regularizers.serialize(ours))
    assert type(again) is Regularizer
    assert float(again(weight)) == float(ours(weight))


def test_a_combination_does_what_its_parts_do():
    regularizer = Regularizer({"l1": 1e-3, "l2": 1e-2, "proximal_l1": 0.5})
    weight = random((3, 3, 4, 2))
    expected = 1e-3 * np.abs(weight).sum() + 1e-2 * (weight**2).sum()
    assert float(regularizer(weight)) == pytest.approx(expected, rel=1e-6)
    assert regularizer.acts("after_step") and not regularizer.acts("before_step")
    thresholded = regularizer.apply("after_step", tf.constant(weight), 0.2)
    np.testing.assert_allclose(thresholded, np.sign(weight) * np.maximum(np.abs(weight) - 0.1, 0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("strengths", [{"l3": 1.0}, {"l2": -1.0}, {"l2": float("nan")}, {"l1": float("inf")}])
def test_nonsense_is_refused(strengths):
    with pytest.raises(ValueError, match=r"unknown kind|a strength is"):
        Regularizer(strengths)


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    return mobilenet_v2.build((32, 32, 3), 10)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "penalised", "initial"), [("none", 0, 0), ("l1", 52, 87.0), ("l2", 54, 5.05)])
def test_the_articles_penalties(settings, model, name, penalised, initial):
    """52 convolution kernels; with L2 also kernel and bias of the head. Initial values as in the article."""
    regularizers.attach(model, settings().reg[name])
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


@pytest.mark.slow
@pytest.mark.parametrize(("scope", "covered"), [("all", 54), ("backbone", 52), ("head", 2), ("no_depthwise", 37)])
def test_scopes(model, scope, covered):
    """52 convolutions, 17 of them depthwise, and kernel and bias of the head."""
    regularizers.attach(model, params.Regularizer("mine", (params.Term("l2", 1.0, scope),)))
    assert len(model.losses) == covered
    depthwise = [layer.kernel.regularizer for layer in model.layers if layer.name.endswith("_depthwise")]
    assert len(depthwise) == 17
    assert all(depthwise) if scope in ("all", "backbone") else not any(depthwise)


@pytest.mark.slow
def test_each_kind_of_a_combination_covers_what_it_covers_alone(settings, model):
    regularizers.attach(model, settings(**{"reg.elastic": {"l1": 1e-5, "l2": 1e-4}}).reg["elastic"])
    assert model.get_layer("stem").kernel.regularizer.strengths == {"l1": 1e-5, "l2": 1e-4}
    assert model.get_layer("head").kernel.regularizer.strengths == {"l2": 1e-4}
    regularizers.attach(model, params.Regularizer("none"))
    assert model.losses == []


def test_each_kind_says_what_it_is():
    """The formula first, then source, usual strengths and PyTorch's equivalent: the docs page is made from these."""
    for kind in catalogue.kinds().values():
        assert "strength" in kind.docstring.partition("Source: ")[0], kind.name
        for part in ("Source: ", "Usual strengths: ", "PyTorch: "):
            assert part in kind.docstring or part.replace(": ", ":\n") in kind.docstring, (kind.name, part)
