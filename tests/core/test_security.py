"""Nothing that is read can run code or write where it should not; nothing is installed without its hash."""

import io
import re
import tarfile

import keras
import numpy as np
import pytest
from PIL import Image
from scratch import ROOT

from regbench.data import arrays, cifar10, folder, prepare
from regbench.errors import UserError
from regbench.evaluation import evaluate


def test_every_package_is_pinned_with_a_hash():
    blocks = re.sub(r"\\\n\s*", " ", (ROOT / "requirements.lock").read_text()).splitlines()
    packages = [block for block in blocks if block and not block.lstrip().startswith("#")]
    assert len(packages) > 50
    assert [block for block in packages if "==" not in block or "--hash=sha256:" not in block] == []
    assert "--require-hashes" in (ROOT / "Makefile").read_text()


def test_arrays_are_not_unpickled(settings, image_folder, tmp_path):
    prepare.prepare(settings().data, tmp_path / "prepared")

    class Trap:
        def __reduce__(self):
            return (io.open, (str(tmp_path / "sprung"), "w"))

    np.save(tmp_path / "prepared/train/labels.npy", np.array([Trap()], object), allow_pickle=True)
    with pytest.raises(UserError, match="dvc repro -f prepare"):
        arrays.load("train", tmp_path / "prepared")
    assert not (tmp_path / "sprung").exists()


def test_a_model_with_code_in_it_is_not_loaded(plan_of, tmp_path):
    folder = tmp_path / "runs/l2-0"
    folder.mkdir(parents=True)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x)])
    model.save(folder / "model.keras")
    with pytest.raises(UserError, match=r"model\.keras can't be loaded"):
        evaluate.evaluate(plan_of("l2-0", tmp_path)[1], prepared=tmp_path, runs=tmp_path / "runs")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE])
def test_an_archive_writes_only_into_its_folder(tmp_path, kind):
    archive = tmp_path / cifar10.ARCHIVE
    with tarfile.open(archive, "w:gz") as opened:
        for name in (
            "../evil",
            str(tmp_path / "evil"),
            *(f"{cifar10.FOLDER}/{batch}.bin" for batch in cifar10.BATCHES),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, "/etc/passwd", 4 if kind == tarfile.REGTYPE else 0
            opened.addfile(member, io.BytesIO(b"evil") if kind == tarfile.REGTYPE else None)
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="is damaged or is not CIFAR-10's archive"):
        cifar10.unpack(archive, tmp_path / "in")
    assert {path.name for path in tmp_path.iterdir()} == {archive.name, "in"}
    content = archive.read_bytes()
    for place in range(0, len(content), 7):
        archive.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        for path in (tmp_path / "in").iterdir():
            path.rmdir()
        with pytest.raises(UserError, match="is damaged or is not CIFAR-10's archive"):
            cifar10.unpack(archive, tmp_path / "in")


def test_only_image_formats_are_opened(tmp_path):
    for name, side in (("a/1.png", 8), ("b/1.png", 9)):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (side, side)).save(tmp_path / name, "EPS")
    with pytest.raises(UserError, match="its format is not one of PNG, JPEG"):
        folder.find(str(tmp_path))
