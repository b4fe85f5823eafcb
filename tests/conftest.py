"""Real CIFAR-10 images for every test, and a scratch repository to run dvc in."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def read_sample():
    """400 training images of CIFAR-10, 40 a class: uint8 [400, 32, 32, 3] and labels [400]."""
    sprite = np.asarray(Image.open(ROOT / "tests/cifar10_sample.png"))
    labels = json.loads((ROOT / "tests/cifar10_sample.json").read_text())
    return sprite.reshape(-1, 32, 32, 3), np.array(labels)


def write_image_folder(folder):
    """The sample as a folder of class folders of PNGs; the folder."""
    for index, (image, label) in enumerate(zip(*read_sample(), strict=True)):
        path = folder / CLASSES[label] / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


@pytest.fixture(scope="session")
def cifar10_sample():
    """What `read_sample` gives."""
    return read_sample()


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """The sample as a folder of class folders of PNGs."""
    return write_image_folder(tmp_path_factory.mktemp("images") / "cifar10 sample")


TINIEST = {
    "data.train_images": 40,
    "data.validation_images": 20,
    "data.test_images": 20,
    "model.width": 0.1,
    "evaluate.pruning": [],
}
"""For `tiny_params`, where only that a stage runs is of interest."""


def tiny_params(folder, **changes):
    """The committed params, shrunk to a few steps; `changes` are like `{"train.epochs": 2}`."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    changes = {
        "data.dataset": str(folder),
        "data.train_images": 160,
        "data.validation_images": 80,
        "data.test_images": 80,
        "train.epochs": 1,
        "train.learning_rate": 0.05,
    } | changes
    for key, value in changes.items():
        section, name = key.split(".")
        params[section][name] = value
    return params


@pytest.fixture
def settings(image_folder, tmp_path):
    """A function from changes to the tiny `params.Params`."""
    from regbench import params

    def load(**changes):
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(tiny_params(image_folder, **changes), sort_keys=False))
        return params.load(path)

    return load


class Repository:
    """A scratch Git repository that holds the project's files."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def environment(self):
        """What a command in it should find: this Python, a name for Git, and the repository's own modules."""
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "GIT_AUTHOR_NAME": "test",
            "GIT_AUTHOR_EMAIL": "test@example.org",
            "GIT_COMMITTER_NAME": "test",
            "GIT_COMMITTER_EMAIL": "test@example.org",
        }
        environment.pop("PYTHONPATH", None)
        return environment

    def run(self, *command, check=True):
        """Run a command in it; what it printed, colours removed."""
        done = subprocess.run(command, cwd=self.folder, env=self.environment(), text=True, capture_output=True)
        output = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", done.stdout + done.stderr)
        if check:
            assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{output}"
        self.returncode = done.returncode
        return output

    def dvc(self, *arguments, **options):
        return self.run(sys.executable, "-m", "dvc", *arguments, **options)

    def commit(self, message):
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", message)

    def read(self, path):
        return (self.folder / path).read_text()


def copy_project(folder, params):
    """The project's files, without results, as a committed scratch repository with these params."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file() and name != "dvc.lock" and not name.startswith(("metrics/", "plots/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    repository = Repository(folder)
    repository.run("git", "init", "-q", "-b", "main")
    repository.commit("project")
    return repository
