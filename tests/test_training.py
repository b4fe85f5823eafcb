"""One run: what is recorded, the same bits again, also when it was cut off and resumed."""

import csv
import itertools
import json
import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from conftest import ROOT, tiny_params

from regbench import dataset, evaluation, params, sources, training


@pytest.fixture(scope="module", autouse=True)
def deterministic():
    tf.config.experimental.enable_op_determinism()


@pytest.fixture(autouse=True)
def whole_precision():
    """Training in half precision sets a policy that outlives it."""
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def prepared(settings, tmp_path, monkeypatch):
    """The tiny dataset in data/, and the working directory there."""
    monkeypatch.chdir(tmp_path)
    chosen = settings().data
    dataset.prepare(sources.find(chosen.dataset), chosen, tmp_path / "data")
    return tmp_path


def history(folder):
    with open(folder / "history.csv", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def weights(folder):
    return keras.saving.load_model(folder / "model.keras").get_weights()


TIMES = ("seconds", "images_per_second")


def test_resumed_equals_uninterrupted_and_seeds_differ(prepared, settings, monkeypatch):
    options = settings(**{"train.epochs": 2, "data.train_images": 100})
    training.train(options, "l2", 0, out="whole")
    training.train(options, "l2", 1, out="other")

    cut_off(options, monkeypatch, saves=1, out="resumed")
    assert len(list(training.SCRATCH.iterdir())) == 1
    training.train(options, "l2", 0, out="resumed")

    assert_same(prepared / "whole", prepared / "resumed")
    assert any((a != b).any() for a, b in zip(weights(prepared / "whole"), weights(prepared / "other"), strict=True))
    assert list(training.SCRATCH.iterdir()) == []

    rows = history(prepared / "whole")
    assert [row["epoch"] for row in rows] == [1, 2]
    model = keras.saving.load_model(prepared / "whole/model.keras")
    assert rows[-1]["reg_loss"] == pytest.approx(float(sum(model.losses)), rel=1e-6)
    # Keras's loss is the mean over the epoch of cross-entropy plus penalty, val_loss that of its end.
    assert rows[-1]["loss"] > rows[-1]["cross_entropy"]
    assert rows[-1]["val_loss"] - rows[-1]["val_cross_entropy"] == pytest.approx(rows[-1]["reg_loss"], rel=1e-4)

    evaluation.evaluate(options, "l2", 0, out="whole")
    for file in ("evaluation.json", "layers.csv", "predictions.csv"):
        assert (prepared / "whole" / file).exists()
    with open(prepared / "whole/layers.csv", newline="") as file:
        layers = list(csv.DictReader(file))
    assert len(layers) == 53
    assert (layers[0]["layer"], layers[-1]["layer"]) == ("stem", "head")
    assert sum(float(row["penalty"]) for row in layers) == pytest.approx(rows[-1]["reg_loss"], rel=1e-5)
    with open(prepared / "whole/predictions.csv", newline="") as file:
        predictions = list(csv.DictReader(file))
    assert len(predictions) == 160


def test_changed_params_do_not_resume(prepared, settings):
    loaded = dataset.load("data", ("train",))
    first = training._key(settings(), "l2", 0, loaded)
    assert first == training._key(settings(**{"train.seeds": [0, 1]}), "l2", 0, loaded)
    assert first != training._key(settings(**{"train.learning_rate": 0.06}), "l2", 0, loaded)
    assert first != training._key(settings(), "l1", 0, loaded)
    assert first != training._key(settings(), "l2", 1, loaded)


def test_order_and_flips_are_functions_of_seed_and_epoch(prepared):
    split = dataset.load("data", ("train",)).splits["train"]

    def batches(**changes):
        arguments = {"batch_size": 32, "seed": 0, "flip": True, "first_epoch": 0, "epochs": 2} | changes
        return [(i.numpy(), y.numpy()) for i, y in dataset.training_batches(split, **arguments)]

    whole, again, second = batches(), batches(), batches(first_epoch=1)
    assert len(whole) == 10
    for a, b in zip(whole, again, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
    for a, b in zip(whole[5:], second, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
    assert (whole[0][0] != whole[5][0]).any()
    assert (whole[0][0] != batches(seed=1)[0][0]).any()
    # Every image once an epoch, mirrored or not.
    plain = np.concatenate([images for images, _ in batches(flip=False, epochs=1)])
    assert {image.tobytes() for image in plain} == {image.tobytes() for image in split.images}
    seen = {image.tobytes() for images, _ in whole[:5] for image in images}
    mirrored = sum(image.tobytes() not in seen for image in split.images)
    assert 40 < mirrored < 120


def test_small_images_are_resized_in_the_model(settings):
    options = settings(**{"data.image_size": 64})
    model = training.build(options, "none", (28, 20, 1), 5)
    assert model.input_shape == (None, 28, 20, 1)
    assert model.get_layer("mobilenet_v2").input_shape == (None, 64, 64, 1)
    assert model(np.zeros((2, 28, 20, 1), np.uint8)).shape == (2, 5)


def test_variables_keep_the_names_of_their_layers(settings):
    model = training.build(settings(), "none", (32, 32, 3), 10)
    paths = [variable.path for variable in model.variables]
    assert len(set(paths)) == len(paths)
    assert {"stem/kernel", "block3_expand/kernel", "block3_expand_bn/gamma", "head/bias"} <= {
        "/".join(path.split("/")[-2:]) for path in paths
    }


def test_a_step_equals_that_of_keras(prepared, settings, monkeypatch):
    """Weights, averages and all that fit returns, to the bit, with a smaller last batch and validation."""
    options = settings(**{"model.width": 0.35, "data.train_images": 80})
    splits = dataset.load("data", ("train", "validation")).splits
    batches = dataset.training_batches(splits["train"], batch_size=32, seed=0, flip=True, first_epoch=0, epochs=2)
    observed = []
    for make in (training.Model._make_function, keras.Model._make_function):
        monkeypatch.setattr(training.Model, "_make_function", make)
        keras.utils.set_random_seed(0)
        model = training.build(options, "l2", (32, 32, 3), 10)
        training.compile(model, options.train, 3)
        validation = dataset.evaluation_batches(splits["validation"])
        fitted = model.fit(batches, epochs=2, steps_per_epoch=3, validation_data=validation, shuffle=False, verbose=0)
        observed.append((fitted.history, model.get_weights()))
    assert observed[0][0] == observed[1][0]
    for ours, theirs in zip(*(weights for _, weights in observed), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("scale", [1, 100, 1e30])
def test_cross_entropy_equals_keras(scale):
    """Value and gradient, of logits so far apart too that a probability is 0."""
    rng = np.random.default_rng(0)
    logits = tf.constant(rng.normal(size=(64, 10)) * scale, tf.float32)
    labels = tf.constant(rng.integers(0, 10, 64))
    observed = []
    for loss in (training.cross_entropy, keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            each = loss(labels, logits)
        observed.append((each.numpy(), tape.gradient(each, logits).numpy()))
    assert np.isfinite(observed[0][0]).all()
    for ours, theirs in zip(*observed, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_equals_keras(momentum):
    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=(4, 3)).astype(np.float32) for _ in range(5)]
    updated = []
    for kind in (training.SGD, keras.optimizers.SGD):
        weight = keras.Variable(np.ones((4, 3), np.float32))
        optimizer = kind(0.1, momentum=momentum)
        for gradient in gradients:
            optimizer.apply_gradients([(tf.constant(gradient), weight)])
        updated.append(weight.numpy())
    np.testing.assert_allclose(*updated, rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "warmup", "cooldown", "expected"),
    [
        ("constant", 0, 0, [2, 2, 2, 2, 2, 2, 2, 2]),
        ("constant", 1, 0, [1, 2, 2, 2, 2, 2, 2, 2]),
        ("constant", 1, 2, [1, 2, 2, 2, 2, 1.5, 1, 0.5]),
        ("cosine", 0, 0, [1 + np.cos(np.pi * step / 8) for step in range(8)]),
        ("cosine", 1, 0, [1, 2, *(1 + np.cos(np.pi * step / 6) for step in range(6))]),
    ],
)
def test_learning_rate(settings, schedule, warmup, cooldown, expected):
    """Four epochs of two steps, at a peak of 2."""
    chosen = {"schedule": schedule, "warmup_epochs": warmup, "cooldown_epochs": cooldown}
    options = settings(**{f"train.{key}": value for key, value in chosen.items()}).train
    rate = training.LearningRate(options.model_copy(update={"learning_rate": 2.0, "epochs": 4}), steps=2)
    assert [float(rate(step)) for step in range(8)] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_keeps_logits_and_penalties_whole(prepared, settings, precision):
    options = settings(**{"train.precision": precision, "data.train_images": 100, "model.width": 0.35})
    training.train(options, "l2", 0, out="half")
    model = keras.saving.load_model(prepared / "half/model.keras")
    assert model.output.dtype == "float32"
    assert {loss.dtype for loss in model.losses} == {tf.float32}
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert model.get_layer("mobilenet_v2").get_layer("block3_expand").compute_dtype == precision
    assert np.isfinite(history(prepared / "half")[-1]["val_cross_entropy"])


def test_two_devices_train_as_one():
    """Two logical CPUs against one: the same losses for a network without batch statistics, in a process each."""
    script = """
import sys
import numpy as np, tensorflow as tf, keras
from regbench import regularizers, runtime, training
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
keras.utils.set_random_seed(0)
with runtime.strategy(sys.argv[1:]).scope():
    model = keras.Sequential([
        keras.layers.Flatten(),
        keras.layers.Dense(16, activation="relu", kernel_regularizer=regularizers.Regularizer({"l2": 0.01})),
        keras.layers.Dense(10, kernel_regularizer=regularizers.Regularizer({"l1": 0.01, "proximal_l1": 0.1})),
    ])
    model.compile(training.SGD(0.1, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
rng = np.random.default_rng(0)
images, labels = rng.normal(size=(64, 4, 4, 3)).astype("float32"), rng.integers(0, 10, 64)
history = model.fit(images, labels, batch_size=16, epochs=3, shuffle=False, verbose=0).history
print(history["loss"], model.distribute_strategy.num_replicas_in_sync)
"""
    losses = []
    for devices in (["CPU:0"], ["CPU:0", "CPU:1"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *devices],
            env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
            capture_output=True,
            text=True,
            check=True,
        )
        *numbers, replicas = done.stdout.split()
        assert int(replicas) == len(devices)
        losses.append([float(number.strip("[],")) for number in numbers])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_population_statistics_are_of_the_final_weights(prepared, settings, monkeypatch):
    """After training: the mean over batches at fixed weights, by Keras's own formula; weights are left alone."""
    monkeypatch.setattr(dataset, "EVALUATION_BATCH", 32)
    options = settings(**{"train.batch_norm_images": 64, "data.train_images": 160, "model.width": 0.35})
    split = dataset.load("data", ("train",)).splits["train"]
    keras.utils.set_random_seed(0)
    model = training.build(options, "none", (32, 32, 3), 10)
    training.compile(model, options.train, 5)
    model.fit(split.images, split.labels, batch_size=32, verbose=0)
    before = [weight.numpy() for weight in model.trainable_variables]
    training.PopulationStatistics(model, split, options, seed=0).refresh(0)
    for weight, old in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(weight, old)

    network = model.get_layer("mobilenet_v2")
    stem = keras.Model(network.input, network.get_layer("stem").output)
    batches = dataset.training_batches(split, batch_size=32, seed=0, flip=True, first_epoch=0, epochs=1)
    outputs = [stem(images.numpy() / 127.5 - 1).numpy() for images, _ in batches.take(2)]
    # The last of two steps counts 1 and the one before 0.99.
    share = np.array([0.99, 1.0]) / 1.99
    normalization = network.get_layer("stem_bn")
    for moving, moment in ((normalization.moving_mean, np.mean), (normalization.moving_variance, np.var)):
        expected = sum(part * moment(output, axis=(0, 1, 2)) for part, output in zip(share, outputs, strict=True))
        np.testing.assert_allclose(moving.numpy(), expected, rtol=1e-3, atol=1e-5)


def test_population_statistics_leave_training_alone(prepared, settings):
    """With them no step keeps up moving averages; the weights must not know."""
    trained = []
    for images in (0, 64):
        options = settings(**{"train.batch_norm_images": images, "model.width": 0.35, "data.train_images": 160})
        training.train(options, "l2", 0, out=prepared / str(images))
        model = keras.saving.load_model(prepared / str(images) / "model.keras")
        trained.append(([w.numpy() for w in model.trainable_variables], model.non_trainable_variables))
    for a, b in zip(*(weights for weights, _ in trained), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.any(a.numpy() != b.numpy()) for a, b in zip(*(averages for _, averages in trained), strict=True))


def test_the_penalty_of_all_weights_is_the_sum_of_each_ones(settings):
    line = {"l1": 1e-4, "l2": 1e-3, "orthogonal": 1e-2, "weight_decay": 0.1, "scope": "all"}
    model = training.build(settings(**{"reg.mixed": line, "model.width": 0.35}), "mixed", (32, 32, 3), 10)
    plain = keras.Model(model.input, model.output)
    assert len(model.losses) == 3
    assert len(plain.losses) == 54
    observed = []
    for each in (model, plain):
        with tf.GradientTape() as tape:
            penalty = sum(each.losses)
        observed.append((penalty, tape.gradient(penalty, model.trainable_weights)))
    assert float(observed[0][0]) == pytest.approx(float(observed[1][0]), rel=1e-6)
    for a, b in zip(*(gradients for _, gradients in observed), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_no_population_statistics_where_none_are_asked_for(prepared, settings):
    split = dataset.load("data", ("train",)).splits["train"]
    for changes in ({"train.batch_norm_images": 0}, {"model.batch_norm": False}):
        options = settings(**{"model.width": 0.35} | changes)
        model = training.build(options, "none", (32, 32, 3), 10)
        before = [weight.numpy() for weight in model.weights]
        training.PopulationStatistics(model, split, options, seed=0).refresh(0)
        for weight, old in zip(model.weights, before, strict=True):
            np.testing.assert_array_equal(weight, old)


def test_a_run_that_diverges_ends_at_once_and_says_so(prepared, settings, capsys):
    options = settings(**{"model.width": 0.35, "train.batch_size": 2, "train.epochs": 5, "train.warmup_epochs": 0})
    line = params.Regularizer("l2", (("l2", 1000.0),))
    options = options.model_copy(update={"reg": {"none": options.reg["none"], "l2": line}})
    training.train(options, "l2", 0, out="run")
    message = r"l2-0 diverged: its loss was (nan|inf) in epoch 1; lower train.learning_rate or the strength"
    assert re.search(message, capsys.readouterr().out)
    with open("run/history.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["epoch"], row["val_loss"]) == ("1", "") and not np.isfinite(float(row["loss"]))
    assert not list(training.SCRATCH.glob("*"))

    evaluation.evaluate(options, "l2", 0, out="run")
    evaluated = json.loads((prepared / "run/evaluation.json").read_text())
    assert evaluated == {
        "regularizer": "l2",
        "strengths": {"l2": 1000.0},
        "scope": "all",
        "seed": 0,
        "diverged": True,
    }
    for table, columns in evaluation.TABLES.items():
        assert (prepared / f"run/{table}.csv").read_text() == ",".join(columns) + "\n"


class KilledError(Exception):
    """Stands for a run's sudden end, within the test's process."""


def cut_off(options, monkeypatch, saves, out):
    """Train, and end right after the state was kept for the `saves`th time."""
    save, count = training.Checkpoint.save, itertools.count(1)

    def save_and_die(self, *arguments):
        save(self, *arguments)
        if next(count) == saves:
            raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(training.Checkpoint, "save", save_and_die)
        training.train(options, "l2", 0, out=out)


def assert_same(one, other):
    """The same model and the same history, seconds aside, bit for bit."""
    assert (one / "model.keras").read_bytes() == (other / "model.keras").read_bytes()
    for a, b in zip(history(one), history(other), strict=True):
        assert {k: v for k, v in a.items() if k not in TIMES} == {k: v for k, v in b.items() if k not in TIMES}


def test_a_long_epoch_goes_on_from_its_midst(prepared, settings, monkeypatch, capsys):
    changes = {"train.epochs": 2, "train.batch_size": 16, "train.momentum": 0.9, "model.width": 0.35}
    options = settings(**changes)
    training.train(options, "l2", 0, out="whole")
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    # 10 steps an epoch, the state kept after each: this is the fourth step of the second epoch.
    cut_off(options, monkeypatch, saves=15, out="resumed")
    (latest, before) = sorted((file.name for file in training.SCRATCH.glob("*/*.npz")), reverse=True)
    assert (latest, before) == ("000001-000000004.npz", "000001-000000003.npz")
    training.train(options, "l2", 0, out="resumed")
    assert "resuming after epoch 1 and 4 steps" in capsys.readouterr().out
    assert_same(prepared / "whole", prepared / "resumed")


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "both"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(prepared, settings, monkeypatch, capsys, damage):
    options = settings(**{"train.epochs": 3, "train.batch_size": 80, "model.width": 0.35})
    training.train(options, "l2", 0, out="whole")
    cut_off(options, monkeypatch, saves=2, out="resumed")
    before, latest = sorted(training.SCRATCH.glob("*/*.npz"))
    for path in (before, latest) if damage == "both" else (latest,):
        content = bytearray(path.read_bytes())
        if damage == "flipped":
            content[len(content) // 2] ^= 4
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b""}.get(damage, content[::-1]))
        if damage == "flipped":
            path.write_bytes(content)
    capsys.readouterr()
    training.train(options, "l2", 0, out="resumed")
    said = capsys.readouterr().out
    assert f"{latest} is damaged" in said
    assert ("resuming after epoch 1" in said) == (damage != "both")
    assert_same(prepared / "whole", prepared / "resumed")


def test_two_devices_train_as_one_where_batch_norm_is_synchronized(prepared):
    """Whole trainings: batch normalization's averages, validation and checkpoints among it, in a process each."""
    script = """
import functools, sys
import tensorflow as tf
from regbench import params, runtime, training
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
runtime.strategy = functools.partial(runtime.strategy, sys.argv[2:])
training.train(params.load(), "l2", 0, out=sys.argv[1])
"""
    # Steps so small that they don't amplify rounding.
    changes = {"train.epochs": 1, "model.width": 0.35, "train.learning_rate": 1e-6}
    rows = {}
    for out, synchronize, devices in (
        ("one", True, ["CPU:0"]),
        ("synchronized", True, ["CPU:0", "CPU:1"]),
        ("apart", False, ["CPU:0", "CPU:1"]),
    ):
        text = yaml.safe_dump(
            tiny_params(prepared / "images", **changes, **{"train.synchronize_batch_norm": synchronize})
        )
        (prepared / "params.yaml").write_text(text)
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        subprocess.run([sys.executable, "-c", script, out, *devices], env=environment, check=True)
        rows[out] = history(prepared / out)
    for key, within in (("cross_entropy", 1e-4), ("reg_loss", 1e-4), ("val_cross_entropy", 2e-3)):
        assert rows["synchronized"][0][key] == pytest.approx(rows["one"][0][key], rel=within), key
    assert rows["apart"][0]["cross_entropy"] != pytest.approx(rows["one"][0]["cross_entropy"], rel=1e-3)
