"""One run: build, compile, fit, resume.

A run is a function of code, params, data and seed. After each epoch its state goes into a scratch folder whose
name is a hash of all four, so that a killed run goes on where it was, and a changed one never resumes by mistake.
"""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from regbench import dataset, files, regularizers, runtime
from regbench.errors import UserError
from regbench.mobilenet import mobilenet_v2

SCRATCH = Path(".regbench/checkpoints")
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
    network = mobilenet_v2(
        (size, size, image_shape[-1]),
        num_classes,
        width=settings.model.width,
        batch_norm=settings.model.batch_norm,
        batch_norm_momentum=settings.model.batch_norm_momentum,
        **regularizers.build(settings.regularizer(name)),
    )
    images = keras.Input(image_shape, dtype="uint8", name="uint8_image")
    x = images
    if tuple(image_shape[:2]) != (size, size):
        x = keras.layers.Resizing(size, size, name="resize")(x)
    x = keras.layers.Rescaling(1 / 127.5, offset=-1, name="scale")(x)
    return keras.Model(images, network(x), name=f"regbench_{name}")


def train(settings, name, seed, data="data", out=None):
    """Train one model; write `model.keras` and `history.csv` into `out`.

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
    history = checkpoint.restore()
    statistics = PopulationStatistics(model, training, settings, seed)
    recorder = Recorder(f"{name}-{seed}", history, options.epochs, len(training), checkpoint, statistics)
    if len(history) < options.epochs:
        terminal = os.isatty(1)
        if terminal:
            print(f"{name}-{seed}: {options.epochs - len(history)} epochs of {steps} steps", flush=True)
        model.fit(
            dataset.training_batches(
                training,
                batch_size=options.batch_size,
                seed=seed,
                flip=options.flip,
                first_epoch=len(history),
                epochs=options.epochs,
            ),
            initial_epoch=len(history),
            epochs=options.epochs,
            steps_per_epoch=steps,
            validation_data=dataset.evaluation_batches(validation),
            callbacks=[recorder],
            shuffle=False,
            verbose=1 if terminal else 0,
        )

    out.mkdir(parents=True, exist_ok=True)
    beside = out / "partial.keras"
    # Without loss and optimizer, which are of no use after the last step.
    keras.saving.save_model(keras.Model(model.input, model.output, name=model.name), beside)
    beside.replace(out / "model.keras")
    files.write_csv(out / "history.csv", HISTORY, ([row[key] for key in HISTORY] for row in history))
    checkpoint.remove()


def compile(model, options, steps):
    """Set a model up as `train:` in params says; `steps` is the number of steps an epoch."""
    model.compile(
        optimizer=SGD(LearningRate(options, steps), momentum=options.momentum),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        # Keras's own loss holds the penalty as well, val_loss too.
        metrics=[
            keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="cross_entropy"),
            keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
        ],
        jit_compile=options.jit,
    )


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


def reg_loss(model):
    """The sum of `model.losses`: what the penalties add to the loss with the weights as they are now."""
    return float(sum(model.losses))


def kernels(model):
    """The layers that have a kernel, from the stem to the head, as (layer, kernel variable)."""
    found = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found += kernels(layer)
        elif isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D | keras.layers.Dense):
            found.append((layer, layer.kernel))
    return found


def backbone_and_head(model):
    """Reg loss and norm of the convolutions and of the Dense head: √Σw² of their kernels, batch norm's aside."""
    *backbone, (head, head_kernel) = kernels(model)
    return {
        "reg_loss_backbone": float(sum(loss for layer, _ in backbone for loss in layer.losses)),
        "reg_loss_head": float(sum(head.losses)),
        "norm_backbone": float(
            np.sqrt(sum(np.square(kernel.numpy(), dtype=np.float64).sum() for _, kernel in backbone))
        ),
        "norm_head": float(np.linalg.norm(head_kernel.numpy().astype(np.float64))),
    }


class Recorder(keras.callbacks.Callback):
    """Writes a row of history an epoch, says it in a line, and keeps the state to resume from.

    `seconds` and `images_per_second` are of the training steps alone, without validation.
    """

    def __init__(self, title, history, epochs, images, checkpoint, statistics):
        super().__init__()
        self.title, self.history, self.epochs, self.images = title, history, epochs, images
        self.checkpoint, self.statistics = checkpoint, statistics

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.started = epoch, time.perf_counter()
        self.seconds = None

    def on_test_begin(self, logs=None):
        self.seconds = time.perf_counter() - self.started
        self.statistics.refresh(self.epoch)

    def on_epoch_end(self, epoch, logs=None):
        row = {key: float(logs[key]) for key in HISTORY if key in logs}
        if not np.isfinite(row["loss"]):
            raise UserError(
                f"{self.title} diverged: its loss was {row['loss']} in epoch {epoch + 1}; lower train.learning_rate or "
                "the strength of the regularizer"
            )
        row["epoch"] = epoch + 1
        row["reg_loss"] = reg_loss(self.model)
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
        self.batches = -(-min(self.options.batch_norm_images, len(training)) // self.options.batch_size)
        self.averages = [
            variable for variable in model.variables if variable.path.endswith(("moving_mean", "moving_variance"))
        ]

        strategy = model.distribute_strategy
        replicas = strategy.num_replicas_in_sync
        run = tf.function(lambda share: strategy.run(lambda images: model(images, training=True), args=(share,)))

        def forward(images):
            """Each replica takes its share of the batch, as in training."""
            if replicas == 1:
                return run(images)
            return run(
                strategy.experimental_distribute_values_from_function(
                    lambda context: images[context.replica_id_in_sync_group :: replicas]
                )
            )

        self.forward = forward

    def refresh(self, epoch):
        """Take them from the first batches of this epoch; nothing where that is not asked for."""
        if not self.batches or not self.averages:
            return
        for variable in self.averages:
            variable.assign(tf.zeros_like(variable.value))
        batches = dataset.training_batches(
            self.training,
            batch_size=self.options.batch_size,
            seed=self.seed,
            flip=self.options.flip,
            first_epoch=epoch,
            epochs=epoch + 1,
        )
        for images, _ in batches.take(self.batches):
            self.forward(images)
        # From zero, k steps of a moving average hold 1 − momentum^k of the mean.
        for variable in self.averages:
            variable.assign(variable.value / (1.0 - self.momentum**self.batches))


class Checkpoint:
    """The state after the last whole epoch: weights, optimizer and history in one file."""

    def __init__(self, model, folder):
        self.model, self.folder = model, Path(folder)
        self.path = self.folder / "epoch.npz"

    def _variables(self):
        self.model.optimizer.build(self.model.trainable_variables)
        return [*self.model.variables, *self.model.optimizer.variables]

    def save(self, history):
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = {f"{index:04d}": variable.numpy() for index, variable in enumerate(self._variables())}
        beside = self.folder / "partial.npz"
        np.savez(beside, history=json.dumps(history), **arrays)
        beside.replace(self.path)

    def restore(self):
        """Load the state if there is one; the history so far."""
        if not self.path.exists():
            return []
        with np.load(self.path, allow_pickle=False) as arrays:
            for index, variable in enumerate(self._variables()):
                variable.assign(arrays[f"{index:04d}"])
            history = json.loads(str(arrays["history"]))
        print(f"resuming after epoch {len(history)}", flush=True)
        return history

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
