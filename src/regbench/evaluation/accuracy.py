"""How right a model's predictions are: accuracy, cross-entropy, calibration, confusion."""

import numpy as np

CALIBRATION_BINS = 15


def score(logits: np.ndarray, labels: np.ndarray) -> tuple[dict, list[tuple]]:
    """Accuracy, mean cross-entropy (nats), confidence and calibration error of logits [N, K] against labels [N].

    Returns:
        ({"images": N, "correct": how many predictions are right, "accuracy", "cross_entropy", "confidence": mean
        probability of the predicted class, "calibration_error"}, and a row for each image, (index, label, prediction,
        confidence, cross_entropy))
    """
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    rows = np.arange(len(labels))
    prediction = logits.argmax(axis=1)
    cross_entropy = -log_probabilities[rows, labels]
    confidence = np.exp(log_probabilities[rows, prediction])
    correct = int(np.sum(prediction == labels))
    summary = {
        "images": len(labels),
        "correct": correct,
        "accuracy": correct / len(labels),
        "cross_entropy": float(cross_entropy.mean()),
        "confidence": float(confidence.mean()),
        "calibration_error": calibration_error(confidence, prediction == labels),
    }
    columns = (rows, labels, prediction, confidence.round(6), cross_entropy.round(6))
    return summary, list(zip(*(column.tolist() for column in columns), strict=True))


def majority(labels: np.ndarray) -> float:
    """The share of the most frequent class: the accuracy of always predicting it."""
    return float(np.bincount(labels).max() / len(labels))


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error, ECE: Σ over bins of (share of the images) · |mean confidence − accuracy|.

    15 bins of equal width, as in C. Guo et al., "On Calibration of Modern Neural Networks", 2017 (arXiv 1706.04599).

    Args:
        confidence: probability of the predicted class, [N], from 0 to 1.
        correct: whether the prediction is right, [N].
    """
    bins = np.minimum((np.asarray(confidence) * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, np.asarray(confidence) - np.asarray(correct), CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(bins))


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """How many images of each label got each prediction: int [label, prediction]."""
    return np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)
