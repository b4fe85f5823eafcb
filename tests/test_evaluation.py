"""What is measured of a trained model: each number against its formula, on a small real network."""

import json

import keras
import numpy as np
import pytest

from regbench import dataset, evaluation, sources, summary, training
from regbench.regularizers import Regularizer


@pytest.fixture
def model():
    """Two kernels with known weights, one of them in the head."""
    keras.utils.set_random_seed(0)
    images = keras.Input((4, 4, 3))
    x = keras.layers.Conv2D(5, 3, use_bias=False, kernel_regularizer=Regularizer({"l2": 0.1}), name="stem")(images)
    x = keras.layers.GlobalAveragePooling2D()(x)
    network = keras.Model(images, keras.layers.Dense(4, name="head")(x))
    stem, head = network.get_layer("stem").kernel, network.get_layer("head").kernel
    stem.assign(np.linspace(-0.5, 0.5, 135).reshape(3, 3, 3, 5))  # the middle one is 0
    head.assign(np.linspace(1e-4, 2e-3, 20).reshape(5, 4))
    return keras.Model(network.input, network.output)


def test_score_against_the_formula():
    logits = np.array([[1.0, 2.0, 0.5], [1000.0, 0.0, -1000.0]])
    summary, rows = evaluation.score(logits, np.array([1, 1]))
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    assert summary["accuracy"] == 0.5
    assert summary["cross_entropy"] == pytest.approx((-np.log(p[1]) + 1000) / 2)
    assert rows[0][:3] == (0, 1, 1)
    assert rows[0][3] == pytest.approx(p[1], abs=1e-6)
    # Two bins: one image each, right at confidence p, wrong at confidence 1.
    assert summary["calibration_error"] == pytest.approx(((1 - p[1]) + 1) / 2)


def test_calibration_error_averages_within_bins():
    rng = np.random.default_rng(0)
    confidence, correct = rng.uniform(0.1, 1, 5000), rng.random(5000) < 0.6
    expected = 0.0
    for low in range(15):
        within = (confidence >= low / 15) & (confidence < (low + 1) / 15)
        if within.any():
            expected += within.mean() * abs(confidence[within].mean() - correct[within].mean())
    assert evaluation.calibration_error(confidence, correct) == pytest.approx(expected)
    assert evaluation.calibration_error(np.ones(10), np.ones(10, bool)) == 0


def test_confusion_counts_labels_by_predictions():
    matrix = evaluation.confusion_matrix(np.array([0, 0, 2, 2, 2]), np.array([0, 1, 2, 2, 0]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 2]]


def test_layer_rows_count_and_share(model, settings):
    options = settings(**{"evaluate.near_zero": 0.001, "train.learning_rate": 0.07})
    stem, head = evaluation.layer_rows(model, options)
    kernel = np.linspace(-0.5, 0.5, 135)
    assert (stem["layer"], stem["weights"], stem["exact_zeros"], stem["near_zero"]) == ("stem", 135, 1, 1)
    assert stem["sum_abs"] == pytest.approx(np.abs(kernel).sum())
    assert stem["penalty"] == pytest.approx(0.1 * (kernel**2).sum())
    assert (stem["penalty_share"], head["penalty_share"], head["penalty"]) == (1, 0, 0)
    assert stem["effective_learning_rate"] == pytest.approx(0.07 / (kernel**2).sum())
    assert head["effective_learning_rate"] == ""
    assert (head["exact_zeros"], head["near_zero"]) == (0, int((np.linspace(1e-4, 2e-3, 20) < 0.001).sum()))
    without = next(evaluation.layer_rows(model, settings(**{"model.batch_norm": False})))
    assert without["effective_learning_rate"] == ""


def test_histogram_counts_every_weight_once(model):
    rows = evaluation.weight_histogram(model)
    sizes = np.concatenate([np.abs(kernel.numpy()).ravel() for _, kernel in training.kernels(model)])
    sizes = sizes.astype(np.float64)
    assert sum(count for _, _, count in rows) == len(sizes) == 155
    assert rows[0] == (-np.inf, -8.0, 1)
    for low, high, count in rows:
        assert count == ((sizes >= 10.0**low) & (sizes < 10.0**high)).sum(), low


def test_several_batches_at_once_have_the_bits_of_one_after_another(settings, cifar10_sample, monkeypatch):
    images, labels = cifar10_sample
    examples = dataset.Split(images[:300], labels[:300])
    network = training.build(settings(), "l2", (32, 32, 3), 10)
    logits = {}
    for count in (1, 4):
        monkeypatch.setattr(evaluation.cores, "count", lambda count=count: count)
        logits[count] = evaluation.predictor(network)(examples)
    np.testing.assert_array_equal(logits[1], logits[4])
    np.testing.assert_allclose(logits[1], network.predict(examples.images, verbose=0), atol=1e-5)


def test_pruning_takes_the_smallest_and_leaves_the_model_as_it_was(model, cifar10_sample):
    images, labels = cifar10_sample
    examples = dataset.Split(images[:64, :4, :4], labels[:64] % 4)
    before = [weight.copy() for weight in model.get_weights()]
    rows = evaluation.prune(model, (0.9, 0.0, 0.5), examples, evaluation.predictor(model))
    assert [share for share, _, _ in rows] == [0.5, 0.9]
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)
    for share, threshold, accuracy in rows:
        whole = [kernel.numpy() for _, kernel in training.kernels(model)]
        kernels = [np.where(np.abs(kernel) < threshold, 0, kernel) for kernel in whole]
        removed = sum((kernel == 0).sum() for kernel in kernels)
        assert removed == pytest.approx(share * 155, abs=2)
        pruned = keras.models.clone_model(model)
        pruned.set_weights([kernels[0], kernels[1], before[2]])
        predicted = pruned.predict(examples.images.astype(np.float32), verbose=0).argmax(axis=1)
        assert accuracy == pytest.approx(np.mean(predicted == examples.labels))


def test_all_of_a_real_run(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = settings(**{"data.train_images": 100, "model.width": 0.35, "evaluate.pruning": [0.5]})
    dataset.prepare(sources.find(options.data.dataset), options.data, tmp_path / "data")
    training.train(options, "l2", 0, out="run")
    evaluation.evaluate(options, "l2", 0, out="run")
    run = tmp_path / "run"
    measured = json.loads((run / "evaluation.json").read_text())
    assert len(measured["test_accuracy_by_class"]) == 10
    mean = np.mean(list(measured["test_accuracy_by_class"].values()))
    assert mean == pytest.approx(measured["test"]["accuracy"], abs=1e-5)  # eight test images of each class
    confusion = summary._table(run, "confusion")
    assert sum(row["images"] for row in confusion) == 80
    right = sum(row["images"] for row in confusion if row["label"] == row["prediction"])
    assert right / 80 == measured["test"]["accuracy"]
    pruning = summary._table(run, "pruning")
    assert pruning[0]["validation_accuracy"] == measured["validation"]["accuracy"]
    layers = summary._table(run, "layers")
    assert len(layers) == 53
    assert sum(row["penalty_share"] for row in layers) == pytest.approx(1, abs=1e-3)
    history = summary._table(run, "history")[-1]
    assert history["reg_loss"] == pytest.approx(measured["reg_loss"], rel=1e-5)
    assert history["reg_loss_backbone"] + history["reg_loss_head"] == pytest.approx(history["reg_loss"], rel=1e-5)
    assert history["norm_head"] == pytest.approx(layers[-1]["sum_squares"] ** 0.5, rel=1e-5)
    squares = sum(row["sum_squares"] for row in layers[:-1])
    assert history["norm_backbone"] == pytest.approx(squares**0.5, rel=1e-5)
