"""The scripts under stages/ as DVC and people start them: help, and being stopped."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, copy_project, tiny_params


@pytest.mark.parametrize("stage", ["prepare", "train", "evaluate", "report"])
def test_help_says_what_a_stage_does(stage):
    command = [sys.executable, "-X", "importtime", ROOT / "stages" / f"{stage}.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage:") and len(done.stdout.splitlines()) >= 4
    assert "tensorflow" not in done.stderr


@pytest.fixture(scope="module")
def prepared(image_folder, tmp_path_factory):
    changes = {"data.train_images": 160, "data.validation_images": 20, "data.test_images": 20, "model.width": 0.35}
    params = tiny_params(image_folder, **changes, **{"train.epochs": 500})
    repository = copy_project(tmp_path_factory.mktemp("stages") / "project", params)
    repository.run(sys.executable, "stages/prepare.py")
    return repository


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted; `dvc repro` goes on from here"),
        (signal.SIGTERM, 1, "stopped (SIGTERM); `dvc repro` goes on from here"),
    ],
)
def test_stopped_in_one_line_and_resumed(prepared, number, code, said):
    command = [sys.executable, "stages/train.py", "l2", "0"]
    options = {"cwd": prepared.folder, "env": os.environ, "text": True}
    process = subprocess.Popen(command, **options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if " epoch 2/" in line:  # the first is saved by then
            process.send_signal(number)
            break
    rest, errors = process.communicate(timeout=120)
    assert process.returncode == code
    assert errors.strip() == said
    assert all(line.startswith(("l2-0 epoch ", "resuming after epoch ")) for line in lines + rest.splitlines())
    assert not (prepared.folder / "runs/l2-0").exists()

    process = subprocess.Popen(command, **options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline().startswith("resuming after epoch ")
    process.kill()
    process.communicate()
    shutil.rmtree(prepared.folder / ".regbench")
