"""How TensorFlow starts: quietly, and so that a run gives the same bits each time."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from regbench import cores

if TYPE_CHECKING:
    import tensorflow as tf

EVALUATED_AT_ONCE = 4
"""How many batches are evaluated at once, at most; together they hold `data.EVALUATION_BATCH` images."""

AMBIENT = {
    "KERAS_BACKEND": "tensorflow",
    "TF_ENABLE_ONEDNN_OPTS": None,
    "TF_DETERMINISTIC_OPS": None,
    "TF_CUDNN_DETERMINISTIC": None,
    "TF_USE_LEGACY_KERAS": None,
    "XLA_FLAGS": None,
    "TF_XLA_FLAGS": None,
}
"""Environment variables that would change results: what they are set to, or None to unset them."""


def start(deterministic: bool = True, threads: int | None = None) -> ModuleType:
    """Import TensorFlow and Keras and set them up; to be called before anything else imports them.

    What decides results is set here, whatever the environment and the user's keras.json say. On a CPU one thread
    computes an operation: maps of 32 pixels do not scale over threads, and what one thread computes does not depend on
    the number of cores.

    Args:
        deterministic: use only operations that give the same bits each time; Keras refuses XLA then.
        threads: how many operations may be computed at once on a CPU, by default `cores.threads()`.

    Returns:
        the `tensorflow` module.
    """
    for name, value in AMBIENT.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    with stderr_held():
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
    with _no_keras_json():
        import keras
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
    keras.config.set_epsilon(1e-7)
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if not gpus:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(threads or cores.threads())
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    return tf


def evaluation_threads() -> int:
    """How many batches of one evaluation are computed at once, each by one thread.

    Other runs do not count: the last one is evaluated when the others have ended.
    """
    return min(cores.count(), EVALUATED_AT_ONCE)


def strategy(devices: Sequence[str] = ()) -> "tf.distribute.Strategy":
    """How one run is spread over `devices`, by default all GPUs: copies in step (`MirroredStrategy`) for two or more.

    `train.batch_size` stays the size of the whole batch. Each device takes its share, and batch normalization its
    statistics over that share, unless `train.synchronize_batch_norm`.
    """
    import tensorflow as tf

    devices = devices or [gpu.name for gpu in tf.config.list_logical_devices("GPU")]
    return tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else tf.distribute.get_strategy()


def import_tfds() -> ModuleType:
    """Import TensorFlow Datasets, as quietly."""
    with stderr_held():
        import tensorflow as tf
        import tensorflow_datasets as tfds
        from absl import logging

        logging.set_verbosity(logging.ERROR)  # it warns of folders that a build of its own makes beside
        tf.config.set_visible_devices([], "GPU")
    return tfds


@contextlib.contextmanager
def _no_keras_json() -> Iterator[None]:
    """Let Keras find no keras.json: one with another backend or a typo would end the import."""
    before = os.environ.get("KERAS_HOME")
    with tempfile.TemporaryDirectory() as empty:
        os.environ["KERAS_HOME"] = empty
        try:
            yield
        finally:
            if before is None:
                del os.environ["KERAS_HOME"]
            else:
                os.environ["KERAS_HOME"] = before


@contextlib.contextmanager
def stderr_held() -> Iterator[None]:
    """Hold back what C++ writes to stderr while TensorFlow loads: a dozen lines that concern nobody.

    No log level silences them; they are written before logging is set up. They are shown if an error follows.
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
