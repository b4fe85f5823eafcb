"""How many runs go side by side on which machine."""

import os

import pytest

from regbench.runner import machine


@pytest.fixture
def make(monkeypatch, tmp_path):
    """A function that gives the machine so many cores and so much memory, no GPU, and a container's limits."""

    def make_machine(cores, gib, **limits):
        monkeypatch.setattr(machine.shutil, "which", lambda name: None)
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
        monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": gib * 2**18}.get, raising=False)
        monkeypatch.setattr(machine, "ROOT", tmp_path)
        for path, text in limits.get("files", {}).items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)

    return make_machine


@pytest.mark.parametrize(
    ("cores", "runs", "expected"),
    [(2, 1, 1), (2, 2, 2), (2, 3, 3), (2, 4, 2), (2, 5, 3), (2, 175, 2), (8, 3, 3), (8, 9, 9), (1, 3, 1)],
)
def test_no_core_is_idle_at_the_end(settings, make, cores, runs, expected):
    make(cores, 64)
    assert machine.jobs(settings(), runs) == expected


def test_memory_is_a_limit(settings, make):
    make(16, 8)
    assert machine.jobs(settings(), 16) in range(4, 7)
    assert machine.jobs(settings(**{"data.image_size": 224, "train.batch_size": 64}), 16) == 1
    # Two batches of 16 to train on would fit, but not two of 256 to validate on.
    assert machine.jobs(settings(**{"data.image_size": 224, "train.batch_size": 16}), 16) == 1


def test_one_at_a_time_on_a_gpu(settings, make, monkeypatch):
    make(16, 64)
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert machine.jobs(settings(), 16) == 1


GIB = 2**30
CGROUPS = {
    "no limits": ({}, 16, 64),
    "not on Linux's terms": ({"proc/self/cgroup": "0::/\n"}, 16, 64),
    "version 2, in a container": (
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{2 * GIB}\n",
            "sys/fs/cgroup/cpu.max": "150000 100000\n",
        },
        2,
        2,
    ),
    "version 2, no limit set": (
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": "max\n",
            "sys/fs/cgroup/cpu.max": "max 100000\n",
        },
        16,
        64,
    ),
    "version 2, a limit on the slice above": (
        {
            "proc/self/cgroup": "0::/user.slice/session.scope\n",
            "sys/fs/cgroup/user.slice/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/user.slice/session.scope/memory.max": "max\n",
            "sys/fs/cgroup/user.slice/session.scope/cpu.max": "50000 100000\n",
        },
        1,
        4,
    ),
    "version 2, a path of the host's": (
        {"proc/self/cgroup": "0::/docker/abc\n", "sys/fs/cgroup/memory.max": f"{3 * GIB}\n"},
        16,
        3,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        3,
        2,
    ),
    "version 1, no limit set": (
        {
            "proc/self/cgroup": "5:memory:/\n4:cpu,cpuacct:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        16,
        64,
    ),
}


@pytest.mark.parametrize("name", CGROUPS)
def test_limits_of_a_container(make, name):
    files, cpus, gib = CGROUPS[name]
    make(16, 64, files=files)
    assert (machine.cpus(), machine.memory() / GIB) == (cpus, gib)


def test_one_run_in_two_gigabytes(settings, make):
    make(16, 64, files=CGROUPS["version 2, in a container"][0])
    assert machine.jobs(settings(), 3) == 1
