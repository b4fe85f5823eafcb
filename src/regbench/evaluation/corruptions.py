"""Test images under common corruptions: noise, blur, brightness and JPEG, at three levels each.

They are four of CIFAR-10-C at severities 1, 3 and 5 (D. Hendrycks, T. Dietterich, "Benchmarking Neural Network
Robustness to Common Corruptions and Perturbations", 2019, arXiv 1903.12261). The constants are those of the authors'
`ImageNet-C/create_c/make_cifar_c.py` in github.com/hendrycks/robustness, commit ca36008. Two things differ: pixels are
rounded, not truncated, and the blur grows with the image, because its constants are for 32 pixels.

A corrupted image is the same in every run: its noise depends only on its place in the test split.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from scipy import ndimage

from regbench.data.arrays import Split, evenly

CORRUPTIONS = {
    "gaussian_noise": (0.04, 0.08, 0.10),
    "gaussian_blur": (0.4, 0.7, 1.0),
    "brightness": (0.05, 0.15, 0.3),
    "jpeg": (80, 58, 40),
}
"""Constants of levels 1, 2 and 3: standard deviation of the noise, where white is 1; standard deviation of the blur in
pixels of an image of 32; what is added to the brightness, where white is 1; quality of the JPEG, of 100."""

LEVELS = (1, 2, 3)
NOISE_SEED = 0
CIFAR_SIZE = 32


def score(split: Split, count: int, right: np.ndarray, predict: Callable[[Split], np.ndarray]) -> dict:
    """Accuracy on corrupted images of a split, chosen evenly from first to last.

    Args:
        split: the test images.
        count: how many of them to corrupt, at most.
        right: for each image of the split, whether the model is right without corruption, bool [N].
        predict: the model's `predict.predictor`.

    Returns:
        {"accuracy_corrupted": mean over corruptions and levels, "corrupted": {"images": how many, "correct_before": how
        many of them are right without corruption, "correct": {corruption: how many are right at levels 1, 2, 3},
        "accuracy": the same as shares}}; {} if `count` is 0
    """
    if not count:
        return {}
    places = evenly(len(split), count)
    correct = {
        corruption: [_correct(split, places, corruption, level, predict) for level in LEVELS]
        for corruption in CORRUPTIONS
    }
    images = len(places)
    return {
        "accuracy_corrupted": sum(map(sum, correct.values())) / (images * len(CORRUPTIONS) * len(LEVELS)),
        "corrupted": {
            "images": images,
            "correct_before": int(right[places].sum()),
            "correct": correct,
            "accuracy": {corruption: [it / images for it in counts] for corruption, counts in correct.items()},
        },
    }


def _correct(
    split: Split, places: np.ndarray, corruption: str, level: int, predict: Callable[[Split], np.ndarray]
) -> int:
    labels = split.labels[places]
    corrupted = Split(Corrupted(split.images, places, corruption, level), labels)
    return int((predict(corrupted).argmax(axis=1) == labels).sum())


@dataclass(frozen=True)
class Corrupted:
    """Images that are corrupted when a slice of them is read, so that only one batch is in memory.

    Attributes:
        images: all images of a split, uint8 [N, H, W, C].
        places: indices of those to corrupt, int [K].
        corruption: a key of `CORRUPTIONS`.
        level: 1, 2 or 3.
    """

    images: np.ndarray
    places: np.ndarray
    corruption: str
    level: int

    def __getitem__(self, window: slice) -> np.ndarray:
        places = self.places[window]
        return corrupt(self.images[places], places, self.corruption, self.level)


def corrupt(images: np.ndarray, places: np.ndarray, corruption: str, level: int) -> np.ndarray:
    """Corrupt images.

    Args:
        images: uint8 [N, H, W, C], C is 1 or 3.
        places: the index of each in its split, int [N].
        corruption: a key of `CORRUPTIONS`.
        level: 1, 2 or 3.

    Returns:
        uint8 [N, H, W, C]
    """
    constant = CORRUPTIONS[corruption][level - 1]
    if corruption == "jpeg":
        return np.stack([_jpeg(image, constant) for image in images])
    pixels = images.astype(np.float32)
    if corruption == "gaussian_noise":
        pixels += 255 * constant * np.stack([_noise(place, pixels.shape[1:]) for place in places])
    elif corruption == "gaussian_blur":
        sigma = constant * pixels.shape[1] / CIFAR_SIZE
        pixels = ndimage.gaussian_filter(pixels, (0, sigma, sigma, 0), mode="nearest")
    else:
        pixels = _brighter(pixels, 255 * constant)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _noise(place: int, shape: tuple[int, ...]) -> np.ndarray:
    """The same noise at each level, so that levels differ in strength only."""
    return np.random.default_rng([NOISE_SEED, place]).standard_normal(shape, np.float32)


def _brighter(pixels: np.ndarray, amount: float) -> np.ndarray:
    """Add to V of HSV, the largest channel, up to 255. Hue and saturation stay, so channels keep their ratios."""
    value = pixels.max(axis=-1, keepdims=True)
    brighter = np.minimum(value + amount, 255)
    return np.where(value > 0, pixels * (brighter / np.maximum(value, 1)), brighter)


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    return tf.io.decode_jpeg(tf.io.encode_jpeg(image, quality=quality), dct_method="INTEGER_ACCURATE").numpy()
