"""How TensorFlow starts: quietly, with the same bits each time."""

import contextlib
import ctypes
import gc
import os
import sys
import tempfile
import threading

from regbench import cores


def start(deterministic=True, threads=None, heap=0):
    """Import TensorFlow and set it up for reproducible runs; to be called before anything else uses it.

    On a CPU one thread computes an operation: maps of 32 pixels do not scale over threads, and what one thread
    computes does not depend on how many cores there are.

    Args:
        deterministic: take only operations that give the same bits each time; Keras refuses to use XLA then.
        threads: how many operations may be computed at once on a CPU, by default `cores.threads()`.
        heap: how many bytes of memory to have ready soon; of use after `large_pages` only.

    Returns:
        the `tensorflow` module.
    """
    if os.environ.get("GLIBC_TUNABLES") == _tunables():
        _write_to_heap(heap)
    with stderr_held(), _hidden("matplotlib", "pandas", "scipy"), _no_garbage():
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if not gpus:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(threads or cores.threads())
        # Rewriting the graph costs half a second of every start, and its result is a little slower here.
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    return tf


LARGE_PAGES = {"hugetlb": 1, "mmap_threshold": 10**9, "trim_threshold": 10**9, "top_pad": 64 << 20}
"""glibc's settings: pages of 2 MB, which it asks Linux for, and all memory in one heap that grows by many of them."""


def large_pages():
    """Start this program over with its memory in large pages, where Linux and glibc have them; to be called first.

    A step goes over tens of megabytes of weights and maps, several times: in pages of 4 KB, to find them takes the
    processor some 7 % of its time, on a virtual machine. glibc reads its settings from the environment at the start.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = _tunables()
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _tunables():
    return ":".join(f"glibc.malloc.{key}={value}" for key, value in LARGE_PAGES.items())


HEAP_BLOCK = 32 << 20


def _write_to_heap(size):
    """Write to the heap's next `size` bytes, in a thread of its own, while this one is busy with Python.

    Linux clears a page when it is first written to, and on a virtual machine the host has to find it: 1 to 2 seconds
    a GB, which the first step would wait for. A block is free as soon as it is written to, and for all to take.
    """
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    blocks = [libc.malloc(HEAP_BLOCK) for _ in range(int(size) // HEAP_BLOCK)]

    def write():
        for block in filter(None, blocks):  # null where there was no memory left
            libc.memset(block, 0, HEAP_BLOCK)
            libc.free(block)

    threading.Thread(target=write, daemon=True).start()


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
    """Let imports of these fail. Keras tries them for features nobody uses here: a quarter of its start."""
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
