"""docs/job-arrays.md, its blocks run as they stand there, each job in a clone of its own."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, TINIEST, Repository, copy_project, tiny_params

PAGE = (ROOT / "docs/job-arrays.md").read_text()
BEFORE, SLURM, AFTER = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
WORKFLOW = yaml.safe_load(re.search(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[1])


def bash(folder, script, **variables):
    return Repository(folder).run(
        "env", *(f"{name}={value}" for name, value in variables.items()), "bash", "-euc", script
    )


@pytest.fixture(scope="module")
def repository(image_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("array")
    chosen = tiny_params(image_folder, **TINIEST)
    chosen["reg"] = {"none": 0, "l2": 0.01}
    repository = copy_project(folder / "project", chosen)
    repository.run("git", "config", "user.name", "test")
    repository.run("git", "config", "user.email", "test@example.org")
    repository.dvc("remote", "add", "--default", "store", str(folder / "remote"))
    repository.commit("a remote")
    bash(repository.folder, BEFORE)
    return repository


def test_a_slurm_array_trains_and_the_head_only_reports(repository, tmp_path):
    runs = repository.read(".regbench/runs").split()
    assert sorted(runs) == ["l2-0", "none-0"]
    for index in range(len(runs)):
        bash(tmp_path, SLURM, SLURM_ARRAY_TASK_ID=str(index + 1), SLURM_SUBMIT_DIR=str(repository.folder))
    output = bash(repository.folder, AFTER.replace("--quiet ", ""))
    assert re.findall(r"Running stage '([^']+)'", output) == ["report"]
    assert list(json.loads(repository.read("metrics/summary.json"))) == ["none", "l2"]


def test_the_scripts_of_the_github_matrix(repository, tmp_path):
    params = yaml.safe_load(repository.read("params.yaml"))
    params["reg"]["l2"] = 0.02
    (repository.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    repository.commit("l2: 0.02")
    repository.run("git", "clone", "-q", str(repository.folder), str(tmp_path / "clone"))
    clone = Repository(tmp_path / "clone")
    # `make setup` made .venv there.
    (clone.folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    prepare, listing = (step["run"] for step in WORKFLOW["jobs"]["prepare"]["steps"] if "dvc" in step.get("run", ""))
    bash(clone.folder, prepare)
    if shutil.which("jq") is None:
        pytest.skip("jq, which GitHub's runners have, is not installed")
    outputs = tmp_path / "outputs"
    bash(clone.folder, listing, GITHUB_OUTPUT=str(outputs))
    assert json.loads(outputs.read_text().removeprefix("runs=")) == ["l2-0", "none-0"]
    train = next(step["run"] for step in WORKFLOW["jobs"]["train"]["steps"] if step.get("name") == "Train")
    bash(clone.folder, train, RUN="l2-0")
    output = bash(repository.folder, AFTER.replace("--quiet ", ""))
    assert re.findall(r"Running stage '([^']+)'", output) == ["report"]
