"""One measurement in a process of its own; prints JSON. `benchmarks/bench.py` calls it.

python benchmarks/measure.py article|regbench|pytorch PREPARED SIZE BATCH TRAIN VALIDATION [EPOCHS [TRICK]]
python benchmarks/measure.py pipeline|limit|agreement PREPARED SIZE BATCH TRAIN VALIDATION
"""

import collections
import contextlib
import dataclasses
import itertools
import json
import os
import re
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

STARTED = float(os.environ.get("STARTED", time.time()))
NAME = "l2"


def plan_of(size, batch, train_images, epochs, **options):
    """The plan of a run of the committed params at another size.

    Batch normalization's averages are recomputed from the same share of the training images.
    """
    from regbench import params, plan

    loaded = params.load(ROOT / "params.yaml")
    # `data.train_images` may be None, for all images; then `batch_norm_images` stays as it is.
    averaged = loaded.train.batch_norm_images * train_images // (loaded.data.train_images or train_images)
    options |= {"batch_size": batch, "epochs": epochs, "batch_norm_images": averaged}
    train = loaded.train.model_copy(update=options)
    data = loaded.data.model_copy(update={"image_size": size})
    chosen = loaded.model_copy(update={"train": train, "data": data, "seeds": (0,)})
    return plan.parse(plan.compute(chosen)[f"{NAME}-0/train.json"])


def timed(callback):
    """A Keras callback class derived from `callback` that notes the times of the last epoch and its steps."""

    class Timed(callback):
        first_step = None

        def on_epoch_begin(self, epoch, logs=None):
            self.steps, self.epoch_begun = [], time.perf_counter()
            super().on_epoch_begin(epoch, logs)

        def on_train_batch_end(self, batch, logs=None):
            # With XLA one call runs several steps.
            self.steps.append((time.perf_counter(), batch + 1))
            if Timed.first_step is None:
                Timed.first_step = time.time() - STARTED

        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            Timed.epoch_seconds = time.perf_counter() - self.epoch_begun
            Timed.step_ms = 1000 * statistics.median(
                (after - before) / (last - first) for (before, first), (after, last) in itertools.pairwise(self.steps)
            )

    return Timed


def result(times):
    return {
        "step_ms": times.step_ms,
        "epoch_seconds": times.epoch_seconds,
        "first_step_seconds": times.first_step,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def article_way(data, size, batch, train, validation, epochs=2):
    import article
    import keras

    times = timed(keras.callbacks.Callback)
    options = {"train_images": train, "validation_images": validation}
    article.fit(plan_of(size, batch, train, epochs), data, [times()], **options)
    return result(times)


def regbench_way(data, size, batch, train, validation, epochs=2, without=None):
    """One training; `without` names a trick of `ablation.TRICKS` to switch off; None and other names: none."""
    import ablation

    from regbench import live, runtime

    ablation.before_start(without)
    runtime.start()
    ablation.after_start(without)
    from regbench.training import checkpoint, fit, history

    limit(train, validation)
    history.Recorder = times = timed(history.Recorder)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.FOLDER = Path(folder) / "checkpoints"
        live.LOG = Path(folder) / "log"
        fit.train(plan_of(size, batch, train, epochs), Path(data), Path(folder) / "run")
    return result(times)


def limit(train, validation):
    """Make `arrays.load` return only the first images of each split."""
    from regbench.data import arrays

    load, sizes = arrays.load, {"train": train, "validation": validation}

    def load_some(split, folder):
        whole = load(split, folder)
        return dataclasses.replace(whole, images=whole.images[: sizes[split]], labels=whole.labels[: sizes[split]])

    arrays.load = load_some


def pytorch(data, size, batch, train, validation):
    times = [time.perf_counter()]
    for _ in pytorch_steps(data, size, batch, min(60, train // batch)):
        times.append(time.perf_counter())
    return {"step_ms": 1000 * median_step(times[4:])}


def pytorch_steps(data, size, batch, count):
    """A generator that trains PyTorch's network for `count` steps on the first images, and yields after each step."""
    import numpy as np
    import torch_network

    images, labels = (np.load(Path(data) / f"train/{part}.npy", mmap_mode="r") for part in ("images", "labels"))
    images, labels = np.array(images[: batch * 8]), np.array(labels[: batch * 8])
    if images.shape[1] != size:
        images = images.repeat(-(-size // images.shape[1]), 1).repeat(-(-size // images.shape[2]), 2)
        images = images[:, :size, :size]
    return torch_network.steps(images, labels, batch, count, 0.001)


def pipeline(data, size, batch, train, validation):
    """Images per second of reading, ordering and flipping alone."""
    from regbench import runtime

    runtime.start()
    from regbench.data import arrays

    limit(train, validation)
    split = arrays.load("train", Path(data))
    rates = []
    for epoch in range(5):
        started = time.perf_counter()
        batches = arrays.training_batches(split, batch_size=batch, seed=0, flip=True, epoch=epoch)
        images = sum(len(labels) for _, labels in batches)
        rates.append(images / (time.perf_counter() - started))
    return {"images_per_second": round(statistics.median(rates)), "n": len(rates)}


def spread(values):
    """{"median", "low", "high", "n"} of some numbers."""
    return {
        "median": round(statistics.median(values), 4),
        "low": round(min(values), 4),
        "high": round(max(values), 4),
        "n": len(values),
    }


def median_step(times):
    """Median seconds from one of these times to the next."""
    return statistics.median(after - before for before, after in itertools.pairwise(times))


def median_seconds(call, n):
    call()
    times = []
    for _ in range(n):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


GROUPS = {
    "matrix products": ("MatMul",),
    "batch normalization": ("BatchNorm",),
    "depthwise convolutions": ("Depthwise",),
    "stem convolution": ("Conv2D",),
    "activations": ("Relu", "BiasAdd"),
    "update of weights": ("ResourceApply",),
}


def fraction_of_the_limit(data, size, batch, train, validation):
    """Arithmetic of a training step, one core's rate of matrix products, and which operations take the time."""
    from regbench import cores, runtime

    # With a share of one core, operations run one after another, so that their times add up.
    os.environ["REGBENCH_RUNS"] = str(cores.count())
    tf = runtime.start()
    import keras

    from regbench import networks
    from regbench.training import model

    tf.random.set_seed(0)
    square = tf.random.normal([1024, 1024])
    rate = 2 * 1024**3 / median_seconds(lambda: tf.matmul(square, square).numpy(), 30)
    plan = plan_of(size, batch, train, 1)
    built = model.build(plan, (32, 32, 3), 10)
    model.compile(built, plan["train"], 100)
    products = 0
    for layer, kernel in networks.kernels(built):
        shape = layer.output.shape
        products += kernel.numpy().size * (shape[1] * shape[2] if len(shape) == 4 else 1)
    # 2: a product and a sum. 3: the forward pass, the gradient for inputs and the gradient for weights cost the same.
    operations = 2 * 3 * products

    batches = tf.data.Dataset.from_tensors(
        (tf.zeros([batch, 32, 32, 3], tf.uint8), tf.range(batch, dtype=tf.int64) % 10)
    ).repeat()
    times, traced = [], 10

    class Profile(keras.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            times.append(time.perf_counter())
            if step == 60:
                tf.profiler.experimental.start(folder)
            if step == 60 + traced:
                tf.profiler.experimental.stop()

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        built.fit(batches, steps_per_epoch=60 + traced + 2, verbose=0, callbacks=[Profile()])
        by_group = op_times(next(Path(folder).rglob("*.xplane.pb")))
    step, total = median_step(times[10:60]), sum(by_group.values())
    return {
        "gflop_per_image": round(operations / 1e9, 4),
        "matrix_product_gflops": round(rate / 1e9, 1),
        "step_ms": round(1000 * step, 2),
        "gflops_reached": round(operations * batch / step / 1e9, 1),
        "fraction_of_limit": round(operations * batch / step / rate, 3),
        "share_of_operations_time": {group: round(seconds / total, 3) for group, seconds in by_group.items()},
    }


def op_times(trace):
    """Seconds by group of operation, in a trace of TensorFlow's profiler on one thread."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace()
    space.ParseFromString(trace.read_bytes())
    seconds = collections.Counter()
    for plane in space.planes:
        if "CPU" not in plane.name:
            continue
        for line in plane.lines:
            for event in line.events:
                name = plane.event_metadata[event.metadata_id].name
                # Named "node:operation". A function call is left out: its time is the sum of the operations in it.
                if re.fullmatch(r"[^:\s]+:\w+", name) and not name.endswith("PartitionedCall"):
                    operation = name.rsplit(":", 1)[1]
                    groups = (group for group, keys in GROUPS.items() if any(key in operation for key in keys))
                    seconds[next(groups, "other")] += event.duration_ps / 1e12
    return dict(seconds.most_common())


def agreement(data, size, batch, train, validation):
    """How far our weights are from the article's after some steps, and how far the article's are from themselves.

    The second distance is the control: the article's network once more, with its first kernel moved by one unit in the
    last place. Training amplifies any difference in rounding. Our distance should be about as large as the control's.
    """
    from regbench import runtime

    runtime.start()
    import article
    import keras
    import numpy as np

    from regbench import params, regularizers
    from regbench.data import arrays
    from regbench.networks import mobilenet_v2

    limit(train, validation)
    split = arrays.load("train", Path(data))
    epoch = arrays.training_batches(split, batch_size=batch, seed=0, flip=True, epoch=0)
    networks = {"article": article.network, "regbench": mobilenet_v2.build, "control": article.network}
    models = {}
    for name, network in networks.items():
        keras.utils.set_random_seed(0)
        models[name] = model = network((size, size, 3), 10)
        regularizers.attach(model, params.Regularizer("l2", (params.Term("l2", 0.001, "backbone"),)))
        if name == "control":
            kernel = model.trainable_variables[0]
            kernel.assign(np.nextafter(kernel.numpy(), np.float32(np.inf)))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.01), loss, metrics=["accuracy"])
    apart, losses = {}, {}
    steps = -(-train // batch)
    for step, (images, labels) in enumerate(epoch, start=1):
        images = images.numpy().astype(np.float32) / 127.5 - 1
        for name, model in models.items():
            losses[name] = model.train_on_batch(images, labels)[0]
        if step in (1, 2, 5, 10, 20, 50, 100, 200, steps):
            flat = {
                name: np.concatenate([w.numpy().ravel() for w in model.trainable_variables])
                for name, model in models.items()
            }
            size_of = np.linalg.norm(flat["article"])
            apart[step] = {
                name: float(f"{np.linalg.norm(flat[name] - flat['article']) / size_of:.2g}")
                for name in ("regbench", "control")
            }
    return {"relative_difference": apart, "mean_loss": {name: round(float(x), 4) for name, x in losses.items()}}


WAYS = {
    "article": article_way,
    "regbench": regbench_way,
    "pytorch": pytorch,
    "pipeline": pipeline,
    "limit": fraction_of_the_limit,
    "agreement": agreement,
}

if __name__ == "__main__":
    way, data, *numbers = sys.argv[1:]
    options = {"without": numbers.pop()} if len(numbers) == 6 else {}
    print(json.dumps(WAYS[way](data, *map(int, numbers), **options)))
