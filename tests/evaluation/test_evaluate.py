"""The folder that an evaluation writes, and what it says when it can't."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import scratch

from regbench import networks
from regbench.data import arrays, prepare
from regbench.errors import UserError
from regbench.evaluation import evaluate, predict
from regbench.networks import layers
from regbench.training import fit

FILES = ["confusion.csv", "evaluation.json", "layers.csv", "predictions.csv", "pruning.csv", "weights.csv"]


@pytest.fixture
def small(settings, plan_of, tmp_path):
    """A small model of `l2-0`, saved as training would save it, its plan and its prepared images."""
    prepare.prepare(settings(**scratch.TINIEST).data, tmp_path / "prepared")
    _, plan = plan_of("l2-0", tmp_path, **scratch.TINIEST | {"evaluate.pruning": [0.9]})
    images = keras.Input((32, 32, 3), dtype="uint8")
    x = keras.layers.Conv2D(8, 3, strides=2, name="stem")(keras.layers.Rescaling(1 / 255)(images))
    x = layers.BatchNormalization()(layers.PointwiseConv2D(8, name="pointwise")(x))
    x = keras.layers.Dense(10, name="head")(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(images, x)
    run = tmp_path / "runs/l2-0"
    run.mkdir(parents=True)
    model.save(run / "model.keras")
    where = {"prepared": tmp_path / "prepared", "runs": tmp_path / "runs"}
    return SimpleNamespace(plan=plan, model=model, run=run, where=where)


def table(path: Path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_all_of_a_real_run(settings, plan_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {"data.train_images": 100, "evaluate.train_images": 60, "model.width": 0.1, "evaluate.pruning": [0.5]}
    prepare.prepare(settings(**changes).data)
    plan, evaluated = plan_of("l2-0", tmp_path, **changes)
    fit.train(plan)
    evaluate.evaluate(evaluated)
    run = Path("runs/l2-0")
    assert sorted(path.name for path in (run / "evaluation").iterdir()) == FILES
    measured = json.loads((run / "evaluation/evaluation.json").read_text())
    assert (measured["seed"], measured["diverged"]) == (0, False)
    assert measured["regularizer"] == [{"kind": "l2", "strength": 0.001, "scope": "all"}]
    assert measured["regularized_weights"] == 54
    assert measured["majority"] == {"train": 0.1, "validation": 0.1, "test": 0.1}
    for split, images in (("train", 60), ("validation", 80), ("test", 80)):
        score = measured[split]
        assert (score["images"], score["correct"] / images) == (images, score["accuracy"])
        assert score["loss"] == pytest.approx(score["cross_entropy"] + measured["reg_loss"])
    corrupted = measured["corrupted"]
    assert corrupted["images"] == 10 and {*corrupted["correct"]} == {
        "gaussian_noise",
        "gaussian_blur",
        "brightness",
        "jpeg",
    }
    assert all(len(levels) == 3 for levels in corrupted["correct"].values())
    by_class = list(measured["test_accuracy_by_class"].values())
    assert len(by_class) == 10
    assert np.mean(by_class) == pytest.approx(measured["test"]["accuracy"], abs=1e-5)  # eight test images of each class

    predictions = table(run / "evaluation/predictions.csv")
    assert [row["split"] for row in predictions] == ["validation"] * 80 + ["test"] * 80
    for row in predictions:
        assert Path(row["file"]).parent.name == scratch.CLASSES[int(row["label"])]
    tested = [row for row in predictions if row["split"] == "test"]
    assert corrupted["correct_before"] == sum(row["label"] == row["prediction"] for row in tested[::8])
    assert measured["test"]["confidence"] == pytest.approx(
        np.mean([float(row["confidence"]) for row in tested]), abs=1e-6
    )
    assert [row["file"] for row in tested] == [row["file"] for row in table("prepared/test/files.csv")]
    assert sum(row["label"] == row["prediction"] for row in tested) == measured["test"]["correct"]
    confusion = table(run / "evaluation/confusion.csv")
    assert sum(int(row["images"]) for row in confusion) == 80
    right = sum(int(row["images"]) for row in confusion if row["label"] == row["prediction"])
    assert right == measured["test"]["correct"]

    pruning = table(run / "evaluation/pruning.csv")
    assert [float(row["pruned"]) for row in pruning] == [0, 0.5]
    assert float(pruning[0]["validation_accuracy"]) == measured["validation"]["accuracy"]
    layers = table(run / "evaluation/layers.csv")
    assert len(layers) == 53
    assert sum(float(row["penalty_share"]) for row in layers) == pytest.approx(1, abs=1e-3)
    history = scratch.history(run)[-1]
    assert history["reg_loss"] == pytest.approx(measured["reg_loss"], rel=1e-5)
    assert history["val_cross_entropy"] == pytest.approx(measured["validation"]["cross_entropy"], rel=1e-4)
    assert history["norm_head"] == pytest.approx(float(layers[-1]["sum_squares"]) ** 0.5, rel=1e-5)
    squares = sum(float(row["sum_squares"]) for row in layers[:-1])
    assert history["norm_backbone"] == pytest.approx(squares**0.5, rel=1e-5)


@pytest.mark.slow
def test_the_same_bytes_again(small):
    written = []
    for _ in range(2):
        evaluate.evaluate(small.plan, **small.where)
        written.append({path.name: path.read_bytes() for path in (small.run / "evaluation").iterdir()})
    assert written[0] == written[1]
    assert sorted(written[0]) == FILES
    assert [row["layer"] for row in table(small.run / "evaluation/layers.csv")] == ["stem", "pointwise", "head"]


def test_a_model_that_diverged(small):
    small.model.get_layer("stem").bias.assign([np.nan] * 8)
    small.model.save(small.run / "model.keras")
    evaluate.evaluate(small.plan, **small.where)
    folder = small.run / "evaluation"
    measured = json.loads((folder / "evaluation.json").read_text())
    terms = [{"kind": "l2", "strength": 0.001, "scope": "all"}]
    assert measured == {"seed": 0, "regularizer": terms, "diverged": True}
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert all(table(folder / name) == [] for name in FILES if name.endswith(".csv"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("runs/l2-0/model.keras", lambda content: content[:-1000], "can't be loaded .* `dvc repro -f -s train@l2-0`"),
        ("runs/l2-0/model.keras", lambda content: b"", "can't be loaded .* `dvc repro -f -s train@l2-0`"),
        ("runs/l2-0/model.keras", None, "can't be loaded .* `dvc repro -f -s train@l2-0`"),
        ("prepared/test/files.csv", lambda content: content[:-50], r"have 20 rows\); run `dvc repro -f prepare`"),
        ("prepared/test/files.csv", lambda content: content.replace(b"file", b"path", 1), "damaged .'file'."),
        ("prepared/test/files.csv", lambda content: content.replace(b"cat", b"\xff"), "damaged .*codec"),
        ("prepared/validation/files.csv", None, "damaged .*No such file"),
        ("prepared/train/labels.npy", lambda content: content[:-8], "dvc repro -f prepare"),
    ],
)
def test_whole_or_not_at_all(small, tmp_path, file, damage, says):
    before = small.run / "evaluation/evaluation.json"
    before.parent.mkdir()
    before.write_text("an earlier one")
    path = tmp_path / file
    content = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(content))
    with pytest.raises(UserError, match=says):
        evaluate.evaluate(small.plan, **small.where)
    assert [found.name for found in small.run.iterdir() if found.name != "model.keras"] == ["evaluation"]
    assert before.read_text() == "an earlier one"
    path.write_bytes(content)
    evaluate.evaluate(small.plan, **small.where)
    assert sorted(found.name for found in before.parent.iterdir()) == FILES


@pytest.mark.slow
def test_several_batches_at_once_have_the_bits_of_one_after_another(settings, cifar10_sample, monkeypatch):
    images, labels = cifar10_sample
    split = arrays.Split(images[:300], labels[:300], {})
    network = networks.build(settings(**{"model.width": 0.1}).model, (32, 32, 3), 10)
    logits = {}
    for count in (1, 4):
        monkeypatch.setattr(predict.runtime.cores, "count", lambda count=count: count)
        logits[count] = predict.predictor(network)(split)
    np.testing.assert_array_equal(logits[1], logits[4])
    np.testing.assert_allclose(logits[1], network.predict(split.images, verbose=0), atol=1e-4)
