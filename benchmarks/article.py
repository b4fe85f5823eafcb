"""The article's way: its network of plain Keras layers, float images resized in a `tf.data` map, `fit`.

Every comparison with the article in this folder uses it, and tests compare regbench's network with it. It uses none of
regbench's layers, and TensorFlow runs with its own defaults, on all cores.

    python benchmarks/article.py l2 0      # one training of params.yaml on prepared/; prints a line for each epoch
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from regbench import params, plan
from regbench.training.schedule import LearningRate

BOTTLENECKS = (
    (16, 24, 2), (24, 24, 1),
    (24, 32, 2), (32, 32, 1), (32, 32, 1),
    (32, 64, 2), (64, 64, 1), (64, 64, 1), (64, 64, 1),
    (64, 96, 1), (96, 96, 1), (96, 96, 1),
    (96, 160, 2), (160, 160, 1), (160, 160, 1),
    (160, 320, 1),
)  # fmt: skip
"""(input channels, output channels, stride) of each bottleneck."""


def network(input_shape, num_classes, regularizer=None, head_regularizer=None, batch_norm_momentum=0.99):
    """The article's MobileNetV2 as the article writes it; float images [N, H, W, C] in, logits [N, num_classes] out."""

    def convolve(x, filters, size=1, stride=1):
        return layers.Conv2D(
            filters, size, strides=stride, padding="same", use_bias=False, kernel_regularizer=regularizer
        )(x)

    def depthwise(x, stride):
        if stride == 2:
            x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
        padding = "valid" if stride == 2 else "same"
        return layers.DepthwiseConv2D(
            3, strides=stride, padding=padding, use_bias=False, depthwise_regularizer=regularizer
        )(x)

    def normalize(x):
        return layers.BatchNormalization(momentum=batch_norm_momentum)(x)

    def activate(x):
        return layers.ReLU(6.0)(normalize(x))

    images = keras.Input(input_shape)
    x = activate(convolve(images, 32, size=3, stride=2))
    x = activate(depthwise(x, 1))
    x = normalize(convolve(x, 16))
    for inputs, outputs, stride in BOTTLENECKS:
        shortcut = x
        x = activate(convolve(x, 6 * inputs))
        x = activate(depthwise(x, stride))
        x = normalize(convolve(x, outputs))
        if stride == 1 and inputs == outputs:
            x = layers.add([shortcut, x])
    x = activate(convolve(x, 1280))
    x = layers.GlobalAveragePooling2D()(x)
    logits = layers.Dense(num_classes, kernel_regularizer=head_regularizer, bias_regularizer=head_regularizer)(x)
    return keras.Model(images, logits)


def penalties(line):
    """Keras's own regularizers for a `params.Regularizer` of the kinds l1 and l2: (backbone, head)."""
    backbone, head = {}, {}
    for term in line.terms:
        backbone[term.kind] = term.strength
        if term.scope == "all":
            head[term.kind] = term.strength
    return [keras.regularizers.L1L2(**strengths) if strengths else None for strengths in (backbone, head)]


def batches(images, labels, size, batch_size, *, training, flip=False):
    """Batches of float images, resized one by one as in image-classification tutorials."""

    def preprocess(image, label):
        image = tf.image.resize(tf.cast(image, tf.float32), (size, size)) / 127.5 - 1.0
        return (tf.image.random_flip_left_right(image) if flip else image), label

    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    if training:
        dataset = dataset.shuffle(len(labels))
    return dataset.map(preprocess, num_parallel_calls=tf.data.AUTOTUNE).batch(batch_size).prefetch(tf.data.AUTOTUNE)


def build(plan, channels, num_classes, steps):
    """The compiled model of a run's plan; `steps` is the number of steps in an epoch."""
    options, size = plan["train"], plan["image_size"]
    momentum = plan["model"].batch_norm_momentum
    model = network((size, size, channels), num_classes, *penalties(plan["regularizer"]), batch_norm_momentum=momentum)
    model.compile(
        # The schedule is the only part of the training from regbench, so that both do the same work.
        optimizer=keras.optimizers.SGD(LearningRate.of(options, steps), momentum=options.momentum),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )
    return model


class RegLoss(keras.callbacks.Callback):
    """The article's callback: the sum of `model.losses` at the end of each epoch."""

    def on_epoch_end(self, epoch, logs=None):
        logs["reg_loss"] = float(sum(self.model.losses))
        print(f"epoch {epoch + 1}: " + ", ".join(f"{key} {value:.4f}" for key, value in logs.items()), flush=True)


def fit(plan, data="prepared", callbacks=(), train_images=None, validation_images=None):
    """Train on the prepared arrays in `data`, read into memory; returns the model."""
    keras.utils.set_random_seed(plan["seed"])
    (images, labels), validation = (
        [np.load(Path(data) / split / f"{part}.npy")[:limit] for part in ("images", "labels")]
        for split, limit in (("train", train_images), ("validation", validation_images))
    )
    options, size = plan["train"], plan["image_size"]
    steps = -(-len(labels) // options.batch_size)
    model = build(plan, images.shape[-1], int(labels.max()) + 1, steps)
    model.fit(
        batches(images, labels, size, options.batch_size, training=True, flip=options.flip),
        validation_data=batches(*validation, size, options.batch_size, training=False),
        epochs=options.epochs,
        verbose=0,
        callbacks=[RegLoss(), *callbacks],
    )
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reg", help="a key under reg: in params.yaml, of the kinds l1 and l2")
    parser.add_argument("seed", type=int)
    parser.add_argument("--batch-size", type=int, help="instead of the one in params.yaml")
    arguments = parser.parse_args()
    plans = plan.compute(params.load())
    chosen = plan.parse(plans[f"{arguments.reg}-{arguments.seed}/train.json"])
    if arguments.batch_size:
        chosen["train"] = chosen["train"].model_copy(update={"batch_size": arguments.batch_size})
    fit(chosen)
