"""The model as it is trained: images from 0 to 255 in, logits out, with the regularizers of its line under `reg:`."""

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from regbench import networks, params, regularizers
from regbench.networks import layers
from regbench.training.optimizer import SGD, sum_over_replicas
from regbench.training.schedule import LearningRate

STEPS_A_CALL = 10
"""How many steps one call makes if XLA compiles them."""

DRAWS_A_STEP = 256
"""The most times that a layer may draw random numbers in one step."""


class Model(keras.Model):
    """A `keras.Model` that trains as its line under `reg:` says.

    Attributes:
        plain: the same layers without those that act only in training. This model is saved and evaluated. Its input is
            uint8 [N, height, width, channels].
        line: the run's line under `reg:` in params.
        seed: of the run.
        on_batch: Keras layers that change images and labels before a step.
        climb: the function `climb` of a regularizer (see `regularizers`) and its strength, or None.
    """

    plain: keras.Model
    line: params.Regularizer
    seed: int
    on_batch: tuple[keras.layers.Layer, ...] = ()
    climb: tuple[Callable, float] | None = None

    @property
    def losses(self) -> list[tf.Tensor]:
        """One penalty for each kind and strength over all weights, not one for each weight; those on activations."""
        return [*regularizers.penalties(self.trainable_variables), *self._activity_losses()]

    def _activity_losses(self) -> Iterator[tf.Tensor]:
        for layer in networks.layers_of(self):
            if isinstance(layer, keras.layers.ActivityRegularization):
                yield from layer.losses

    @property
    def random_states(self) -> list[keras.Variable]:
        """Random states of its layers and of those in `on_batch`: their variables that are not weights."""
        states = {}
        for layer in (*networks.layers_of(self), *self.on_batch):
            weights = {id(weight) for weight in layer.weights}
            states |= {id(state): state for state in layer.variables if id(state) not in weights}
        return list(states.values())

    def train_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict[str, Any]:
        self.set_random_states()
        if self.on_batch:
            images, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
            batch = {"images": tf.cast(images, tf.float32), "labels": self._targets(labels)}
            for layer in self.on_batch:
                batch = layer(batch, training=True)
            data = batch["images"], batch["labels"]
        if self.climb is None:
            return super().train_step(data)
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        return self._step_from_above(images, labels)

    def test_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict[str, Any]:
        with layers.not_for_xla(networks.layers_of(self)):
            return super().test_step(data)

    def make_test_function(self, force: bool = False) -> None:
        """Do not compile validation: each batch size would take seconds to compile, and validation is short."""
        compiled, self.jit_compile = self.jit_compile, False
        try:
            super().make_test_function(force)
        finally:
            self.jit_compile = compiled

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> tf.Tensor:
        return super().compute_loss(x, self._targets(y), y_pred, sample_weight, training)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        return super().compute_metrics(x, self._targets(y), y_pred, sample_weight)

    def _targets(self, labels: tf.Tensor) -> tf.Tensor:
        """Labels as loss and metrics take them: one-hot if something acts `on_batch`; kept if one-hot already."""
        return keras.ops.one_hot(labels, self.output_shape[-1]) if self.on_batch and len(labels.shape) == 1 else labels

    def set_random_states(self) -> None:
        """Make the random numbers of a step a function of (seed, step), so that a resumed run draws the same ones.

        Each device of a strategy draws other numbers, for its own share of the batch.
        """
        step, device = self.optimizer.iterations, tf.distribute.get_replica_context().replica_id_in_sync_group
        for index, state in enumerate(self.random_states):
            key = tf.constant(zlib.crc32(f"{self.seed} {index}".encode()), state.dtype) + tf.cast(device, state.dtype)
            # Keras adds 1 for each draw. Without a distance, the next step would draw the same numbers again.
            state.assign(tf.stack([key, tf.cast(step * DRAWS_A_STEP, state.dtype)]))

    def _step_from_above(self, images: tf.Tensor, labels: tf.Tensor) -> dict[str, Any]:
        """A step from the current weights, with the gradient taken at the weights that `climb` leads to."""
        replicas = self.distribute_strategy.num_replicas_in_sync
        loss, logits, gradients = self._gradients(images, labels)
        climb, strength = self.climb
        kept = [(weight, tf.identity(weight)) for weight in self.weights]  # averages of batch normalization among them
        weights = self.trainable_weights
        for weight, offset in zip(weights, climb(weights, gradients, strength), strict=True):
            weight.assign_add(offset)
        self.set_random_states()  # the same noise once more
        *_, gradients = self._gradients(images, labels)
        for weight, value in kept:
            weight.assign(value)
        self.optimizer.apply_gradients(
            (gradient / replicas, weight) for gradient, weight in zip(gradients, weights, strict=True)
        )
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss * replicas, sample_weight=tf.shape(images)[0])
        return self.compute_metrics(images, labels, logits)

    def _gradients(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        """Loss and logits of a replica's share of a batch; gradients of the whole batch, with the optimizer's scale."""
        with tf.GradientTape() as tape:
            logits = self(images, training=True)
            loss = self.compute_loss(x=images, y=labels, y_pred=logits, training=True)
            scaled = self.optimizer.scale_loss(loss)
        return loss, logits, sum_over_replicas(tape.gradient(scaled, self.trainable_weights))


def build(plan: dict, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """Build the model of one run, with its regularizer attached.

    Args:
        plan: of the run, as `regbench.plan.read` gives it.
        image_shape: (height, width, channels) of the prepared images; they are resized to `image_size` if it differs.
        num_classes: number of logits.

    Returns:
        uint8 [N, height, width, channels] → float32 logits [N, num_classes]; if something acts `on_batch`, the input is
        float32 from 0 to 255.
    """
    size, line = plan["image_size"], plan["regularizer"]
    # A single device has the whole batch anyway, and can use a faster operation.
    synchronized = plan["train"].synchronize_batch_norm and tf.distribute.get_strategy().num_replicas_in_sync > 1
    shape = (size, size, image_shape[-1])
    network = networks.build(plan["model"], shape, num_classes, synchronized, plan["weights_md5"])
    scale = keras.layers.Rescaling(1 / 127.5, offset=-1, name="scale")
    resize = keras.layers.Resizing(size, size, data_format="channels_last", name="resize")

    def complete(made: type[keras.Model], network: keras.Model, dtype: str) -> keras.Model:
        images = keras.Input(image_shape, dtype=dtype, name=f"{dtype}_image")
        x = scale(images)
        if tuple(image_shape[:2]) != (size, size):
            # Resize floats: outside of a graph the layer would round integers. Its `training` is true by default, and
            # the layers behind it would take that over if the model is called without `training`.
            x = resize(x, training=False)
        return made(images, network(x), name="regbench")

    in_training = network
    for call, strength in regularizers.acting(line, "in_network"):
        in_training = call(in_training, strength)
    on_batch = tuple(call(strength) for call, strength in regularizers.acting(line, "on_batch"))
    model = complete(Model, in_training, "float32" if on_batch else "uint8")
    model.plain = complete(keras.Model, network, "uint8")
    model.line, model.seed, model.on_batch = line, plan["seed"], on_batch
    model.climb = next(iter(regularizers.acting(line, "climb")), None)
    regularizers.attach(model, line)
    return model


def compile(model: Model, options: params.Train, steps: int) -> None:
    """Compile a model as `train:` in params says; `steps` is the number of steps per epoch."""
    arguments: dict[str, Any] = {}
    for call, strength in regularizers.acting(model.line, "optimizer"):
        arguments |= call(strength)
    # XLA can't compile a step of several devices.
    jit = options.jit and model.distribute_strategy.num_replicas_in_sync == 1
    sparse = "" if model.on_batch else "Sparse"
    model.compile(
        optimizer=SGD(LearningRate.of(options, steps), momentum=options.momentum, **arguments),
        loss=getattr(keras.losses, f"{sparse}CategoricalCrossentropy")(from_logits=True),
        # Keras's loss and val_loss include the penalty, so cross-entropy is measured as well.
        metrics=[
            getattr(keras.metrics, f"{sparse}CategoricalCrossentropy")(from_logits=True, name="cross_entropy"),
            getattr(keras.metrics, f"{sparse}CategoricalAccuracy")(name="accuracy"),
        ],
        jit_compile=jit,
        # Compiled steps are short: one call of several steps waits for Python only once.
        steps_per_execution=STEPS_A_CALL if jit else 1,
    )
    layers.for_xla(networks.layers_of(model), jit)


def reg_loss(model: keras.Model) -> float:
    """What penalties on weights add to the loss, at the current weights."""
    return float(sum(regularizers.penalties(model.trainable_variables)))
