"""Truncated files and flipped bits are noticed, reported with the command that repairs them, and never trained on."""

import os
import shutil

import pytest
import yaml
from scratch import stages_run

pytestmark = [pytest.mark.slow, pytest.mark.dvc, pytest.mark.faults]


def flip(path, share=0.6):
    """Flip one bit and restore the file's old time, so that DVC does not look at its content."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 1
    path.unlink()  # the cache may share the file
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_model_is_not_evaluated(repository):
    path = repository.folder / "runs/l2-0/model.keras"
    good = path.read_bytes()
    flip(path)
    output = repository.run("python", "stages/evaluate.py", "l2-0", check=False)
    assert repository.returncode == 1
    assert "error: runs/l2-0/model.keras can't be loaded" in output and "Traceback" not in output
    path.unlink()
    assert stages_run(repository.dvc("repro")) == []
    assert path.read_bytes() == good


def test_images_are_not_trained_on(repository):
    path = repository.folder / "prepared/train/images.npy"
    good = path.read_bytes()
    flip(path)
    output = repository.run("python", "stages/train.py", "l2-0", check=False)
    assert repository.returncode == 1
    assert "images.npy is damaged" in output and "run `dvc repro -f prepare`" in output
    repository.dvc("repro", "-f", "prepare")
    assert path.read_bytes() == good
    assert "up to date" in repository.dvc("status")


def test_a_dvc_lock_that_was_cut_off(repository):
    """DVC was killed while writing it, and now refuses it. Nothing is trained again. More: runner/test_lock.py."""
    path = repository.folder / "dvc.lock"
    whole = path.read_text()
    path.write_text(whole[: int(len(whole) * 0.6)])
    shutil.rmtree(repository.folder / "runs")
    output = repository.regbench("repro")
    assert "Running stage 'train@" not in output and " epoch 1/" not in output
    assert yaml.safe_load(path.read_text()) == yaml.safe_load(whole)
