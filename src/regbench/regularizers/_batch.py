"""Code that the kinds that act on a batch of images share."""

import keras
import tensorflow as tf

Batch = dict[str, tf.Tensor]
"""{"images": float32 [B, H, W, C] from 0 to 255, "labels": float32 [B, K]}"""


class Layer(keras.layers.Layer):
    """A Keras layer that maps a batch to a batch, with a strength and a source of random numbers.

    It computes in float32 under any dtype policy: a share would have only 8 significant bits in bfloat16.
    """

    def __init__(self, strength: float):
        super().__init__(dtype="float32")
        self.strength = strength
        self.random = keras.random.SeedGenerator(0)

    def uniform(self, *shape: int | tf.Tensor) -> tf.Tensor:
        """Uniform random numbers in [0, 1), new ones at each call."""
        return keras.random.uniform(shape, seed=self.random)


def mix_labels(labels: tf.Tensor, others: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """share · labels + (1 − share) · others; labels [B, K], share [B]."""
    return share[:, None] * labels + (1.0 - share[:, None]) * others


def shares(layer: Layer, count: int | tf.Tensor) -> tf.Tensor:
    """Draw `count` numbers from Beta(strength, strength), for strengths up to 1.

    By Jöhnk's method: u and v are uniform numbers to the power of 1 / strength. A pair is accepted if u + v is at most
    1; the number is then u / (u + v). At least half of the pairs are accepted, so all of 32 pairs fail at most once in
    4 billion times.

    `keras.random.beta` draws two gamma variates. XLA can't do that. And at a low strength both may be 0: at 0.01 every
    sixth number is ½ but should be 0 or 1.

    Source: M. D. Jöhnk, "Erzeugung von betaverteilten und gammaverteilten Zufallszahlen", 1964.
    """
    logs = tf.math.log(1.0 - layer.uniform(count, 32, 2)) / layer.strength
    accepted = tf.reduce_logsumexp(logs, axis=-1) <= 0.0
    first = tf.gather(logs, tf.argmax(tf.cast(accepted, tf.int32), axis=1), batch_dims=1)
    return tf.sigmoid(first[:, 0] - first[:, 1])


def rectangles(top: tf.Tensor, bottom: tf.Tensor, left: tf.Tensor, right: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """Which pixels of each image lie in its rectangle: bool [B, H, W, 1]; edges [B], bottom and right exclusive."""

    def between(low: tf.Tensor, high: tf.Tensor, length: int) -> tf.Tensor:
        places = tf.range(length, dtype=low.dtype)
        return (places >= low[:, None]) & (places < high[:, None])

    rows, columns = between(top, bottom, images.shape[1]), between(left, right, images.shape[2])
    return (rows[:, :, None] & columns[:, None, :])[..., None]
