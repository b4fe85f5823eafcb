"""Mixes each image and its target with another image and its target, in a share from Beta(strength, strength): mixup.

At strength 0.2 most shares are near 0 or 1; at 1 all are equally likely. The other image is one of the same batch.
Mixup and CutMix can't be combined here: programs that combine them draw one of the two for each batch.

Source: H. Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018, arXiv 1710.09412.
Usual strengths: 0.1 to 0.4; up to 1 for long trainings.
Equals `keras.layers.MixUp(strength)`, with other random numbers. timm: `--mixup strength --mixup-mode elem`. PyTorch:
`torchvision.transforms.v2.MixUp(alpha=strength)`, which draws one share for a batch.
"""

import keras
import tensorflow as tf

from regbench.regularizers import _batch

SCOPE = None
HIGHEST = 1
EXCLUDES = ("cutmix",)
ORDER = 4


class MixUp(_batch.Layer):
    """`keras.layers.MixUp` with correct shares at any strength, also under XLA (see `_batch.shares`)."""

    def call(self, batch: _batch.Batch) -> _batch.Batch:
        images, labels = batch["images"], batch["labels"]
        count = tf.shape(images)[0]
        share = _batch.shares(self, count)
        others = keras.random.shuffle(tf.range(count), seed=self.random)
        weight = share[:, None, None, None]
        return {
            "images": weight * images + (1.0 - weight) * tf.gather(images, others),
            "labels": _batch.mix_labels(labels, tf.gather(labels, others), share),
        }


def on_batch(strength: float) -> keras.layers.Layer:
    """Mixup of each image of a batch."""
    return MixUp(strength)
