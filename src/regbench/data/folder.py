"""A folder of images: which of its folders are splits, which are classes, and what is left out.

    photos/cat/1.jpg          a folder for each class; or
    photos/train/cat/1.jpg    folders for the splits around them

Clear layouts are recognized, and everything that is left out is printed. Unclear layouts are refused with a list of
the folders found, because a wrong guess would give wrong accuracies.
"""

import hashlib
import itertools
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from regbench.data import images
from regbench.data.source import LINES, NEW_LINE, Source, counted, listed
from regbench.errors import UserError

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
FILLERS = ("dataset", "data", "folder", "images", "image", "imgs", "img", "set", "split")
"""Words that are ignored beside one of `SPLIT_WORDS`: training_set, Test Images, testset."""

NOT_DATA = frozenset({"__MACOSX", "__pycache__", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"})
"""Folders that operating systems and tools create. They are ignored, like all names that start with a dot."""

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)


def find(dataset: str) -> Source:
    """Make a `Source` of a folder of images.

    Raises:
        UserError: there is no such folder, its layout is unclear, or images in it are damaged.
    """
    try:
        path = Path(dataset).expanduser()
        found = path.is_dir()
    except (OSError, RuntimeError) as error:  # a name that is too long, or ~NAME without such a user
        raise UserError(f"data.dataset: {dataset[:80]} is not a folder ({error})") from None
    if not found:
        raise UserError(f"data.dataset: there is no folder {path}; it should hold a folder of images for each class")
    splits, notes = _splits(_unwrapped(Folder(_nfc(path.name), [path])))
    classes = _class_names(splits["train"])
    files, labels = {}, {}
    for split, folder in splits.items():
        by_class = _images_by_class(folder, classes, needed=split == "train")
        if any(by_class):
            files[split] = list(itertools.chain(*by_class))
            labels[split] = np.repeat(np.arange(len(classes), dtype=np.int64), list(map(len, by_class)))
            notes += _other_files(folder)
            notes += [f"left out: {path}, since its name starts with a dot" for path in folder.hidden_folders]
        else:
            notes.append(f"left out: {folder}, which holds no images")
    every, names = list(itertools.chain(*files.values())), {}
    for split, found in files.items():
        names[split] = [_written(file.relative_to(path)) for file in found]
    name_of = dict(zip(every, itertools.chain(*names.values()), strict=True))
    notes += _copies_across_classes(name_of, np.concatenate(list(labels.values())), classes)
    _refuse_nested(splits["train"])

    shapes, channels = set(), 1
    with images.all_damage_told(every):
        for file in every:
            with images.opened(file) as image:
                shapes.add(images.shape_of(image))
                channels = max(channels, images.channels_of(image))

    def read(split: str, indices: np.ndarray) -> Iterator[np.ndarray]:
        with images.all_damage_told(every):
            for index in indices:
                yield images.read(files[split][index], channels)

    return Source(
        name=dataset,
        origin="folder",
        classes=tuple(classes),
        shape=shapes.pop() if len(shapes) == 1 else None,
        channels=channels,
        labels=labels,
        files=names,
        read=read,
        notes=tuple(notes),
    )


class Folder:
    """A folder, read on first use. Folders whose names differ only in their Unicode form (NFC, NFD) count as one.

    Attributes:
        name: in NFC, so that it is the same on any system.
        paths: the folders on disk; several if their names differ only in Unicode form.
    """

    def __init__(self, name: str, paths: Sequence[Path]):
        self.name, self.paths = name, paths

    def __str__(self) -> str:
        return str(self.paths[0])

    @cached_property
    def _entries(self) -> tuple[dict[str, "Folder"], list[Path]]:
        folders, files = defaultdict(list), []
        for entry in itertools.chain(*(path.iterdir() for path in self.paths)):
            if entry.name.startswith(".") or entry.name in NOT_DATA:
                continue
            if entry.is_dir():
                folders[_nfc(entry.name)].append(entry)
            else:
                files.append(entry)
        # Sorted by code points, not by locale, so that labels are the same everywhere.
        return {name: Folder(name, paths) for name, paths in sorted(folders.items())}, files

    @property
    def folders(self) -> dict[str, "Folder"]:
        """The folders in it, by name. Links to folders are followed."""
        return self._entries[0]

    @property
    def hidden_folders(self) -> list[Path]:
        """The folders in it whose names start with a dot and that directly hold images."""
        found = sorted(entry for path in self.paths for entry in path.iterdir() if entry.name.startswith("."))
        return [entry for entry in found if entry.is_dir() and Folder(entry.name, [entry]).images]

    @property
    def own_files(self) -> list[Path]:
        """The files that lie directly in it."""
        return self._entries[1]

    @property
    def images(self) -> list[Path]:
        """The image files that lie directly in it."""
        return [file for file in self.own_files if _is_image(file)]

    @property
    def below(self) -> Iterator["Folder"]:
        """All folders below it. Links to folders are included, but the folders in them are not."""
        for inside in self.folders.values():
            yield inside
            if not inside.is_link:
                yield from inside.below

    @property
    def is_link(self) -> bool:
        return any(path.is_symlink() for path in self.paths)

    @cached_property
    def files(self) -> list[Path]:
        """All files in it and in the folders below, in an order that does not depend on the system."""
        folders = [self, *(inside for inside in self.below if not inside.is_link)]
        found = itertools.chain(*(folder.own_files for folder in folders))
        # The lowest character replaces the separator, so that the files of a folder stay together.
        return sorted(found, key=lambda path: (_nfc(path.as_posix()).replace("/", "\0"), str(path)))

    @property
    def count(self) -> int:
        """How many images are in it and in the folders below."""
        return sum(map(_is_image, self.files))


def _nfc(name: str) -> str:
    """A name in NFC. It is read as UTF-8 whatever the locale is, so that classes are the same everywhere."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "surrogateescape"))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES


def _written(path: Path) -> str:
    """A path as text; Linux allows names that are not UTF-8."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


# Splits


def _split_word(name: str) -> tuple[str, tuple[str, ...]] | None:
    """(split, other words) of a name with exactly one of `SPLIT_WORDS`: "seg_train" → train, (seg,); else None."""
    run_together = rf"(?<![a-z])({'|'.join(SPLIT_WORDS)})({'|'.join(FILLERS)})(?![a-z])"
    apart = re.sub(run_together, r"\1 \2", name, flags=re.IGNORECASE)
    words = [word.casefold() for word in re.split(r"[\W_]+|(?<=[a-z])(?=[A-Z0-9])", apart) if word]
    found = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
    if len(found) != 1:
        return None
    return found[0], tuple(word for word in words if word not in SPLIT_WORDS and word not in FILLERS)


def _split_groups(names: Iterable[str]) -> list[list[tuple[str, str]]]:
    """Names that mean splits, as (split, name), grouped by their other words: trainA and testA are one group.

    A word such as train may be part of a class name: "test tube", "bullet train". It means a split if all other words
    in the name are numbers or single letters, or if another split has the same other words: seg_train and seg_test.
    """
    groups = defaultdict(list)
    for name in names:
        if word := _split_word(name):
            groups[word[1]].append((word[0], name))
    return [
        group
        for others, group in groups.items()
        if len(dict(group)) > 1 or all(len(word) == 1 or word.isdecimal() for word in others)
    ]


def _splits(top: Folder) -> tuple[dict[str, Folder], list[str]]:
    """({split: its folder}, notes on what was left out); `top` itself is train if it holds the class folders."""
    groups = _split_groups(top.folders)
    named = [name for group in groups for _, name in group]
    # A class of railway trains beside other classes.
    is_class = len(named) == 1 and named[0].casefold() in ("train", "training") and len(top.folders) > 2
    if not groups or (is_class and top.folders[named[0]].images):
        return {"train": top}, _loose(top)

    paired = [group for group in groups if "train" in dict(group) and len(dict(group)) > 1]
    candidates = paired or [group for group in groups if "train" in dict(group)]
    if len(candidates) != 1 or len(dict(candidates[0])) < len(candidates[0]):
        sound = "sounds like a split" if len(named) == 1 else "sound like splits"
        _refuse(top, f"{listed(named, 4)} {sound}, but not like one train split and a test or validation split of it")
    chosen = dict(candidates[0])
    splits = {split: _unwrapped(top.folders[name]) for split, name in chosen.items()}
    if not splits["train"].folders:
        _refuse(top, f"{chosen['train']} means the training split, but holds no class folders")
    notes = _loose(top)
    for name, folder in top.folders.items():
        if name in chosen.values():
            continue
        if folder.count and (folder.folders if name in named else len(chosen) == 1):
            _refuse(top, f"{name} could be a split or a class")
        notes.append(f"left out: {folder}, which is not a split ({counted(folder.count, 'image')})")
    for split, folder in list(splits.items()):
        if folder.folders:
            notes += _loose(folder)
        else:
            del splits[split]
            notes.append(f"left out: {folder}, which has no class folders ({counted(folder.count, 'image')})")
    return splits, notes


def _unwrapped(folder: Folder) -> Folder:
    """Skip wrapper folders, as archives make them: photos/photos.

    A wrapper directly holds no images and only one folder, of the same name or meaning the same split.
    """
    while len(folder.folders) == 1 and not folder.images:
        (inside,) = folder.folders.values()
        words = _split_word(inside.name)
        if inside.name.casefold() != folder.name.casefold() and (not words or words != _split_word(folder.name)):
            break
        folder = inside
    return folder


def _loose(folder: Folder) -> list[str]:
    found = folder.images
    return [f"left out: {counted(len(found), 'image')} beside the class folders in {folder}"] if found else []


def _other_files(split: Folder) -> list[str]:
    """A note on the files in class folders that are not images; an empty list if there are none."""
    files = itertools.chain(*(folder.files for folder in split.folders.values()))
    others = Counter(file.suffix.lower() or "no suffix" for file in files if not _is_image(file))
    kinds = [f"{suffix} {number:,}" for suffix, number in others.most_common()]
    return [f"left out: files in {split} that are not images: {listed(kinds, LINES)}"] if others else []


def _refuse(folder: Folder, why: str) -> None:
    raise UserError(
        f"data.dataset: the layout is unclear in {folder}: {why}. It should hold a folder of images for each "
        "class, or the folders train, validation and test with such class folders in each. Rename folders, or move "
        f"all other folders away. Found:\n  {_found(folder)}"
    )


def _found(folder: Folder) -> str:
    """One line for each folder in a folder, with what it holds."""
    lines = []
    for name, inside in folder.folders.items():
        folders = f" in {listed(list(inside.folders), 4)}" if inside.folders else ""
        lines.append(f"{name}: {counted(inside.count, 'image')}{folders}")
    return listed(lines, LINES, NEW_LINE) or "no folders"


# Classes


def _class_names(train: Folder) -> list[str]:
    """The names of the classes, which are the folders in the training split."""
    names = list(train.folders)
    if unwritable := [name for name in names if not name.isprintable() or not _is_utf8(name)]:
        raise UserError(f"data.dataset: rename the folder {unwritable[0]!r} in {train}; its name can't be written down")
    if len(names) < 2:
        raise UserError(
            f"data.dataset: {train} should hold a folder of images for each of two or more classes. Found:\n  "
            + _found(train)
        )
    return names


def _is_utf8(name: str) -> bool:
    """Whether a name is UTF-8. Linux allows any bytes; Python puts surrogates in place of invalid ones."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _images_by_class(split: Folder, classes: Sequence[str], needed: bool) -> list[list[Path]]:
    """The image files of each class. Links to files are followed, wherever they lead.

    Args:
        needed: whether each class must have images; true for the training split.
    """
    if unknown := [name for name in split.folders if name not in classes]:
        raise UserError(
            f"data.dataset: {split} has classes that the training split does not have: {listed(unknown, LINES)}. "
            "Rename them, or move them away"
        )
    problems, by_class = [_broken(file) for file in split.own_files if not file.exists()], []
    for name in classes:
        folder = split.folders.get(name, Folder(name, []))
        problems += [
            f"{below} is a link to a folder, which is not followed inside a class; link its images, or put the folder "
            "itself there"
            for below in folder.below
            if below.is_link
        ]
        problems += [_broken(file) for file in folder.files if not file.exists()]
        by_class.append([file for file in folder.files if _is_image(file) and file.is_file()])
        if needed and not by_class[-1]:
            problems.append(f"the class folder {folder} holds no images; fill it or delete it")
    if problems:
        raise UserError("data.dataset: " + listed(problems, LINES, NEW_LINE))
    return by_class


def _broken(link: Path) -> str:
    return f"{link} is a link to a file that is not there; repair it or delete it"


def _refuse_nested(train: Folder) -> None:
    """Raise a `UserError` if folders inside the class folders suggest that the class folders are not the classes."""
    names = set(train.folders)
    for name, folder in train.folders.items():
        if named := sorted({below.name for below in folder.below} & names - {name}):
            _refuse(train, f"the class folder {name} holds folders named like other classes: {listed(named, 4)}")
        if any("train" in dict(group) and len(dict(group)) > 1 for group in _split_groups(folder.folders)):
            _refuse(train, f"the class folder {name} holds splits, {listed(list(folder.folders), 4)}, inside a class")
    shared = sorted(set.intersection(*(set(folder.folders) for folder in train.folders.values())))
    if len(shared) > 1:
        _refuse(
            train,
            f"each of its folders holds folders named {listed(shared, 4)}, which may be the classes. If they are not, "
            "put their images directly into the folders of the classes",
        )


def _copies_across_classes(name_of: dict[Path, str], labels: np.ndarray, classes: Sequence[str]) -> list[str]:
    """A note on equal files in different classes; an empty list if there are none.

    Args:
        name_of: {file: its name in messages}, in the order of `labels`.

    Raises:
        UserError: all images of a class are in other classes too, so a folder is a copy of the dataset or of a class.
    """
    label_of = dict(zip(name_of, labels.tolist(), strict=True))
    groups = [group for group in _copies(name_of) if len({label_of[file] for file in group}) > 1]
    if not groups:
        return []

    def pairs(label: int | None = None) -> list[str]:
        """Pairs of copies as text, one for each group; with `label`, only for groups with a file of that class."""
        found = []
        for group in groups:
            first = next((file for file in group if label in (None, label_of[file])), None)
            if first:
                other = next(file for file in group if label_of[file] != label_of[first])
                found.append(f"{name_of[first]} = {name_of[other]}")
        return found

    sizes, copied = Counter(label_of.values()), Counter(label_of[file] for file in itertools.chain(*groups))
    if whole := [label for label in copied if copied[label] == sizes[label]]:
        label = max(whole, key=copied.get)
        raise UserError(
            f"data.dataset: each of the {counted(copied[label], 'image')} of the class {classes[label]} lies in "
            f"another class too, byte for byte. Move one of the copies away. Found:\n  "
            + listed(pairs(label), LINES, NEW_LINE)
        )
    return [f"equal files: {counted(len(groups), 'image')} in two classes, byte for byte: {listed(pairs(), 5)}"]


def _copies(files: Iterable[Path]) -> list[list[Path]]:
    """Groups of files with equal bytes. Files are compared by size, then by their first bytes, then by SHA-256."""
    groups = [list(files)]
    for key in (lambda file: file.stat().st_size, _first_bytes, _sha256):
        found = defaultdict(list)
        for number, group in enumerate(groups):
            for file in group:
                found[number, key(file)].append(file)
        groups = [group for group in found.values() if len(group) > 1]
    return groups


def _first_bytes(file: Path) -> bytes:
    with open(file, "rb") as opened:
        return opened.read(4096)


def _sha256(file: Path) -> bytes:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()
