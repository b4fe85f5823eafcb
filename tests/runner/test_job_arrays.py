"""docs/job-arrays.md: its code blocks run as written, except for `--quiet`, each job in its own clone."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from scratch import ROOT, Repository, stages_run

pytestmark = [pytest.mark.slow, pytest.mark.dvc]
PAGE = (ROOT / "docs/job-arrays.md").read_text(encoding="utf-8")
BEFORE, SLURM, AFTER = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
WORKFLOW = yaml.safe_load(re.search(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[1])


def bash(folder, script, **variables):
    return Repository(folder).run("bash", "-euc", script.replace("--quiet ", ""), **variables)


@pytest.fixture
def repository(stub, tmp_path):
    """A project with a remote store, nothing run yet."""
    stub.run("git", "config", "user.name", "test")
    stub.run("git", "config", "user.email", "test@example.org")
    stub.dvc("remote", "add", "--default", "store", str(tmp_path / "remote"))
    stub.commit("a remote")
    return stub


def test_a_slurm_array_trains_and_the_head_only_reports(repository, tmp_path):
    bash(repository.folder, BEFORE)
    runs = repository.read(".regbench/runs").split()
    assert sorted(runs) == ["l2-0", "none-0"]
    for index in range(len(runs)):
        bash(tmp_path, SLURM, SLURM_ARRAY_TASK_ID=str(index + 1), SLURM_SUBMIT_DIR=str(repository.folder))
    assert stages_run(bash(repository.folder, AFTER)) == ["report"]


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq, which GitHub's runners have, is not installed")
def test_the_scripts_of_the_github_matrix(repository, clone, tmp_path):
    prepared = clone(repository)
    (prepared.folder / ".venv").symlink_to(Path(sys.executable).parents[1])  # in the workflow, `make setup` makes it
    prepare, listing = (step["run"] for step in WORKFLOW["jobs"]["prepare"]["steps"] if "dvc" in step.get("run", ""))
    bash(prepared.folder, prepare)
    outputs = tmp_path / "outputs"
    bash(prepared.folder, listing, GITHUB_OUTPUT=str(outputs))
    runs = json.loads(outputs.read_text().removeprefix("runs="))
    assert runs == ["l2-0", "none-0"]
    train = next(step["run"] for step in WORKFLOW["jobs"]["train"]["steps"] if step.get("name") == "Train")
    for run in runs:
        job = clone(repository, name=run)
        shutil.copy(prepared.folder / "dvc.lock", job.folder)
        (job.folder / ".venv").symlink_to(Path(sys.executable).parents[1])
        output = bash(job.folder, train, RUN=run)
        assert stages_run(output) == [f"train@{run}", f"evaluate@{run}"]
    assert stages_run(bash(prepared.folder, AFTER)) == ["report"]
