"""Fills a rectangle with noise, in a share `strength` of the images: random erasing.

The network can't rely on one part of an object. A rectangle covers 2 to 33 % of the image, and its height is 0.3 to 3.3
times its width. Each value in it is drawn from 0 to 255. Cutout (T. DeVries, G. W. Taylor, 2017, arXiv 1708.04552) is
similar: a black square of one size in every image.

Source: Z. Zhong et al., "Random Erasing Data Augmentation", 2020, arXiv 1708.04896.
Usual strengths: 0.25 to 0.5.
PyTorch: `torchvision.transforms.RandomErasing(p=strength, value="random")`. timm: `--reprob strength --remode pixel`.
`keras.layers.RandomErasing((strength, strength))` draws other values: half of them are 0, and every sixth is 255.
"""

import math

import keras
import tensorflow as tf

from regbench.regularizers import _batch

SCOPE = None
HIGHEST = 1
ORDER = 3

AREA = (0.02, 0.33)
ASPECT = (0.3, 3.3)


class RandomErasing(_batch.Layer):
    """Fills a rectangle with noise, in a share `strength` of the images."""

    def call(self, batch: _batch.Batch) -> _batch.Batch:
        images = batch["images"]
        count, height, width = tf.shape(images)[0], *images.shape[1:3]
        chance, area, aspect, place_y, place_x = tf.unstack(self.uniform(5, count))
        area = AREA[0] + (AREA[1] - AREA[0]) * area
        aspect = ASPECT[0] * tf.exp(math.log(ASPECT[1] / ASPECT[0]) * aspect)

        def span(share: tf.Tensor, place: tf.Tensor, length: int) -> tuple[tf.Tensor, tf.Tensor]:
            size = tf.minimum(tf.round(share * math.sqrt(height * width)), float(length))
            start = tf.floor(place * (length - size + 1.0))
            return start, start + size

        top, bottom = span(tf.sqrt(area * aspect), place_y, height)
        left, right = span(tf.sqrt(area / aspect), place_x, width)
        erased = tf.where(chance < self.strength, right, left)  # right = left: nothing is erased
        inside = _batch.rectangles(top, bottom, left, erased, images)
        noise = tf.floor(256.0 * self.uniform(*tf.unstack(tf.shape(images))))
        return batch | {"images": tf.where(inside, noise, images)}


def on_batch(strength: float) -> keras.layers.Layer:
    """Random erasing of each image of a batch."""
    return RandomErasing(strength)
