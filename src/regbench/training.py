"""One run: build, compile, fit, resume.

A run is a function of code, params, data and seed. After each epoch, and every ten minutes of a long one, its state
goes into a scratch folder whose name is a hash of all four, so that a killed run goes on where it was, and a changed
one never resumes by mistake.
"""

import hashlib
import json
import os
import re
import shutil
import time
import zipfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from regbench import dataset, files, regularizers, runtime
from regbench.layers import BatchNormalization
from regbench.mobilenet import mobilenet_v2

SCRATCH = Path(".regbench/checkpoints")
SAVE_SECONDS = 600
"""How long an epoch may go on before the state is kept in the midst of it."""

LOOK_STEPS = 10
"""Every how many steps the loss is looked at: on a GPU each look waits for the step to end."""

HISTORY = (
    "epoch",
    "loss",
    "cross_entropy",
    "reg_loss",
    "reg_loss_backbone",
    "reg_loss_head",
    "norm_backbone",
    "norm_head",
    "accuracy",
    "val_loss",
    "val_cross_entropy",
    "val_accuracy",
    "seconds",
    "images_per_second",
)


def build(settings, name, image_shape, num_classes):
    """The model as it is trained and saved: uint8 images of the stored size in, logits out.

    Args:
        settings: `params.Params`.
        name: a key under `reg`.
        image_shape: stored (height, width, channels); resized to `data.image_size` where it differs.
        num_classes: number of logits.
    """
    size = settings.data.image_size
    with tf.variable_creator_scope(_without_name):
        network = mobilenet_v2(
            (size, size, image_shape[-1]),
            num_classes,
            width=settings.model.width,
            batch_norm=settings.model.batch_norm,
            batch_norm_momentum=settings.model.batch_norm_momentum,
            # Of a single device the batch is the whole batch as it is, by a faster way.
            synchronized=settings.train.synchronize_batch_norm
            and tf.distribute.get_strategy().num_replicas_in_sync > 1,
            **regularizers.build(settings.regularizer(name)),
        )
    images = keras.Input(image_shape, dtype="uint8", name="uint8_image")
    x = images
    if tuple(image_shape[:2]) != (size, size):
        x = keras.layers.Resizing(size, size, name="resize")(x)
    x = keras.layers.Rescaling(1 / 127.5, offset=-1, name="scale")(x)
    return Model(images, network(x), name=f"regbench_{name}")


def _without_name(create, **arguments):
    """Make a TensorFlow variable; Keras's, which holds it, has the name.

    TensorFlow compiles the operation that makes a variable anew for each name: half a millisecond, 260 times.
    """
    return create(**arguments | {"name": "variable/"})  # the / keeps TensorFlow from putting the layer's name before


class Model(keras.Model):
    """A `keras.Model` whose `losses` are the penalties by kind, each over all weights, instead of one a weight."""

    @property
    def losses(self):
        return regularizers.penalties(self.trainable_variables)

    def _make_function(self, step_function):
        """Keras makes one `tf.function` of a step and calls it in another: for XLA and for several devices.

        Where it is neither, one will do, and it is ready a fifth of a second sooner.
        """
        nested = super()._make_function(step_function)
        if self.jit_compile or self.run_eagerly:
            return nested
        single = tf.function(lambda iterator: step_function(next(iterator)), autograph=False)
        # Of several devices the iterator is another one.
        return lambda iterator: (single if isinstance(iterator, tf.data.Iterator) else nested)(iterator)


def train(settings, name, seed, data="data", out=None):
    """Train one model; write `model.keras` and `history.csv` into `out`.

    One that diverges ends there: the last row of its history is of that epoch, with nothing but the loss, and all
    its weights are NaN.

    Args:
        settings: `params.Params`.
        name: a key under `reg`.
        seed: sets initial weights, order and flips.
        data: folder that `dataset.prepare` wrote.
        out: folder of the run, `runs/NAME-SEED` by default.
    """
    out = Path(out or f"runs/{name}-{seed}")
    prepared = dataset.load(data, ("train", "validation"))
    training, validation = prepared.splits["train"], prepared.splits["validation"]
    options = settings.train
    steps = -(-len(training) // options.batch_size)

    keras.utils.set_random_seed(seed)
    # Layers are made under the policy and keep it, in the saved model too. Variables are float32 in each.
    keras.config.set_dtype_policy("float32" if options.precision == "float32" else f"mixed_{options.precision}")
    with runtime.strategy().scope():
        model = build(settings, name, training.images.shape[1:], len(prepared.classes))
        compile(model, options, steps)
    checkpoint = Checkpoint(model, SCRATCH / _key(settings, name, seed, prepared))
    history, step = checkpoint.restore()
    statistics = PopulationStatistics(model, training, settings, seed)
    recorder = Recorder(f"{name}-{seed}", history, options.epochs, len(training), checkpoint, statistics)
    terminal = os.isatty(1)
    if terminal and len(history) < options.epochs:
        print(f"{name}-{seed}: {options.epochs - len(history)} epochs of {steps} steps", flush=True)
    # What is left of an epoch that was cut off, then whole epochs.
    parts = [(len(history), step, len(history) + 1)] if step else []
    parts.append((len(history) + len(parts), 0, options.epochs))
    validating = dataset.evaluation_batches(validation)
    if step:  # the metrics to resume are made by their first use
        model.test_on_batch(*next(iter(validating)))
    for first_epoch, first_step, epochs in parts:
        if first_epoch < epochs and not recorder.diverged:
            recorder.first_step = first_step
            model.fit(
                dataset.training_batches(
                    training,
                    batch_size=options.batch_size,
                    seed=seed,
                    flip=options.flip,
                    first_epoch=first_epoch,
                    first_step=first_step,
                    epochs=epochs,
                ),
                initial_epoch=first_epoch,
                epochs=epochs,
                steps_per_epoch=steps - first_step,
                validation_data=validating,
                callbacks=[recorder],
                shuffle=False,
                verbose=1 if terminal else 0,
            )

    if recorder.diverged:
        # Whatever is left of its weights: who loads the model is to see it, and to see the same each time.
        for variable in model.trainable_variables:
            variable.assign(tf.fill(variable.shape, np.float32("nan")))
    out.mkdir(parents=True, exist_ok=True)
    # Without loss and optimizer, which are of no use after the last step.
    save(keras.Model(model.input, model.output, name=model.name), out / "model.keras")
    files.write_csv(out / "history.csv", HISTORY, ([row.get(key, "") for key in HISTORY] for row in history))
    checkpoint.remove()


def save(model, path):
    """Write a model as .keras, the same bytes for the same model.

    Keras notes the date, and numbers objects that are used more than once by their place in memory.
    """
    beside = path.with_name(f"partial.{path.name}")
    keras.saving.save_model(model, path.with_name("partial.keras"))
    with zipfile.ZipFile(path.with_name("partial.keras")) as saved, zipfile.ZipFile(beside, "w") as written:
        for name in sorted(saved.namelist()):
            content = saved.read(name)
            if name == "metadata.json":
                content = json.dumps({"keras_version": keras.__version__}).encode()
            elif name == "config.json":
                places = {}
                content = re.sub(
                    rb'(?<="shared_object_id": )\d+',
                    lambda found, places=places: b"%d" % places.setdefault(found[0], len(places)),
                    content,
                )
            written.writestr(zipfile.ZipInfo(name), content)
    path.with_name("partial.keras").unlink()
    beside.replace(path)


def compile(model, options, steps):
    """Set a model up as `train:` in params says; `steps` is the number of steps an epoch."""
    model.compile(
        optimizer=SGD(LearningRate(options, steps), momentum=options.momentum),
        loss=cross_entropy,
        # Keras's own loss holds the penalty as well, val_loss too.
        metrics=[
            keras.metrics.MeanMetricWrapper(cross_entropy, name="cross_entropy"),
            keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
        ],
        jit_compile=options.jit,
    )


def cross_entropy(labels, logits):
    """Of each image, in nats: int [N], float [N, K] → float [N].

    Equals `keras.losses.SparseCategoricalCrossentropy(from_logits=True)`. TensorFlow's own is not deterministic on a
    GPU; asked for one that is, it picks the label's term by its index, which takes fifty operations and not eight.
    """
    label = tf.one_hot(tf.cast(labels, tf.int32), logits.shape[-1])  # Keras makes floats of labels
    return -tf.reduce_sum(label * tf.nn.log_softmax(logits), axis=-1)


class LearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """Rises over the warm-up, stays constant or follows a cosine to 0, and falls to 0 over the cool-down.

    Where two of them meet, the lower one counts.

    Args:
        options: `params.Train`.
        steps: number of steps an epoch.
    """

    def __init__(self, options, steps):
        self.peak = options.learning_rate
        self.cosine = options.schedule == "cosine"
        self.total = options.epochs * steps
        self.warmup = options.warmup_epochs * steps
        self.cooldown = options.cooldown_epochs * steps

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        share = tf.ones([])
        if self.cosine:
            share = 0.5 * (1.0 + tf.cos(np.pi * (step - self.warmup) / max(1, self.total - self.warmup)))
        if self.warmup:
            share = tf.where(step < self.warmup, (step + 1.0) / self.warmup, share)
        if self.cooldown:
            share = tf.minimum(share, (self.total - step) / self.cooldown)
        return self.peak * share

    def get_config(self):
        return {key: getattr(self, key) for key in ("peak", "cosine", "total", "warmup", "cooldown")}


class SGD(keras.optimizers.SGD):
    """`keras.optimizers.SGD` without Nesterov's momentum, and what regularizers do to a weight before and after.

    A weight is updated by one operation instead of several. One whose `regularizer` is a `regularizers.Regularizer`
    passes through its `before_step` and `after_step`.
    """

    def update_step(self, gradient, variable, learning_rate):
        rate = tf.cast(learning_rate, variable.dtype)
        gradient = tf.cast(gradient, variable.dtype)
        # What arrives is TensorFlow's variable; Keras's, which knows its regularizer, has the same index.
        index = self._get_variable_index(variable)
        regularizer = self._trainable_variables[index].regularizer
        acts = isinstance(regularizer, regularizers.Regularizer)
        if acts and regularizer.acts_before:
            variable.assign(regularizer.before_step(tf.convert_to_tensor(variable), rate))
        if self.momentum:
            velocity = self.momentums[index]
            tf.raw_ops.ResourceApplyKerasMomentum(
                var=variable.handle,
                accum=velocity.value.handle,
                lr=rate,
                grad=gradient,
                momentum=tf.cast(self.momentum, variable.dtype),
            )
        else:
            tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=gradient)
        if acts and regularizer.acts_after:
            variable.assign(regularizer.after_step(tf.convert_to_tensor(variable), rate))

    def _all_reduce_sum_gradients(self, grads_and_vars):
        # Of a single device there is nothing to sum, but Keras makes an operation for each gradient all the same.
        if self._distribution_strategy.num_replicas_in_sync == 1:
            return grads_and_vars
        return super()._all_reduce_sum_gradients(grads_and_vars)


def reg_loss(model):
    """The sum of `model.losses`: what the penalties add to the loss with the weights as they are now."""
    return float(sum(model.losses))


def kernels(model):
    """The layers that have a kernel, from the stem to the head, as (layer, kernel variable)."""
    kinds = keras.layers.Conv2D | keras.layers.DepthwiseConv2D | keras.layers.Dense
    return [(layer, layer.kernel) for layer in _layers(model) if isinstance(layer, kinds)]


def _layers(model):
    """The layers of a model and of the models in it, from the input to the output."""
    for layer in model.layers:
        yield from _layers(layer) if isinstance(layer, keras.Model) else (layer,)


def backbone_and_head(model):
    """Reg loss and norm of the convolutions and of the Dense head: √Σw² of their kernels, batch norm's aside."""
    *backbone, (head, head_kernel) = kernels(model)

    def norm(kernels):
        # Not by NumPy's norm: BLAS sums in an order that depends on its threads.
        return float(np.sqrt(sum(np.square(kernel.numpy(), dtype=np.float64).sum() for kernel in kernels)))

    return {
        "reg_loss_backbone": float(sum(loss for layer, _ in backbone for loss in layer.losses)),
        "reg_loss_head": float(sum(head.losses)),
        "norm_backbone": norm(kernel for _, kernel in backbone),
        "norm_head": norm([head_kernel]),
    }


class Recorder(keras.callbacks.Callback):
    """Writes a row of history an epoch, says it in a line, and keeps the state to resume from.

    `seconds` and `images_per_second` are of the training steps alone, without validation. A loss that is not finite
    ends training: the last row of history is then of that epoch, with nothing but its loss, and `diverged` is true.
    """

    def __init__(self, title, history, epochs, images, checkpoint, statistics):
        super().__init__()
        self.title, self.history, self.epochs, self.images = title, history, epochs, images
        self.checkpoint, self.statistics = checkpoint, statistics
        self.first_step, self.diverged = 0, False

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        before = self.checkpoint.resume_metrics() if self.first_step else 0.0
        self.started = time.perf_counter() - before
        self.saved = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        now, step = time.perf_counter(), self.first_step + batch + 1
        if step % LOOK_STEPS == 0 and not np.isfinite(logs["loss"]):
            self._diverge(logs["loss"])
        elif now - self.saved > SAVE_SECONDS:
            self.checkpoint.save(self.history, step, now - self.started)
            self.saved = now

    def on_test_begin(self, logs=None):
        self.seconds = time.perf_counter() - self.started
        if not self.diverged:
            self.statistics.refresh(self.epoch)

    def on_epoch_end(self, epoch, logs=None):
        self.first_step = 0
        if self.diverged:
            return
        row = {key: float(logs[key]) for key in HISTORY if key in logs}
        row["reg_loss"] = reg_loss(self.model)
        if not np.isfinite(row["loss"] + row["reg_loss"]):
            self._diverge(row["loss"] + row["reg_loss"])
            return
        row["epoch"] = epoch + 1
        row |= backbone_and_head(self.model)
        row["seconds"] = round(self.seconds, 3)
        row["images_per_second"] = round(self.images / self.seconds, 1)
        self.history.append({key: row[key] for key in HISTORY})
        if not os.isatty(1):
            print(
                f"{self.title} epoch {epoch + 1}/{self.epochs}: cross-entropy {row['cross_entropy']:.4f}, "
                f"reg loss {row['reg_loss']:.4f}, accuracy {row['accuracy']:.1%}; "
                f"validation cross-entropy {row['val_cross_entropy']:.4f}, accuracy {row['val_accuracy']:.1%}; "
                f"{self.seconds:.1f} s, {row['images_per_second']:.0f} images/s",
                flush=True,
            )
        self.checkpoint.save(self.history)

    def _diverge(self, loss):
        self.diverged = self.model.stop_training = True
        self.history.append({"epoch": self.epoch + 1, "loss": float(loss)})
        print(
            f"{self.title} diverged: its loss was {float(loss)} in epoch {self.epoch + 1}; "
            "lower train.learning_rate or the strength of the regularizer",
            flush=True,
        )


class PopulationStatistics:
    """Batch normalization's means and variances for the weights as they are at the end of an epoch.

    The moving averages of training are of the last steps' weights, not of these, and lag behind the faster the
    weights change: the more a penalty shrinks them, the worse a model looks that is not worse. So after each epoch,
    before validation, they are averaged anew over `train.batch_norm_images` training images at fixed weights.
    Training does not read them and goes on as it would.

    Y. Wu, J. Johnson, "Rethinking 'Batch' in BatchNorm", 2021 (arXiv 2105.07576).
    """

    def __init__(self, model, training, settings, seed):
        self.model, self.training, self.seed, self.options = model, training, seed, settings.train
        self.momentum = settings.model.batch_norm_momentum
        images = min(self.options.batch_norm_images, len(training))
        self.batches = -(-images // dataset.EVALUATION_BATCH)
        self.batch_size = -(-images // max(1, self.batches))
        layers = (getattr(layer, "normalization", layer) for layer in _layers(model))
        self.layers = [layer for layer in layers if isinstance(layer, BatchNormalization)]
        self.averages = [average for layer in self.layers for average in (layer.moving_mean, layer.moving_variance)]
        self.forward = tf.function(self._forward)
        # What is averaged anew after each epoch need not be kept up at each of its steps.
        self._keep_averages(not self.batches)

    def _keep_averages(self, keep):
        for layer in self.layers:
            layer.averages = keep

    def refresh(self, epoch):
        """Take them from the first batches of this epoch; nothing where that is not asked for."""
        if not self.batches or not self.averages:
            return
        for variable in self.averages:
            variable.assign(tf.zeros_like(variable.value))
        batches = dataset.training_batches(
            self.training,
            batch_size=self.batch_size,
            seed=self.seed,
            flip=self.options.flip,
            first_epoch=epoch,
            epochs=epoch + 1,
        )
        for images, _ in batches.take(self.batches):
            self.forward(self._shares(images))
        # From zero, k steps of a moving average hold 1 − momentum^k of the mean.
        for variable in self.averages:
            variable.assign(variable.value / (1.0 - self.momentum**self.batches))

    def _forward(self, share):
        self._keep_averages(True)
        self.model.distribute_strategy.run(lambda images: self.model(images, training=True), args=(share,))
        self._keep_averages(False)

    def _shares(self, images):
        """Each replica takes its share of the batch, as in training."""
        strategy = self.model.distribute_strategy
        replicas = strategy.num_replicas_in_sync
        if replicas == 1:
            return images
        return strategy.experimental_distribute_values_from_function(
            lambda context: images[context.replica_id_in_sync_group :: replicas]
        )


class Checkpoint:
    """The state of a run: weights, optimizer, history, and in the midst of an epoch its metrics so far.

    The last two states are kept, one file each, `EPOCHS-STEPS.npz`: whole epochs, and steps since. Should the last
    one be damaged, the run goes on from the one before.
    """

    def __init__(self, model, folder):
        self.model, self.folder = model, Path(folder)
        self.metrics, self.seconds = [], 0.0

    def _variables(self):
        self.model.optimizer.build(self.model.trainable_variables)
        return [*self.model.variables, *self.model.optimizer.variables]

    def save(self, history, step=0, seconds=0.0):
        """Keep the state after `step` steps of an epoch, which took `seconds`; 0 steps: after a whole epoch."""
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = {f"{index:04d}": variable.numpy() for index, variable in enumerate(self._variables())}
        if step:
            # Flat, since a metric's state is a handful of numbers.
            arrays["metrics"] = np.array([variable.numpy() for variable in self.model.metrics_variables], np.float64)
        beside = self.folder / "partial.npz"
        np.savez(beside, state=json.dumps({"history": history, "step": step, "seconds": seconds}), **arrays)
        beside.replace(self.folder / f"{len(history):06d}-{step:09d}.npz")
        for old in self._saved()[2:]:
            old.unlink()

    def _saved(self):
        """The files of states, the latest first."""
        return sorted(self.folder.glob("*-*.npz"), reverse=True)

    def restore(self):
        """Load the latest whole state, if there is one.

        Returns:
            (history so far, how many steps of the next epoch are done)
        """
        for path in self._saved():
            try:
                with np.load(path, allow_pickle=False) as file:
                    arrays = dict(file)
                state = json.loads(str(arrays["state"]))
                values = [arrays[f"{index:04d}"] for index in range(len(self._variables()))]
            except Exception as error:  # whatever zipfile and NumPy make of a damaged file
                print(f"{path} is damaged ({error}); going on without it", flush=True)
                path.unlink()
                continue
            for variable, value in zip(self._variables(), values, strict=True):
                variable.assign(value)
            self.metrics, self.seconds = arrays.get("metrics", []), state["seconds"]
            within = f" and {state['step']} steps" if state["step"] else ""
            print(f"resuming after epoch {len(state['history'])}{within}", flush=True)
            return state["history"], state["step"]
        return [], 0

    def resume_metrics(self):
        """Let the metrics go on where they were in the midst of the epoch; the seconds that it took until then."""
        for variable, value in zip(self.model.metrics_variables, self.metrics, strict=True):
            variable.assign(value)
        return self.seconds

    def remove(self):
        shutil.rmtree(self.folder, ignore_errors=True)


def _key(settings, name, seed, prepared):
    """A hash of all that a run is a function of."""
    digest = hashlib.sha256(keras.__version__.encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    chosen = settings.model_dump(mode="json", include={"data", "model", "train"})
    del chosen["train"]["seeds"]
    line = settings.regularizer(name)
    chosen |= {"reg": line.strengths, "scope": line.scope}
    chosen |= {"name": name, "seed": seed, "data_sha256": prepared.info["sha256"]}
    digest.update(json.dumps(chosen, sort_keys=True).encode())
    return f"{name}-{seed}-{digest.hexdigest()[:16]}"
