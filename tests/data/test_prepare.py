"""From a source to prepared/: which images go where, at what size, and what is printed."""

import csv
import json
import re

import numpy as np
import pictures
import pytest
from PIL import Image

from regbench.data import SPLITS, arrays, prepare
from regbench.data.source import Source
from regbench.errors import UserError

ALL = {"data.train_images": None, "data.test_images": None}


def source_of(labels, classes=("a", "b", "c")):
    """A source with these labels, {split: labels}; its images are grey noise."""
    labels = {split: np.asarray(values) for split, values in labels.items()}

    def read(split, indices):
        for index in indices:
            yield np.random.default_rng([len(split), index]).integers(0, 256, (8, 8, 1), np.uint8)

    files = {split: [f"{split}[{index}]" for index in range(len(values))] for split, values in labels.items()}
    return Source("toy", "toy 1", tuple(classes), (8, 8), 1, labels, files, read)


@pytest.fixture
def choose(settings):
    def choose(labels, classes=("a", "b", "c"), **changes):
        return prepare.choose(source_of(labels, classes), settings(**changes).data)

    return choose


@pytest.fixture
def write(settings, tmp_path, capsys):
    """A function that prepares a source into a folder and returns the lines it printed."""

    def write(source, folder="prepared", **changes):
        capsys.readouterr()
        prepare.write(source, settings(**changes).data, tmp_path / folder)
        return capsys.readouterr().out.splitlines()

    return write


def test_choice_is_stratified_disjoint_and_nested(choose):
    labels = np.random.default_rng(0).choice(3, 1000, p=[0.6, 0.3, 0.1])
    of = {"train": labels, "test": labels[:100]}
    few = {"data.train_images": 100, "data.validation_images": 50, "data.test_images": 20}
    small, large = choose(of, **few), choose(of, **few | {"data.train_images": 500})
    (name, train), (_, validation), (test_name, test) = (small[split] for split in SPLITS)
    assert (name, test_name) == ("train", "test")
    assert (len(train), len(validation), len(test)) == (100, 50, 20)
    assert not set(train) & set(validation)
    assert set(train) < set(large["train"][1])
    np.testing.assert_array_equal(validation, large["validation"][1])
    for indices in (train, validation):
        share = np.bincount(labels[indices]) / len(indices)
        np.testing.assert_allclose(share, np.bincount(labels) / 1000, atol=1.5 / len(indices))
    assert set(choose(of, **few | {"data.seed": 1})["train"][1]) != set(train)
    assert len(choose(of, **few | {"data.train_images": None})["train"][1]) == 950


def test_validation_may_be_the_test_set(choose):
    of = {"train": np.arange(300) % 3, "test": np.arange(60) % 3}
    chosen = choose(of, **ALL, **{"data.validation_images": "test"})
    np.testing.assert_array_equal(chosen["validation"][1], chosen["test"][1])
    assert chosen["validation"][0] == "test"
    assert (len(chosen["train"][1]), len(chosen["test"][1])) == (300, 60)


@pytest.mark.parametrize(
    ("splits", "train", "validation", "test"),
    [
        (("train",), "train", "train", "train"),
        (("train", "test"), "train", "train", "test"),
        (("train", "validation"), "train", "train", "validation"),
        (("train", "validation", "test"), "train", "validation", "test"),
        (("test",), "test", "test", "test"),
        (("extra", "train", "test"), "train", "train", "test"),
    ],
)
def test_whatever_splits_there_are(choose, splits, train, validation, test):
    chosen = choose({split: np.arange(300) % 3 for split in splits}, **ALL, **{"data.validation_images": 30})
    assert [chosen[split][0] for split in SPLITS] == [train, validation, test]
    used = [(name, index) for name, indices in chosen.values() for index in indices]
    assert len(used) == len(set(used))
    if train == test:
        assert [len(chosen[split][1]) for split in SPLITS] == [210, 30, 60]


@pytest.mark.parametrize("splits", [("small", "large"), ("trainA", "trainB", "testA", "testB"), ("validation", "test")])
def test_no_split_to_train_on(choose, splits):
    with pytest.raises(
        UserError, match=f"unclear which to train on: {splits[0]} \\(9 images\\), {splits[1]} \\(9 images"
    ):
        choose({split: np.arange(9) % 3 for split in splits}, **ALL)


@pytest.mark.parametrize(
    ("key", "value"),
    [("train_images", 400), ("validation_images", 300), ("validation_images", 301), ("test_images", 99)],
)
def test_more_than_there_are(choose, key, value):
    with pytest.raises(UserError, match=f"data.{key}: "):
        choose(
            {"train": np.arange(300) % 3, "test": np.arange(60) % 3}, **{"data.test_images": 30, f"data.{key}": value}
        )


def test_everything_held_out(choose):
    with pytest.raises(UserError, match=r"data\.validation_images: "):
        choose({"train": np.arange(30) % 3}, **ALL | {"data.test_images": 30}, **{"data.validation_images": 1})


def test_remainders_are_spread_by_seed(choose):
    """With a thousand classes of four images, the seed decides which classes have a test image, not the alphabet."""
    labels, classes = np.repeat(np.arange(1000), 4), [f"c{index:04}" for index in range(1000)]
    changes = ALL | {"data.validation_images": 100}

    def without(**more):
        _, test = choose({"train": labels}, classes, **changes, **more)["test"]
        counts = np.bincount(labels[test], minlength=1000)
        assert len(test) == 800 and counts.max() == 1
        return np.flatnonzero(counts == 0)

    lacking = without()
    assert len(lacking) == 200 and 50 < np.median(lacking) - 300 < 350
    np.testing.assert_array_equal(lacking, without())
    assert set(lacking) != set(without(**{"data.seed": 1}))
    # The next image goes to a class that has none yet, and the others keep theirs.
    more, fewer = (
        set(choose({"train": labels}, classes, **changes | {"data.test_images": count})["test"][1])
        for count in (801, 800)
    )
    assert fewer < more


@pytest.mark.parametrize("images", [{"train_images": 1}, {"train_images": None}])
def test_fewer_than_two_classes_in_training(choose, images):
    changes = ALL | {"data.validation_images": 1} | {f"data.{key}": value for key, value in images.items()}
    with pytest.raises(UserError, match="all of the class a; training needs two or more classes"):
        choose({"train": [0] * 5 + [1] * (images["train_images"] or 0)}, ("a", "b"), **changes)


def test_a_test_split_of_other_classes(choose):
    with pytest.raises(UserError, match="none of the classes of the test images, so every"):
        choose({"train": np.arange(10) % 2, "test": [2] * 5}, **ALL, **{"data.validation_images": 1})


def test_what_is_written(image_folder, cifar10_sample, write, tmp_path):
    write(prepare.find(str(image_folder)), **{"data.train_images": 160})
    known = {image.tobytes(): label for image, label in zip(*cifar10_sample, strict=True)}
    for name, size in zip(SPLITS, (160, 80, 80), strict=True):
        split = arrays.load(name, tmp_path / "prepared")
        assert {path.name for path in (tmp_path / "prepared" / name).iterdir()} == {
            "images.npy",
            "labels.npy",
            "files.csv",
            "split.json",
        }
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int64
        assert split.images.shape == (size, 32, 32, 3)
        info = split.info
        assert list(info) == ["dataset", "source", "classes", "shape", "images", "by_class", "majority", "sha256"]
        assert info["classes"] == sorted(info["classes"]) and len(info["classes"]) == 10
        assert info["by_class"] == dict.fromkeys(info["classes"], size // 10) and info["majority"] == 0.1
        with open(tmp_path / "prepared" / name / "files.csv", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [row["index"] for row in rows] == list(map(str, range(size)))
        for image, label, row in zip(split.images, split.labels, rows, strict=True):
            # The sample's classes are in alphabetical order too, so its labels are the same.
            assert known[image.tobytes()] == label and info["classes"][label] == row["class"]
            np.testing.assert_array_equal(Image.open(image_folder / row["file"]), image)
    assert {path.name for path in tmp_path.iterdir()} == {"params.yaml", "prepared"}


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_again_also_over_old_ones(image_folder, write, tmp_path):
    write(prepare.find(str(image_folder)))
    before = content(tmp_path / "prepared")
    (tmp_path / "prepared/test/old.txt").write_text("of another dataset")
    write(prepare.find(str(image_folder)))
    assert content(tmp_path / "prepared") == before


def test_a_split_depends_on_no_setting_of_another(write, tmp_path):
    source = source_of({"train": np.arange(60) % 3, "test": np.arange(30) % 3})
    base = {"data.train_images": 30, "data.validation_images": 9, "data.test_images": 9}
    write(source, "base", **base)
    for key, changed in {"train_images": {"train"}, "test_images": {"test"}}.items():
        write(source, key, **base | {f"data.{key}": 12})
        assert {
            split for split in SPLITS if content(tmp_path / "base" / split) != content(tmp_path / key / split)
        } == changed


def test_cut_off_leaves_nothing_that_looks_whole(write, tmp_path):
    whole = source_of({"train": np.arange(60) % 3})

    def read(split, indices):
        yield from list(whole.read(split, indices))[:3]
        raise KeyboardInterrupt

    counts = {"data.train_images": 30, "data.validation_images": 9, "data.test_images": 9}
    with pytest.raises(KeyboardInterrupt):
        write(Source(**{**vars(whole), "read": read}), **counts)
    assert not (tmp_path / "prepared").exists()
    with pytest.raises(UserError, match="dvc repro"):
        arrays.load("train", tmp_path / "prepared")
    write(whole, **counts)
    assert [len(arrays.load(split, tmp_path / "prepared")) for split in SPLITS] == [30, 9, 9]
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda split, indices: iter([]), "the train split of toy gave 0 images instead of"),
        (lambda split, indices: (np.zeros((9, 8, 1), np.uint8) for _ in indices), "toy changed while it was read"),
    ],
)
def test_a_source_that_changes(write, read, said):
    source = source_of({"train": np.arange(60) % 3})
    with pytest.raises(UserError, match=said):
        write(Source(**{**vars(source), "read": read}), **ALL, **{"data.validation_images": 9})


@pytest.mark.parametrize(
    ("size", "mixed", "shape"),
    [((80, 100), False, [32, 32, 3]), ((28, 20), False, [28, 20, 3]), ((28, 20), True, [32, 32, 3])],
)
def test_larger_images_are_shrunk_and_small_ones_left(write, tmp_path, size, mixed, shape):
    folder = tmp_path / "photos"
    for name in "ab":
        pictures.write(folder / name, 6, size=size)
    if mixed:
        pictures.write(folder / "c", 6, size=(10, 10))
    write(prepare.find(str(folder)), **ALL, **{"data.validation_images": 2})
    for split in SPLITS:
        assert arrays.load(split, tmp_path / "prepared").info["shape"] == shape


def test_what_is_said(write, tmp_path):
    tree = {"train/cat": 12, "train/dog": 8, "test/cat": 4, "test/dog": 4, "valid/cat": 3, "valid/dog": 3, "more": 2}
    source = prepare.find(str(pictures.write_tree(tmp_path / "photos", tree)))
    lines = write(source, **{"data.train_images": 15, "data.validation_images": 6, "data.test_images": None})
    assert lines == [
        f"{tmp_path}/photos (folder): 2 classes",
        "                      train  validation        test",
        "  cat                     9           3           4",
        "  dog                     6           3           4",
        "  all                    15           6           8",
        "  largest class       60.0%       50.0%       50.0%",
        "left out: 5 images of the split train, which data.train_images does not ask for",
        f"left out: {tmp_path}/photos/more, which is not a split (2 images)",
    ]
    info = {split: arrays.load(split, tmp_path / "prepared").info for split in SPLITS}
    assert [info[split]["majority"] for split in SPLITS] == [0.6, 0.5, 0.5]
    assert info["train"]["by_class"] == {"cat": 9, "dog": 6}


def test_what_is_said_of_many_classes(write):
    """Few lines are printed for any number of classes. Classes that a split lacks are named."""
    source = source_of({"train": np.repeat(np.arange(1000), 4)}, [f"c{index:04}" for index in range(1000)])
    lines = write(source, **ALL, **{"data.validation_images": 100})
    assert len(lines) <= 15
    assert "toy (toy 1): 1,000 classes" in lines
    assert any(
        re.fullmatch(r"test has no image of 200 of 1,000 classes: (c\d{4}, ){5}and 195 more", line) for line in lines
    )
    assert any(line.startswith("validation has no image of 900 of 1,000 classes: ") for line in lines)
    assert any("… 994 more" in line for line in lines)
    assert any(line.split() == ["of", "train", "of", "train", "of", "train"] for line in lines)


def test_one_class_in_a_test_split_is_said(write, tmp_path):
    labels = [0] * 40 + [1]
    lines = write(source_of({"train": labels}, ("common", "rare")), **ALL, **{"data.validation_images": 5})
    assert "test has one class only, common: its accuracy says nothing" in lines
    assert "validation has one class only, common: its accuracy says nothing" in lines
    info = json.loads((tmp_path / "prepared/test/split.json").read_text())
    assert info["by_class"] == {"common": 8, "rare": 0} and info["majority"] == 1


def test_splits_of_the_source_that_are_left_out_are_said(write):
    labels = np.arange(30) % 3
    lines = write(
        source_of({"train": labels, "extra": labels, "test": labels}), **ALL, **{"data.validation_images": "test"}
    )
    assert "left out: the split extra (30 images)" in lines
    assert sum("left out" in line for line in lines) == 1
    assert not any("equal images" in line and "validation" in line and "test" in line for line in lines)


@pytest.mark.slow
def test_a_folder_by_a_name_that_tfds_does_not_know(image_folder, monkeypatch):
    monkeypatch.chdir(image_folder.parent)
    assert prepare.find(image_folder.name).origin == "folder"
