"""From a source to prepared/: choose the images of each split, resize and write them, print what was done."""

import hashlib
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from rich.progress import track

from regbench import files
from regbench.data import SPLITS, tfds
from regbench.data.folder import find as find_folder
from regbench.data.images import resized
from regbench.data.source import Source, counted, listed
from regbench.errors import UserError
from regbench.params import Data

HELD_OUT = 0.2
"""The share of the training split that becomes the test set if a dataset has no test and no validation split."""

CLASSES_SHOWN = 10
"""If a dataset has more classes, only the three most and the three least frequent are printed."""

Chosen = dict[str, tuple[str, np.ndarray]]
"""{split: (the source's split, sorted indices into it)}"""


def prepare(data: Data, folder: str | Path = "prepared") -> None:
    """Find the dataset that `data` names, choose and write the images of each split, and print what was done.

    Raises:
        UserError: there is no such dataset, its layout is unclear, or it has fewer images than `data` asks for.
    """
    write(find(data.dataset), data, folder)


def find(dataset: str) -> Source:
    """Find the source that `data.dataset` names. A TFDS dataset is downloaded and prepared first if needed.

    A path starts with `.`, `/` or `~`. Any other word is a TFDS name or, if TFDS has no such name, a folder.
    """
    if dataset.startswith((".", "/", "~")) or Path(dataset).is_absolute():
        return find_folder(dataset)
    try:
        return tfds.find(dataset)
    except tfds.UnknownDatasetError:
        if Path(dataset).is_dir():
            return find_folder(dataset)
        raise


def write(source: Source, data: Data, folder: str | Path) -> None:
    """Choose images, resize them if needed, and write a folder for each split. Each appears whole or not at all.

    A split does not depend on the settings of another split, unless both come from the same split of the source.
    """
    folder = Path(folder)
    chosen = choose(source, data)
    print(*_description(source, chosen), sep="\n", flush=True)
    beside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    digests = {split: _write_split(source, *chosen[split], data.image_size, beside / split) for split in SPLITS}
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        if (folder / split).exists():
            shutil.rmtree(folder / split)
        (beside / split).rename(folder / split)
    beside.rmdir()
    for line in _equal_images(source, chosen, digests):
        print(line, flush=True)


# Which images


def choose(source: Source, data: Data) -> Chosen:
    """Choose which images go where: a function of the labels, the numbers of images in `data`, and `data.seed` alone.

    Test is the source's test split or, if it has none, its validation split. If it has neither, test is held out of the
    training split, a fifth by default. Validation is the source's validation split, unless that is the test set; then
    it is held out of the training split. With `data.validation_images: test` it is the test set itself. Classes are
    chosen in proportion to their sizes.

    Raises:
        UserError: no split can be trained on, or there are fewer images than `data` asks for.
    """
    names = list(source.labels)
    if "train" not in names and len(names) > 1:
        found = ", ".join(f"{name} ({counted(len(labels), 'image')})" for name, labels in source.labels.items())
        raise UserError(
            f"data.dataset: {source.name} has no split named train, and it is unclear which to train on: {found}"
        )
    train_name = "train" if "train" in names else names[0]
    test_name = next((name for name in ("test", "validation") if name in names), train_name)
    validation_name = "validation" if "validation" in names and test_name == "test" else train_name
    left = {
        name: _by_class(source.labels[name], len(source.classes), data.seed)
        for name in (train_name, validation_name, test_name)
    }

    def take(name: str, key: str, count: int | None) -> tuple[str, np.ndarray]:
        size = sum(map(len, left[name]))
        if count is not None and count > size:
            raise UserError(f"data.{key}: {count:,} is not allowed; {source.name} has {counted(size, 'image')} for it")
        taken, left[name] = _take(left[name], size if count is None else count, data.seed)
        return name, taken

    held_out = max(1, round(HELD_OUT * len(source.labels[test_name]))) if test_name == train_name else None
    test = take(test_name, "test_images", data.test_images or held_out)
    if data.validation_images == "test":
        validation = test
    else:
        validation = take(validation_name, "validation_images", data.validation_images)
    if not sum(map(len, left[train_name])):
        raise UserError(f"data.validation_images: no image of {source.name} is left to train on; use a smaller number")
    train = take(train_name, "train_images", data.train_images)
    _refuse_classes(source, train, test)
    return {"train": train, "validation": validation, "test": test}


def _refuse_classes(source: Source, train: tuple[str, np.ndarray], test: tuple[str, np.ndarray]) -> None:
    trained, tested = (np.unique(source.labels[name][indices]) for name, indices in (train, test))
    if len(trained) < 2:
        raise UserError(
            f"data.dataset: {source.name} gives {counted(len(train[1]), 'training image')}, all of the class "
            f"{source.classes[trained[0]]}; training needs two or more classes. Choose more with data.train_images, or "
            "correct the dataset"
        )
    if not np.intersect1d(trained, tested).size:
        raise UserError(
            f"data.dataset: the training images of {source.name} have none of the classes of the test images, so every "
            "answer would be wrong"
        )


def _by_class(labels: np.ndarray, classes: int, seed: int) -> list[np.ndarray]:
    """The indices of each class, shuffled; the seed sets the order."""
    return [
        np.random.default_rng([seed, label]).permutation(np.flatnonzero(labels == label)) for label in range(classes)
    ]


def _take(by_class: list[np.ndarray], count: int, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Take `count` images from the front of the classes, in proportion to their sizes (largest remainders).

    Returns:
        (sorted indices that were taken, what is left of each class)
    """
    sizes = np.array([len(members) for members in by_class])
    quota, remainder = np.divmod(sizes * count, sizes.sum())
    # The seed chooses among equal remainders: by alphabet, a small split would have no image of the last classes.
    turn = np.random.default_rng([seed, len(sizes)]).permutation(len(sizes))
    quota[turn[np.argsort(-remainder[turn], kind="stable")][: count - quota.sum()]] += 1
    taken = [members[:number] for members, number in zip(by_class, quota, strict=True)]
    return np.sort(np.concatenate(taken)), [m[n:] for m, n in zip(by_class, quota, strict=True)]


# What is written


def _write_split(source: Source, origin: str, indices: np.ndarray, image_size: int, folder: Path) -> list[bytes]:
    """Write one split; return a digest of each image."""
    folder.mkdir(parents=True)
    fits = source.shape is not None and max(source.shape) <= image_size
    shape = (*(source.shape if fits else (image_size, image_size)), source.channels)
    bar = track(
        source.read(origin, indices),
        f"Preparing {folder.name}",
        total=len(indices),
        disable=not os.isatty(1),
        transient=True,
    )
    digests = []

    def images() -> Iterator[np.ndarray]:
        for image in bar:
            prepared = np.ascontiguousarray(image if fits else resized(image, image_size, image_size))
            digests.append(hashlib.blake2b(prepared, digest_size=16).digest())
            yield prepared

    title = f"the {origin} split of {source.name}"
    labels = source.labels[origin][indices]
    by_class = np.bincount(labels, minlength=len(source.classes)).tolist()
    sha256 = {
        "images": _write(folder / "images.npy", (len(indices), *shape), np.uint8, images(), title),
        "labels": _write(folder / "labels.npy", labels.shape, np.int64, labels, title),
    }
    rows = ((row, source.classes[labels[row]], source.files[origin][index]) for row, index in enumerate(indices))
    files.write_csv(folder / "files.csv", ("index", "class", "file"), rows)
    info = {
        "dataset": source.name,
        "source": source.origin,
        "classes": list(source.classes),
        "shape": list(shape),
        "images": len(indices),
        "by_class": dict(zip(source.classes, by_class, strict=True)),
        "majority": max(by_class) / len(indices),
        "sha256": sha256,
    }
    files.write_json(folder / "split.json", info)
    return digests


def _write(path: Path, shape: tuple[int, ...], dtype: type, rows: Iterable, title: str) -> str:
    """Write an array's rows one after another as .npy; return the SHA-256 of the data, without the header.

    Not through a memory map: when the disk is full, the system kills a process that writes through a map.
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


# What is printed


def _description(source: Source, chosen: Chosen) -> Iterator[str]:
    """Lines on what goes where, class by class, and on what was left out."""
    counts = np.array(
        [np.bincount(source.labels[name][i], minlength=len(source.classes)) for name, i in chosen.values()]
    )
    yield f"{source.name} ({source.origin}): {counted(len(source.classes), 'class', 'classes')}"
    yield from _table(source, chosen, counts)
    for split, numbers in zip(chosen, counts, strict=True):
        present, lacking = np.flatnonzero(numbers), np.flatnonzero(numbers == 0)
        if len(present) == 1:
            yield f"{split} has one class only, {source.classes[present[0]]}: its accuracy says nothing"
        elif lacking.size:
            names = listed([source.classes[label] for label in lacking], 5)
            yield f"{split} has no image of {len(lacking):,} of {len(source.classes):,} classes: {names}"
    for name, labels in source.labels.items():
        used = {split: len(indices) for split, (origin, indices) in chosen.items() if origin == name}
        if chosen["validation"] is chosen["test"]:
            used.pop("validation", None)
        if not used:
            yield f"left out: the split {name} ({counted(len(labels), 'image')})"
        elif unused := len(labels) - sum(used.values()):
            keys = " and ".join(f"data.{split}_images" for split in used)
            do = "does" if len(used) == 1 else "do"
            yield f"left out: {counted(unused, 'image')} of the split {name}, which {keys} {do} not ask for"
    yield from source.notes


def _table(source: Source, chosen: Chosen, counts: np.ndarray) -> Iterator[str]:
    """Lines of a table: images of each class in each split; of many classes, only the most and least frequent."""
    rows = [(name, *map("{:,}".format, numbers)) for name, numbers in zip(source.classes, counts.T, strict=True)]
    if len(rows) > CLASSES_SHOWN:
        by_size = [rows[label] for label in np.argsort(-counts.sum(axis=0), kind="stable")]
        rows = [*by_size[:3], (f"… {len(rows) - 6:,} more", "…", "…", "…"), *by_size[-3:]]
    shares = (f"{max(numbers) / sum(numbers):.1%}" for numbers in counts)
    origins = [f"of {name}" for name, _ in chosen.values()]
    rows = [("", *chosen), *rows, ("all", *map("{:,}".format, counts.sum(axis=1))), ("largest class", *shares)]
    if any(name != split for split, (name, _) in chosen.items()):
        rows.insert(1, ("", *origins))
    width = max(len(row[0]) for row in rows)
    for name, *numbers in rows:
        yield f"  {name:<{width}}" + "".join(f"{number:>{max(12, len(number) + 2)}}" for number in numbers)


def _equal_images(source: Source, chosen: Chosen, digests: dict[str, list[bytes]]) -> Iterator[str]:
    """Lines that name equal images in two splits."""

    def name_of(split: str, row: int) -> str:
        origin, indices = chosen[split]
        return source.files[origin][indices[row]]

    for split, other in itertools.combinations(SPLITS, 2):
        if chosen[split] is chosen[other]:
            continue
        row_of = {digest: row for row, digest in enumerate(digests[split])}
        pairs = [
            f"{name_of(other, row)} = {name_of(split, row_of[digest])}"
            for row, digest in enumerate(digests[other])
            if digest in row_of
        ]
        if pairs:
            yield (
                f"equal images: {len(pairs):,} of {counted(len(digests[other]), 'image')} of {other} are in {split} "
                f"too, pixel by pixel: {listed(pairs, 5)}"
            )
