"""Prepared arrays on disk, and the `tf.data` over them.

`prepare` writes, for each of train, validation and test, `images.npy` (uint8 [N, H, W, C]) and `labels.npy`
(int64 [N]); `load` maps them into memory, once it has found them as they were written.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from regbench.errors import UserError

SPLITS = ("train", "validation", "test")
HELD_OUT = 0.2
"""The share of a dataset without a test split that becomes its test set."""

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Split:
    """One split: images uint8 [N, H, W, C] and labels int64 [N], mapped from disk."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """What `prepare` wrote: dataset.json as `info`, and the splits that were asked for."""

    info: dict
    splits: dict[str, Split]

    @property
    def classes(self):
        return self.info["classes"]


def load(folder, splits):
    """Map the named splits of a prepared dataset, and check their bytes against the SHA-256 in dataset.json.

    The check reads a split once, from front to end, which is no more than the first epoch does and leaves it in
    memory as far as it fits.

    Raises:
        UserError: the folder does not hold them, or something in it is damaged.
    """
    folder = Path(folder)
    try:
        info = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        arrays = {split: Split(*_checked(folder / split, split, info)) for split in splits}
        if not info["classes"] or not all(isinstance(label, str) for label in info["classes"]):
            raise ValueError("dataset.json has no list of classes")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no whole prepared dataset ({error}); run `dvc repro -f prepare`") from None
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{folder / 'dataset.json'} is damaged; run `dvc repro -f prepare`") from None
    return Dataset(info, arrays)


def _checked(folder, split, info):
    """The arrays of a split, of the shapes, types and bytes that dataset.json says."""
    size = info["sizes"][split]
    for part, shape, dtype in (("images", (size, *info["shape"]), np.uint8), ("labels", (size,), np.int64)):
        path = folder / f"{part}.npy"
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        with open(path, "rb") as file:
            file.seek(array.offset)
            # From the file: pages read through the map would count as this process's memory.
            found = hashlib.file_digest(file, "sha256").hexdigest()
        whole = array.shape == shape and array.dtype == dtype and array.flags.c_contiguous
        if not whole or found != info["sha256"][split][part]:
            raise ValueError(f"{path} is damaged: it is not what dataset.json says")
        yield array


def prepare(source, data, folder):
    """Choose, resize where needed, and write the arrays of a `sources.Source`.

    The choice is a function of labels and `data.seed` alone. A smaller subset is part of a larger one, and the
    images held out do not depend on how many are trained on.

    Args:
        source: a `sources.Source`.
        data: `params.Data`.
        folder: where to; it appears whole or not at all.

    Raises:
        UserError: more images are asked for than there are.
    """
    folder = Path(folder)
    chosen = choose(source, data)
    size = data.image_size
    fits = source.shape is not None and max(source.shape) <= size
    height, width = source.shape if fits else (size, size)

    beside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    sha256 = {}
    for split, (origin, indices) in chosen.items():
        (beside / split).mkdir(parents=True)
        shape = (len(indices), height, width, source.channels)
        pixels = source.read(origin, indices)
        bar = track(pixels, f"Preparing {split}", total=len(indices), disable=not os.isatty(1), transient=True)
        images = (image if fits else _resized(image, size) for image in bar)
        labels = source.labels[origin][indices]
        title = f"the {origin} split of {source.name}"
        sha256[split] = {
            "images": _write(beside / split / "images.npy", shape, np.uint8, images, title),
            "labels": _write(beside / split / "labels.npy", labels.shape, np.int64, labels, title),
        }

    info = {
        "name": source.name,
        "source": source.origin,
        "classes": list(source.classes),
        "shape": [height, width, source.channels],
        "sizes": {split: len(indices) for split, (_, indices) in chosen.items()},
        "sha256": sha256,
    }
    (beside / "dataset.json").write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    beside.rename(folder)
    return info


def choose(source, data):
    """Which images go where.

    Test is the source's test split; where it has none, its validation split; where it has neither, a fifth of
    all. Validation is held out of what is left to train on, or is the test set itself.

    Returns:
        {split: (the source's split, sorted indices into it)}
    """
    named = {name: name for name in source.labels}
    test_name = next((named[name] for name in ("test", "validation") if name in named), None)
    train_name = next((name for name in ("train", *source.labels) if name in named and name != test_name), test_name)
    labels = source.labels[train_name]
    by_class = _by_class(labels, data.seed)

    if test_name is None or test_name == train_name:
        test_name = train_name
        wanted = data.test_images or max(1, round(HELD_OUT * len(labels)))
        test, by_class = _take(by_class, wanted, "data.test_images", source.name)
    else:
        test_by_class = _by_class(source.labels[test_name], data.seed)
        wanted = data.test_images or len(source.labels[test_name])
        test, _ = _take(test_by_class, wanted, "data.test_images", source.name)

    if data.validation_images == "test":
        validation = (test_name, test)
    else:
        held_out, by_class = _take(by_class, data.validation_images, "data.validation_images", source.name)
        validation = (train_name, held_out)

    left = sum(map(len, by_class))
    if not left:
        raise UserError(f"data.validation_images: no image of {source.name} is left to train on")
    train, _ = _take(by_class, data.train_images or left, "data.train_images", source.name)
    return {"train": (train_name, train), "validation": validation, "test": (test_name, test)}


def _by_class(labels, seed):
    """The indices of each class, in an order of their own that the seed sets."""
    return [
        np.random.default_rng([seed, label]).permutation(np.flatnonzero(labels == label))
        for label in range(labels.max() + 1)
    ]


def _take(by_class, count, key, name):
    """Take `count` from the front, the classes in proportion (largest remainders); what was taken, what is left."""
    sizes = np.array([len(members) for members in by_class])
    if count > sizes.sum():
        raise UserError(f"{key}: {count:,} is not allowed; {name} has {sizes.sum():,} images for it")
    exact = sizes * (count / sizes.sum())
    quota = np.floor(exact).astype(int)
    missing = count - quota.sum()
    quota[np.argsort(quota - exact, kind="stable")[:missing]] += 1
    taken = [members[:number] for members, number in zip(by_class, quota, strict=True)]
    return np.sort(np.concatenate(taken)), [m[n:] for m, n in zip(by_class, quota, strict=True)]


def _resized(image, size):
    """uint8 [h, w, C] → [size, size, C], bilinear and antialiased, by Pillow: integers, the same on any machine."""
    grey = image.shape[-1] == 1
    resized = Image.fromarray(image[..., 0] if grey else image).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized)[..., None] if grey else np.asarray(resized)


def _write(path, shape, dtype, rows, title):
    """Write an array's rows one after another as .npy; the SHA-256 of its bytes.

    Not through a memory map: where the disk is full, the system kills a process that writes through one.
    """
    digest, count = hashlib.sha256(), 0
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for row in rows:
            array = np.asarray(row, dtype, order="C")
            if array.shape != shape[1:]:
                raise UserError(f"{title} changed while it was read: a shape was {array.shape}, not {shape[1:]}")
            file.write(array.data)
            digest.update(array.data)
            count += 1
    if count != shape[0]:
        raise UserError(f"{title} gave {count} images instead of {shape[0]}")
    return digest.hexdigest()


def training_batches(split, *, batch_size, seed, flip, first_epoch, epochs, first_step=0):
    """A `tf.data.Dataset` over epochs [first_epoch, epochs), each in an order of its own, from a step of the first on.

    Order and flips are functions of (seed, epoch, step), so a resumed run sees what the interrupted one would have.

    Returns:
        Dataset of (uint8 [B, H, W, C], int64 [B]); the last batch of an epoch may be smaller.
    """
    steps = -(-len(split) // batch_size)
    orders = {}

    def batch(global_step):
        epoch, step = divmod(int(global_step), steps)
        if epoch not in orders:
            orders.clear()
            orders[epoch] = np.random.default_rng([seed, epoch]).permutation(len(split))
        # Ascending, since a memory map is read fastest forwards.
        indices = np.sort(orders[epoch][step * batch_size : (step + 1) * batch_size])
        images = split.images[indices]
        if flip:
            mirrored = np.random.default_rng([seed, epoch, step]).random(len(indices)) < 0.5
            images[mirrored] = images[mirrored, :, ::-1]
        return images, split.labels[indices]

    return _batches(batch, range(first_epoch * steps + first_step, epochs * steps), split)


def evaluation_batches(split):
    """A `tf.data.Dataset` once over a split, in order, in batches of `EVALUATION_BATCH`."""

    def batch(step):
        window = slice(int(step) * EVALUATION_BATCH, (int(step) + 1) * EVALUATION_BATCH)
        return np.array(split.images[window]), np.array(split.labels[window])

    return _batches(batch, range(-(-len(split) // EVALUATION_BATCH)), split)


def _batches(batch, steps, split):
    """A dataset of what NumPy's `batch` returns for each step, read ahead while the network computes."""
    import tensorflow as tf

    @tf.autograph.experimental.do_not_convert  # there is nothing to convert, and to find that out takes its time
    def fetch(step):
        images, labels = tf.numpy_function(batch, [step], [tf.uint8, tf.int64])
        images.set_shape([None, *split.images.shape[1:]])
        labels.set_shape([None])
        return images, labels

    dataset = tf.data.Dataset.range(steps.start, steps.stop).map(fetch)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(steps))).prefetch(2)
    # There is nothing to tune, and at times the tuner's thread lets the end of an iteration wait seconds for it.
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
