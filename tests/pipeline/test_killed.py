"""SIGKILL in each stage of `dvc repro`, and SIGKILL of DVC alone. tests/killed.py kills at more moments."""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import killed
import pytest
from scratch import Repository

pytestmark = [pytest.mark.slow, pytest.mark.dvc, pytest.mark.faults]


@pytest.fixture(scope="module")
def template(image_folder, tmp_path_factory):
    return killed.project(tmp_path_factory.mktemp("killed") / "template", image_folder).folder


def test_killed_in_each_stage(template, tmp_path):
    untouched = Repository(shutil.copytree(template, tmp_path / "untouched"))
    seconds = killed.timed(untouched)
    repository, kills = killed.round_of_kills(template, tmp_path / "killed", seconds, random.Random(1))
    assert sum(kills[stage] for stage in killed.STAGES) >= 4
    expected = killed.results(untouched)
    assert {"prepared/test/split.json", "runs/l2-0/model.keras", "metrics/summary.json", "report.md"} <= expected.keys()
    assert killed.compare(expected, repository) == []
    # The comparison finds a changed file.
    killed_history = repository.folder / "runs/l2-0/history.csv"
    killed_history.write_text(killed_history.read_text().replace("0.", "1.", 1))
    assert killed.compare(expected, repository) == ["runs/l2-0/history.csv: other content"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="only Linux tells a process that its parent has ended")
@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_a_stage_ends_with_dvc(template, tmp_path, monkeypatch, shell):
    # DVC runs a stage in $SHELL. Without `exec` in dvc.yaml, some shells would stay until the stage has ended, such as
    # Debian's sh; others would become the stage.
    monkeypatch.setenv("SHELL", shell)
    repository = Repository(shutil.copytree(template, tmp_path / "orphan"))
    # Long enough that DVC is dead before the training ends, on a busy machine too.
    params = repository.folder / "params.yaml"
    params.write_text(params.read_text().replace("epochs: 8", "epochs: 5000"))
    real = repository.environment() | {"PYTHONUNBUFFERED": "1"}
    process = repository.start(sys.executable, "-m", "dvc", "repro", **real)
    for line in process.stdout:
        if " epoch 1/" in line:
            break
    stages = [int(pid) for pid in killed.children(process.pid)]
    process.kill()
    process.wait()
    # The pipe is closed once the last process that could write into it has ended.
    process.stdout.read()
    assert stages
    for _ in range(100):
        alive = [pid for pid in stages if Path(f"/proc/{pid}").exists()]
        if not alive:
            break
        time.sleep(0.1)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    assert not alive
    assert not (repository.folder / "runs/l2-0/model.keras").exists()
