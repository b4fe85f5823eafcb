"""The model as it is trained and saved: uint8 images in, logits out."""

import json
import re
import zipfile
from pathlib import Path

import keras
import tensorflow as tf

from regbench import networks, params, regularizers
from regbench.training.optimizer import SGD
from regbench.training.schedule import LearningRate


class Model(keras.Model):
    """A `keras.Model` whose `losses` are its penalties by kind, each over all weights, not one a weight."""

    @property
    def losses(self) -> list[tf.Tensor]:
        return regularizers.penalties(self.trainable_variables)


def build(plan: dict, image_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Build the model of one run, its regularizer attached.

    Args:
        plan: of the run, as `regbench.plan.read` gives it.
        image_shape: stored (height, width, channels); resized to `image_size` where it differs.
        num_classes: number of logits.

    Returns:
        uint8 [N, height, width, channels] → float32 logits [N, num_classes].
    """
    size = plan["image_size"]
    # On a single device the batch is whole already, and a faster operation does.
    synchronized = plan["train"].synchronize_batch_norm and tf.distribute.get_strategy().num_replicas_in_sync > 1
    network = networks.build(plan["model"], (size, size, image_shape[-1]), num_classes, synchronized)
    images = keras.Input(image_shape, dtype="uint8", name="uint8_image")
    x = images
    if tuple(image_shape[:2]) != (size, size):
        x = keras.layers.Resizing(size, size, data_format="channels_last", name="resize")(x)
    x = keras.layers.Rescaling(1 / 127.5, offset=-1, name="scale")(x)
    model = Model(images, network(x), name=f"regbench_{plan['name']}")
    regularizers.attach(model, plan["regularizer"])
    return model


def compile(model: keras.Model, options: params.Train, steps: int) -> None:
    """Set a model up as `train:` in params says; `steps` is the number of steps an epoch."""
    model.compile(
        optimizer=SGD(LearningRate.of(options, steps), momentum=options.momentum),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        # Keras's loss holds the penalty as well, and val_loss too.
        metrics=[
            keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="cross_entropy"),
            keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
        ],
        jit_compile=options.jit,
    )


def reg_loss(model: keras.Model) -> float:
    """What the penalties add to the loss with the weights as they are now: the sum of `model.losses`."""
    return float(sum(model.losses))


def save(model: keras.Model, path: Path) -> None:
    """Write a model as .keras, without loss and optimizer; equal models give equal bytes.

    Keras notes the date, and numbers objects that are used more than once by their place in memory.
    """
    plain = keras.Model(model.input, model.output, name=model.name)
    beside, first = path.with_name(f"partial.{path.name}"), path.with_name("partial.keras")
    keras.saving.save_model(plain, first)
    with zipfile.ZipFile(first) as saved, zipfile.ZipFile(beside, "w") as written:
        for name in sorted(saved.namelist()):
            content = saved.read(name)
            if name == "metadata.json":
                content = json.dumps({"keras_version": keras.__version__}).encode()
            elif name == "config.json":
                places: dict[bytes, int] = {}
                content = re.sub(
                    rb'(?<="shared_object_id": )\d+',
                    lambda found, places=places: b"%d" % places.setdefault(found[0], len(places)),
                    content,
                )
            written.writestr(zipfile.ZipInfo(name), content)
    first.unlink()
    beside.replace(path)
