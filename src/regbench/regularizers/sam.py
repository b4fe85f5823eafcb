"""Takes the gradient of each step where the loss is highest nearby, `strength` away: sharpness-aware minimization.

A step has two gradients: g at the weights w, then one at w + strength · g / ‖g‖₂. The second one updates w. So SAM
looks for weights whose surroundings have a low loss, too. A step takes twice as long. Penalties are part of both
gradients. Loss and accuracy of training are those at w, and so are batch normalization's averages.

Source: P. Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", 2021,
arXiv 2010.01412.
Usual strengths: 0.02 to 0.2, called ρ.
PyTorch: has none; the paper's authors and other packages have SAM(rho=strength).
"""

from collections.abc import Sequence

import tensorflow as tf

SCOPE = None


def climb(weights: Sequence[tf.Variable], gradients: Sequence[tf.Tensor], strength: float) -> list[tf.Tensor]:
    """strength · g / ‖g‖₂, the norm over all weights. 0 if g is 0, or is not finite because float16 scales the loss."""
    norm = tf.linalg.global_norm(gradients)
    scale = tf.where(tf.math.is_finite(norm), tf.math.divide_no_nan(strength, norm), 0.0)
    return [tf.math.multiply_no_nan(gradient, scale) for gradient in gradients]
