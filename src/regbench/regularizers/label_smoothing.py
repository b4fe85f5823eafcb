"""target ← (1 − strength) · target + strength / classes: label smoothing.

No class is certain, so logits stay small. Without it they keep growing, since that lowers the loss of images that are
already classified correctly. The loss in training can't reach 0.

Source: C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016, arXiv 1512.00567.
Usual strengths: 0.05 to 0.2.
Equals `keras.losses.CategoricalCrossentropy(label_smoothing=strength)`. PyTorch:
`torch.nn.CrossEntropyLoss(label_smoothing=strength)`. timm: `--smoothing strength`.
"""

import keras

from regbench.regularizers import _batch

SCOPE = None
HIGHEST = 0.99
ORDER = 5


class LabelSmoothing(keras.layers.Layer):
    """Mixes targets with the uniform distribution."""

    def __init__(self, strength: float):
        super().__init__(dtype="float32")
        self.strength = strength

    def call(self, batch: _batch.Batch) -> _batch.Batch:
        labels = batch["labels"]
        return batch | {"labels": (1.0 - self.strength) * labels + self.strength / labels.shape[-1]}


def on_batch(strength: float) -> keras.layers.Layer:
    """Label smoothing of a batch."""
    return LabelSmoothing(strength)
