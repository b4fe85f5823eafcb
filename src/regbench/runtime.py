"""How TensorFlow starts: quietly, with the same bits each time."""

import contextlib
import os
import shutil
import sys
import tempfile


def start():
    """Import TensorFlow and set it up for reproducible runs; to be called before anything else uses it.

    A CPU gets one thread: maps of 32 pixels do not scale over threads, and what one thread computes does not
    depend on how many cores there are. Two runs side by side make use of two cores.

    Returns:
        the `tensorflow` module.
    """
    with stderr_held(), _hidden("matplotlib", "pandas"):
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if not gpus:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()
    return tf


def import_tfds():
    """Import TensorFlow Datasets, as quietly."""
    with stderr_held():
        import tensorflow as tf
        import tensorflow_datasets as tfds

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


def jobs():
    """How many runs fit side by side: one a core and 2 GiB of memory, or one where a GPU is."""
    if shutil.which("nvidia-smi"):
        return 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 4 << 30
    return max(1, min(os.cpu_count() or 1, memory // (2 << 30)))


if __name__ == "__main__":
    print(jobs())
