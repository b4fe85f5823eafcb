"""How many runs to train at a time on this machine, by its cores, memory, GPU memory, and a container's limits.

No result depends on this number.
"""

import math
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from regbench import cores
from regbench.data import EVALUATION_BATCH
from regbench.params import Params

MIB, GIB = 1 << 20, 1 << 30
ROOT = Path("/")
"""Where /proc and /sys are."""

RUNS_A_GPU = 4
"""The maximum number of runs that share a GPU. Only three runs at 224 pixels were measured (docs/gpu.md)."""

BYTES_OF_CUDA = 0.75 * GIB
"""GPU memory that CUDA and its libraries take for one run: 0.62 GiB on an NVIDIA H200."""


def jobs(settings: Params, missing: int) -> int:
    """How many of `missing` runs to train at a time: one for each core, as far as memory allows.

    A run on a GPU waits for its core to start operations, and the GPU is idle meanwhile. So up to `RUNS_A_GPU` runs
    share one GPU, as far as its free memory allows. With several GPUs, one run at a time uses all of them.
    """
    if gpus := free_gpu_memory():
        fits = int(0.8 * gpus[0] / bytes_of_run_on_gpu(settings))
        return max(1, min(RUNS_A_GPU if len(gpus) == 1 else 1, cpus(), fits, missing))
    return max(1, min(cpus(), _fits(settings), missing))


def jobs_at_the_end(settings: Params, missing: int, at_a_time: int) -> int:
    """How many of the last runs to train at a time: runs that would be left over join the last full round.

    `at_a_time` is the result of `jobs`.

    Three runs on two cores train 6 % fewer images per second than two (n = 2; AMD EPYC, 27 November 2026). But a single
    run left over would leave a core idle.
    """
    left_over = missing % at_a_time
    if not 0 < left_over <= 0.8 * at_a_time or free_gpu_memory():
        return at_a_time
    return max(at_a_time, min(at_a_time + left_over, _fits(settings)))


def _fits(settings: Params) -> int:
    return int(0.8 * memory() / bytes_of_run(settings))


def bytes_of_run(settings: Params) -> float:
    """The memory that one run takes on a CPU: an estimate, at least 12.5 % above the measured peaks."""
    return GIB + _bytes_of_maps(settings)


def bytes_of_run_on_gpu(settings: Params) -> float:
    """The GPU memory that one run takes: CUDA and its libraries, and 1.25 times the feature maps' estimate for a CPU.

    Training at 224 pixels with a batch of 64 took 4.1 GiB on an NVIDIA H200, and 3.0 GiB with XLA, without CUDA's own
    memory. `_bytes_of_maps` estimates 4.0 GiB.
    """
    return BYTES_OF_CUDA + 1.25 * _bytes_of_maps(settings)


def gpu_mib(at_a_time: int) -> int | None:
    """How many MiB of GPU memory TensorFlow may take for each of several runs.

    None means no limit: there is only one run or no GPU, or the free memory is unknown or too small to share. Without a
    limit, a run that needs more than its estimate would take memory from the others, and they would fail.
    """
    if at_a_time == 1:
        return None
    free = min(free_gpu_memory(), default=0)
    return max(0, int((free / at_a_time - BYTES_OF_CUDA) / MIB)) or None


def _bytes_of_maps(settings: Params) -> float:
    def maps(images: int, mib: float) -> float:
        return mib * MIB * images * (settings.data.image_size / 32) ** 2

    # A training batch keeps its feature maps for the gradients. An evaluation batch is larger, but frees them early.
    return max(maps(settings.train.batch_size, 1.3), maps(EVALUATION_BATCH, 0.25))


def free_gpu_memory() -> list[int]:
    """Free bytes of each NVIDIA GPU that this process may use; empty if there is no GPU or no driver.

    [0] if `CUDA_VISIBLE_DEVICES` names something whose free memory can't be read.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if cores.gpus_hidden() or not shutil.which("nvidia-smi"):
        return []
    chosen = [f"--id={visible}"] if visible else []
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", *chosen]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return [int(line) * MIB for line in done.stdout.splitlines()]
    except (OSError, subprocess.SubprocessError, ValueError):
        # nvidia-smi does not know the visible device, such as a part of a GPU: one run at a time is safe.
        return [0] if visible else []


def cpus() -> int:
    """The number of cores that this process may use, limited by a container's CPU quota."""
    quotas = []
    for folder in _cgroups("cpu"):
        quota, period = (
            _numbers(folder / "cpu.max", 2)
            or (
                *_numbers(folder / "cpu.cfs_quota_us", 1),
                *_numbers(folder / "cpu.cfs_period_us", 1),
            )
            or (0, 0)
        )
        if quota > 0 and period > 0:
            quotas.append(math.ceil(quota / period))
    return max(1, min([cores.count(), *quotas]))


def memory() -> int:
    """Bytes of memory of the machine, or the container's limit if that is lower."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 4 * GIB
    limits = []
    for folder in _cgroups("memory"):
        limits += _numbers(folder / "memory.max", 1) or _numbers(folder / "memory.limit_in_bytes", 1)
    return min([whole, *limits])


def _cgroups(controller: str) -> Iterator[Path]:
    """The folders of Linux's control groups, version 1 and 2, whose limits apply to this process; innermost first.

    Inside a container, the path in /proc may be the host's, and the container's own group is the root folder.
    """
    try:
        lines = (ROOT / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = ROOT / "sys/fs/cgroup" / (controller if controllers else "")
        folder = root / path.lstrip("/")
        yield folder
        while folder != root and folder != folder.parent:
            folder = folder.parent
            yield folder


def _numbers(path: Path, count: int) -> tuple[int, ...]:
    """The first `count` numbers of a file; empty if there is no such file or it says "max"."""
    try:
        return tuple(int(word) for word in path.read_text().split()[:count])
    except (OSError, ValueError):
        return ()
