"""How runs share the cores and the GPU of one machine. No result depends on it.

The runner sets two environment variables. `REGBENCH_RUNS` is how many runs go at a time. `REGBENCH_GPU_MIB` is how many
MiB of a shared GPU each run may take. Without them a run assumes that it is alone.
"""

import os


def count() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def runs() -> int:
    """How many runs share the cores; 1 if `REGBENCH_RUNS` is not a number."""
    said = os.environ.get("REGBENCH_RUNS", "")
    return max(1, int(said)) if said.isdecimal() else 1


def threads() -> int:
    """How many operations of one run are computed at once, each by one thread: 2 if each run has two cores, else 1.

    In the backward pass, a layer's gradients for its input and for its weights are independent. Few other operations
    are.
    """
    return 2 if count() >= 2 * runs() else 1


def gpu_mib() -> int | None:
    """How many MiB of a GPU's memory this run may take; None for no limit."""
    said = os.environ.get("REGBENCH_GPU_MIB", "")
    return int(said) if said.isdecimal() and int(said) else None


def gpus_hidden() -> bool:
    """Whether `CUDA_VISIBLE_DEVICES` hides all GPUs from this process."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "NoDevFiles")
