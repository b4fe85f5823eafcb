"""Batch normalization's averages: recomputed for the weights at the end of an epoch, and those of training."""

import keras
import numpy as np
import tensorflow as tf

from regbench import data, networks
from regbench.data import arrays
from regbench.networks import layers


class PopulationStatistics:
    """Recomputes batch normalization's averages over training images, at fixed weights.

    The moving averages of training belong to the weights of the last steps, not to the current weights. The faster
    weights change, the further the averages lag behind. So a penalty that shrinks weights makes a model look worse than
    it is. Therefore, after each epoch and before validation, the averages are recomputed over
    `train.batch_norm_images` training images. Training does not read these averages, so this does not change it.
    Averages that training does read are left alone: those of frozen layers and of batch renormalization.

    Y. Wu, J. Johnson, "Rethinking 'Batch' in BatchNorm", 2021 (arXiv 2105.07576).

    With `train.moving_averages` the moving averages of training are kept as well, as in Keras, and the model is
    validated with both.

    Args:
        model: the model in training, on all devices of its strategy.
        training: the training split.
        validation: the validation split.
        plan: of the run.

    Attributes:
        moving: the moving averages of training at the end of an epoch, while the model has the recomputed ones; empty
            without `train.moving_averages`.
    """

    def __init__(self, model: keras.Model, training: arrays.Split, validation: arrays.Split, plan: dict):
        # Without the layers that act only in training: the statistics are those of the network as it is evaluated.
        self.model, self.training, self.plan = networks.without_noise(model.plain), training, plan
        self.plain = model.plain
        images = min(plan["train"].batch_norm_images, len(training))
        self.batches = -(-images // data.EVALUATION_BATCH)
        self.batch_size = -(-images // max(1, self.batches))
        found = [layer for layer in networks.batch_norms(model.plain) if layer.trainable]
        self.layers = [layer for layer in found if not layer.renorm]
        # A forward pass in training changes these, too.
        self.kept = [weight for layer in found if layer.renorm for weight in layer.non_trainable_weights]
        self.ours = [layer for layer in self.layers if isinstance(layer, layers.BatchNormalization)]
        self.strategy = model.distribute_strategy
        self.forward = tf.function(self._forward)
        self.reading = plan["train"].moving_averages
        self.validation, self.logits = validation, tf.function(self._logits)
        self.moving = [tf.Variable(average.value) for average in self._averages()] if self.reading else []
        # Averages that are recomputed after each epoch need no update in each step.
        self._keep_averages(self.reading or not self.batches)

    def _averages(self) -> list[keras.Variable]:
        return [average for layer in self.layers for average in _averages(layer)]

    def _keep_averages(self, keep: bool) -> None:
        for layer in self.ours:
            layer.averages = keep

    def read_moving(self) -> dict[str, float]:
        """Keep the moving averages of training, and validate with them.

        Returns:
            the columns of history; {} if params do not ask for it
        """
        if not self.reading:
            return {}
        for kept, average in zip(self.moving, self._averages(), strict=True):
            kept.assign(average.value)
        correct, cross_entropy = 0, 0.0
        for images, labels in arrays.evaluation_batches(self.validation):
            logits = self.logits(images)
            correct += int(np.count_nonzero(np.argmax(logits, axis=1) == labels))
            cross_entropy += float(tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)))
        images = len(self.validation)
        return {"val_cross_entropy_moving": cross_entropy / images, "val_accuracy_moving": correct / images}

    def resume_moving(self) -> None:
        """Give the model back the moving averages that training had at the end of the last epoch."""
        if self.reading:
            for kept, average in zip(self.moving, self._averages(), strict=True):
                average.assign(kept.value())

    def refresh(self, epoch: int) -> None:
        """Recompute the averages from the first images of this epoch; do nothing if params do not ask for it."""
        if not self.batches or not self.layers:
            return
        before = {id(average): average.numpy() for average in self._averages()}
        kept = [(weight, weight.numpy()) for weight in self.kept]
        for average in self._averages():
            average.assign(tf.zeros_like(average.value))
        batches = arrays.training_batches(
            self.training,
            batch_size=self.batch_size,
            seed=self.plan["seed"],
            flip=self.plan["train"].flip,
            epoch=epoch,
        )
        for images, _ in batches.take(self.batches):
            self.forward(self._shares(images))
        for layer in self.layers:
            updated = any(average.numpy().any() for average in _averages(layer))
            for average in _averages(layer):
                # From zero, k steps of a moving average hold 1 − momentum^k of the mean. A layer that its network calls
                # with training=False has made no steps.
                share = 1.0 - layer.momentum**self.batches
                average.assign(average.value / share if updated else before[id(average)])
        for weight, value in kept:
            weight.assign(value)

    def _forward(self, share: tf.Tensor) -> None:
        self._keep_averages(True)
        with layers.not_for_xla(networks.layers_of(self.model)):
            self.strategy.run(lambda images: self.model(images, training=True), args=(share,))
        self._keep_averages(self.reading)

    def _logits(self, images: tf.Tensor) -> tf.Tensor:
        with layers.not_for_xla(networks.layers_of(self.plain)):
            return self.plain(images, training=False)

    def _shares(self, images: tf.Tensor) -> tf.Tensor:
        """Each replica takes its share of the batch, as in training."""
        strategy = self.strategy
        replicas = strategy.num_replicas_in_sync
        if replicas == 1:
            return images
        return strategy.experimental_distribute_values_from_function(
            lambda context: images[context.replica_id_in_sync_group :: replicas]
        )


def _averages(layer: keras.layers.BatchNormalization) -> tuple[keras.Variable, keras.Variable]:
    return layer.moving_mean, layer.moving_variance
