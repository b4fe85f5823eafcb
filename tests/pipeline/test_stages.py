"""The scripts under stages/ as DVC and people start them: help, mistakes, and being stopped."""

import shutil
import signal
import subprocess
import sys

import pytest
import scratch
from scratch import ROOT

pytestmark = pytest.mark.slow
STAGES = {"plan": [], "prepare": [], "train": ["l2-0"], "evaluate": ["l2-0"], "report": []}


@pytest.mark.parametrize("stage", STAGES)
def test_help_says_what_a_stage_does(stage):
    command = [sys.executable, "-X", "importtime", ROOT / "stages" / f"{stage}.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage:") and len(done.stdout.splitlines()) >= 4
    assert "tensorflow" not in done.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_without_params_and_plans_a_stage_says_what_is_missing(stage, tmp_path):
    command = [sys.executable, "-X", "importtime", ROOT / "stages" / f"{stage}.py", *STAGES[stage]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    message = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "params.yaml" in message if stage == "plan" else "run `dvc repro plan`" in message
    assert "Traceback" not in done.stderr and "tensorflow" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def prepared(image_folder, tmp_path_factory):
    changes = {"data.train_images": 160, "data.validation_images": 20, "data.test_images": 20, "model.width": 0.35}
    params = scratch.tiny_params(image_folder, **changes, **{"train.epochs": 500})
    repository = scratch.copy_project(tmp_path_factory.mktemp("stages") / "project", params)
    repository.run(sys.executable, "stages/plan.py")
    repository.run(sys.executable, "stages/prepare.py")
    return repository.folder


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted; `make repro` continues from here"),
        (signal.SIGTERM, 1, "stopped (SIGTERM); `make repro` continues from here"),
    ],
)
def test_stopped_in_one_line_and_resumed(prepared, tmp_path, number, code, said):
    repository = scratch.Repository(shutil.copytree(prepared, tmp_path / "project"))
    command = [sys.executable, "stages/train.py", "l2-0"]
    options = {"cwd": repository.folder, "env": repository.environment(), "text": True}
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
    assert not (repository.folder / "runs/l2-0").exists()

    process = subprocess.Popen(command, **options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline().startswith("resuming after epoch ")
    process.kill()
    process.communicate()
