"""A project whose pipeline has run, to be changed."""

import shutil

import pytest
from scratch import Repository

NO_FIGURES = '''"""Empty figures: to draw real ones takes longer than a training of these tests."""

from pathlib import Path

NAMES = (
    "accuracy", "corruptions", "effects", "layers", "learning_curves", "norms", "pruning", "reg_loss", "strength",
    "weights",
)


def draw(plan, runs):
    Path("plots").mkdir(exist_ok=True)
    for name in NAMES:
        Path("plots", f"{name}.png").write_bytes(b"")
    return []
'''


@pytest.fixture
def repository(trained, tmp_path):
    """A new copy of a project with results."""
    return Repository(shutil.copytree(trained, tmp_path / "a path with spaces", symlinks=True))


@pytest.fixture(scope="session")
def figureless_template(trained, once):
    """The folder that `figureless` copies."""

    def build(folder):
        repository = Repository(shutil.copytree(trained, folder, symlinks=True))
        repository.write("src/regbench/report/figures.py", NO_FIGURES)
        repository.dvc("repro")
        repository.commit("no figures")

    return once("trained project without figures", build)


@pytest.fixture
def figureless(figureless_template, tmp_path):
    """A new copy of a project with results whose figures are empty, for tests that do not look at figures."""
    return Repository(shutil.copytree(figureless_template, tmp_path / "a path with spaces", symlinks=True))
