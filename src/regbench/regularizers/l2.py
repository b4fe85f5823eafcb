"""strength · Σw², in the loss, without ½: Tikhonov's penalty.

It shrinks weights in proportion to their size. Nearly all weights of a network with batch normalization are followed by
it, which makes the output independent of a kernel's size; what remains of l2 there is a higher effective learning rate,
learning rate / ‖w‖² (T. van Laarhoven, 2017, arXiv 1706.05350): a column of layers.csv and a panel of plots/layers.png.
It covers kernel and bias of the head too, as in the article.

Source: A. N. Tikhonov, 1943; A. Krogh, J. Hertz, "A Simple Weight Decay Can Improve Generalization", 1991.
Usual strengths: 1e-5 to 1e-3.
Equals `keras.regularizers.L2(strength)`. PyTorch: `torch.optim.SGD(…, weight_decay=2 * strength)`, with momentum too.
"""

import tensorflow as tf

SCOPE = "all"


def penalty(weight: tf.Tensor) -> tf.Tensor:
    """Σw², in one pass over the weight forward and one backward."""
    return 2.0 * tf.nn.l2_loss(weight)
