"""Splits and classes: clear layouts are recognized, unclear ones are refused with a list of the folders found."""

import os
import re
import shutil
import subprocess
import sys
import unicodedata

import numpy as np
import pictures
import pytest
import scratch

from regbench.data import folder, prepare
from regbench.data.source import LINES
from regbench.errors import UserError

CLASSES = {"cat": 5, "dog": 5}


def inside(name, classes=CLASSES):
    """A folder of class folders, for `pictures.write_tree`."""
    return {f"{name}/{label}": count for label, count in classes.items()}


FEW = {"cat": 2, "dog": 2}
SPLITS = inside("train") | inside("test", FEW)

CLEAR = {
    "classes": (CLASSES, {"train": 10}, []),
    "other case": (inside("Training") | inside("Testing", FEW), {"train": 10, "test": 4}, []),
    "upper case": (inside("TRAIN") | inside("VAL", FEW), {"train": 10, "validation": 4}, []),
    "sets": (inside("training_set") | inside("test-set", FEW), {"train": 10, "test": 4}, []),
    "more words": (inside("Train Images") | inside("ValidationData", FEW), {"train": 10, "validation": 4}, []),
    "words run together": (inside("TRAININGSET") | inside("testdata", FEW), {"train": 10, "test": 4}, []),
    "nested in another word": (
        inside("Training/train") | inside("Test/test_set", FEW),
        {"train": 10, "test": 4},
        [],
    ),
    "nested once": (
        inside("training_set/training_set") | inside("test_set/test_set", FEW),
        {"train": 10, "test": 4},
        [],
    ),
    "a common word": (
        inside("seg_train/seg_train") | inside("seg_test/seg_test", FEW) | {"seg_pred/seg_pred": 3},
        {"train": 10, "test": 4},
        ["left out: .*seg_pred, which is not a split \\(3 images\\)"],
    ),
    "three splits and more": (
        SPLITS | inside("valid", FEW) | {"images to predict": 3},
        {"train": 10, "validation": 4, "test": 4},
        ["left out: .*images to predict, which is not a split \\(3 images\\)"],
    ),
    "flat test and meta": (
        inside("Train") | {"Test": 4, "Meta": 2},
        {"train": 10},
        ["left out: .*Test, which has no class folders \\(4 images\\)", "Meta, which is not a split \\(2 images\\)"],
    ),
    "flat test, nested once": (
        inside("train") | {"test/test": 4},
        {"train": 10},
        ["left out: .*test/test, which has no class folders \\(4 images\\)"],
    ),
    "flat validation": (
        inside("train") | {"val": 5},
        {"train": 10},
        ["val, which has no class folders \\(5 images\\)"],
    ),
    "test folders without images": (
        inside("train") | inside("test", {"cat": 0}),
        {"train": 10},
        ["test, .* no images"],
    ),
    "a class without test images": (inside("train") | inside("test", {"cat": 2}), {"train": 10, "test": 2}, []),
    "splits inside their own copy": (
        SPLITS | inside("photos/train") | inside("photos/test"),
        {"train": 10, "test": 4},
        ["photos, which is not a split \\(20 images\\)"],
    ),
    "splits beside their classes": (
        SPLITS | CLASSES,
        {"train": 10, "test": 4},
        ["left out: .*cat, which is not a split \\(5 images\\)", "left out: .*dog"],
    ),
    "images beside class folders": (
        SPLITS | {"train": 2, ".": 3},
        {"train": 10, "test": 4},
        ["left out: 3 images beside the class folders in .*photos$", "left out: 2 images beside .*train$"],
    ),
    "wrapped in its own name": (inside("photos/photos/train"), {"train": 10}, []),
    "what systems make": (
        CLASSES | {"__MACOSX/cat": 2, ".cache": 2, "cat/.thumbnails": 2, "dog/@eaDir": 2, "lost+found": 0},
        {"train": 10},
        [r"left out: .*\.cache, since its name starts with a dot"],
    ),
    "classes inside their own name": ({"cat/cat": 5, "dog": 5}, {"train": 10}, []),
    "classes of several folders": ({"cat/indoor": 3, "cat/2": 2, "dog": 5}, {"train": 10}, []),
    "a train among vehicles": ({"bus": 5, "car": 5, "train": 5}, {"train": 15}, []),
    "kinds of trains": ({"bullet train": 5, "freight train": 5}, {"train": 10}, []),
    "words of splits in classes": ({"test tube": 5, "training shoe": 5, "dev-board": 5}, {"train": 15}, []),
}


@pytest.mark.parametrize(("tree", "images", "notes"), CLEAR.values(), ids=CLEAR)
def test_what_is_clear(tmp_path, tree, images, notes):
    source = folder.find(str(pictures.write_tree(tmp_path / "photos", tree)))
    assert {split: len(labels) for split, labels in source.labels.items()} == images
    if "cat" in source.classes:
        assert source.classes == ("cat", "dog")
    assert len(source.notes) == len(notes)
    for pattern in notes:
        assert any(re.search(pattern, note) for note in source.notes), source.notes
    for split, files in source.files.items():
        for file, label in zip(files, source.labels[split], strict=True):
            assert (tmp_path / "photos" / file).is_file()
            assert f"{source.classes[label]}/" in file


UNCLEAR = {
    "domains of cycle_gan": ({"trainA": 2, "trainB": 3, "testA": 2, "testB": 2}, ["trainA: 2 images", "trainB: 3"]),
    "the same with classes": (inside("trainA") | inside("trainB"), ["trainA: 10 images in cat, dog"]),
    "parts of training": (inside("train1") | inside("train2"), ["train1: 10"]),
    "two training splits": (inside("train") | inside("Training") | inside("test"), ["Training: 10", "train: 10"]),
    "two validation splits": (inside("train") | inside("val") | inside("valid"), ["val: 10"]),
    "another training split": (SPLITS | inside("train2"), ["train2 could be a split"]),
    "flat splits": ({"train": 5, "test": 5}, ["train means the training split, but holds no class folders"]),
    "flat splits and more": ({"train": 5, "test": 5, "bus": 5}, ["train: 5 images", "bus: 5 images"]),
    "training and one more": (inside("train") | {"images to predict": 3}, ["images to predict: 3 images"]),
    "classes and a test split": (CLASSES | {"test": 3}, ["test sounds like a split", "cat: 5 images"]),
    "classes and a test split of them": (CLASSES | inside("test"), ["test sounds like a split"]),
    "classes and a training split of them": (CLASSES | inside("train"), ["cat could be a split or a class"]),
    "no training split": (inside("val") | inside("test"), ["test, val sound like splits"]),
    "splits inside classes": (
        {f"{name}/{split}": 3 for name in CLASSES for split in ("train", "test")},
        ["cat holds splits"],
    ),
    "one class has splits": ({"cat/train": 3, "cat/test": 3, "dog": 4}, ["cat holds splits"]),
    "folds": (
        inside("fold1") | inside("fold2"),
        ["cat, dog, which may be the classes", "fold2: 10 images in cat, dog"],
    ),
    "unknown names of splits": (inside("learning") | inside("exam"), ["which may be the classes"]),
    "a class inside another": (CLASSES | {"dog/young/cat": 2}, ["dog holds folders named like other classes: cat"]),
    "one class": ({"cat": 5}, ["two or more classes", "cat: 5 images"]),
    "one class in training": (
        inside("train", {"cat": 5}) | inside("test"),
        ["train should hold .*two or more classes"],
    ),
    "wrapped in another name": (inside("archive"), ["archive: 10 images in cat, dog"]),
    "nothing": ({".": 0}, ["two or more classes", "no folders"]),
    "only images": ({".": 3}, ["two or more classes"]),
    "empty classes": (CLASSES | {"eel": 0, "fox": 0}, ["eel holds no images", "fox holds no images"]),
    "unknown classes in test": (SPLITS | {"test/zebra": 1}, ["classes that the training split does not have: zebra"]),
}


@pytest.mark.parametrize(("tree", "said"), UNCLEAR.values(), ids=UNCLEAR)
def test_what_is_unclear(tmp_path, tree, said):
    path = pictures.write_tree(tmp_path / "photos", tree)
    for pattern in said:
        with pytest.raises(UserError, match=pattern) as raised:
            folder.find(str(path))
    assert str(raised.value).startswith("data.dataset: ")
    assert str(raised.value).count("\n") <= LINES + 1


def test_a_long_list_is_cut_off(tmp_path):
    path = pictures.write_tree(tmp_path / "photos", {f"train{index}/cat": 1 for index in range(100)})
    with pytest.raises(UserError, match=r"and 88 more$") as raised:
        folder.find(str(path))
    assert len(str(raised.value).splitlines()) == LINES + 2


def test_a_dataset_copied_into_itself(tmp_path):
    path = pictures.write_tree(tmp_path / "flowers", {"daisy": 4, "tulip": 4})
    shutil.copytree(path, tmp_path / "copy")
    shutil.move(tmp_path / "copy", path / "flowers")
    with pytest.raises(UserError, match=r"each of the 8 images of the class flowers lies in another class") as raised:
        folder.find(str(path))
    assert "flowers/daisy/0.png = daisy/0.png" in str(raised.value)
    # Now all files differ, but the names of the folders still show a copy.
    shutil.rmtree(path / "flowers")
    pictures.write_tree(path / "flowers", {"daisy": 4, "tulip": 4})
    with pytest.raises(UserError, match="flowers holds folders named like other classes: daisy, tulip"):
        folder.find(str(path))


@pytest.mark.parametrize("copy", ["all", "tulip (copy)"])
def test_a_class_that_is_a_copy(tmp_path, copy):
    path = pictures.write_tree(tmp_path / "flowers", {"daisy": 3, "tulip": 6})
    (path / copy).mkdir()
    for name in ["tulip"] if "tulip" in copy else ["daisy", "tulip"]:
        for file in (path / name).iterdir():
            shutil.copy(file, path / copy / f"{name}{file.name}")
    with pytest.raises(UserError, match="lies in another class too, byte for byte") as raised:
        folder.find(str(path))
    assert copy in str(raised.value)


def test_equal_images_are_named(tmp_path, settings, capsys):
    """Equal images in two classes and across splits are named. Big files that differ only in the last byte are not."""
    path = pictures.write_tree(tmp_path / "photos", SPLITS)
    shutil.copy(path / "train/cat/0.png", path / "train/dog/twice.png")
    shutil.copy(path / "train/dog/1.png", path / "test/dog/copied.png")
    for name in "ab":
        (path / f"train/cat/{name}.ppm").write_bytes(b"P6 40 40 255\n" + bytes(4799) + name.encode())
    source = folder.find(str(path))
    assert source.notes == (
        "equal files: 1 image in two classes, byte for byte: train/cat/0.png = train/dog/twice.png",
    )
    changes = {"data.train_images": None, "data.validation_images": 1, "data.test_images": None}
    prepare.write(source, settings(**changes).data, tmp_path / "prepared")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "pixel by pixel" in line and " test " in line]
    assert line.startswith("equal images: 1 of 5 images of test are in ")
    assert line.endswith("too, pixel by pixel: test/dog/copied.png = train/dog/1.png")


def test_names_in_other_unicode_forms_are_equal(tmp_path):
    forms = {form: [unicodedata.normalize(form, name) for name in ("Äpfel", "Öl")] for form in ("NFC", "NFD")}
    tree = {f"{split}/{name}": 3 for split, form in (("train", "NFC"), ("test", "NFD")) for name in forms[form]}
    source = folder.find(str(pictures.write_tree(tmp_path / "photos", tree)))
    assert source.classes == ("Äpfel", "Öl")
    np.testing.assert_array_equal(source.labels["test"], [0, 0, 0, 1, 1, 1])
    # Both forms in one split are one class, too.
    pictures.write(tmp_path / "photos/train" / forms["NFD"][1], 2)
    np.testing.assert_array_equal(folder.find(str(tmp_path / "photos")).labels["train"], [0, 0, 0, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("locale", ["POSIX", "C.UTF-8"])
def test_no_locale_changes_the_names_of_classes(tmp_path, locale):
    path = pictures.write_tree(tmp_path / "photos", {"Äpfel": 3, "Birnen": 3, "日本": 3})
    program = "import sys; from regbench.data import folder; source = folder.find(sys.argv[1]); "
    program += "print(ascii((source.classes, source.files)))"
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(scratch.ROOT / "src"),
        "LC_ALL": locale,
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    output = subprocess.run(
        [sys.executable, "-c", program, str(path)], env=environment, text=True, capture_output=True, check=True
    )
    source = folder.find(str(path))
    assert output.stdout.strip() == ascii((source.classes, source.files))


def test_suffixes_of_jpeg_and_of_no_image(tmp_path):
    path = pictures.write_tree(tmp_path / "photos", CLASSES)
    for suffix in (".jfif", ".jpe"):
        pictures.write(path / "cat", 2, suffix)
    for name in ("cat/a.txt", "cat/b.TXT", "dog/c.heic", "dog/d"):
        (path / name).write_text("no image")
    source = folder.find(str(path))
    assert len(source.labels["train"]) == 14 and len(list(source.read("train", np.arange(14)))) == 14
    assert len(source.notes) == 1
    for kind in (".txt 2", ".heic 1", "no suffix 1"):
        assert kind in source.notes[0]


def test_names_that_are_no_text(tmp_path):
    """A class folder with such a name is refused. A file is accepted, and its name is recorded with escapes."""
    path = pictures.write_tree(tmp_path / "photos", CLASSES)
    (path / "cat/0.png").rename(path / "cat" / os.fsdecode(b"\xff.png"))
    assert "cat/\\xff.png" in folder.find(str(path)).files["train"]
    for name in (os.fsdecode(b"\xff"), "new\nline"):
        (path / name).mkdir()
        with pytest.raises(UserError, match="rename the folder"):
            folder.find(str(path))
        (path / name).rmdir()
