"""Fixtures for the tests in all folders. scratch.py has the functions that they use."""

import fcntl
import gc
import os
import shutil
from collections import Counter

import pytest
import scratch
import yaml
from hypothesis import settings as hypothesis_settings

hypothesis_settings.register_profile("few", max_examples=100, deadline=None)
hypothesis_settings.register_profile("many", max_examples=500, deadline=None)
hypothesis_settings.load_profile("few")


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, so that no worker still has a long one when the others have finished."""
    seconds = Counter()
    for item in items:
        seconds[item.path] += 5 if item.get_closest_marker("dvc") else 2 if item.get_closest_marker("slow") else 0.1
    items.sort(key=lambda item: -seconds[item.path])


def pytest_xdist_auto_num_workers(config):
    """One worker more than cores, at most four: a worker spends a tenth of its time waiting for processes.

    As many as cores for `make test-fast`, where no worker waits.
    """
    waiting = "not slow" not in config.option.markexpr
    return min(4, (os.cpu_count() or 1) + waiting)


def pytest_collection_finish():
    """Exclude imported modules from all later garbage collections."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def cifar10_sample():
    """What `scratch.read_sample` gives."""
    return scratch.read_sample()


@pytest.fixture(scope="module")
def deterministic():
    """Deterministic operations, as in a run. Off again after the file: under XLA, TensorFlow would refuse some."""
    from tensorflow.python.framework import config

    config.enable_op_determinism()
    yield
    config.disable_op_determinism()


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """A function of (name, build) that returns a folder all pytest processes share; the first calls `build(folder)`."""
    of_a_worker = "PYTEST_XDIST_WORKER" in os.environ
    root = tmp_path_factory.getbasetemp().parent if of_a_worker else tmp_path_factory.getbasetemp()

    def folder(name, build):
        place = root / "shared" / name
        place.parent.mkdir(exist_ok=True)
        with open(place.parent / f"{name}.lock", "a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.seek(0)
            if lock.read() != "built":
                shutil.rmtree(place, ignore_errors=True)
                build(place)
                lock.write("built")
        return place

    return folder


@pytest.fixture(scope="session")
def image_folder(once):
    """The sample as PNGs, in one folder for each class."""
    return once("cifar10 sample", scratch.write_image_folder)


@pytest.fixture(scope="session")
def split_images(image_folder, once):
    """The sample as PNGs, divided into a train and a test folder."""

    def build(folder):
        for path in sorted(image_folder.rglob("*.png")):
            target = folder / ("test" if int(path.stem) % 4 == 0 else "train") / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)

    return once("split images", build)


@pytest.fixture(scope="session")
def trained(split_images, once):
    """A scratch repository with none and l2, trained by `dvc repro` at the tiniest size, committed. Tests copy it."""

    def build(folder):
        params = scratch.tiny_params(split_images, **scratch.TINIEST)
        params["reg"] = {"none": 0, "l2": 0.01}
        repository = scratch.copy_project(folder, params)
        repository.dvc("repro")
        repository.commit("results")

    return once("trained project", build)


@pytest.fixture
def settings(image_folder, tmp_path):
    """A function of changes that returns the tiny `params.Params` with these changes."""
    from regbench import params

    def load(**changes):
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(scratch.tiny_params(image_folder, **changes), sort_keys=False))
        return params.load(path)

    return load


@pytest.fixture
def plan_of(settings):
    """A function of a run such as "l2-0", a folder and changes: writes the plans and reads them, [train, evaluate]."""
    from regbench import files, plan

    def read(run, folder, **changes):
        plans = plan.compute(settings(**changes))
        read_back = []
        for stage in ("train", "evaluate"):
            files.write_json(folder / f"plans/{run}/{stage}.json", plans[f"{run}/{stage}.json"])
            read_back.append(plan.read(folder / f"plans/{run}/{stage}.json"))
        return read_back

    return read
