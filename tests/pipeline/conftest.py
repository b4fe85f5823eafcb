"""A project whose pipeline has run, to be copied: no test depends on the one before it."""

import shutil

import pytest
import scratch
from scratch import Repository


def trained(folder, images, **changes):
    """A scratch repository with none and l2 trained and committed, at the tiniest size."""
    params = scratch.tiny_params(images, **scratch.TINIEST | changes)
    params["reg"] = {"none": 0, "l2": 0.01}
    repository = scratch.copy_project(folder, params)
    repository.dvc("repro")
    repository.commit("results")
    return repository


@pytest.fixture(scope="session")
def split_images(image_folder, tmp_path_factory):
    """The sample with a test split of its own."""
    folder = tmp_path_factory.mktemp("split images")
    for path in sorted(image_folder.rglob("*.png")):
        target = folder / ("test" if int(path.stem) % 4 == 0 else "train") / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


@pytest.fixture(scope="session")
def template(split_images, tmp_path_factory):
    """What `repository` is copied from."""
    return trained(tmp_path_factory.mktemp("template") / "a path with spaces", split_images).folder


@pytest.fixture
def repository(template, tmp_path):
    """A copy of its own of a project with results."""
    return Repository(shutil.copytree(template, tmp_path / "a path with spaces", symlinks=True))
