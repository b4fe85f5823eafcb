"""The tricks of the training code, each with a way to switch it off: `bench.py ablation` measures what each brings.

A trick that brings less than 2 % of an epoch, or of the whole comparison, has no place in the code.
"""


def _one_at_a_time():
    from regbench import cores

    cores.threads = lambda: 1


def _keras_convolution():
    import keras

    from regbench.networks import layers

    layers.PointwiseConv2D.product = lambda self, inputs: keras.layers.Conv2D.call(self, inputs)


def _keras_depthwise():
    import keras

    from regbench.networks import layers

    layers.DepthwiseConv2D.call = keras.layers.DepthwiseConv2D.call


def _keras_batch_norm():
    import keras

    from regbench.networks import layers

    layers.BatchNormalization.call = keras.layers.BatchNormalization.call


def _separate_expansion():
    import tensorflow as tf

    from regbench.networks import layers

    def call(self, inputs, training=None):
        return tf.nn.relu6(self.normalization(self.product(inputs), training=training))

    layers.ExpandConv2D.call = call


def _keras_losses():
    from regbench.training import model

    del model.Model.losses


def _averages_at_each_step():
    from regbench.training import batch_norm

    batch_norm.PopulationStatistics._keep_averages = lambda self, keep: None


TRICKS = {
    "two operations at once": _one_at_a_time,
    "1×1 convolution as a matrix product": _keras_convolution,
    "depthwise convolution with explicit padding": _keras_depthwise,
    "fused batch normalization": _keras_batch_norm,
    "expansion in one layer": _separate_expansion,
    "penalties summed by kind": _keras_losses,
    "no unused moving averages": _averages_at_each_step,
}
"""{trick: function that switches it off}."""

BEFORE_START = ("two operations at once",)


def before_start(without):
    """Switch off a trick that acts when TensorFlow starts."""
    if without in BEFORE_START:
        TRICKS[without]()


def after_start(without):
    """Switch off any other trick."""
    if without in TRICKS and without not in BEFORE_START:
        TRICKS[without]()
