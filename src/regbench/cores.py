"""How runs share the cores of one machine.

`REGBENCH_RUNS` in the environment says how many runs go at a time, as stages/side_by_side.sh and cluster.py set it;
without it a run takes itself to be alone. No result depends on it.

    python -m regbench.cores 3   # how many of 3 runs to train at a time
"""

import os
import shutil
import sys

MIB, GIB = 1 << 20, 1 << 30


def count():
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def runs():
    """How many runs share them; one where `REGBENCH_RUNS` is no number."""
    said = os.environ.get("REGBENCH_RUNS", "")
    return max(1, int(said)) if said.isdecimal() else 1


def threads():
    """How many operations of one run may be computed at once, each by one thread: 2 where two cores are its own.

    Backward, a layer's gradients for its input and for its weights do not depend on each other; there is little else.
    """
    return 2 if count() >= 2 * runs() else 1


EVALUATED_AT_ONCE = 4
"""Up to how many batches are evaluated at once; together they hold `dataset.EVALUATION_BATCH` images."""


def evaluation_threads():
    """How many batches of one evaluation are computed at once, each by one thread.

    The other runs do not count: the last one is evaluated when the others have ended.
    """
    return min(count(), EVALUATED_AT_ONCE)


def _maps(settings, images, each):
    """Bytes of a batch's maps, where those of an image of 32×32 pixels take `each` MiB."""
    return each * MIB * images * (settings.data.image_size / 32) ** 2


def heap(settings):
    """Bytes that a run writes to until its first step has ended: TensorFlow, the network, its maps unless on a GPU."""
    # Of the maps those that are kept for the gradients, as measured at four sizes from 32 to 224 px.
    return 192 * MIB + (0 if _gpu() else _maps(settings, settings.train.batch_size, each=0.87))


def _gpu():
    return shutil.which("nvidia-smi") is not None


def jobs(settings, missing):
    """How many of `missing` runs to train at a time: by cores and memory on a CPU, one where a GPU is.

    Up to twice as many runs as cores may go at a time and share them, where that leaves fewer cores idle at the end:
    three runs on two cores take 1.5 times as long as one, not twice.

    Args:
        settings: `params.Params`.
        missing: how many are to be trained.
    """
    from regbench import dataset

    if _gpu():
        return 1
    cores = count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 4 * GIB
    # At least an eighth above the measured peaks of an epoch. A batch that is trained on keeps its maps; one that is
    # validated on is larger, and each of its maps is soon gone.
    trained = _maps(settings, settings.train.batch_size, each=1.3)
    validated = _maps(settings, dataset.EVALUATION_BATCH, each=0.25)
    a_run = GIB + max(trained, validated)

    def idle(at_a_time):
        """Share of core time that is lost, to a tenth: less is not worth crowding the cores."""
        rounds, rest = divmod(missing, at_a_time)
        return round(1 - missing / (rounds * at_a_time + (max(rest, cores) if rest else 0)), 1)

    fits = max(1, int(0.8 * memory / a_run))
    return max(1, min(min(range(cores, 2 * cores + 1), key=idle), fits, missing))


if __name__ == "__main__":
    from regbench import params

    print(jobs(params.load(), int(sys.argv[1])))
