"""Truncated files and flipped bits: noticed, named with the command that repairs, never trained on or reported."""

import json
import os
import shutil
import sys

import killed
import pytest
from conftest import TINIEST, copy_project, tiny_params

from regbench import dataset, lock, sources
from regbench.errors import UserError


def flip(path, share=0.6):
    """Flip one bit, and give the file its old time back: DVC does not look at what is in it then."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def prepared(settings, image_folder, tmp_path):
    dataset.prepare(sources.find(str(image_folder)), settings().data, tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize("split", dataset.SPLITS)
@pytest.mark.parametrize("part", ["images", "labels"])
@pytest.mark.parametrize("damage", [flip, cut, os.remove])
def test_arrays(prepared, split, part, damage):
    damage(prepared / split / f"{part}.npy")
    with pytest.raises(UserError, match=rf"(?s){split}.*{part}\.npy.*run `dvc repro -f prepare`|mmap length.*prepare"):
        dataset.load(prepared, dataset.SPLITS)


def test_arrays_with_more_behind(prepared):
    with open(prepared / "train/images.npy", "ab") as file:
        file.write(b"0")
    with pytest.raises(UserError, match=r"images\.npy is damaged"):
        dataset.load(prepared, ("train",))


@pytest.mark.parametrize("key", ["sizes", "shape", "classes", "sha256"])
@pytest.mark.parametrize("value", [None, 3, {}, [3]])
def test_dataset_json(prepared, key, value):
    path = prepared / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match="run `dvc repro -f prepare`"):
        dataset.load(prepared, dataset.SPLITS)
    cut(path)
    with pytest.raises(UserError, match="run `dvc repro -f prepare`"):
        dataset.load(prepared, dataset.SPLITS)


@pytest.fixture(scope="module")
def repository(image_folder, tmp_path_factory):
    params = tiny_params(image_folder, **TINIEST, **{"report.baseline": None})
    params["reg"] = {"l2": 0.001}
    repository = copy_project(tmp_path_factory.mktemp("damage") / "project", params)
    repository.dvc("repro", "-q")
    repository.commit("results")
    return repository


@pytest.mark.parametrize("name", ["model.keras", "history.csv", "evaluation.json", "predictions.csv", "layers.csv"])
def test_a_run_is_not_reported(repository, name):
    """Neither evaluated nor reported, and brought back by what the message says."""
    path = repository.folder / "runs/l2-0" / name
    good = path.read_bytes()
    flip(path)
    report = repository.read("report.md")
    command = ["stages/evaluate.py", "l2", "0"] if name == "model.keras" else ["stages/report.py"]
    output = repository.run(sys.executable, *command, check=False)
    assert repository.returncode == 1
    assert f"error: runs/l2-0/{name} is damaged" in output and "Delete it and run `dvc repro`" in output
    assert repository.read("report.md") == report
    path.unlink()
    assert "Running stage" not in repository.dvc("repro")
    assert path.read_bytes() == good


def test_data_is_not_trained_on(repository):
    flip(repository.folder / "data/train/images.npy")
    before = killed.results(repository)
    output = repository.run(sys.executable, "stages/train.py", "l2", "0", check=False)
    assert repository.returncode == 1
    assert "images.npy is damaged" in output and "run `dvc repro -f prepare`" in output
    repository.dvc("repro", "-q", "-f", "prepare")
    after = killed.results(repository)
    assert {path for path in after if after[path] != before.get(path)} == {"data/train/images.npy"}
    assert "up to date" in repository.dvc("status")


def test_dvcs_own_files_cut_off(repository):
    """A kill while DVC writes dvc.lock or its table of who reads what; DVC itself refuses to go on."""
    path = repository.folder / "dvc.lock"
    whole = path.read_text()
    mend = ("env", "PYTHONPATH=src", sys.executable, "-m", "regbench.lock")
    for end in (0, len(whole) // 3, len(whole) - 15, whole.index("  report:") + 12):
        path.write_text(whole[:end])
        repository.run(*mend)
        repository.dvc("status")
    assert path.read_text() == whole[: whole.index("  report:")]
    (repository.folder / ".dvc/tmp/rwlock").write_text('{"read": {')
    assert "cut off; deleted" in repository.run(*mend)
    repository.dvc("repro")
    assert path.read_text() == whole
    assert repository.run(*mend) == ""
    shutil.rmtree(repository.folder / ".regbench", ignore_errors=True)


def test_a_lock_file_that_knows_nothing_of_a_stage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lock.check("train@l2-0")
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    lock.check("train@l2-0")
    (tmp_path / "dvc.lock").write_text("stages: [")
    with pytest.raises(UserError, match=r"dvc\.lock is damaged"):
        lock.check("train@l2-0")
