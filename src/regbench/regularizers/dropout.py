"""Sets the share `strength` of the head's inputs to zero, drawn for each image and step, and scales up the rest.

The head, the last Dense layer, can't rely on single features. In evaluation nothing is dropped.

Source: N. Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", 2014.
Usual strengths: 0.1 to 0.5.
Equals `keras.layers.Dropout(strength)` before the last layer. PyTorch: `torch.nn.Dropout(strength)`; timm: `drop_rate`.
"""

import keras

from regbench import networks

SCOPE = None
HIGHEST = 0.99


def in_network(network: keras.Model, strength: float) -> keras.Model:
    """Keras's Dropout before the last Dense layer."""
    head = networks.head(network)
    dropout = keras.layers.Dropout(strength, seed=0, name="dropout")
    return networks.inserted(network, lambda layer, inputs: dropout(inputs) if layer is head else inputs)
