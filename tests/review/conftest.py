"""A repository with results that were not trained: `dvc commit` records fake files in dvc.lock."""

import shutil
from pathlib import Path

import fake_runs
import pytest
import scratch

from regbench import files, plan


class Results(scratch.Repository):
    """A scratch repository in which results can be made without training."""

    def make(self, message=None, report=True, **written):
        """Write fake results for params.yaml, and commit them to Git if there is a message.

        Args:
            message: of the commit.
            report: whether to run the report stage too.
            written: options of `fake_runs.write`.
        """
        self.run("python", "stages/plan.py")
        report_plan = plan.read(self.folder / "plans/report.json")
        fake_runs.write(report_plan, self.folder / "runs", **written)
        for split in ("train", "validation", "test"):
            files.write_json(self.folder / f"prepared/{split}/split.json", {"largest": written.get("largest", 0)})
        keys = [f"{name}-{seed}" for name in report_plan["reg"] for seed in report_plan["seeds"]]
        for key in keys:
            (self.folder / f"runs/{key}/model.keras").write_text(f"weights of {key}, {sorted(written)}")
        stages = ["plan", "prepare", *(f"{stage}@{key}" for key in keys for stage in ("train", "evaluate"))]
        if report:
            self.run("python", "stages/report.py")
            stages.append("report")
        self.dvc("commit", "-q", "--force", *stages)
        if message:
            self.commit(message)


@pytest.fixture(scope="session")
def original(image_folder, once):
    """A project folder with results of none and l2, one seed, committed on main. Tests copy it."""

    def build(folder):
        params = scratch.tiny_params(image_folder)
        params["reg"] = {"none": 0, "l2": 0.001}
        scratch.copy_project(folder, params)
        Results(folder).make("results")

    return once("project with results that nobody trained", build)


@pytest.fixture
def repository(original, tmp_path, monkeypatch):
    """A copy of `original` on a new branch, `change`. It is the working directory."""
    folder = Path(shutil.copytree(original, tmp_path / "project", symlinks=True))
    monkeypatch.chdir(folder)
    copied = Results(folder)
    copied.run("git", "switch", "-qc", "change")
    return copied
