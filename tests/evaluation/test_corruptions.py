"""Corrupted test images: each corruption against its formula, and which images are corrupted."""

import io

import numpy as np
import pytest
from matplotlib import colors
from PIL import Image
from scipy import ndimage

from regbench.data.arrays import Split
from regbench.evaluation import corruptions
from regbench.evaluation.corruptions import CORRUPTIONS, LEVELS

EVERY = [(corruption, level) for corruption in CORRUPTIONS for level in LEVELS]


@pytest.fixture(scope="module")
def images(cifar10_sample):
    """Seven images; black, white and grey pixels among them."""
    images = cifar10_sample[0][:7].copy()
    images[0, 0, :3] = [[0, 0, 0], [255, 255, 255], [128, 128, 128]]
    return images


PLACES = np.array([0, 3, 11, 12, 50, 9_999, 123_456])


def expected(image, place, corruption, level):
    """An image, float64 [H, W, C] from 0 to 1, corrupted by other code than ours, before rounding."""
    constant = CORRUPTIONS[corruption][level - 1]
    if corruption == "gaussian_noise":
        noise = np.random.default_rng([0, place]).standard_normal(image.shape, np.float32)
        return image + constant * noise
    if corruption == "gaussian_blur":
        sigma = constant * len(image) / 32
        # Rows, then columns, channel by channel, with the edge repeated.
        reach = int(4 * sigma + 0.5)
        weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
        blurred = image
        for axis in (0, 1):
            blurred = ndimage.convolve1d(blurred, weights / weights.sum(), axis=axis, mode="nearest")
        return blurred
    if corruption == "brightness":
        hsv = colors.rgb_to_hsv(np.broadcast_to(image, (*image.shape[:2], 3)))
        hsv[..., 2] = np.clip(hsv[..., 2] + constant, 0, 1)
        return colors.hsv_to_rgb(hsv)[..., : image.shape[2]]
    file = io.BytesIO()
    Image.fromarray(np.rint(255 * image).astype(np.uint8).squeeze()).save(file, "JPEG", quality=constant)
    return np.asarray(Image.open(file)).reshape(image.shape) / 255


@pytest.mark.parametrize(("corruption", "level"), EVERY)
@pytest.mark.parametrize("shape", ["colour", "grey", "large"])
def test_each_is_its_formula(images, shape, corruption, level):
    chosen = {
        "colour": images,
        "grey": images[..., :1],
        "large": images[:2].repeat(3, axis=1).repeat(3, axis=2),
    }[shape]
    found = corruptions.corrupt(chosen, PLACES[: len(chosen)], corruption, level)
    assert found.dtype == np.uint8 and found.shape == chosen.shape
    for image, place, corrupted in zip(chosen, PLACES, found, strict=False):
        exact = np.clip(255 * expected(image / 255, place, corruption, level), 0, 255)
        assert np.abs(corrupted - exact).max() <= 0.5 + 1e-3
    assert (found != chosen).any()


def test_levels_are_those_of_cifar_10_c():
    """At severities 1, 3 and 5, as in the authors' make_cifar_c.py."""
    published = {
        "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
        "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1),
        "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
        "jpeg": (80, 65, 58, 50, 40),
    }
    assert {corruption: constants[::2] for corruption, constants in published.items()} == CORRUPTIONS


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_higher_level_is_farther_from_the_image(images, corruption):
    far = [
        np.abs(corruptions.corrupt(images, PLACES, corruption, level).astype(float) - images).mean() for level in LEVELS
    ]
    assert far[0] < far[1] < far[2]


@pytest.mark.parametrize(("corruption", "level"), EVERY)
def test_an_image_comes_out_the_same_in_any_batch(images, corruption, level):
    together = corruptions.corrupt(images, PLACES, corruption, level)
    places = np.arange(7)
    lazily = corruptions.Corrupted(images, places, corruption, level)
    assert np.array_equal(lazily[2:20], corruptions.corrupt(images, places, corruption, level)[2:])
    for index in range(7):
        one = slice(index, index + 1)
        assert np.array_equal(corruptions.corrupt(images[one], PLACES[one], corruption, level), together[one])


def test_noise_is_another_for_each_image(images):
    same = images[:1].repeat(2, axis=0)
    first, second = corruptions.corrupt(same, np.array([4, 5]), "gaussian_noise", 1)
    assert (first != second).mean() > 0.5


def test_score_counts_what_is_right(cifar10_sample):
    images, labels = cifar10_sample
    split = Split(images[:50], labels[:50])

    def predict(corrupted):
        """Classify images by their brightness; reads them in two slices, as `predictor` reads batches."""
        pixels = np.concatenate([corrupted.images[:7], corrupted.images[7:100]])
        return np.eye(10)[(pixels.mean(axis=(1, 2, 3)) / 25.6).astype(int)]

    right = predict(split).argmax(axis=1) == split.labels
    measured = corruptions.score(split, 20, right, predict)
    places = np.arange(20) * 50 // 20
    counts = [
        int(
            (
                predict(Split(corruptions.corrupt(images[places], places, *it), [])).argmax(axis=1) == labels[places]
            ).sum()
        )
        for it in EVERY
    ]
    corrupted = measured["corrupted"]
    assert [count for levels in corrupted["correct"].values() for count in levels] == counts
    assert len({*counts}) > 1
    assert (corrupted["images"], corrupted["correct_before"]) == (20, right[places].sum())
    assert corrupted["accuracy"]["jpeg"] == [count / 20 for count in counts[-3:]]
    assert measured["accuracy_corrupted"] == pytest.approx(sum(counts) / 240)
    assert corruptions.score(split, 0, right, predict) == {}
