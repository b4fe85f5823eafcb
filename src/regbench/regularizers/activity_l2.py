"""strength · Σa², in the loss, where a is the input of the head for one image; averaged over the images of a step.

It keeps the inputs of the head, the last Dense layer, small. They can't grow without bound to make the logits more
certain. It acts on what the network computes, not on weights, so reg loss does not count it; in history.csv it is
loss − cross_entropy.

Source: S. Merity, B. McCann, R. Socher, "Revisiting Activation Regularization for Language RNNs", 2017,
arXiv 1708.01009.
Usual strengths: 1e-4 to 1e-2.
Equals `keras.layers.ActivityRegularization(l2=strength)` before the last layer. PyTorch:
`loss + strength * features.square().sum(1).mean()`.
"""

import keras

from regbench import networks

SCOPE = None


def in_network(network: keras.Model, strength: float) -> keras.Model:
    """Keras's ActivityRegularization before the last Dense layer, in float32 under any dtype policy."""
    head = networks.head(network)
    activity = keras.layers.ActivityRegularization(l2=strength, dtype=keras.config.floatx(), name="activity_l2")
    return networks.inserted(network, lambda layer, inputs: activity(inputs) if layer is head else inputs)
