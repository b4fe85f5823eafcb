"""Prepared splits, read back: checks of the files, and batches in the order that seed and epoch determine."""

import json

import numpy as np
import pytest

from regbench.data import EVALUATION_BATCH, SPLITS, arrays, prepare
from regbench.errors import UserError


@pytest.fixture
def prepared(settings, tmp_path):
    prepare.prepare(settings().data, tmp_path / "prepared")
    return tmp_path / "prepared"


@pytest.fixture
def split(cifar10_sample):
    return arrays.Split(*map(np.copy, cifar10_sample))


def batches_of(split, epoch=0, first_step=0, **changes):
    options = {"batch_size": 64, "seed": 0, "flip": True} | changes
    dataset = arrays.training_batches(split, epoch=epoch, first_step=first_step, **options)
    assert len(dataset) == max(0, -(-len(split) // options["batch_size"]) - first_step)
    return list(dataset.as_numpy_iterator())


def equal(one, other):
    return len(one) == len(other) and all(
        np.array_equal(a, b) for pair in zip(one, other, strict=True) for a, b in zip(*pair, strict=True)
    )


def test_an_epoch_has_every_image_once_and_can_start_at_any_step(split):
    first = batches_of(split)
    assert [len(labels) for _, labels in first] == [64] * 6 + [16]
    assert equal(first, batches_of(split))
    for step in (1, 5, 7):
        assert equal(first[step:], batches_of(split, first_step=step))
    assert not equal(first, batches_of(split, epoch=1))
    assert not equal(first, batches_of(split, seed=1))
    plain = batches_of(split, flip=False)
    images = np.concatenate([images for images, _ in plain])
    assert sorted(image.tobytes() for image in images) == sorted(image.tobytes() for image in split.images)
    known = {image.tobytes(): label for image, label in zip(split.images, split.labels, strict=True)}
    flipped = 0
    for (mirrored, labels), (straight, same) in zip(first, plain, strict=True):
        np.testing.assert_array_equal(labels, same)
        for image, other, label in zip(mirrored, straight, labels, strict=True):
            assert known[other.tobytes()] == label
            if not np.array_equal(image, other):
                np.testing.assert_array_equal(image, other[:, ::-1])
                flipped += 1
    assert 150 < flipped < 250
    # Flips are made in copies: the split itself is unchanged.
    assert known.keys() == {image.tobytes() for image in split.images}


def test_order_and_flips_are_the_ones_of_the_committed_results(split):
    """The generators and the calls to them must stay the same, because another order would change every result."""
    images, labels = batches_of(split, epoch=3, seed=5)[2]
    indices = np.sort(np.random.default_rng([5, 3]).permutation(400)[128:192])
    mirrored = np.random.default_rng([5, 3, 2]).random(64) < 0.5
    expected = np.where(mirrored[:, None, None, None], split.images[indices, :, ::-1], split.images[indices])
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(labels, split.labels[indices])


def test_evaluation_goes_through_in_order(split):
    batches = list(arrays.evaluation_batches(split).as_numpy_iterator())
    assert [len(labels) for _, labels in batches] == [EVALUATION_BATCH, 400 - EVALUATION_BATCH]
    np.testing.assert_array_equal(np.concatenate([images for images, _ in batches]), split.images)
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), split.labels)


def test_images_are_chosen_evenly():
    assert arrays.evenly(10, 4).tolist() == [0, 2, 5, 7]
    assert arrays.evenly(3, 400).tolist() == [0, 1, 2]
    # If images are sorted by class, each class gets its share.
    assert np.bincount(np.repeat(np.arange(10), 100)[arrays.evenly(1000, 400)]).tolist() == [40] * 10


def test_a_sample_is_read_slice_by_slice(split):
    sample = arrays.sample(split, 100)
    assert len(sample) == 100
    np.testing.assert_array_equal(sample.images[3:7], split.images[12:28:4])
    np.testing.assert_array_equal(sample.labels, split.labels[::4])
    assert arrays.sample(split, None) is split and arrays.sample(split, 400) is split


def test_splits_are_mapped(prepared):
    for name in SPLITS:
        loaded = arrays.load(name, prepared)
        assert isinstance(loaded.images, np.memmap) and isinstance(loaded.labels, np.memmap)
        assert len(loaded) == loaded.info["images"] == len(loaded.images)


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("part", ["images.npy", "labels.npy"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_a_damaged_array_is_named(prepared, name, part, share):
    path = prepared / name / part
    whole = path.read_bytes()
    place = int(len(whole) * share)
    assert place > 128  # damage in the header may leave the array whole
    for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{part} is damaged|dvc repro -f prepare"):
            arrays.load(name, prepared)


@pytest.mark.parametrize(
    "change",
    [
        {"images": 3},
        {"shape": [32, 32]},
        {"shape": None},
        {"classes": []},
        {"classes": ["one"]},
        {"classes": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]},
        {"sha256": {}},
        {"sha256": {"images": "", "labels": ""}},
    ],
    ids=str,
)
def test_a_damaged_split_json_is_named(prepared, change):
    path = prepared / "train/split.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"train is damaged or missing .*run `dvc repro -f prepare`"):
        arrays.load("train", prepared)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "<<<<<<< HEAD"])
def test_a_split_json_that_is_none(prepared, text):
    (prepared / "train/split.json").write_text(text)
    with pytest.raises(UserError, match="damaged or missing"):
        arrays.load("train", prepared)


def test_a_missing_split(prepared, tmp_path):
    with pytest.raises(UserError, match=r"run `dvc repro -f prepare`"):
        arrays.load("train", tmp_path)
