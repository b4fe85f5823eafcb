"""w ← w · (1 − learning rate · strength) before each step: decoupled weight decay.

It is l2 outside the gradient. Without momentum it equals l2 at half the strength; with momentum it differs, since the
pull does not pass through the velocity. Nothing is added to the loss, so its reg loss is 0. It covers what l2 covers.

Source: I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv 1711.05101.
Usual strengths: 1e-4 to 1e-2.
PyTorch: `torch.optim.AdamW(…, weight_decay=strength)` decays the same way; without momentum
`torch.optim.SGD(…, weight_decay=strength)` too.
"""

import tensorflow as tf

SCOPE = "all"


def before_step(weight: tf.Tensor, strength: float, learning_rate: tf.Tensor) -> tf.Tensor:
    """w · (1 − learning rate · strength)."""
    return weight * (1.0 - learning_rate * strength)
