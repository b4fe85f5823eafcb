"""Changes each image by two of fourteen operations, drawn for each image, at magnitude `strength` of 10: RandAugment.

The operations: none; shear and shift, each in x and in y; rotate; brightness, colour, contrast and sharpness;
posterize, solarize, auto-contrast and equalize. At 10 they go as far as AutoAugment's: 30 degrees, 45 % of the side, a
shear of 0.3, factors of 0.1 and 1.9, 4 bits. Directions are drawn, too. The operations none, auto-contrast and equalize
have no magnitude, so even a low strength changes images. Pixels that come from outside the image are black.

Source: E. D. Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space", 2020,
arXiv 1909.13719.
Usual strengths: 3 to 9; higher for larger networks and longer trainings.
PyTorch: `torchvision.transforms.RandAugment(2, magnitude=3 * strength)`, whose magnitudes go to 30. timm:
`--aa rand-m{strength}-n2`, with operations of its own. `keras.layers.RandAugment` draws two operations for a whole
batch, shifts and rotates in one direction only, by up to a full turn, and posterizes less at higher strengths.
"""

import math

import keras
import tensorflow as tf

from regbench.errors import UserError
from regbench.regularizers import _batch

SCOPE = None
HIGHEST = 10
ORDER = 2

# An operation maps images and magnitudes to images of the same form. Images are float32 [N, H, W, C], whole numbers
# from 0 to 255. Magnitudes are float32 [N, 1, 1], from -1 to 1.


def none(images: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    return images


def shear_x(images: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    x, y = _places(images)
    return _sampled(images, x + 0.3 * magnitude * y, y)


def shear_y(images: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    x, y = _places(images)
    return _sampled(images, x, y + 0.3 * magnitude * x)


def shift_x(images: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    x, y = _places(images)
    return _sampled(images, x + 150 / 331 * images.shape[2] * magnitude, y)


def shift_y(images: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    x, y = _places(images)
    return _sampled(images, x, y + 150 / 331 * images.shape[1] * magnitude)


def rotate(images: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    angle = math.radians(30) * magnitude
    cos, sin, middle_y, middle_x = tf.cos(angle), tf.sin(angle), images.shape[1] / 2, images.shape[2] / 2
    x, y = _places(images)
    x, y = x - middle_x, y - middle_y
    return _sampled(images, cos * x + sin * y + middle_x, cos * y - sin * x + middle_y)


def brightness(images: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    return _away_from(tf.zeros([]), images, magnitude)


def colour(images: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    return _away_from(_grey(images), images, magnitude)


def contrast(images: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    mean = tf.floor(tf.reduce_mean(_grey(images), axis=[1, 2, 3], keepdims=True) + 0.5)
    return _away_from(mean, images, magnitude)


def sharpness(images: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    inner = images[:, 1:-1, 1:-1]
    smooth = tf.floor((rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4.0 * inner) / 13.0 + 0.5)
    # Pixels at the edge stay as they are.
    return _away_from(images + tf.pad(smooth - inner, [[0, 0], [1, 1], [1, 1], [0, 0]]), images, magnitude)


def posterize(images: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    step = 2.0 ** tf.round(4.0 * tf.abs(magnitude))[..., None]
    return tf.floor(images / step) * step


def solarize(images: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    return tf.where(images < 255.0 * (1.0 - tf.abs(magnitude))[..., None], images, 255.0 - images)


def auto_contrast(images: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    low, high = (extreme(images, axis=[1, 2], keepdims=True) for extreme in (tf.reduce_min, tf.reduce_max))
    return tf.where(high > low, tf.floor(tf.math.divide_no_nan((images - low) * 255.0, high - low)), images)


def equalize(images: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    count, _, _, channels = tf.unstack(tf.shape(images))
    # One histogram of 256 bins for each image and channel, one after the other.
    first = 256 * tf.reshape(tf.range(count * channels), [count, 1, 1, channels])
    bins = first + tf.cast(images, tf.int32)
    pixels = tf.math.unsorted_segment_sum(tf.ones_like(bins), bins, 256 * count * channels)
    darker = tf.cumsum(tf.reshape(pixels, [-1, 256]), axis=1, exclusive=True)
    darker = tf.gather(tf.reshape(darker, [-1]), bins)
    step = tf.reduce_max(darker, axis=[1, 2], keepdims=True) // 255
    level = tf.cast((darker + step // 2) // tf.maximum(step, 1), tf.float32)
    return tf.where(step > 0, tf.minimum(level, 255.0), images)


OPERATIONS = (
    none,
    shear_x,
    shear_y,
    shift_x,
    shift_y,
    rotate,
    brightness,
    colour,
    contrast,
    sharpness,
    posterize,
    solarize,
    auto_contrast,
    equalize,
)


def _places(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The coordinates of the pixels' middles: x [W], y [H, 1]."""
    height, width = images.shape[1:3]
    return tf.range(width, dtype=tf.float32) + 0.5, tf.range(height, dtype=tf.float32)[:, None] + 0.5


def _sampled(images: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Images whose every pixel is copied from the pixel that (x, y) lies in; black where (x, y) is outside."""
    height, width, channels = images.shape[1:]
    column, row = tf.cast(tf.floor(x), tf.int32), tf.cast(tf.floor(y), tf.int32)
    within = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    flat = tf.pad(tf.reshape(images, [-1, height * width, channels]), [[0, 0], [0, 1], [0, 0]])
    return tf.gather(flat, tf.where(within, row * width + column, height * width), axis=1, batch_dims=1)


def _away_from(other: tf.Tensor, images: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    """Images whose difference from `other` is multiplied by 1 + 0.9 · magnitude, rounded down and clipped to 0–255."""
    factor = 1.0 + 0.9 * magnitude[..., None]
    return tf.clip_by_value(tf.floor(other + factor * (images - other)), 0.0, 255.0)


def _grey(images: tf.Tensor) -> tf.Tensor:
    """Luminance [N, H, W, 1] of RGB images, in whole numbers; images with other channels as they are."""
    if images.shape[-1] != 3:
        return images
    return tf.floor((tf.reduce_sum(images * [19595.0, 38470.0, 7471.0], axis=-1, keepdims=True) + 32768.0) / 65536.0)


class RandAugment(_batch.Layer):
    """Two operations on each image of a batch."""

    def build(self, shapes: dict) -> None:
        # In `build`, because Keras would wrap an error from `call` in its own message.
        if min(shapes["images"][1:3]) < 2:
            size = "×".join(map(str, shapes["images"][1:3]))
            raise UserError(
                f"rand_augment: images of {size} pixels are too small; it needs at least 2 in height and in width"
            )

    def call(self, batch: _batch.Batch) -> _batch.Batch:
        images = batch["images"]
        which, direction = tf.unstack(self.uniform(2, 2, tf.shape(images)[0]))
        which = tf.cast(tf.floor(which * len(OPERATIONS)), tf.int32)
        magnitude = tf.where(direction < 0.5, -1.0, 1.0) * self.strength / HIGHEST
        for number in range(2):
            images = self._operated(images, which[number], magnitude[number])
        return batch | {"images": images}

    def _operated(self, images: tf.Tensor, which: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
        # Each operation computes only the images that drew it.
        chosen = [tf.where(which == index)[:, 0] for index in range(len(OPERATIONS))]
        parts = [
            operation(tf.gather(images, places), tf.gather(magnitude, places)[:, None, None])
            for operation, places in zip(OPERATIONS, chosen, strict=True)
        ]
        # A scatter instead of a permutation: after a permutation XLA would not know how many images there are.
        return tf.scatter_nd(tf.concat(chosen, axis=0)[:, None], tf.concat(parts, axis=0), tf.shape(images, tf.int64))


def on_batch(strength: float) -> keras.layers.Layer:
    """RandAugment of each image of a batch."""
    return RandAugment(strength)
