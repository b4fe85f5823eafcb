"""How TensorFlow starts: quietly, and so that a run gives the same bits each time."""

import contextlib
import gc
import hashlib
import importlib.metadata
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO

from regbench import cores

if TYPE_CHECKING:
    import tensorflow as tf

EVALUATED_AT_ONCE = 2
"""How many batches are evaluated at once, at most; together they hold `data.EVALUATION_BATCH` images."""

COMPILED = Path(".regbench/xla")
"""Where XLA keeps compiled programs, so that the next run of a matrix starts sooner."""

AMBIENT = {
    "KERAS_BACKEND": "tensorflow",
    "TF_ENABLE_ONEDNN_OPTS": None,
    "TF_DETERMINISTIC_OPS": None,
    "TF_CUDNN_DETERMINISTIC": None,
    "TF_CUDNN_USE_AUTOTUNE": None,
    "TF_USE_LEGACY_KERAS": None,
    "XLA_FLAGS": None,
    "TF_XLA_FLAGS": None,
}
"""Environment variables that would change results: what they are set to, or None to unset them."""


XLA = ("--xla_gpu_enable_triton_gemm=false",)
"""cuBLAS multiplies matrices. With XLA's own kernels a step took 187 ms, not 22 (224 pixels, batch 64, NVIDIA H200)."""

XLA_DETERMINISTIC = ("--xla_gpu_autotune_level=0", "--xla_gpu_deterministic_ops=true")
"""XLA does not try out which way is fastest: another one could win next time, and give other bits."""


def start(deterministic: bool = True, jit: bool = False, threads: int | None = None) -> ModuleType:
    """Import TensorFlow and Keras and set them up; to be called before anything else imports them.

    What decides results is set here, whatever the environment and the user's keras.json say. On a CPU one thread
    computes an operation: maps of 32 pixels do not scale over threads, and what one thread computes does not depend on
    the number of cores.

    Args:
        deterministic: use only operations that give the same bits each time.
        jit: XLA is going to compile. It keeps what it has compiled in `COMPILED`.
        threads: how many operations may be computed at once on a CPU, by default `cores.threads()`.

    Returns:
        the `tensorflow` module.
    """
    # Where CUDA is changes no result.
    cuda = re.findall(r"--xla_gpu_cuda_data_dir=\S+", os.environ.get("XLA_FLAGS", ""))
    for name, value in AMBIENT.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    if jit:
        flags = " ".join([*XLA, *(XLA_DETERMINISTIC if deterministic else ())])
        os.environ["XLA_FLAGS"] = " ".join([*cuda, flags])
        if deterministic:  # of what XLA does not compile
            os.environ |= {"TF_CUDNN_DETERMINISTIC": "1", "TF_CUDNN_USE_AUTOTUNE": "0"}
        # TensorFlow would find a program again that other flags or another TensorFlow made.
        made_by = f"{importlib.metadata.version('tensorflow')} {flags}"
        folder = COMPILED.resolve() / hashlib.sha256(made_by.encode()).hexdigest()[:8]
        os.environ["TF_XLA_FLAGS"] = f"--tf_xla_persistent_cache_directory={folder}"
        folder.mkdir(parents=True, exist_ok=True)
    with _not_collecting():
        with stderr_held() as held:
            import tensorflow as tf

            gpus = tf.config.list_physical_devices("GPU")
            why = "" if gpus or not _gpu_there() else _why_no_gpu(held())
        print(why, end="", file=sys.stderr, flush=True)
        with _no_keras_json():
            import keras
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
    keras.config.set_epsilon(1e-7)
    for gpu in gpus:
        if limit := cores.gpu_mib():
            tf.config.set_logical_device_configuration(gpu, [tf.config.LogicalDeviceConfiguration(memory_limit=limit)])
        else:
            tf.config.experimental.set_memory_growth(gpu, True)
    if not gpus:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(threads or cores.threads())
    # With XLA its own flag does it; TensorFlow's would refuse operations that it can't vouch for under XLA. A step of
    # several GPUs is not compiled.
    if deterministic and not (jit and len(gpus) < 2):
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
def _not_collecting() -> Iterator[None]:
    """Switch Python's garbage collector off for some imports; afterwards it leaves out what they made.

    Otherwise it would take a fifth of the time of these imports.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


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


def _gpu_there() -> bool:
    """Whether this machine seems to have an NVIDIA GPU, and nobody hides it from this process."""
    driver = any(Path(path).exists() for path in ("/dev/nvidia0", "/proc/driver/nvidia"))
    return not cores.gpus_hidden() and (driver or shutil.which("nvidia-smi") is not None)


def _why_no_gpu(held: str) -> str:
    """What to say where TensorFlow can't use a GPU: its own reasons, of all that it wrote, and what follows."""
    reasons = [
        # 2026-11-26 20:23:11.098088: E external/…/cuda_platform.cc:52] failed call to …
        re.sub(r"^.*?\]\s+", "", line).strip()
        for line in held.splitlines()
        if re.search(r"cuda|cuInit|dlopen|libcu|GPU|NVML|driver", line) and "factory for plugin" not in line
    ]
    return "".join(
        f"{line}\n"
        for line in (
            *(f"TensorFlow: {reason}" for reason in dict.fromkeys(reasons)),
            "TensorFlow can't use the GPU of this machine. The run goes on without it (docs/gpu.md)",
        )
    )


@contextlib.contextmanager
def stderr_held() -> Iterator[Callable[[], str]]:
    """Hold back what C++ writes to stderr while TensorFlow loads: a dozen lines that concern nobody.

    No log level silences them; they are written before logging is set up. They are shown if an error follows. The
    context is a function that returns what has been held so far.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield lambda: _whole(held).decode(errors="replace")
        except BaseException:
            os.write(stderr, _whole(held))
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _whole(file: BinaryIO) -> bytes:
    # Whoever writes shares the file's place with this process, so reading moves it back to the end.
    file.seek(0)
    return file.read()
