"""Prepared images on disk, and `tf.data` datasets that read them.

prepared/train/images.npy    uint8 [N, H, W, C], read by memory map
prepared/train/labels.npy    int64 [N]
prepared/train/files.csv     index, class and file of each image
prepared/train/split.json    dataset, source, classes, shape, images, images by class, share of the most frequent
                             class, SHA-256
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regbench.data import EVALUATION_BATCH
from regbench.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class Split:
    """One split: images uint8 [N, H, W, C] and labels int64 [N], mapped from disk; split.json as `info`."""

    images: np.ndarray
    labels: np.ndarray
    info: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)


def load(split: str, folder: str | Path = "prepared") -> Split:
    """Map a split of the prepared images, and check their bytes against the SHA-256 in split.json.

    The check reads the split once, from start to end, as the first epoch does anyway. Afterwards the split is in the
    system's file cache, as far as it fits.

    Raises:
        UserError: the split is missing or damaged.
    """
    folder = Path(folder) / split
    try:
        info = json.loads((folder / "split.json").read_text(encoding="utf-8"))
        shape = (info["images"], *info["shape"])
        images = _checked(folder / "images.npy", shape, np.uint8, info["sha256"]["images"])
        labels = _checked(folder / "labels.npy", shape[:1], np.int64, info["sha256"]["labels"])
        classes = info["classes"]
        if not classes or not all(isinstance(name, str) for name in classes) or labels.max() >= len(classes):
            raise ValueError(f"{folder / 'split.json'} is damaged: it does not name the classes of all labels")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} is damaged or missing ({error}); run `dvc repro -f prepare`") from None
    return Split(images, labels, info)


def _checked(path: Path, shape: tuple[int, ...], dtype: type, sha256: str) -> np.ndarray:
    """Map an array, and check its shape, type and SHA-256 against split.json."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    with open(path, "rb") as file:
        file.seek(array.offset)
        # Read from the file: pages read through the map would count as this process's memory.
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous or found != sha256:
        raise ValueError(f"{path} is damaged: it is not what split.json says")
    return array


def sample(split: Split, count: int | None) -> Split:
    """A split with `count` of the images, evenly spaced; all images if `count` is None or there are fewer."""
    if count is None or count >= len(split):
        return split
    places = evenly(len(split), count)
    return Split(Chosen(split.images, places), split.labels[places], split.info)


def evenly(images: int, count: int) -> np.ndarray:
    """Indices of `count` out of `images` images, ascending and evenly spaced; of all images if there are fewer."""
    count = min(count, images)
    return np.arange(count) * images // count


@dataclass(frozen=True)
class Chosen:
    """Some images of a split. A slice reads only its own images, so only one batch is in memory.

    Attributes:
        images: all images of the split, uint8 [N, H, W, C].
        places: indices of the chosen ones, int [K].
    """

    images: np.ndarray
    places: np.ndarray

    def __getitem__(self, window: slice) -> np.ndarray:
        return self.images[self.places[window]]


def training_batches(
    split: Split, *, batch_size: int, seed: int, flip: bool, epoch: int, first_step: int = 0
) -> "tf.data.Dataset":
    """Make a `tf.data.Dataset` of one epoch, beginning at `first_step`.

    Order and flips are functions of (seed, epoch, step), so a resumed run sees the same batches as one without a break.

    Returns:
        Dataset of (uint8 [B, H, W, C], int64 [B]); the last batch of an epoch may be smaller.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(split))

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        # Ascending, because a memory map is fastest to read in order.
        indices = np.sort(order[step * batch_size : (step + 1) * batch_size])
        images = split.images[indices]
        if flip:
            mirrored = np.random.default_rng([seed, epoch, step]).random(len(indices)) < 0.5
            images[mirrored] = images[mirrored, :, ::-1]
        return images, split.labels[indices]

    return _batches(batch, range(first_step, -(-len(split) // batch_size)), split)


def evaluation_batches(split: Split) -> "tf.data.Dataset":
    """Make a `tf.data.Dataset` of one pass over a split, in order, in batches of `EVALUATION_BATCH`."""

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        window = slice(step * EVALUATION_BATCH, (step + 1) * EVALUATION_BATCH)
        return np.array(split.images[window]), np.array(split.labels[window])

    return _batches(batch, range(-(-len(split) // EVALUATION_BATCH)), split)


def _batches(batch: Callable[[int], tuple], steps: range, split: Split) -> "tf.data.Dataset":
    """A dataset of what `batch` returns for each step, read ahead while the network computes."""
    import tensorflow as tf

    def fetch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images, labels = tf.numpy_function(lambda step: batch(int(step)), [step], [tf.uint8, tf.int64])
        images.set_shape([None, *split.images.shape[1:]])
        labels.set_shape([None])
        return images, labels

    dataset = tf.data.Dataset.range(steps.start, steps.stop).map(fetch)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(steps))).prefetch(2)
    # There is nothing to tune, and sometimes the tuner's thread delays the end of an iteration by seconds.
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
