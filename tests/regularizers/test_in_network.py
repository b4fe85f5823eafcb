"""Kinds that act in the network: what they do there, against Keras's own layers. No saved model contains them."""

import zipfile

import keras
import numpy as np
import pytest
import residual

from regbench import networks
from regbench.errors import UserError
from regbench.training import save

IN_NETWORK = {
    "gaussian_noise": 0.2,
    "stochastic_depth": 0.5,
    "spatial_dropout": 0.3,
    "dropout": 0.4,
    "activity_l2": 0.01,
}


def scaled(images):
    """Images from -1 to 1, as the network gets them, from uint8 images."""
    return images.astype(np.float32) / 127.5 - 1


@pytest.fixture
def plain(built):
    """The network alone, with the initial weights that every `built` model has. Each layer is called once."""
    weights = built({}).plain.get_weights()
    network = residual.build((32, 32, 3), 10)
    network.set_weights(weights)
    return network


LAYERS = {
    "dropout": (keras.layers.Dropout, "pool"),
    "spatial_dropout": (keras.layers.SpatialDropout2D, "block2_add"),
    "gaussian_noise": (keras.layers.GaussianNoise, "image"),
}
"""{kind: (the Keras layer that it equals, the name of the layer that it follows)}"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAYERS)
def test_equals_keras_own_layer_in_its_place(built, plain, batch, kind):
    made, place = LAYERS[kind]
    layer, model = made(0.3, seed=0), built({kind: 0.3})
    for state in (*model.random_states, layer.seed_generator.state):
        state.assign([5, 7])
    below = plain.get_layer(place).output
    lower, upper = keras.Model(plain.input, below), keras.Model(below, plain.output)
    inputs = scaled(batch[0])
    at_place = lower(inputs, training=True) if place != "image" else inputs
    expected = upper(layer(at_place, training=True), training=True)
    np.testing.assert_allclose(model(batch[0], training=True), expected, rtol=1e-5, atol=1e-5)
    assert not np.allclose(expected, plain(inputs, training=True), atol=1e-3)


def test_stochastic_depth_leaves_out_the_longer_branch_at_rates_that_rise(built, plain, batch):
    network = built({"stochastic_depth": 0.5}).layers[-1]
    drops = [layer for layer in network.layers if isinstance(layer, keras.layers.Dropout)]
    assert [layer.rate for layer in drops] == [0.25, 0.5]
    probe = keras.Model(network.input, [tensor for layer in drops for tensor in (layer.input, layer.output)])
    images = np.tile(scaled(batch[0]), (20, 1, 1, 1))
    first, first_dropped, second, second_dropped = (tensor.numpy() for tensor in probe(images, training=True))
    # Nothing is random before the first of these layers.
    branch = keras.Model(plain.input, plain.get_layer("block1_conv2_bn").output)(images, training=True)
    np.testing.assert_allclose(first, branch, rtol=1e-4, atol=1e-4)
    for before, after, rate in ((first, first_dropped, 0.25), (second, second_dropped, 0.5)):
        left_out = np.all(after == 0, axis=(1, 2, 3))
        assert np.mean(left_out) == pytest.approx(rate, abs=0.1)
        np.testing.assert_allclose(after[~left_out], before[~left_out] / (1 - rate), rtol=1e-6)
    assert networks.shortcuts(plain) == {plain.get_layer("block1_add"): 1, plain.get_layer("block2_add"): 0}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "branch", "shortcuts"), [("ResNet50", 1, 16), ("Xception", 0, 12)])
def test_shortcuts_of_known_networks(name, branch, shortcuts):
    """Both have projected shortcuts. Xception adds branch and shortcut in the opposite order."""
    network = getattr(keras.applications, name)(weights=None, input_shape=(96, 96, 3), classes=10)
    found = networks.shortcuts(network)
    assert len(found) == shortcuts
    projected = {"ResNet50": 0, "Xception": 4}[name]
    assert list(found.values())[projected:] == [branch] * (shortcuts - projected)


def test_layers_of_models_in_the_network_are_found(built, plain, batch):
    """As `keras.applications` networks are often used: a model in a model, with a head behind it."""
    inner = keras.Model(plain.input, plain.get_layer("pool").output, name="inner")
    inputs = keras.Input((32, 32, 3))
    outer = keras.Model(inputs, keras.Sequential([keras.layers.Dense(10)])(inner(inputs)))
    visited = []
    noisy = networks.inserted(outer, lambda layer, inputs: visited.append(layer.name) or inputs)
    assert {"stem", "block1_add", "top"} <= set(visited) and "inner" not in visited
    np.testing.assert_array_equal(noisy(scaled(batch[0])), outer(scaled(batch[0])))
    assert [layer.name for layer in networks.shortcuts(outer)] == ["block1_add", "block2_add"]


@pytest.mark.parametrize(
    ("line", "network", "message"),
    [
        ({"stochastic_depth": 0.2}, "small_cnn", r"residual branches, and small_cnn has none.*such as mobilenet_v2"),
        ({"spatial_dropout": 0.2}, "dense", r"before the last convolution, and dense has none"),
    ],
)
def test_a_network_without_a_place_is_refused(built, monkeypatch, line, network, message):
    def dense(input_shape, num_classes, **options):
        return keras.Sequential(
            [keras.Input(input_shape), keras.layers.Flatten(), keras.layers.Dense(num_classes)], name="dense"
        )

    if network == "dense":
        monkeypatch.setattr(residual, "build", dense)
    with pytest.raises(UserError, match=message):
        built(line, network="residual" if network == "dense" else network)


@pytest.mark.slow
@pytest.mark.parametrize("line", [{"activity_l2": 0.01}, {"activity_l2": 0.01, "sam": 0.05}], ids=["alone", "with sam"])
def test_activity_l2_is_a_mean_over_images_that_is_added_once(built, plain, batch, line):
    images, labels = batch
    many = np.tile(images, (3, 1, 1, 1)), np.tile(labels, 3)
    features = keras.Model(plain.input, plain.get_layer("pool").output)
    model, none = built(line), built({key: value for key, value in line.items() if key != "activity_l2"})
    for step, given in (("test", batch), ("test", many), ("train", many)):
        expected = 0.01 * np.mean(np.sum(features(scaled(given[0]), training=step == "train").numpy() ** 2, axis=1))
        found = getattr(model, f"{step}_on_batch")(*given, return_dict=True)
        assert found["loss"] - found["cross_entropy"] == pytest.approx(expected, rel=1e-3) and expected > 0.001
        model.reset_metrics()
    none.train_on_batch(*many)
    moved = [np.abs(model.get_weights()[0] - none.get_weights()[0]).max(), np.abs(none.get_weights()[0]).max()]
    assert moved[0] > 1e-5 * moved[1]


def test_activity_l2_is_computed_in_whole_precision(built):
    layers = networks.layers_of(built({"activity_l2": 0.01}, precision="float16"))
    assert [layer.compute_dtype for layer in layers if layer.name == "activity_l2"] == ["float32"]


@pytest.mark.slow
def test_validated_and_saved_without_what_acts_in_training(built, batch, tmp_path):
    noisy, none = built(IN_NETWORK), built({})
    assert len(noisy.random_states) == 5  # two of them for stochastic_depth
    assert noisy.count_params() == none.count_params()
    np.testing.assert_array_equal(noisy.plain(batch[0]), none.plain(batch[0]))
    np.testing.assert_array_equal(noisy(batch[0], training=False), none.plain(batch[0]))
    noisy.train_on_batch(*batch)
    save.save(noisy.plain, tmp_path / "noisy.keras", {})
    save.save(none.plain, tmp_path / "none.keras", {})
    configs = []
    for name in ("noisy", "none"):
        with zipfile.ZipFile(tmp_path / f"{name}.keras") as file:
            configs.append(file.read("config.json"))
    assert configs[0] == configs[1]
    loaded = keras.saving.load_model(tmp_path / "noisy.keras")
    np.testing.assert_array_equal(loaded(batch[0]), noisy.plain(batch[0]))
    assert not np.array_equal(loaded(batch[0]), none.plain(batch[0]))


@pytest.mark.slow
def test_what_is_drawn_is_a_function_of_seed_and_step(built, batch):
    """Random states left from before do not change what a step draws. Another seed does."""
    weights = []
    for again in (False, True):
        model = built({"dropout": 0.5, "gaussian_noise": 0.2})
        for state in model.random_states:
            state.assign([again, again])
        model.train_on_batch(*batch)
        weights.append(model.get_weights())
        drawn = [state.numpy().tolist() for state in model.random_states]
        assert len({key for key, _ in drawn}) == 2 and [step for _, step in drawn] == [1, 1]
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)
    for seed, step in ((1, 0), (0, 1)):
        # Its learning rate is constant, so another step from the same weights differs only in what is drawn.
        other = built({"dropout": 0.5, "gaussian_noise": 0.2})
        other.seed = seed
        other.optimizer.iterations.assign(step)
        other.train_on_batch(*batch)
        assert any(np.any(one != two) for one, two in zip(weights[0], other.get_weights(), strict=True))
