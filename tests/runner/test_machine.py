"""How many runs train at a time on which machine."""

import os

import pytest
from scratch import simulate_gpu

from regbench.runner import machine


@pytest.fixture
def make(monkeypatch, tmp_path):
    """A function that simulates a machine with this many cores and GiB of memory, without a GPU.

    `files`: {path: text} of files under /proc and /sys that give a container's limits.
    """

    def make_machine(cores, gib, **limits):
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
        monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": gib * 2**18}.get, raising=False)
        monkeypatch.setattr(machine, "ROOT", tmp_path)
        for path, text in limits.get("files", {}).items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)

    return make_machine


@pytest.mark.parametrize(
    ("cores", "runs", "expected"),
    [
        *((2, 1, (1, 1)), (2, 2, (2, 2)), (2, 3, (2, 3)), (2, 4, (2, 2)), (2, 9, (2, 3)), (2, 175, (2, 3))),
        *((8, 3, (3, 3)), (8, 9, (8, 9)), (8, 15, (8, 8)), (1, 3, (1, 1))),
    ],
)
def test_no_core_is_idle_at_the_end(settings, make, cores, runs, expected):
    make(cores, 64)
    at_a_time = machine.jobs(settings(), runs)
    assert (at_a_time, machine.jobs_at_the_end(settings(), runs, at_a_time)) == expected


def test_memory_is_a_limit(settings, make):
    make(16, 8)
    assert machine.jobs(settings(), 16) in range(4, 7)
    at_a_time = machine.jobs(settings(), 17)
    assert machine.jobs_at_the_end(settings(), 17, at_a_time) == at_a_time
    assert machine.jobs(settings(**{"data.image_size": 224, "train.batch_size": 64}), 16) == 1
    # Two runs would fit with their training batches of 16 images, but not with their validation batches of 256.
    assert machine.jobs(settings(**{"data.image_size": 224, "train.batch_size": 16}), 16) == 1


@pytest.fixture
def with_nvidia(make, tmp_path):
    """A function that simulates a machine whose nvidia-smi prints this text, one line for each GPU."""

    def with_gpus(printed, code=0, cores=16):
        make(cores, 64)
        simulate_gpu(tmp_path / "bin", f"echo '{printed}'\necho \"$*\" > '{tmp_path}/asked'\nexit {code}")

    return with_gpus


@pytest.mark.parametrize(
    ("gpus", "changes", "runs", "expected"),
    [
        ("80000", {}, 9, 4),
        ("80000", {}, 3, 3),
        ("80000", {"data.image_size": 224, "train.batch_size": 256}, 9, 3),
        ("24000", {"data.image_size": 224, "train.batch_size": 256}, 9, 1),
        ("80000", {"data.image_size": 224, "train.batch_size": 32}, 9, 4),
        ("3500", {}, 9, 3),
        ("100", {}, 9, 1),
        ("80000\n80000", {}, 9, 1),
    ],
)
def test_runs_share_a_gpu_as_far_as_its_memory_goes(settings, with_nvidia, gpus, changes, runs, expected):
    with_nvidia(gpus)
    assert machine.jobs(settings(**changes), runs) == expected


@pytest.mark.parametrize(
    ("gpus", "at_a_time", "low", "high"),
    [("80000", 4, 18_000, 20_000), ("80000\n40000", 2, 18_000, 20_000), ("8000", 2, 2_000, 4_000)],
)
def test_runs_that_share_a_gpu_have_a_limit_each_and_fit_beside_each_other(with_nvidia, gpus, at_a_time, low, high):
    with_nvidia(gpus)
    assert low <= machine.gpu_mib(at_a_time) <= high


@pytest.mark.parametrize(("gpus", "at_a_time"), [("80000", 1), ("100", 4)])
def test_a_run_alone_or_a_gpu_without_room_has_no_limit(with_nvidia, gpus, at_a_time):
    with_nvidia(gpus)
    assert machine.gpu_mib(at_a_time) is None


def test_no_limit_without_a_gpu(make):
    make(16, 64)
    assert machine.gpu_mib(4) is None


def test_a_run_on_a_gpu_needs_a_core(settings, with_nvidia):
    with_nvidia("80000", cores=2)
    assert machine.jobs(settings(), 9) == 2


def test_a_gpu_whose_driver_is_not_there_does_not_count(settings, with_nvidia):
    with_nvidia("NVIDIA-SMI has failed", code=9)
    assert machine.jobs(settings(), 9) == 9


@pytest.mark.parametrize(("visible", "expected", "asked"), [("-1", 9, None), ("1", 4, "--id=1"), ("MIG-1", 4, "MIG-1")])
def test_only_gpus_that_are_visible_count(settings, with_nvidia, monkeypatch, tmp_path, visible, expected, asked):
    with_nvidia("80000")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.jobs(settings(), 9) == expected
    assert asked in (tmp_path / "asked").read_text() if asked else not (tmp_path / "asked").exists()


def test_one_at_a_time_on_a_part_of_a_gpu_that_nvidia_smi_does_not_know(settings, with_nvidia, monkeypatch):
    with_nvidia("No devices were found", code=6)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    assert machine.jobs(settings(), 9) == 1


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
