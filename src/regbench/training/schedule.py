"""The learning rate by step."""

import keras
import numpy as np
import tensorflow as tf

from regbench import params


@keras.saving.register_keras_serializable(package="regbench")
class LearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """Rises over the warm-up, stays constant or follows a cosine to 0, and falls to 0 over the cool-down.

    If the cool-down overlaps the warm-up or the cosine, the lower rate counts. The rate is constant after the
    last step.

    Args:
        peak: the highest rate.
        total_steps: number of steps of the whole training.
        warmup_steps: number of steps over which the rate rises from 0.
        cooldown_steps: number of steps at the end over which it falls to 0.
        cosine: whether it follows a cosine from the end of the warm-up to the last step.
    """

    def __init__(
        self, peak: float, total_steps: int, warmup_steps: int = 0, cooldown_steps: int = 0, cosine: bool = False
    ):
        self.peak, self.total_steps, self.cosine = peak, total_steps, cosine
        self.warmup_steps, self.cooldown_steps = warmup_steps, cooldown_steps

    @classmethod
    def of(cls, options: params.Train, steps: int) -> "LearningRate":
        """The schedule that `train:` in params asks for; `steps` is the number of steps per epoch."""
        return cls(
            options.learning_rate,
            options.epochs * steps,
            options.warmup_epochs * steps,
            options.cooldown_epochs * steps,
            options.schedule == "cosine",
        )

    def __call__(self, step: tf.Tensor | int) -> tf.Tensor:
        step = tf.minimum(tf.cast(step, tf.float32), self.total_steps)
        share = tf.ones([])
        if self.cosine:
            length = max(1, self.total_steps - self.warmup_steps)
            share = 0.5 * (1.0 + tf.cos(np.pi * (step - self.warmup_steps) / length))
        if self.warmup_steps:
            share = tf.where(step < self.warmup_steps, (step + 1.0) / self.warmup_steps, share)
        if self.cooldown_steps:
            share = tf.minimum(share, (self.total_steps - step) / self.cooldown_steps)
        return self.peak * share

    def get_config(self) -> dict:
        keys = ("peak", "total_steps", "warmup_steps", "cooldown_steps", "cosine")
        return {key: getattr(self, key) for key in keys}
