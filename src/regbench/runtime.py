"""Start TensorFlow, quietly, and so that a run gives the same bits each time."""

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
"""The maximum number of batches evaluated at once; together they hold `data.EVALUATION_BATCH` images."""

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
"""{environment variable that would change results: the value to set, or None to unset it}."""


XLA = ("--xla_gpu_enable_triton_gemm=false",)
"""Use cuBLAS for matrix products. With XLA's Triton kernels a step took 187 ms, not 22 ms (224 px, batch 64, H200)."""

XLA_DETERMINISTIC = ("--xla_gpu_autotune_level=0", "--xla_gpu_deterministic_ops=true")
"""Switch autotuning off: another algorithm could be the fastest next time, and give other bits."""


def start(deterministic: bool = True, jit: bool = False, threads: int | None = None) -> ModuleType:
    """Import TensorFlow and Keras and set them up. Call this before anything else imports them.

    Everything that results depend on is set here, whatever the environment and the user's keras.json say. On a CPU each
    operation is computed by one thread: more threads do not help with 32-pixel maps, and the result of one thread does
    not depend on the number of cores.

    Args:
        deterministic: use only operations that give the same bits each time.
        jit: prepare for compilation by XLA, which keeps its compiled programs in `COMPILED`.
        threads: how many operations may be computed at once on a CPU; None: `cores.threads()`.

    Returns:
        the `tensorflow` module.
    """
    # The location of CUDA is kept: it changes no result.
    cuda = re.findall(r"--xla_gpu_cuda_data_dir=\S+", os.environ.get("XLA_FLAGS", ""))
    for name, value in AMBIENT.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    if jit:
        flags = " ".join([*XLA, *(XLA_DETERMINISTIC if deterministic else ())])
        os.environ["XLA_FLAGS"] = " ".join([*cuda, flags])
        if deterministic:  # for operations that XLA does not compile
            os.environ |= {"TF_CUDNN_DETERMINISTIC": "1", "TF_CUDNN_USE_AUTOTUNE": "0"}
        # One folder for each version and flags: TensorFlow would also reuse a program that others had made.
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
    # With XLA, XLA's own flag is enough; TensorFlow's determinism would refuse some operations under XLA. On several
    # GPUs a step is not compiled.
    if deterministic and not (jit and len(gpus) < 2):
        tf.config.experimental.enable_op_determinism()
    return tf


def evaluation_threads() -> int:
    """How many batches of one evaluation are computed at once, each by one thread.

    The number of other runs does not matter here: when the last run is evaluated, the others have ended.
    """
    return min(cores.count(), EVALUATED_AT_ONCE)


def strategy(devices: Sequence[str] = ()) -> "tf.distribute.Strategy":
    """How one run is spread over `devices`, by default all GPUs: copies in step (`MirroredStrategy`) for two or more.

    `train.batch_size` stays the size of the whole batch. Each device gets a share of it. Batch normalization computes
    its statistics over that share, unless `train.synchronize_batch_norm` is true.
    """
    import tensorflow as tf

    devices = devices or [gpu.name for gpu in tf.config.list_logical_devices("GPU")]
    return tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else tf.distribute.get_strategy()


def import_tfds() -> ModuleType:
    """Import TensorFlow Datasets, also quietly, and hide all GPUs from TensorFlow."""
    with stderr_held():
        import tensorflow as tf
        import tensorflow_datasets as tfds
        from absl import logging

        logging.set_verbosity(logging.ERROR)  # TFDS warns about folders that it creates itself while it prepares
        tf.config.set_visible_devices([], "GPU")
    return tfds


@contextlib.contextmanager
def _not_collecting() -> Iterator[None]:
    """Switch Python's garbage collector off during some imports. Later collections ignore the objects created so far.

    Otherwise it would take 20 % of the time of these imports.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


@contextlib.contextmanager
def _no_keras_json() -> Iterator[None]:
    """Hide the user's keras.json from Keras: one with another backend or a typo would make the import fail."""
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
    """Whether this machine seems to have an NVIDIA GPU that is not hidden from this process."""
    driver = any(Path(path).exists() for path in ("/dev/nvidia0", "/proc/driver/nvidia"))
    return not cores.gpus_hidden() and (driver or shutil.which("nvidia-smi") is not None)


def _why_no_gpu(held: str) -> str:
    """The message if TensorFlow can't use a GPU: the reasons among the lines it wrote, and the consequence."""
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
    """Hold back what C++ writes to stderr while TensorFlow loads: a dozen lines that are of no use.

    No log level silences them: they are written before logging is set up. They are shown if the block raises an error.
    The `with` statement gives a function that returns what has been held so far.
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
    # Writers share the file offset with this process. Reading to the end puts it back there.
    file.seek(0)
    return file.read()
