"""Image files of all kinds, damaged ones and links."""

import warnings

import numpy as np
import pictures
import pytest
from PIL import Image

from regbench.data import folder
from regbench.data.source import LINES
from regbench.errors import UserError


def draw(path, mode, size=(40, 30), colour=100, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


def two_classes(path, **options):
    """Write two classes of three plain grey images, all different."""
    for index in range(6):
        draw(path / f"{'ab'[index % 2]}/{index}.png", "L", colour=100 + index, **options)
    return path


def read(path, split="train"):
    source = folder.find(str(path))
    return list(source.read(split, np.arange(len(source.labels[split]))))


def test_grey_images_keep_one_channel(tmp_path):
    source = folder.find(str(two_classes(tmp_path, size=(28, 20))))
    assert (source.shape, source.channels, source.classes) == ((20, 28), 1, ("a", "b"))
    assert [int(image.mean()) for image in source.read("train", np.arange(6))] == [100, 102, 104, 101, 103, 105]
    assert source.files["train"][:2] == ["a/0.png", "a/2.png"]


def test_mixed_sizes_and_modes_become_colour(tmp_path):
    draw(tmp_path / "a/grey.png", "L")
    draw(tmp_path / "a/clear.png", "RGBA", (50, 50), (10, 20, 30, 0))
    draw(tmp_path / "a/palette.gif", "P", (20, 90), 0)
    draw(tmp_path / "a/cmyk.jpg", "CMYK", (33, 44), (0, 255, 255, 0))
    draw(tmp_path / "b/deep.png", "I;16", (64, 64), 90 * 256)
    draw(tmp_path / "b/LARGE.JPEG", "RGB", (300, 200), (10, 20, 30))
    draw(tmp_path / "b/both.png", "LA", (40, 40), (7, 255))
    source = folder.find(str(tmp_path))
    assert (source.shape, source.channels) == (None, 3)
    means = {round(float(image.mean())) for image in source.read("train", np.arange(7))}
    assert {100, 90, 255, 7} <= means  # grey; 16 bits; fully transparent, so white; grey with alpha


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        folder.find(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.png", b"", "its format is not one of PNG, JPEG"),
        ("text.jpg", b"hello", "its format is not one of PNG, JPEG"),
        ("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "its format is not one of PNG, JPEG"),
        ("page.tif", b"%PDF-1.4", "its format is not one of PNG, JPEG"),
    ],
)
def test_files_that_are_no_images(tmp_path, name, content, said):
    (two_classes(tmp_path) / "a" / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} can't be read as an image: {said}"):
        folder.find(str(tmp_path))


def test_damaged_images_are_told_at_once(tmp_path):
    """One error names all damaged images: damaged in the header or in the pixels, chosen or not, in any split."""
    path = pictures.write_tree(tmp_path, {"train/cat": 3, "train/dog": 20, "test/cat": 4, "test/dog": 3})
    pictures.write(path / "train/cat", 4, ".jpg")
    pictures.write(path / "test/dog", 4, ".jpg")
    cut_off = ["train/cat/0.jpg", "train/cat/3.jpg", "test/dog/2.jpg"]
    for name in cut_off:
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[:-100])
    source = folder.find(str(path))
    with pytest.raises(UserError, match="3 damaged images") as raised:
        list(source.read("train", np.arange(2)))
    assert all(name in str(raised.value) for name in cut_off)
    (path / "test/cat/0.png").write_bytes(b"")
    with pytest.raises(UserError, match="4 damaged images") as raised:
        folder.find(str(path))
    assert all(name in str(raised.value) for name in [*cut_off, "test/cat/0.png"])
    for index in range(20):
        (path / f"train/dog/{index}.png").write_bytes(f"no image {index}".encode())
    with pytest.raises(UserError, match="24 damaged images.*and 12 more$".replace(".*", r"[\s\S]*")) as raised:
        folder.find(str(path))
    assert len(str(raised.value).splitlines()) == LINES + 2


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tif", "bmp", "ppm"])
def test_damaged_images_are_named_or_read(cifar10_sample, tmp_path, suffix):
    """A file that is cut off or has one changed byte gives an image or a UserError with its name, no other error."""
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
            assert len(read(tmp_path)) == 7
        except UserError as error:
            assert f"photo.{suffix}" in str(error)
            named += 1
    assert named >= 20


@pytest.mark.slow
def test_huge_deep_and_float_images(tmp_path, capfd):
    two_classes(tmp_path)
    draw(tmp_path / "a/large.png", "1", (10_000, 10_000), 1)
    large = read(tmp_path)[3]
    assert large.shape == (10_000, 10_000, 1) and large.min() == 255
    assert capfd.readouterr().err == ""
    (tmp_path / "a/large.png").unlink()
    draw(tmp_path / "a/bomb.png", "1", (20_000, 20_000))
    with pytest.raises(UserError, match=r"bomb\.png can't be read as an image \(Image size \(400000000 pixels\)"):
        folder.find(str(tmp_path))
    (tmp_path / "a/bomb.png").unlink()
    for mode, colour in (("F", 0.5), ("I", 100_000), ("I", -1), ("I", 200)):
        draw(tmp_path / "a/zz.tif", mode, colour=colour)
        with pytest.raises(
            UserError, match=r"zz\.tif can't be read as an image \(its values are .*only 8-bit and 16-bit"
        ):
            read(tmp_path)


def test_rotated_and_animated_images(tmp_path):
    two_classes(tmp_path, size=(30, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees clockwise
    lying = Image.new("L", (40, 30), 0)
    lying.paste(255, (0, 0, 20, 30))
    lying.save(tmp_path / "a/turned.jpg", exif=exif, quality=95)
    frames = [Image.new("L", (30, 40), value) for value in (10, 200)]
    frames[0].save(tmp_path / "a/moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b/pages.tif", save_all=True, append_images=frames[1:])
    assert folder.find(str(tmp_path)).shape == (40, 30)
    _, _, _, moving, turned, *_, pages = read(tmp_path)
    assert (turned[:18] > 200).all() and (turned[22:] < 50).all()
    assert moving.shape == (40, 30, 3) and abs(int(moving.mean()) - 10) <= 1
    assert (pages == 10).all()


@pytest.mark.parametrize(("orientation", "suffix"), [(5, "jpg"), (6, "tif"), (8, "tif"), (9, "jpg")])
def test_equal_sizes_with_an_orientation(tmp_path, orientation, suffix):
    """The size is known before an image is read, and the read image has this size. EXIF defines 1 to 8."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for index in range(6):
        draw(tmp_path / f"{'ab'[index % 2]}/{index}.{suffix}", "L", (24, 16), colour=100 + index, exif=exif)
    shape = (16, 24) if orientation == 9 else (24, 16)
    assert folder.find(str(tmp_path)).shape == shape
    assert {image.shape for image in read(tmp_path)} == {(*shape, 1)}


def test_hidden_folders_of_images_are_named(tmp_path):
    two_classes(tmp_path)
    draw(tmp_path / ".net/0.png", "L")
    (tmp_path / ".cache").mkdir()
    source = folder.find(str(tmp_path))
    assert source.classes == ("a", "b")
    assert [note for note in source.notes if "dot" in note] == [
        f"left out: {tmp_path / '.net'}, since its name starts with a dot"
    ]


@pytest.mark.parametrize("name", ["~nobody_of_this_name/photos", "/" + "x" * 300])
def test_names_of_no_folder(name):
    with pytest.raises(UserError, match=r"data\.dataset: .* is not a folder"):
        folder.find(name)


def test_damaged_metadata_does_not_warn(tmp_path):
    two_classes(tmp_path)
    draw(tmp_path / "a/camera.jpg", "L", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read(tmp_path)) == 7


def test_links(tmp_path):
    """Links to files and to class folders are followed wherever they lead. Links to folders in a class are refused."""
    path = two_classes(tmp_path / "in")
    draw(tmp_path / "out/photo.png", "L", colour=7)
    draw(tmp_path / "out/picture.png", "L", colour=8)
    (path / "a/z.png").symlink_to(tmp_path / "out/photo.png")
    (path / "c").symlink_to(tmp_path / "out")
    assert folder.find(str(path)).classes == ("a", "b", "c")
    assert [int(image.mean()) for image in read(path)] == [100, 102, 104, 7, 101, 103, 105, 7, 8]
    (path / "a/deep").symlink_to(tmp_path)
    (path / "a/gone.png").symlink_to(tmp_path / "nowhere.png")
    (path / "d").symlink_to(tmp_path / "nowhere")
    for said in ("deep is a link to a folder", r"gone\.png is a link to a file that is not there", "in/d is a link to"):
        with pytest.raises(UserError, match=said):
            folder.find(str(path))
