"""Pastes a rectangle of another image into each one, its area from Beta(strength, strength): CutMix.

At strength 1 all areas are equally likely. The other image is one of the same batch. A rectangle's middle lies anywhere
in the image, and what sticks out is cut off. Targets are mixed in proportion to the number of pixels of each image.

Source: S. Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", 2019,
arXiv 1905.04899.
Usual strengths: 0.5 to 1. At low strengths a rectangle is tiny or nearly the whole image.
PyTorch: `torchvision.transforms.v2.CutMix(alpha=strength)`, which draws one rectangle for a batch. timm: `--cutmix
strength --mixup-mode elem`. `keras.layers.CutMix` draws its strength anew for each batch, its rectangles never stick
out, and it mixes targets by a rectangle's area before rounding to whole pixels.
"""

import keras
import tensorflow as tf

from regbench.regularizers import _batch

SCOPE = None
HIGHEST = 1
ORDER = 4


class CutMix(_batch.Layer):
    """Pastes a rectangle of another image into each image of a batch."""

    def call(self, batch: _batch.Batch) -> _batch.Batch:
        images, labels = batch["images"], batch["labels"]
        count, height, width = tf.shape(images)[0], *images.shape[1:3]
        side = tf.sqrt(1.0 - _batch.shares(self, count))
        others = keras.random.shuffle(tf.range(count), seed=self.random)

        def span(length: int) -> tuple[tf.Tensor, tf.Tensor]:
            centre, half = tf.floor(self.uniform(count) * length), tf.floor(0.5 * side * length)
            return tf.maximum(centre - half, 0.0), tf.minimum(centre + half, float(length))

        (top, bottom), (left, right) = span(height), span(width)
        pasted = (bottom - top) * (right - left) / (height * width)
        inside = _batch.rectangles(top, bottom, left, right, images)
        return {
            "images": tf.where(inside, tf.gather(images, others), images),
            "labels": _batch.mix_labels(labels, tf.gather(labels, others), 1.0 - pasted),
        }


def on_batch(strength: float) -> keras.layers.Layer:
    """CutMix of each image of a batch."""
    return CutMix(strength)
