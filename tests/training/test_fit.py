"""One run: what it records, and that it gives the same bits again, also if it was killed and resumed."""

import csv
import itertools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from scratch import ROOT, Repository, tiny_params
from scratch import history as rows

from regbench import live, params, plan, regularizers
from regbench.data import arrays, prepare
from regbench.training import checkpoint, fit, history, model
from regbench.training.batch_norm import PopulationStatistics

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("deterministic")]
NARROW = {"model.width": 0.35}
SMALL = {"model.network": "small_cnn"}


@pytest.fixture(autouse=True)
def whole_precision():
    """Reset the dtype policy: training in half precision sets one that outlives it."""
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def prepared(settings, tmp_path, monkeypatch):
    """The folder with the tiny dataset in prepared/; it is the working directory."""
    monkeypatch.chdir(tmp_path)
    prepare.prepare(settings().data, tmp_path / "prepared")
    return tmp_path


@pytest.fixture
def train(plan_of, tmp_path):
    """A function that trains a run with some changes of params into a folder, and returns the folder."""

    def run(out, key="l2-0", **changes):
        fit.train(plan_of(key, tmp_path, **SMALL | changes)[0], out=tmp_path / out)
        return tmp_path / out

    return run


def assert_same(one, other):
    """The same model and the same history, byte for byte."""
    for name in ("model.keras", "history.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


class KilledError(Exception):
    """Simulates that a run is killed, within the test's process."""


@pytest.fixture
def cut_off(train, monkeypatch):
    """A function that trains as `train` does, and ends right after the state was saved for the `saves`th time."""

    def run(saves, out, **changes):
        save, count = checkpoint.Checkpoint.save, itertools.count(1)

        def save_and_die(self, *arguments):
            save(self, *arguments)
            if next(count) == saves:
                raise KilledError

        with monkeypatch.context() as patch, pytest.raises(KilledError):
            patch.setattr(checkpoint.Checkpoint, "save", save_and_die)
            train(out, **changes)

    return run


def test_what_is_recorded(prepared, train):
    folder = train("run", **{"train.epochs": 2, "data.train_images": 100})
    recorded = rows(folder)
    assert list(recorded[0]) == list(history.COLUMNS)
    assert [row["epoch"] for row in recorded] == [1, 2]
    saved = keras.saving.load_model(folder / "model.keras")
    assert saved.losses == [] and not saved.compiled
    weights = [weight.numpy() for weight in saved.trainable_variables if weight.path.endswith("kernel")]
    penalty = 0.001 * (sum((w**2).sum() for w in weights) + (saved.trainable_variables[-1].numpy() ** 2).sum())
    assert recorded[-1]["reg_loss"] == pytest.approx(penalty, rel=1e-5)
    # Keras's loss is the epoch's mean of cross-entropy plus penalty. val_loss has the penalty at the end of the epoch.
    assert recorded[-1]["loss"] > recorded[-1]["cross_entropy"]
    assert recorded[-1]["val_loss"] - recorded[-1]["val_cross_entropy"] == pytest.approx(penalty, rel=1e-4)
    log = live.read("l2-0")
    assert [it["epoch"] for it in log] == [1, 2] and all(it["seconds"] > 0 < it["images_per_second"] for it in log)
    assert [[it[name] for name in live.MEASURES] for it in log] == [
        [it[name] for name in live.MEASURES] for it in recorded
    ]
    assert not live.training("l2-0")


@pytest.mark.faults
def test_the_same_again_resumed_or_not_and_another_seed(prepared, train, cut_off):
    changes = {"train.epochs": 2, "data.train_images": 100}
    whole = train("whole", **changes)
    assert_same(whole, train("again", **changes))
    cut_off(1, "resumed", **changes)
    assert len(list(checkpoint.FOLDER.iterdir())) == 1
    assert_same(whole, train("resumed", **changes))
    assert list(checkpoint.FOLDER.iterdir()) == []
    other = train("other", "l2-1", **changes, seeds=[0, 1])
    assert (whole / "model.keras").read_bytes() != (other / "model.keras").read_bytes()


@pytest.mark.faults
def test_a_long_epoch_continues_from_its_midst(prepared, train, cut_off, monkeypatch, capsys):
    changes = {"train.epochs": 2, "train.batch_size": 16, "train.momentum": 0.9}
    whole = train("whole", **changes)
    monkeypatch.setattr(history, "SAVE_SECONDS", 0)
    # An epoch has 10 steps, and each saves the state. So save 14 is in the second epoch, after its fourth step.
    cut_off(14, "resumed", **changes)
    (latest, before) = sorted((file.name for file in checkpoint.FOLDER.glob("*/*.npz")), reverse=True)
    assert (latest, before) == ("000001-000000004.npz", "000001-000000003.npz")
    resumed = train("resumed", **changes)
    assert "resuming after epoch 1 and 4 steps" in capsys.readouterr().out
    assert_same(whole, resumed)


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "both"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(prepared, train, cut_off, capsys, damage):
    changes = {"train.epochs": 3, "train.batch_size": 80}
    whole = train("whole", **changes)
    cut_off(2, "resumed", **changes)
    before, latest = sorted(checkpoint.FOLDER.glob("*/*.npz"))
    for path in (before, latest) if damage == "both" else (latest,):
        content = bytearray(path.read_bytes())
        if damage == "flipped":
            content[len(content) // 2] ^= 4
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "flipped": content}.get(damage, b"x"))
    capsys.readouterr()
    resumed = train("resumed", **changes)
    said = capsys.readouterr().out
    assert f"{latest} is damaged" in said
    assert ("resuming after epoch 1" in said) == (damage != "both")
    assert_same(whole, resumed)


def test_changed_settings_do_not_resume(prepared, plan_of):
    split = arrays.load("train", prepared / "prepared")

    def folder(key="l2-0", **changes):
        return checkpoint.folder_of(plan_of(key, prepared, **changes)[0], split)

    assert folder() == folder(**{"evaluate.near_zero": 0.1})
    changed = [
        folder(**{"train.learning_rate": 0.06}),
        folder(**{"reg.l2": 0.002}),
        folder("l1-0"),
        folder("l2-1", seeds=[0, 1]),
    ]
    assert folder() not in changed and len(set(changed)) == len(changed)


def test_small_images_are_resized_in_the_model(plan_of, tmp_path):
    chosen, _ = plan_of("none-0", tmp_path, **{"data.image_size": 64})
    built = model.build(chosen, (28, 20, 1), 5)
    assert built.input_shape == (None, 28, 20, 1)
    assert built.get_layer("mobilenet_v2").input_shape == (None, 64, 64, 1)
    images = np.random.default_rng(0).integers(0, 256, (8, 28, 20, 1)).astype(np.uint8)
    scaled = tf.image.resize(images / np.float32(127.5) - 1, (64, 64))
    logits = built.get_layer("mobilenet_v2")(scaled, training=False)
    assert logits.shape == (8, 5)
    # However it is called for inference, it gives these logits and does not change.
    for call in (built, tf.function(built), built.predict_on_batch, built):
        np.testing.assert_allclose(call(images), logits, rtol=0, atol=1e-4 * np.abs(logits).max())
    batch_norm = built.get_layer("mobilenet_v2").get_layer("stem_bn")
    before = batch_norm.moving_mean.numpy()
    built(images, training=True)
    assert np.any(batch_norm.moving_mean.numpy() != before)


def test_strength_zero_is_none(prepared, train):
    none = train("none", "none-0")
    zero = train("zero", "l2-0", **{"reg.l2": 0})
    saved = [keras.saving.load_model(folder / "model.keras").get_weights() for folder in (none, zero)]
    for a, b in zip(*saved, strict=True):
        np.testing.assert_array_equal(a, b)
    assert rows(none) == rows(zero)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_keeps_logits_and_penalties_whole(prepared, train, plan_of, precision):
    changes = {"model.network": "mobilenet_v2", "train.precision": precision, "data.train_images": 100}
    folder = train("half", **NARROW | changes)
    saved = keras.saving.load_model(folder / "model.keras")
    regularizers.attach(saved, plan_of("l2-0", prepared)[0]["regularizer"])
    assert saved.output.dtype == "float32"
    assert {loss.dtype for loss in saved.losses} == {tf.float32}
    assert {weight.dtype for weight in saved.weights} == {"float32"}
    assert saved.get_layer("mobilenet_v2").get_layer("block3_expand").compute_dtype == precision
    assert np.isfinite(rows(folder)[-1]["val_cross_entropy"])


def test_a_run_that_diverges_ends_at_once_and_says_so(prepared, train, capsys):
    changes = {"train.batch_size": 2, "train.epochs": 5, "train.warmup_epochs": 0, "reg.l2": 1000.0}
    folder = train("run", **changes)
    message = r"l2-0 diverged: its loss was (nan|inf) in epoch 1; lower train.learning_rate or the strength"
    assert re.search(message, capsys.readouterr().out)
    with open(folder / "history.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["epoch"], row["val_loss"]) == ("1", "") and not np.isfinite(float(row["loss"]))
    assert not list(checkpoint.FOLDER.glob("*"))
    saved = keras.saving.load_model(folder / "model.keras")
    assert all(np.isnan(weight.numpy()).all() for weight in saved.trainable_variables)


def test_population_statistics_are_of_the_final_weights(prepared, plan_of, monkeypatch):
    """After training they are means over batches at fixed weights, by Keras's own formula. Weights do not change."""
    monkeypatch.setattr("regbench.data.EVALUATION_BATCH", 32)
    chosen, _ = plan_of("none-0", prepared, **NARROW | {"train.batch_norm_images": 64})
    split = arrays.load("train", prepared / "prepared")
    keras.utils.set_random_seed(0)
    built = model.build(chosen, (32, 32, 3), 10)
    model.compile(built, chosen["train"], 5)
    built.fit(np.array(split.images), np.array(split.labels), batch_size=32, verbose=0)
    before = [weight.numpy() for weight in built.trainable_variables]
    PopulationStatistics(built, split, split, chosen).refresh(0)
    for weight, old in zip(built.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(weight, old)

    network = built.get_layer("mobilenet_v2")
    stem = keras.Model(network.input, network.get_layer("stem").output)
    batches = arrays.training_batches(split, batch_size=32, seed=0, flip=True, epoch=0)
    outputs = [stem(images.numpy() / 127.5 - 1).numpy() for images, _ in batches.take(2)]
    # The second of two steps has weight 1, the first has weight 0.99.
    share = np.array([0.99, 1.0]) / 1.99
    normalization = network.get_layer("stem_bn")
    for moving, moment in ((normalization.moving_mean, np.mean), (normalization.moving_variance, np.var)):
        expected = sum(part * moment(output, axis=(0, 1, 2)) for part, output in zip(share, outputs, strict=True))
        np.testing.assert_allclose(moving.numpy(), expected, rtol=1e-3, atol=1e-5)


def test_population_statistics_leave_training_alone(prepared, train):
    trained = []
    for images in (0, 64):
        folder = train(str(images), **{"train.batch_norm_images": images})
        saved = keras.saving.load_model(folder / "model.keras")
        trained.append(([w.numpy() for w in saved.trainable_variables], saved.non_trainable_variables))
    for a, b in zip(*(weights for weights, _ in trained), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.any(a.numpy() != b.numpy()) for a, b in zip(*(averages for _, averages in trained), strict=True))


def test_moving_averages_are_read_beside_those_computed_anew(prepared, train, cut_off, monkeypatch):
    """One training has the columns of two: one that keeps the moving averages, and one that recomputes them."""
    monkeypatch.setattr(history, "SAVE_SECONDS", 0)
    changes = {"train.epochs": 2, "train.batch_norm_images": 64}
    kept, anew = train("kept", **changes | {"train.batch_norm_images": 0}), train("anew", **changes)
    changes |= {"train.moving_averages": True}
    both = train("both", **changes)
    for row, of_kept, of_anew in zip(rows(both), rows(kept), rows(anew), strict=True):
        assert row["val_accuracy_moving"] == pytest.approx(of_kept["val_accuracy"], abs=1e-6)
        assert row["val_cross_entropy_moving"] == pytest.approx(of_kept["val_cross_entropy"], rel=1e-5)
        assert all(row[name] == of_anew[name] for name in history.COLUMNS if not name.endswith("_moving"))
        assert row["val_cross_entropy_moving"] != pytest.approx(row["val_cross_entropy"], rel=1e-3)
    weights = [keras.saving.load_model(folder / "model.keras").get_weights() for folder in (both, anew)]
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)
    cut_off(7, "resumed", **changes)  # in the middle of the second epoch; an epoch has 5 steps
    assert_same(both, train("resumed", **changes))


@pytest.mark.parametrize("changes", [{"train.batch_norm_images": 0}, {"model.batch_norm": False}])
def test_no_population_statistics_where_none_are_asked_for(prepared, plan_of, changes):
    chosen, _ = plan_of("none-0", prepared, **NARROW | changes)
    built = model.build(chosen, (32, 32, 3), 10)
    before = [weight.numpy() for weight in built.weights]
    split = arrays.load("train", prepared / "prepared")
    PopulationStatistics(built, split, split, chosen).refresh(0)
    for weight, old in zip(built.weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)


DEVICES = """
import functools, sys
from regbench import runtime
tf = runtime.start()
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
"""
DENSE = """
import keras, numpy as np
from regbench import regularizers
from regbench.training.optimizer import SGD
keras.utils.set_random_seed(0)
with runtime.strategy(sys.argv[1:]).scope():
    model = keras.Sequential([
        keras.layers.Input((4, 4, 3)),
        keras.layers.Flatten(),
        keras.layers.Dense(16, activation="relu", kernel_regularizer=regularizers.Regularizer({"l2": 0.01})),
        keras.layers.Dense(10, kernel_regularizer=regularizers.Regularizer({"l1": 0.01, "proximal_l1": 0.1})),
    ])
    model.compile(SGD(0.1, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
rng = np.random.default_rng(0)
images, labels = rng.normal(size=(64, 4, 4, 3)).astype("float32"), rng.integers(0, 10, 64)
history = model.fit(images, labels, batch_size=16, epochs=3, shuffle=False, verbose=0).history
print(history["loss"], model.distribute_strategy.num_replicas_in_sync)
"""
WHOLE = """
from pathlib import Path
from regbench import plan
from regbench.training import fit
runtime.strategy = functools.partial(runtime.strategy, sys.argv[2:])
fit.train(plan.read("plans/l2-0/train.json"), out=Path(sys.argv[1]))
"""


def on_devices(folder, script, *arguments):
    (folder / "devices.py").write_text(DEVICES + script)
    return Repository(folder).run("python", "devices.py", *arguments, PYTHONPATH=str(ROOT / "src"))


def test_two_devices_train_as_one(tmp_path):
    """Two logical CPUs give the losses of one, for a network without batch statistics. Each has its own process."""
    losses = []
    for devices in (["CPU:0"], ["CPU:0", "CPU:1"]):
        *numbers, replicas = on_devices(tmp_path, DENSE, *devices).splitlines()[0].split()
        assert int(replicas) == len(devices)
        losses.append([float(number.strip("[],")) for number in numbers])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_two_devices_train_as_one_where_batch_norm_is_synchronized(prepared, image_folder):
    """Whole trainings with batch normalization's averages, validation and checkpoints, each in its own process."""
    # Steps so small that they don't amplify rounding.
    changes = {"train.epochs": 2, "train.learning_rate": 1e-6, "train.moving_averages": True} | SMALL
    recorded = {}
    for out, synchronize, devices in (
        ("one", True, ["CPU:0"]),
        ("synchronized", True, ["CPU:0", "CPU:1"]),
        ("apart", False, ["CPU:0", "CPU:1"]),
    ):
        chosen = tiny_params(image_folder, **changes, **{"train.synchronize_batch_norm": synchronize})
        (prepared / "params.yaml").write_text(yaml.safe_dump(chosen))
        plan.write(params.load(prepared / "params.yaml"))
        on_devices(prepared, WHOLE, out, *devices)
        recorded[out] = rows(prepared / out)
    keys = {"cross_entropy": 1e-4, "reg_loss": 1e-4, "val_cross_entropy": 2e-3, "val_cross_entropy_moving": 2e-3}
    for epoch, (key, within) in itertools.product((0, 1), keys.items()):
        assert recorded["synchronized"][epoch][key] == pytest.approx(recorded["one"][epoch][key], rel=within), key
    assert recorded["apart"][0]["cross_entropy"] != pytest.approx(recorded["one"][0]["cross_entropy"], rel=1e-3)
