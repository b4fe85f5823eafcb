"""Accuracy and calibration of predictions: each number against its formula."""

import numpy as np
import pytest

from regbench.evaluation import accuracy


def test_score_against_the_formula():
    logits = np.array([[1.0, 2.0, 0.5], [1000.0, 0.0, -1000.0]])
    summary, rows = accuracy.score(logits, np.array([1, 1]))
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    assert (summary["images"], summary["correct"], summary["accuracy"]) == (2, 1, 0.5)
    assert isinstance(summary["correct"], int)
    assert summary["cross_entropy"] == pytest.approx((-np.log(p[1]) + 1000) / 2)
    assert rows[0][:3] == (0, 1, 1)
    assert rows[0][3] == pytest.approx(p[1], abs=1e-6)
    assert summary["confidence"] == pytest.approx((p[1] + 1) / 2)
    # Two bins with one image each: one is right at confidence p, the other is wrong at confidence 1.
    assert summary["calibration_error"] == pytest.approx(((1 - p[1]) + 1) / 2)


def test_calibration_error_averages_within_bins():
    rng = np.random.default_rng(0)
    confidence, correct = rng.uniform(0.1, 1, 5000), rng.random(5000) < 0.6
    expected = 0.0
    for low in range(15):
        within = (confidence >= low / 15) & (confidence < (low + 1) / 15)
        if within.any():
            expected += within.mean() * abs(confidence[within].mean() - correct[within].mean())
    assert accuracy.calibration_error(confidence, correct) == pytest.approx(expected)
    assert accuracy.calibration_error(np.ones(10), np.ones(10, bool)) == 0


def test_confusion_counts_labels_by_predictions():
    matrix = accuracy.confusion_matrix(np.array([0, 0, 2, 2, 2]), np.array([0, 1, 2, 2, 0]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 2]]


def test_majority_is_the_share_of_the_most_frequent_class():
    assert accuracy.majority(np.array([3, 0, 3, 1, 3])) == 0.6
    assert accuracy.majority(np.array([5])) == 1
