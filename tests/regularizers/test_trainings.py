"""Whole trainings: averaged weights, early stopping, and several kinds on two devices and under XLA."""

import os

import keras
import numpy as np
import pytest
import yaml
from scratch import ROOT, TINIEST, Repository, tiny_params
from scratch import history as rows

from regbench import params, plan
from regbench.data import prepare
from regbench.training import checkpoint, fit, history

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("deterministic")]

TINY = TINIEST | {"train.batch_size": 16, "train.warmup_epochs": 0, "train.learning_rate": 0.3}


@pytest.fixture(scope="module")
def project(image_folder, tmp_path_factory):
    """A folder with the prepared images."""
    folder = tmp_path_factory.mktemp("trainings")
    prepare.prepare(params.parse(yaml.safe_dump(tiny_params(image_folder, **TINY))).data, folder / "prepared")
    return folder


@pytest.fixture
def train(image_folder, project, monkeypatch):
    """A function that trains a line under `reg:` with changes of params, and returns the run's folder."""
    monkeypatch.chdir(project)
    count = iter(range(1000))

    def run(line, **changes):
        settings = tiny_params(image_folder, **TINY, **changes)
        settings["reg"], settings["report"]["baseline"] = {"line": line}, None
        plans = plan.compute(params.parse(yaml.safe_dump(settings)))
        out = project / f"{os.getpid()}-{id(run)}-{next(count)}"
        fit.train(plan.parse(plans["line-0/train.json"]), out=out)
        return out

    return run


NONE = {"l2": 0}


def weights(folder):
    return keras.saving.load_model(folder / "model.keras").get_weights()


def assert_same(one, other):
    """The same model and the same history, byte for byte."""
    for name in ("model.keras", "history.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


class KilledError(Exception):
    """Simulates that a run is killed, within the test's process."""


def test_ema_validates_and_saves_averages_and_leaves_training_alone(train, monkeypatch):
    seen = []
    look = history.Recorder.on_train_batch_end

    def note(self, batch, logs=None):
        seen.append([weight.numpy().astype(np.float64) for weight in self.model.trainable_weights])
        look(self, batch, logs)

    changes = {"train.epochs": 2, "train.batch_norm_images": 40}
    monkeypatch.setattr(history.Recorder, "on_train_batch_end", note)
    none = rows(train(NONE, **changes))
    averages, of_none = seen[0], list(seen)
    for now in seen[1:]:
        averages = [0.8 * average + 0.2 * weight for average, weight in zip(averages, now, strict=True)]
    seen.clear()
    averaged = train({"ema": 0.8}, **changes)
    for one, other in zip(seen, of_none, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    saved = keras.saving.load_model(averaged / "model.keras")
    for weight, average in zip(saved.trainable_weights, averages, strict=True):
        np.testing.assert_allclose(weight, average, rtol=1e-4, atol=1e-6)
    for row, of_weights in zip(rows(averaged), none, strict=True):
        assert row["cross_entropy"] == of_weights["cross_entropy"]
        assert row["val_cross_entropy"] != of_weights["val_cross_entropy"]
    norm = np.sqrt(sum(np.sum(w**2) for w in averages if w.ndim == 4))
    assert rows(averaged)[-1]["norm_backbone"] == pytest.approx(norm, rel=1e-5)


LONG = {"train.epochs": 12}


@pytest.fixture(scope="module")
def losses():
    """The validation cross-entropies of 12 epochs without early stopping; `stopping` measures them once."""
    return []


@pytest.fixture
def stopping(train, losses):
    """The expected (patience, index of the best epoch, number of epochs).

    The patience is one at which training ends early and the best epoch is not the first.
    """
    if not losses:
        losses += [row["val_cross_entropy"] for row in rows(train(NONE, **LONG))]
    for patience in (1, 2, 3):
        best = 0
        for epoch, loss in enumerate(losses):
            best = epoch if loss < losses[best] else best
            if epoch - best == patience:
                break
        if best > 0 and epoch < len(losses) - 1:
            return patience, best, epoch + 1
    raise AssertionError(f"choose other settings: {losses}")


def test_early_stopping_ends_training_and_keeps_the_best_epoch(train, losses, stopping, capsys):
    patience, best, epochs = stopping
    folder = train({"early_stopping": patience}, **LONG)
    assert [row["val_cross_entropy"] for row in rows(folder)] == losses[:epochs]
    assert f"keeps the weights of epoch {best + 1}" in capsys.readouterr().out
    shorter = train(NONE, **{"train.epochs": best + 1})
    for one, other in zip(weights(folder), weights(shorter), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.faults
@pytest.mark.parametrize("when", ["the best is kept", "after the best", "midst of the next", "all is done"])
def test_early_stopping_killed_and_resumed(train, stopping, monkeypatch, capsys, when):
    patience, best, epochs = stopping
    line = {"early_stopping": patience}
    whole = train(line, **LONG)
    save = checkpoint.Checkpoint.save
    last = (epochs, 0) if when == "all is done" else (best + 1, 2 if when == "midst of the next" else 0)

    def save_and_die(self, past, step=0):
        if when == "the best is kept" and len(past) == best + 1:
            raise KilledError
        save(self, past, step)
        if (len(past), step) == last:
            raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(checkpoint.Checkpoint, "save", save_and_die)
        if when == "midst of the next":
            patch.setattr(history, "SAVE_SECONDS", 0)
        train(line, **LONG)
    capsys.readouterr()
    resumed = train(line, **LONG)
    assert "resuming after epoch" in capsys.readouterr().out
    assert_same(whole, resumed)


def test_early_stopping_keeps_the_best_of_a_training_that_ran_to_its_end(train, losses, stopping):
    folder = train({"early_stopping": 100}, **LONG)
    assert [row["val_cross_entropy"] for row in rows(folder)] == losses
    shorter = train(NONE, **{"train.epochs": int(np.argmin(losses)) + 1})
    for one, other in zip(weights(folder), weights(shorter), strict=True):
        np.testing.assert_array_equal(one, other)


ALL = {
    "activity_l2": 1e-3,
    "ema": 0.5,
    "gradient_clip": 0.1,
    "group_lasso": 1e-4,
    "max_norm": 0.6,
    "sam": 0.05,
    "spectral_norm": 0.1,
}
"""Kinds that train the same on one device and on two."""

NOISY = ALL | {"dropout": 0.3, "gaussian_noise": 0.1, "spatial_dropout": 0.2, "early_stopping": 2}

SCRIPT = """
import functools, sys
from pathlib import Path
from regbench import plan, runtime
chosen = plan.read("plans/line-0/train.json")
tf = runtime.start(deterministic=not chosen["train"].jit)
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
from regbench.training import fit
runtime.strategy = functools.partial(runtime.strategy, sys.argv[2:])
fit.train(chosen, out=Path(sys.argv[1]))

# What the replicas draw from.
from regbench.training import model
strategy = runtime.strategy()
with strategy.scope():
    trained = model.build(chosen, (32, 32, 3), 10)
    model.compile(trained, chosen["train"], 2)

@tf.function
def states():
    trained.set_random_states()
    return [tf.identity(state) for state in trained.random_states]

local = strategy.experimental_local_results
print("states", *(value.numpy().tolist() for state in strategy.run(states) for value in local(state)))
"""


def in_a_process(image_folder, project, line, out, *devices, **changes):
    """Train in a process of its own, on these devices; returns the folder and what the process printed."""
    (project / "devices.py").write_text(SCRIPT)
    settings = tiny_params(image_folder, **TINY | changes)
    settings["reg"], settings["report"]["baseline"] = {"line": line}, None
    plan.write(params.parse(yaml.safe_dump(settings)), project / "plans")
    printed = Repository(project).run("python", "devices.py", out, *devices, PYTHONPATH=str(ROOT / "src"))
    return project / out, printed


def test_two_devices_train_as_one(image_folder, project):
    """Clipping and climbing use gradients of the whole batch. There are only two steps, so rounding does not grow."""
    changes = {"model.batch_norm": False, "train.batch_size": 20, "train.epochs": 1, "train.flip": False}
    (one, _), (two, _) = (
        in_a_process(image_folder, project, ALL, out, *devices, **changes)
        for out, devices in (("one", ["CPU:0"]), ("two", ["CPU:0", "CPU:1"]))
    )
    for key, value in rows(one)[0].items():
        assert rows(two)[0][key] == (value if value is None else pytest.approx(value, rel=1e-4)), key
    for a, b in zip(weights(one), weights(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_noise_on_two_devices_and_under_xla(image_folder, project):
    """These trainings need not give equal bits, but all must train. Each replica draws its own noise.

    XLA can't compile a step of two devices, so `train.jit` has no effect there.
    """
    two, jit = ["CPU:0", "CPU:1"], {"train.jit": True}
    for out, changes, devices in (("noisy", {}, two), ("xla", jit, []), ("both", jit, two)):
        changes = changes | {"train.epochs": 2}
        folder, printed = in_a_process(image_folder, project, NOISY, out, *devices, **changes)
        assert all(np.isfinite(row["val_cross_entropy"]) for row in rows(folder)) and len(rows(folder)) == 2
        drawn = printed.split("states ")[1].split("] [")
        assert len(drawn) == len(set(drawn)) == 3 * max(1, len(devices))
