"""The scripts under stages/ as DVC and people start them: help, mistakes, and being stopped."""

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


@pytest.mark.faults
def test_stopped_in_one_line_and_resumed(image_folder, tmp_path):
    params = scratch.tiny_params(image_folder, **scratch.TINIEST, **{"train.epochs": 50_000})
    repository = scratch.copy_project(tmp_path / "project", params)
    for stage in ("plan", "prepare"):
        repository.run("python", f"stages/{stage}.py")

    def start():
        return subprocess.Popen(
            (sys.executable, "stages/train.py", "l2-0"),
            cwd=repository.folder,
            env=repository.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    for number, code, said in (
        (signal.SIGINT, 130, "interrupted; `make repro` continues from here"),
        (signal.SIGTERM, 1, "stopped (SIGTERM); `make repro` continues from here"),
    ):
        process = start()
        lines = [process.stdout.readline() for _ in range(3)]  # at least two epochs are done, so the first is saved
        process.send_signal(number)
        rest, errors = process.communicate(timeout=120)
        assert process.returncode == code
        assert errors.strip() == said
        resumed, epochs = ("", lines) if number == signal.SIGINT else (lines[0], lines[1:])
        assert resumed.startswith("resuming after epoch ") == (number == signal.SIGTERM)
        assert all(line.startswith("l2-0 epoch ") for line in epochs + rest.splitlines())
        assert not (repository.folder / "runs/l2-0").exists()

    process = start()
    assert process.stdout.readline().startswith("resuming after epoch ")
    process.kill()
    process.communicate()
