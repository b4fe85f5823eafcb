"""The Makefile calls `regbench`; only make's own command line decides what it does."""

import os
import shutil
import subprocess

import pytest
from scratch import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

OUTSIDE = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
"""The environment, without the variables that `make test` adds."""


@pytest.fixture
def make(tmp_path):
    """A function of arguments and environment variables that returns the commands make would run."""
    for name in ("Makefile", "requirements.lock", "requirements-cluster.lock"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/installed").touch()

    def call(*arguments, **environment):
        command = ("make", "--dry-run", *arguments)
        done = subprocess.run(command, cwd=tmp_path, env=OUTSIDE | environment, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return call


STRAY = {"JOBS": "5", "CLUSTER": "somewhere", "PYTHON": "/opt/other/python", "PYTHONPATH": "/opt/other"}


@pytest.mark.parametrize("environment", [{}, STRAY])
def test_repro(make, environment):
    assert [line.split() for line in make("repro", **environment)] == [[".venv/bin/regbench", "repro"]]
    assert make("repro", "JOBS=2", **environment)[0].split()[2:] == ["--jobs", '"2"']
    lines = make("repro", "CLUSTER=auto", **environment)
    assert lines[-1].split()[2:] == ["--cluster", '"auto"']
    assert any("requirements-cluster.lock" in line for line in lines)


def test_a_python_of_the_environment_does_not_count(make, tmp_path):
    (tmp_path / ".venv/installed").unlink()
    assert not [line for line in make("setup", **STRAY) if "/opt/other" in line]
    assert [line for line in make("setup", "PYTHON=/opt/mine/python") if "/opt/mine/python -m venv .venv" in line]


def test_what_is_installed_is_not_installed_again(make, tmp_path):
    mark, lock = tmp_path / ".venv/installed", tmp_path / "requirements.lock"
    shutil.copy(lock, mark)
    os.utime(lock, (mark.stat().st_mtime + 10,) * 2)
    assert not [line for line in make("setup") if "-m venv .venv" in line]
    lock.write_text("another==1.0\n")
    os.utime(lock, (mark.stat().st_mtime + 20,) * 2)
    assert [line for line in make("setup") if "-m venv .venv" in line]


def test_help_names_every_target():
    done = subprocess.run(("make", "help"), cwd=ROOT, env=OUTSIDE, text=True, capture_output=True, check=True)
    targets = (ROOT / "Makefile").read_text().partition(".PHONY: ")[2].splitlines()[0].split()
    assert {line.split()[1] for line in done.stdout.splitlines()} == set(targets)
    assert max(map(len, done.stdout.splitlines())) <= 80
