"""A project whose stages only write small files: the runner does the same as with real stages, and a run is fast."""

import shutil

import pytest
import scratch
from scratch import Repository

PREPARE = """
from pathlib import Path

for split in ("train", "validation", "test"):
    folder = Path("prepared", split)
    folder.mkdir(parents=True)
    (folder / "images").write_text(Path("plans/prepare.json").read_text())
"""

TRAIN = """
import os, signal, sys, time
from pathlib import Path

run = sys.argv[1]
print(f"{run} epoch 1/1; runs beside it: {os.environ.get('REGBENCH_RUNS')}", flush=True)
print("a line without a name", flush=True)
time.sleep(float(os.environ.get("STUB_SECONDS", 0)))
if run in os.environ.get("STUB_SLOW", ""):
    time.sleep(600)
if run in os.environ.get("STUB_KILLED", ""):
    os.kill(os.getpid(), signal.SIGKILL)
if run in os.environ.get("STUB_FAILED", ""):
    sys.exit("error: something is wrong")
folder = Path("runs", run)
folder.mkdir(parents=True, exist_ok=True)
(folder / "model.keras").write_text(Path(f"plans/{run}/train.json").read_text())
(folder / "history.csv").write_text("epoch\\n1\\n")
"""

EVALUATE = """
import sys
from pathlib import Path

folder = Path("runs", sys.argv[1])
(folder / "evaluation").mkdir()
(folder / "evaluation/evaluation.json").write_text((folder / "model.keras").read_text())
"""

REPORT = """
import hashlib
from pathlib import Path

import yaml

models = sorted(Path("runs").glob("*/evaluation/evaluation.json"))
text = "".join(f"{path} {hashlib.md5(path.read_bytes()).hexdigest()}\\n" for path in models)
stage = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]["report"]
for output in [*stage["outs"], *stage["metrics"]]:
    path = Path(next(iter(output)))
    path.parent.mkdir(exist_ok=True)
    path.write_text(text if path.suffix != ".json" else "{}")
"""

TABLE = """
def show():
    print("THE TABLE")
"""

STUBS = {
    "stages/prepare.py": PREPARE,
    "stages/train.py": TRAIN,
    "stages/evaluate.py": EVALUATE,
    "stages/report.py": REPORT,
    "src/regbench/report/table.py": TABLE,
}


@pytest.fixture(scope="session")
def stub_template(once):
    """The folder that `stub` copies: none and l2, nothing run yet."""

    def build(folder):
        params = scratch.tiny_params("cifar10", reg={"none": 0, "l2": 0.01})
        repository = scratch.copy_project(folder, params)
        for path, text in STUBS.items():
            repository.write(path, text)
        repository.commit("stubs")

    return once("stub project", build)


@pytest.fixture(scope="session")
def done_template(stub_template, once):
    """The folder that `done` copies."""

    def build(folder):
        repository = Repository(shutil.copytree(stub_template, folder, symlinks=True))
        repository.regbench("repro")
        repository.commit("results")

    return once("stub project with results", build)


@pytest.fixture
def stub(stub_template, tmp_path):
    """A project with stub stages, nothing run yet."""
    return Repository(shutil.copytree(stub_template, tmp_path / "a path with spaces", symlinks=True))


@pytest.fixture
def done(done_template, tmp_path):
    """A project with stub stages whose results are committed."""
    return Repository(shutil.copytree(done_template, tmp_path / "with results", symlinks=True))


@pytest.fixture
def clone(tmp_path):
    """A function of a repository that returns a fresh clone of it, by default at main."""

    def make(repository, commit="main", name="clone"):
        folder = tmp_path / name
        repository.run("git", "clone", "-q", str(repository.folder), str(folder))
        cloned = Repository(folder)
        cloned.run("git", "checkout", "-q", commit)
        return cloned

    return make
