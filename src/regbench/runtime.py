"""How TensorFlow starts: quietly, with the same bits each time."""

import contextlib
import gc
import os
import shutil
import sys
import tempfile


def start(deterministic=True):
    """Import TensorFlow and set it up for reproducible runs; to be called before anything else uses it.

    A CPU gets one thread: maps of 32 pixels do not scale over threads, and what one thread computes does not
    depend on how many cores there are. Two runs side by side make use of two cores.

    Args:
        deterministic: take only operations that give the same bits each time; Keras refuses to use XLA then.

    Returns:
        the `tensorflow` module.
    """
    with stderr_held(), _hidden("matplotlib", "pandas"), _no_garbage():
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if not gpus:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        # Rewriting the graph costs half a second of every start, and its result is a little slower here.
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    return tf


def strategy(devices=None):
    """How one run is spread over `devices`, by default all GPUs: copies in step (`MirroredStrategy`) from two on.

    `train.batch_size` stays the size of the whole batch; each device takes its share, and batch normalization
    its statistics over that share, unless `train.synchronize_batch_norm`.
    """
    import tensorflow as tf

    devices = devices or [gpu.name for gpu in tf.config.list_logical_devices("GPU")]
    return tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else tf.distribute.get_strategy()


def import_tfds():
    """Import TensorFlow Datasets, as quietly."""
    with stderr_held(), _no_garbage():
        import tensorflow as tf
        import tensorflow_datasets as tfds
        from absl import logging

        logging.set_verbosity(logging.ERROR)  # it warns of folders that a build of its own makes beside

        tf.config.set_visible_devices([], "GPU")
    return tfds


@contextlib.contextmanager
def _hidden(*modules):
    """Let imports of these fail. Keras imports plotting for features nobody uses here: a quarter of its start."""
    absent = [module for module in modules if module not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))
    try:
        yield
    finally:
        for module in absent:
            del sys.modules[module]


@contextlib.contextmanager
def _no_garbage():
    """Take all that is made meanwhile as here to stay: looking for garbage in it is a fifth of TensorFlow's start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def stderr_held():
    """Keep back what C++ writes to stderr, as while TensorFlow loads: a dozen lines that concern nobody.

    No log level silences them, they are written before logging is set up. They are shown if an error follows.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


GIB = 1 << 30


def jobs(settings, runs):
    """How many of `runs` runs to train at a time: by cores and memory on a CPU, one where a GPU is.

    Each run has one thread. Up to twice as many runs as cores may go at a time and share them, where that leaves
    fewer cores idle at the end: three runs on two cores take 1.5 times as long as one, not twice.

    Args:
        settings: `params.Params`.
        runs: how many are to be trained.
    """
    if shutil.which("nvidia-smi"):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 4 * GIB
    # At least an eighth above the peaks that benchmarks/results.json has of four sizes, from 32 px to 224 px.
    a_run = GIB + 1.3 * 2**20 * settings.train.batch_size * (settings.data.image_size / 32) ** 2

    def idle(at_a_time):
        """Share of core time that is lost, to a tenth: less is not worth crowding the cores."""
        rounds, rest = divmod(runs, at_a_time)
        return round(1 - runs / (rounds * at_a_time + (max(rest, cores) if rest else 0)), 1)

    fits = max(1, int(0.8 * memory / a_run))
    return max(1, min(min(range(cores, 2 * cores + 1), key=idle), fits, runs))


if __name__ == "__main__":
    from regbench import params

    print(jobs(params.load(), int(sys.argv[1])))
