"""The copy of a project in which a search trains, in a scratch repository; nothing is trained."""

import shutil

import pytest
import scratch

from regbench.search import project

pytestmark = [pytest.mark.slow, pytest.mark.dvc]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A project with a folder of images, one of them in Git, and weights that Git ignores."""
    found = scratch.copy_project(tmp_path / "project", scratch.tiny_params("photos"))
    for name in ("photos/cat/1.png", "photos/cat/2.png", "photos/dog/3.png", "weights.h5"):
        (found.folder / name).parent.mkdir(parents=True, exist_ok=True)
        found.write(name, name)
    found.write(".gitignore", found.read(".gitignore") + "/weights.h5\n")
    found.run("git", "add", ".gitignore", "photos/cat/1.png")
    found.run("git", "commit", "-qm", "an image")
    monkeypatch.chdir(found.folder)
    return found


def images(copied):
    return {path.relative_to(copied).as_posix(): path.read_text() for path in (copied / "photos").rglob("*.png")}


def test_images_that_git_has_in_part_are_all_there(repository):
    every = {f"photos/{name}.png": f"photos/{name}.png" for name in ("cat/1", "cat/2", "dog/3")}
    assert images(project.copy("photos")) == every
    (repository.folder / "photos/cat/2.png").unlink()
    repository.write("photos/cat/1.png", "changed")
    del every["photos/cat/2.png"]
    assert images(project.copy("photos")) == every | {"photos/cat/1.png": "changed"}


def test_weights_that_git_ignores_come_along(repository):
    copied = project.copy("photos", "weights.h5")
    assert (copied / "weights.h5").read_text() == "weights.h5"


def test_a_project_that_was_moved(repository, monkeypatch):
    project.copy("photos")
    moved = scratch.Repository(shutil.move(repository.folder, repository.folder.parent / "moved"))
    monkeypatch.chdir(moved.folder)
    moved.write("params.yaml", moved.read("params.yaml") + "# more\n")
    moved.commit("more")
    assert (project.copy("photos") / "params.yaml").read_text() == moved.read("params.yaml")
