"""Scales every filter that is longer than `strength` down to this length, after each step.

A filter is all weights of one output: a column of the kernel as a matrix, or a channel's weights of a depthwise kernel.
Shorter filters stay as they are. The smaller the strength, the stronger it acts; 0 is no regularizer. A bias is not a
filter. Nothing is added to the loss, so its reg loss is 0.

Source: N. Srebro, A. Shraibman, "Rank, Trace-Norm and Max-Norm", 2005; N. Srivastava et al., "Dropout: A Simple Way to
Prevent Neural Networks from Overfitting", 2014.
Usual strengths: 1 to 4.
Equals `keras.constraints.MaxNorm(strength, axis=all but the last)`, which also shrinks short filters a little in each
step, by 1e-7 / ‖filter‖. PyTorch: `w.copy_(torch.renorm(w, 2, 0, strength))` after `optimizer.step()`.
"""

import tensorflow as tf

from regbench import regularizers

SCOPE = "backbone"


def after_step(weight: tf.Tensor, strength: float, learning_rate: tf.Tensor) -> tf.Tensor:
    """w · min(1, strength / ‖w‖) for each filter w; the learning rate does not matter."""
    if weight.shape.rank < 2:
        return weight
    squares = tf.reduce_sum(tf.square(weight), axis=regularizers.filter_axes(weight), keepdims=True)
    return weight * tf.minimum(1.0, strength * tf.math.rsqrt(squares))
