"""Shifts each image by up to `strength` pixels in x and in y, and fills up with black: pad and crop.

This equals padding the image with `strength` black pixels on each side and cutting a window of its old size at a random
place. Pixels are those of the stored image, before it is resized to `data.image_size`.

Source: K. He et al., "Deep Residual Learning for Image Recognition", 2016, arXiv 1512.03385, section 4.2.
Usual strengths: 4 for images of 32 pixels, an eighth of the side; whole numbers only.
PyTorch: `torchvision.transforms.RandomCrop(size, padding=strength)`. `keras.layers.RandomCrop` does not pad, and moves
all images of a batch alike.
"""

import keras
import tensorflow as tf

from regbench.errors import UserError
from regbench.regularizers import _batch

SCOPE = None
HIGHEST = 1000
WHOLE = True
ORDER = 1


class RandomCrop(_batch.Layer):
    """A padded window of each image."""

    def build(self, shapes: dict) -> None:
        # In `build`, because Keras would wrap an error from `call` in its own message.
        if self.strength >= min(shapes["images"][1:3]):
            size = "×".join(map(str, shapes["images"][1:3]))
            raise UserError(
                f"random_crop: {self.strength:.0f} pixels of padding are too many for images of {size} "
                "pixels: an image could move out of view completely. Lower it in params.yaml"
            )

    def call(self, batch: _batch.Batch) -> _batch.Batch:
        images, padding = batch["images"], int(self.strength)
        count, height, width = tf.shape(images)[0], *images.shape[1:3]
        padded = tf.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
        starts = keras.random.randint((2, count, 1), 0, 2 * padding + 1, seed=self.random)
        rows = tf.gather(padded, starts[0] + tf.range(height), axis=1, batch_dims=1)
        return batch | {"images": tf.gather(rows, starts[1] + tf.range(width), axis=2, batch_dims=1)}


def on_batch(strength: float) -> keras.layers.Layer:
    """A window of each image of a batch."""
    return RandomCrop(strength)
