"""w ← sign(w) · max(|w| − learning rate · strength, 0) after each step: l1 by soft thresholding.

It has the same minimum as l1, and gives weights that are exactly zero, which a gradient step never reaches. Look at
"exactly zero" in report.md. Nothing is added to the loss, so its reg loss is 0.

Source: proximal gradient descent (ISTA); A. Beck, M. Teboulle, "A Fast Iterative Shrinkage-Thresholding Algorithm for
Linear Inverse Problems", 2009.
Usual strengths: as l1, 1e-6 to 1e-4.
PyTorch: after `optimizer.step()`, `w.copy_(w.sign() * (w.abs() - lr * strength).clamp(min=0))`.
"""

import tensorflow as tf

SCOPE = "backbone"


def after_step(weight: tf.Tensor, strength: float, learning_rate: tf.Tensor) -> tf.Tensor:
    """sign(w) · max(|w| − learning rate · strength, 0)."""
    return tf.sign(weight) * tf.maximum(tf.abs(weight) - learning_rate * strength, 0.0)
