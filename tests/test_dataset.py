"""From a source to arrays: which images go where, at what size, in what colours."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from regbench import dataset, sources
from regbench.errors import UserError


def source_of(labels, name="toy"):
    return sources.Source(name, "toy", ("a", "b", "c"), (32, 32), 3, labels, read=None)


def test_split_is_stratified_disjoint_and_nested(settings):
    labels = np.random.default_rng(0).choice(3, 1000, p=[0.6, 0.3, 0.1])
    source = source_of({"train": labels, "test": labels[:100]})

    def choose(**changes):
        return dataset.choose(source, settings(**changes).data)

    small = choose(**{"data.train_images": 100, "data.validation_images": 50, "data.test_images": 20})
    large = choose(**{"data.train_images": 500, "data.validation_images": 50, "data.test_images": 20})
    (name, train), (_, validation), (test_name, test) = (small[split] for split in dataset.SPLITS)
    assert (name, test_name) == ("train", "test")
    assert (len(train), len(validation), len(test)) == (100, 50, 20)
    assert not set(train) & set(validation)
    assert set(train) < set(large["train"][1])
    np.testing.assert_array_equal(validation, large["validation"][1])
    for indices in (train, validation):
        share = np.bincount(labels[indices]) / len(indices)
        np.testing.assert_allclose(share, np.bincount(labels) / 1000, atol=1.5 / len(indices))
    other = choose(**{"data.train_images": 100, "data.seed": 1})["train"][1]
    assert set(other) != set(train)
    everything = choose(**{"data.train_images": None, "data.validation_images": 50})
    assert len(everything["train"][1]) == 950


def test_validation_may_be_the_test_set(settings):
    source = source_of({"train": np.arange(300) % 3, "test": np.arange(60) % 3})
    changes = {"data.validation_images": "test", "data.train_images": None, "data.test_images": None}
    chosen = dataset.choose(source, settings(**changes).data)
    np.testing.assert_array_equal(chosen["validation"][1], chosen["test"][1])
    assert chosen["validation"][0] == "test"
    assert (len(chosen["train"][1]), len(chosen["test"][1])) == (300, 60)


@pytest.mark.parametrize(
    ("splits", "train", "test"),
    [
        (("train",), "train", "train"),
        (("train", "test"), "train", "test"),
        (("train", "validation"), "train", "validation"),
        (("train", "validation", "test"), "train", "test"),
        (("test",), "test", "test"),
        (("extra", "train", "test"), "train", "test"),
        (("small", "large"), "small", "small"),
    ],
)
def test_whatever_splits_there_are(settings, splits, train, test):
    source = source_of({split: np.arange(300) % 3 for split in splits})
    changes = {"data.train_images": None, "data.validation_images": 30, "data.test_images": None}
    chosen = dataset.choose(source, settings(**changes).data)
    assert (chosen["train"][0], chosen["test"][0]) == (train, test)
    used = [(name, index) for name, indices in chosen.values() for index in indices]
    assert len(used) == len(set(used))
    if train == test:
        assert [len(chosen[split][1]) for split in dataset.SPLITS] == [210, 30, 60]


@pytest.mark.parametrize(
    ("key", "value"),
    [("train_images", 400), ("validation_images", 300), ("validation_images", 301), ("test_images", 99)],
)
def test_more_than_there_are(settings, key, value):
    source = source_of({"train": np.arange(300) % 3, "test": np.arange(60) % 3})
    with pytest.raises(UserError, match=f"data.{key}: "):
        dataset.choose(source, settings(**{"data.test_images": 30, f"data.{key}": value}).data)


def test_prepared_folder_is_the_same_again_and_whole(settings, image_folder, cifar10_sample, tmp_path):
    chosen = settings().data
    info = dataset.prepare(sources.find(str(image_folder)), chosen, tmp_path / "a")
    dataset.prepare(sources.find(str(image_folder)), chosen, tmp_path / "b")
    assert (tmp_path / "a/dataset.json").read_text() == (tmp_path / "b/dataset.json").read_text()
    assert info["sizes"] == {"train": 160, "validation": 80, "test": 80}
    loaded = dataset.load(tmp_path / "a", dataset.SPLITS)
    assert loaded.info == info == json.loads((tmp_path / "a/dataset.json").read_text())
    known = {image.tobytes(): label for image, label in zip(*cifar10_sample, strict=True)}
    assert info["classes"] == sorted(info["classes"])
    for split in loaded.splits.values():
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int64
        assert isinstance(split.images, np.memmap)
        for image, label in zip(split.images, split.labels, strict=True):
            assert known[image.tobytes()] == label  # the sample's classes stand in alphabetical order as well
        assert (np.bincount(split.labels) == len(split) // 10).all()
    assert not list(tmp_path.glob("*.partial"))


def test_cut_off_leaves_nothing_that_looks_whole(settings, image_folder, tmp_path):
    source = sources.find(str(image_folder))

    def read(split, indices):
        yield from list(source.read(split, indices))[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dataset.prepare(sources.Source(**{**vars(source), "read": read}), settings().data, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    with pytest.raises(UserError, match="dvc repro"):
        dataset.load(tmp_path / "data", dataset.SPLITS)
    dataset.prepare(source, settings().data, tmp_path / "data")
    assert len(dataset.load(tmp_path / "data", ("train",)).splits["train"]) == 160


def draw(folder, name, mode, size=(40, 30), colour=100, **options):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


TINY = {"data.train_images": None, "data.validation_images": 2, "data.test_images": 2}


def prepare_folder(settings, folder, to, **changes):
    data = settings(**(TINY | changes)).data
    info = dataset.prepare(sources.find(str(folder)), data, to)
    return info, dataset.load(to, dataset.SPLITS).splits


def test_grey_images_keep_one_channel(settings, tmp_path):
    for index in range(6):
        draw(tmp_path / "in", f"{'ab'[index % 2]}/{index}.png", "L", (28, 28))
    info, splits = prepare_folder(settings, tmp_path / "in", tmp_path / "data")
    assert info["shape"] == [28, 28, 1]
    assert (splits["train"].images == 100).all()


def test_mixed_sizes_and_modes_become_colour_of_one_size(settings, tmp_path):
    folder = tmp_path / "in"
    draw(folder, "a/grey.png", "L")
    draw(folder, "a/clear.png", "RGBA", (50, 50), (10, 20, 30, 0))
    draw(folder, "a/palette.gif", "P", (20, 90), 0)
    draw(folder, "a/cmyk.jpg", "CMYK", (33, 44), (0, 0, 0, 0))
    draw(folder, "b/deep.png", "I;16", (64, 64), 100 * 256)
    draw(folder, "b/LARGE.JPEG", "RGB", (300, 200), (10, 20, 30))
    draw(folder, "b/both.png", "LA", (40, 40), (7, 255))
    (folder / "b/notes.txt").write_text("no image")
    info, splits = prepare_folder(settings, folder, tmp_path / "data")
    assert info["shape"] == [32, 32, 3]
    assert sum(info["sizes"].values()) == 7
    means = {round(float(image.mean())) for split in splits.values() for image in split.images}
    assert {100, 255, 7} <= means  # grey and 16-bit 100; fully clear, so white; grey with alpha


def test_larger_images_are_shrunk_once_and_small_ones_left(settings, tmp_path):
    for index in range(6):
        draw(tmp_path / "large", f"{'ab'[index % 2]}/{index}.png", "RGB", (100, 80), (1, 2, 3))
        draw(tmp_path / "small", f"{'ab'[index % 2]}/{index}.png", "RGB", (20, 28), (1, 2, 3))
    info, splits = prepare_folder(settings, tmp_path / "large", tmp_path / "data")
    assert info["shape"] == [32, 32, 3]
    assert (splits["train"].images == [1, 2, 3]).all()
    info, _ = prepare_folder(settings, tmp_path / "small", tmp_path / "data")
    assert info["shape"] == [28, 20, 3]


def test_folders_that_are_none(tmp_path, settings):
    with pytest.raises(UserError, match="there is no folder"):
        sources.find(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="two or more classes"):
        sources.find(str(tmp_path))
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    with pytest.raises(UserError, match="empty holds no images"):
        sources.find(str(tmp_path))
    (tmp_path / "empty/broken.png").write_bytes(b"no png")
    draw(tmp_path, "full/good.png", "RGB")
    with pytest.raises(UserError, match=r"broken\.png can't be read"):
        sources.find(str(tmp_path))


def test_folders_of_splits(cifar10_sample, settings, tmp_path):
    images, labels = cifar10_sample
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = tmp_path / "photos" / ("test" if index % 4 == 0 else "train") / f"class{label}" / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    chosen = settings(**{"data.train_images": None, "data.test_images": None}).data
    info = dataset.prepare(sources.find(str(tmp_path / "photos")), chosen, tmp_path / "data")
    assert info["sizes"] == {"train": 220, "validation": 80, "test": 100}
    assert info["classes"] == [f"class{label}" for label in range(10)]
    loaded = dataset.load(tmp_path / "data", dataset.SPLITS).splits
    known = {
        image.tobytes(): (label, index % 4 == 0)
        for index, (image, label) in enumerate(zip(images, labels, strict=True))
    }
    for split, examples in loaded.items():
        for image, label in zip(examples.images, examples.labels, strict=True):
            assert known[image.tobytes()] == (label, split == "test")

    (tmp_path / "photos/test/zebra").mkdir()
    with pytest.raises(UserError, match=r"has classes that .*train has not: zebra"):
        sources.find(str(tmp_path / "photos"))
    # A class of that name beside others is a class.
    (tmp_path / "photos/bus").mkdir()
    draw(tmp_path, "photos/bus/one.png", "RGB")
    assert sources.find(str(tmp_path / "photos")).classes == ("bus", "test", "train")


def two_classes(folder, **options):
    """Two classes of three plain grey images."""
    for index in range(6):
        draw(folder, f"{'ab'[index % 2]}/{index}.png", "L", **options)
    return folder


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.png", b"", "it is none of PNG, JPEG"),
        ("text.jpg", b"hello", "it is none of PNG, JPEG"),
        ("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is none of PNG, JPEG"),
        ("page.tif", b"%PDF-1.4", "it is none of PNG, JPEG"),
    ],
)
def test_files_that_are_no_images(tmp_path, name, content, said):
    (two_classes(tmp_path) / "a" / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} can't be read as an image: {said}"):
        sources.find(str(tmp_path))


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tif", "bmp", "ppm"])
def test_damaged_images_are_named_or_read(cifar10_sample, tmp_path, suffix):
    """Cut off anywhere, or one byte changed: a UserError with the file's name, or an image; never another error."""
    path = two_classes(tmp_path) / f"a/photo.{suffix}"
    Image.fromarray(cifar10_sample[0][0]).save(path)
    content, named = path.read_bytes(), 0
    rng = np.random.default_rng(0)
    for case in range(60):
        damaged = bytearray(content[: rng.integers(len(content))] if case % 2 else content)
        if not case % 2:
            damaged[rng.integers(len(content))] ^= rng.integers(1, 256)
        path.write_bytes(damaged)
        try:
            source = sources.find(str(tmp_path))
            assert len(list(source.read("train", np.arange(7)))) == 7
        except UserError as error:
            assert f"photo.{suffix}" in str(error)
            named += 1
    assert named >= 20


def test_huge_deep_and_float_images(tmp_path, capfd):
    two_classes(tmp_path)
    draw(tmp_path, "a/large.png", "1", (10_000, 10_000), 1)
    *_, large = sources.find(str(tmp_path)).read("train", np.arange(4))
    assert large.shape == (10_000, 10_000, 1) and large.min() == 255
    assert capfd.readouterr().err == ""
    draw(tmp_path, "a/bomb.png", "1", (20_000, 20_000))
    with pytest.raises(UserError, match=r"bomb\.png can't be read as an image \(Image size \(400000000 pixels\)"):
        sources.find(str(tmp_path))
    (tmp_path / "a/bomb.png").unlink()
    for mode, colour in (("F", 0.5), ("I", 100_000), ("I", -1)):
        draw(tmp_path, "a/zz.tif", mode, colour=colour)
        with pytest.raises(UserError, match=r"zz\.tif can't be read as an image \(its values are .*8 and 16 bits"):
            list(sources.find(str(tmp_path)).read("train", np.arange(5)))


def test_rotated_and_animated_images(tmp_path):
    two_classes(tmp_path, size=(30, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    lying = Image.new("L", (40, 30), 0)
    lying.paste(255, (0, 0, 20, 30))
    lying.save(tmp_path / "a/turned.jpg", exif=exif, quality=95)
    frames = [Image.new("L", (30, 40), value) for value in (10, 200)]
    frames[0].save(tmp_path / "a/moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b/pages.tif", save_all=True, append_images=frames[1:])
    source = sources.find(str(tmp_path))
    assert source.shape == (40, 30)
    images = list(source.read("train", np.arange(9)))
    _, _, _, moving, turned, *_, pages = images
    assert (turned[:18] > 200).all() and (turned[22:] < 50).all()
    assert moving.shape == (40, 30, 3) and abs(int(moving.mean()) - 10) <= 1
    assert (pages == 10).all()


def test_links_out_of_the_folder(tmp_path):
    two_classes(tmp_path / "in")
    draw(tmp_path, "out/photo.png", "L", colour=7)
    (tmp_path / "in/a/z.png").symlink_to(tmp_path / "out/photo.png")
    (tmp_path / "in/c").symlink_to(tmp_path / "out")
    source = sources.find(str(tmp_path / "in"))
    assert source.classes == ("a", "b", "c")
    assert [int(image.mean()) for image in source.read("train", np.arange(8))] == [100] * 3 + [7] + [100] * 3 + [7]
    link = tmp_path / "in/a/deep"
    link.symlink_to(tmp_path / "out")
    with pytest.raises(UserError, match=r"deep is a link to a folder"):
        sources.find(str(tmp_path / "in"))
    link.unlink()
    (tmp_path / "in/a/gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"gone\.png is a link to a file that is not there"):
        sources.find(str(tmp_path / "in"))


def test_a_class_whose_name_is_no_text(tmp_path):
    two_classes(tmp_path)
    (tmp_path / os.fsdecode(b"\xff")).mkdir()
    with pytest.raises(UserError, match="rename the folder"):
        sources.find(str(tmp_path))
