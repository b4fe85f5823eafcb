"""How many runs go side by side, and how they share the cores."""

import os

import pytest

from regbench import cores


@pytest.fixture
def machine(monkeypatch):
    """A function that gives the machine so many cores and so much memory, and no GPU."""

    def make(count, gib):
        monkeypatch.setattr(cores.shutil, "which", lambda name: None)
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(count)), raising=False)
        monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": gib * 2**18}.get, raising=False)

    return make


@pytest.mark.parametrize(
    ("count", "runs", "expected"),
    [(2, 1, 1), (2, 2, 2), (2, 3, 3), (2, 4, 2), (2, 5, 3), (2, 175, 2), (8, 3, 3), (8, 9, 9), (1, 3, 1)],
)
def test_no_core_is_idle_at_the_end(settings, machine, count, runs, expected):
    machine(count, 64)
    assert cores.jobs(settings(), runs) == expected


def test_memory_is_a_limit(settings, machine):
    machine(16, 8)
    assert cores.jobs(settings(), 16) in range(4, 7)
    assert cores.jobs(settings(**{"data.image_size": 224, "train.batch_size": 64}), 16) == 1
    # Two batches of 16 to train on would fit, but not two of 256 to validate on.
    assert cores.jobs(settings(**{"data.image_size": 224, "train.batch_size": 16}), 16) == 1


def test_heap_grows_with_the_batch_but_on_a_gpu(settings, machine, monkeypatch):
    machine(2, 8)
    small, large = settings(), settings(**{"data.image_size": 224, "train.batch_size": 16})
    assert 192 * cores.MIB < cores.heap(small) < 256 * cores.MIB < 512 * cores.MIB < cores.heap(large) < cores.GIB
    monkeypatch.setattr(cores.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert cores.heap(large) == 192 * cores.MIB


def test_one_at_a_time_on_a_gpu(settings, machine, monkeypatch):
    machine(16, 64)
    monkeypatch.setattr(cores.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert cores.jobs(settings(), 16) == 1


@pytest.mark.parametrize(
    ("count", "runs", "expected"), [(1, "", 1), (2, "", 2), (2, "2", 1), (2, "3", 1), (8, "3", 2), (2, "many", 2)]
)
def test_two_threads_where_two_cores_are_free(machine, monkeypatch, count, runs, expected):
    machine(count, 64)
    monkeypatch.setenv("REGBENCH_RUNS", runs)
    assert cores.threads() == expected
