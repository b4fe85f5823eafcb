"""Batch normalization's means and variances for the weights at the end of an epoch."""

import keras
import tensorflow as tf

from regbench import data, networks
from regbench.data import arrays
from regbench.networks.layers import BatchNormalization


class PopulationStatistics:
    """Computes batch normalization's averages anew, over training images at fixed weights.

    The moving averages of training are of the last steps' weights, not of these. The faster weights change, the further
    they lag behind: the more a penalty shrinks them, the worse a model looks that is not worse. So after each epoch,
    before validation, the averages are computed anew over `train.batch_norm_images` training images. Training does not
    read them and goes on as it would.

    Y. Wu, J. Johnson, "Rethinking 'Batch' in BatchNorm", 2021 (arXiv 2105.07576).

    Args:
        model: in training, on all devices of its strategy.
        training: the training split.
        plan: of the run.
    """

    def __init__(self, model: keras.Model, training: arrays.Split, plan: dict):
        self.model, self.training, self.plan = model, training, plan
        self.momentum = plan["model"].batch_norm_momentum
        images = min(plan["train"].batch_norm_images, len(training))
        self.batches = -(-images // data.EVALUATION_BATCH)
        self.batch_size = -(-images // max(1, self.batches))
        layers = (getattr(layer, "normalization", layer) for layer in networks.layers_of(model))
        self.layers = [layer for layer in layers if isinstance(layer, BatchNormalization)]
        self.averages = [average for layer in self.layers for average in (layer.moving_mean, layer.moving_variance)]
        self.forward = tf.function(self._forward)
        # What is computed anew after each epoch need not be updated at each of its steps.
        self._keep_averages(not self.batches)

    def _keep_averages(self, keep: bool) -> None:
        for layer in self.layers:
            layer.averages = keep

    def refresh(self, epoch: int) -> None:
        """Compute them from the first batches of this epoch; do nothing where params do not ask for it."""
        if not self.batches or not self.averages:
            return
        for variable in self.averages:
            variable.assign(tf.zeros_like(variable.value))
        batches = arrays.training_batches(
            self.training,
            batch_size=self.batch_size,
            seed=self.plan["seed"],
            flip=self.plan["train"].flip,
            epoch=epoch,
        )
        for images, _ in batches.take(self.batches):
            self.forward(self._shares(images))
        # From zero, k steps of a moving average hold 1 − momentum^k of the mean.
        for variable in self.averages:
            variable.assign(variable.value / (1.0 - self.momentum**self.batches))

    def _forward(self, share: tf.Tensor) -> None:
        self._keep_averages(True)
        self.model.distribute_strategy.run(lambda images: self.model(images, training=True), args=(share,))
        self._keep_averages(False)

    def _shares(self, images: tf.Tensor) -> tf.Tensor:
        """Each replica takes its share of the batch, as in training."""
        strategy = self.model.distribute_strategy
        replicas = strategy.num_replicas_in_sync
        if replicas == 1:
            return images
        return strategy.experimental_distribute_values_from_function(
            lambda context: images[context.replica_id_in_sync_group :: replicas]
        )
