"""What tests share: real CIFAR-10 images, tiny params, and scratch repositories to run dvc in."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import preloaded
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def read_sample():
    """400 training images of CIFAR-10, 40 of each class: uint8 [400, 32, 32, 3] and labels [400]."""
    sprite = np.asarray(Image.open(ROOT / "tests/cifar10_sample.png"))
    labels = json.loads((ROOT / "tests/cifar10_sample.json").read_text())
    return sprite.reshape(-1, 32, 32, 3), np.array(labels)


def write_image_folder(folder):
    """Write the sample as PNGs, in one folder for each class; returns the folder that holds these."""
    for index, (image, label) in enumerate(zip(*read_sample(), strict=True)):
        path = folder / CLASSES[label] / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def simulate_gpu(folder, script):
    """Simulate a GPU by its driver's program nvidia-smi only: a shell script, in a folder to be put on the PATH."""
    folder.mkdir(exist_ok=True)
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)


def history(folder):
    """The rows of a run's history.csv, numbers as floats; None for empty columns of moving averages."""
    with open(folder / "history.csv", newline="") as file:
        return [
            {key: None if key.endswith("_moving") and not value else float(value) for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


TINIEST = {
    "data.train_images": 40,
    "data.validation_images": 20,
    "data.test_images": 20,
    "model.network": "small_cnn",
    "model.width": 0.25,
    "evaluate.pruning": [],
}
"""Changes for `tiny_params`, for tests where it only matters that a stage runs."""


def tiny_params(folder, **changes):
    """The committed params, with few steps and one seed; `changes` are like {"train.epochs": 2, "seeds": [0]}."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    changes = {
        "data.dataset": str(folder),
        "data.train_images": 160,
        "data.validation_images": 80,
        "data.test_images": 80,
        "seeds": [0],
        "train.epochs": 1,
        "train.batch_size": 32,
        "train.learning_rate": 0.05,
        "train.schedule": "constant",
        "train.cooldown_epochs": 0,
        "evaluate.corrupted_images": 10,
    } | changes
    for key, value in changes.items():
        section, _, name = key.partition(".")
        if name:
            params[section][name] = value
        else:
            params[section] = value
    return params


class Repository:
    """A scratch Git repository that holds the project's files."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def environment(self):
        """What a new process in it should find: this Python, a name for Git, and the repository's own modules."""
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder / "src"),
            "GIT_AUTHOR_NAME": "test",
            "GIT_AUTHOR_EMAIL": "test@example.org",
            "GIT_COMMITTER_NAME": "test",
            "GIT_COMMITTER_EMAIL": "test@example.org",
        }
        return environment

    def preloaded(self):
        """The same environment, but `python`, `dvc` and its stages start as forks (preloaded.py)."""
        found = self.environment()
        found["PATH"] = os.pathsep.join(filter(None, [preloaded.programs(), found["PATH"]]))
        return found

    def run(self, *command, check=True, **environment):
        """Run a command in it, `preloaded`; returns what it printed, without colours."""
        environment = self.preloaded() | environment
        done = subprocess.run(command, cwd=self.folder, env=environment, text=True, capture_output=True)
        output = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", done.stdout + done.stderr)
        if check:
            assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{output}"
        self.returncode = done.returncode
        return output

    def start(self, *command, **environment):
        """Start a command in it, `preloaded`, in its own process group, which tests can kill; its output is a pipe."""
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.preloaded() | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def dvc(self, *arguments, **options):
        return self.run("python", "-m", "dvc", *arguments, **options)

    def regbench(self, *arguments, **options):
        return self.run("python", "-m", "regbench", *arguments, **options)

    def commit(self, message):
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", message)

    def read(self, path):
        return (self.folder / path).read_text()

    def write(self, path, text):
        (self.folder / path).write_text(text)

    def forget_outputs(self, *runs):
        """Change the hashes of runs' outputs in dvc.lock, as if another make of machine had written it."""
        lock = yaml.safe_load(self.read("dvc.lock"))
        for name in (f"{stage}@{run}" for run in runs for stage in ("train", "evaluate")):
            stage = lock["stages"][name]
            for file in [*stage["outs"], *(dep for dep in stage["deps"] if dep["path"].startswith("runs/"))]:
                md5, dot, suffix = file["md5"].partition(".")
                file["md5"] = md5[::-1] + dot + suffix
        self.write("dvc.lock", yaml.safe_dump(lock))

    def replace(self, path, old, new):
        """Replace a text that occurs exactly once in a file."""
        text = self.read(path)
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {path}"
        self.write(path, text.replace(old, new))


def copy_project(folder, params):
    """The project's files, without results, as a committed scratch repository with these params."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    # README.md and docs/ are left out, too: they have tables of the committed results.
    results = ("dvc.lock", "report.md", "report.json", "README.md")
    for name in listed.stdout.decode().split("\0"):
        if (
            name
            and (ROOT / name).is_file()
            and name not in results
            and not name.startswith(("metrics/", "plots/", "docs/"))
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    repository = Repository(folder)
    repository.run("git", "init", "-q", "-b", "main")
    repository.commit("project")
    return repository


def stages_run(output):
    """The names of the stages that a dvc command ran, not those that it skipped."""
    return re.findall(r"Running stage '([^']+)'", output)
