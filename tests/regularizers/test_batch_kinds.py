"""The kinds that act on images and targets, against NumPy, Pillow and Keras's own layers."""

import importlib
import itertools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from kinds import STRENGTHS
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats
from scratch import ROOT, Repository

from regbench import catalogue, params, plan, regularizers
from regbench.errors import UserError
from regbench.params import ParamsError
from regbench.regularizers import _batch, rand_augment
from regbench.training import model

USUAL = {
    "random_crop": 4,
    "rand_augment": 5,
    "random_erasing": 0.5,
    "mixup": 0.4,
    "cutmix": 1,
    "label_smoothing": 0.1,
}
"""A usual strength of each, in the order in which they act."""

ON_IMAGES = [kind for kind in USUAL if kind != "label_smoothing"]


def layer(kind, strength=None):
    line = params.Regularizer("mine", (params.Term(kind, float(strength or USUAL[kind]), None),))
    (call, strength), *_ = regularizers.acting(line, "on_batch")
    return call(strength)


def noise(count, height=32, width=32, channels=3, seed=0):
    """Images of whole numbers from 0 to 255."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels)).astype(np.float32)


def own_class(count):
    """Targets that show which image is which."""
    return np.eye(count, dtype=np.float32)


def through(layer, images, labels):
    """Images and targets after a layer."""
    after = layer({"images": tf.constant(images), "labels": tf.constant(labels)}, training=True)
    return after["images"].numpy(), after["labels"].numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "policy"),
    [((32, 32, 3), "float32"), ((32, 32, 3), "mixed_bfloat16"), ((28, 28, 1), "float32"), ((20, 45, 3), "float32")],
    ids=str,
)
@pytest.mark.parametrize("kind", USUAL)
def test_images_stay_images_and_targets_distributions(kind, shape, policy):
    keras.config.set_dtype_policy(policy)
    try:
        made = layer(kind)
        # As in a training: one graph for all batch sizes.
        call = tf.function(lambda images, labels: made({"images": images, "labels": labels}, training=True))
        call = call.get_concrete_function(tf.TensorSpec((None, *shape)), tf.TensorSpec((None, 7)))
        for count in (5, 2, 1):
            images, labels = noise(count, *shape), np.eye(7, dtype=np.float32)[np.arange(count)]
            after = call(tf.constant(images), tf.constant(labels))
            changed, targets = after["images"].numpy(), after["labels"].numpy()
            assert changed.shape == images.shape and targets.shape == labels.shape
            assert changed.dtype == targets.dtype == np.float32
            assert changed.min() >= 0 and changed.max() <= 255
            assert targets.min() >= 0
            np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
            if kind not in ("mixup", "cutmix", "label_smoothing"):
                np.testing.assert_array_equal(targets, labels)
            if kind != "mixup":
                np.testing.assert_array_equal(changed, np.round(changed))
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("kind", ON_IMAGES)
def test_each_image_has_draws_of_its_own(kind):
    images = noise(40) if kind in ("mixup", "cutmix") else np.repeat(noise(1), 40, axis=0)
    changed, targets = through(layer(kind, 1 if kind == "random_erasing" else None), images, own_class(40))
    if kind in ("mixup", "cutmix"):
        assert len(np.unique(targets.max(axis=1))) > 20
    else:
        assert len(np.unique(changed, axis=0)) > 20


def test_label_smoothing_equals_kerass():
    labels, logits = np.eye(5, dtype=np.float32)[[0, 3, 3]], tf.constant(noise(3, 1, 1, 5)[:, 0, 0] / 100)
    _, targets = through(layer("label_smoothing", 0.3), noise(3), labels)
    found = []
    for loss, y in (
        (keras.losses.CategoricalCrossentropy(from_logits=True), targets),
        (keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.3), labels),
    ):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = loss(y, logits)
        found.append((value, tape.gradient(value, logits)))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("channels", [1, 3])
def test_mixup_mixes_images_as_it_mixes_targets(channels):
    images = noise(30, 20, 36, channels)
    changed, targets = through(layer("mixup"), images, own_class(30))
    assert ((targets > 0).sum(axis=1) <= 2).all()
    expected = targets.astype(np.float64) @ images.reshape(30, -1)
    np.testing.assert_allclose(changed.reshape(30, -1), expected, rtol=1e-5, atol=1e-3)
    # No image is mixed into two others, because the partners are a permutation.
    others = targets - np.diag(targets.diagonal())
    assert ((others > 0).sum(axis=0) <= 1).all()
    # Keras's layer does the same with the same draws.
    partners = np.where(others.any(axis=1), others.argmax(axis=1), np.arange(30))
    draws = {"mix_weight": tf.constant(targets.diagonal()), "permutation_order": tf.constant(partners)}
    np.testing.assert_allclose(keras.layers.MixUp().transform_images(images, draws), changed, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(keras.layers.MixUp().transform_labels(own_class(30), draws), targets, atol=1e-6)


@pytest.mark.parametrize("strength", [0.001, 0.01, 0.2, 0.5, 1.0])
def test_shares_are_of_the_beta_distribution(strength):
    count = 50_000
    drawn = _batch.shares(layer("mixup", strength), count).numpy()
    assert drawn.min() >= 0 and drawn.max() <= 1
    for place in (1e-6, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        expected = stats.beta(strength, strength).cdf(place)
        assert (drawn <= place).mean() == pytest.approx(expected, abs=4 * np.sqrt(0.25 / count))


@pytest.mark.parametrize("shape", [(32, 32, 3), (20, 45, 1)], ids=str)
def test_cutmix_mixes_targets_by_the_pixels_pasted(shape):
    # Each image has one colour, so each pixel shows which image it comes from.
    images = np.broadcast_to(np.arange(60, dtype=np.float32)[:, None, None, None], (60, *shape))
    changed, targets = through(layer("cutmix"), images, own_class(60))
    cut_off = 0
    for index in range(60):
        pixels = changed[index, ..., 0].astype(int)
        assert (changed[index] == pixels[..., None]).all()
        counts = np.bincount(pixels.ravel(), minlength=60)
        np.testing.assert_allclose(targets[index], counts / counts.sum(), atol=1e-6)
        rows, columns = np.nonzero(pixels != index)
        if len(rows):
            assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1), "not a rectangle"
            cut_off += rows.min() == 0 or columns.min() == 0
    assert cut_off > 5


def test_cutmix_pastes_as_much_as_the_papers_algorithm():
    images = np.broadcast_to(np.arange(250, dtype=np.float32)[:, None, None, None], (250, 32, 32, 1))
    mixed = layer("cutmix")
    pasted = np.concatenate([1 - through(mixed, images, own_class(250))[1].diagonal() for _ in range(8)])
    random, expected = np.random.default_rng(0), []
    for _ in range(20_000):
        half = int(0.5 * np.sqrt(1 - random.random()) * 32)
        spans = [np.clip([centre - half, centre + half], 0, 32) for centre in random.integers(0, 32, 2)]
        expected.append(np.prod(np.diff(spans)) / 32**2)
    # An image's partner may be itself: once in 250 images.
    assert pasted.mean() == pytest.approx(np.mean(expected) * 249 / 250, abs=4 * np.std(expected) / np.sqrt(2000))
    assert pasted.std() == pytest.approx(np.std(expected), rel=0.1)


@pytest.mark.parametrize("shape", [(32, 32, 3), (24, 40, 1)], ids=str)
def test_random_erasing_fills_a_rectangle_with_noise(shape):
    images = np.full((800, *shape), 0.5, np.float32)
    changed, _ = through(layer("random_erasing", 0.3), images, own_class(800))
    erased = (changed != 0.5).all(axis=-1)
    np.testing.assert_array_equal(changed[~erased], 0.5)
    boxes = [np.nonzero(mask) for mask in erased if mask.any()]
    heights, widths = (np.array([np.ptp(box[axis]) + 1 for box in boxes]) for axis in (0, 1))
    np.testing.assert_array_equal(heights * widths, [len(box[0]) for box in boxes])
    assert len(boxes) / 800 == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / 800))
    area = heights * widths / (shape[0] * shape[1])
    assert 0.01 < area.min() < 0.06 and 0.27 < area.max() < 0.35
    assert area.mean() == pytest.approx(0.175, abs=0.03)
    ratio = np.log(heights / widths)
    assert np.log(0.25) < ratio.min() < np.log(0.4) and np.log(2.4) < ratio.max() < np.log(4)
    assert {0} < {box[0].min() for box in boxes} and max(box[0].max() for box in boxes) == shape[0] - 1
    values = changed[erased].ravel()
    assert (values.min(), values.max()) == (0, 255)
    assert stats.kstest(values, stats.randint(0, 256).cdf).statistic < 0.01


def test_random_erasing_of_all_images():
    changed, _ = through(layer("random_erasing", 1), np.full((50, 32, 32, 3), 0.5, np.float32), own_class(50))
    assert (changed != 0.5).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("shape", [(32, 32, 3), (20, 45, 1)], ids=str)
def test_random_crop_cuts_a_window_out_of_each_padded_image(shape):
    images = noise(150, *shape) + 1  # no pixel is black like the padding
    changed, _ = through(layer("random_crop", 2), images, own_class(150))
    padded = np.pad(images, [(0, 0), (2, 2), (2, 2), (0, 0)])
    starts = []
    for before, after in zip(padded, changed, strict=True):
        windows = itertools.product(range(5), repeat=2)
        starts += [(y, x) for y, x in windows if (before[y : y + shape[0], x : x + shape[1]] == after).all()]
    assert len(starts) == 150
    # All 25 windows occur, and about equally often.
    counts = np.unique(starts, axis=0, return_counts=True)[1]
    assert len(counts) == 25 and stats.chisquare(counts).pvalue > 1e-4


def test_random_crop_refuses_what_it_cannot_do(settings, plan_of, tmp_path):
    for strength in (0.5, 2000, -1):
        with pytest.raises(ParamsError, match=r"reg.random_crop: .* should be a whole number from 0 to 1000"):
            settings(**{"reg.random_crop": strength})
    too_wide = built(plan_of, tmp_path, {"random_crop": 32})
    with pytest.raises(UserError, match=r"^random_crop: 32 pixels of padding are too many for images of 32×32"):
        too_wide.train_on_batch(noise(2).astype(np.uint8), np.arange(2))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1)])
def test_rand_augment_refuses_single_pixels(shape):
    with pytest.raises(UserError, match=f"^rand_augment: images of {shape[0]}×{shape[1]} pixels are too small"):
        through(layer("rand_augment", 5), noise(4, *shape), own_class(4))


def affine(*matrix):
    return lambda image: image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


def enhanced(kind, magnitude):
    return lambda image: kind(image).enhance(1 + 0.9 * magnitude)


def pillow(name, magnitude, height, width):
    """The operation of this name on a PIL image."""
    return {
        "none": lambda image: image,
        "shear_x": affine(1, 0.3 * magnitude, 0, 0, 1, 0),
        "shear_y": affine(1, 0, 0, 0.3 * magnitude, 1, 0),
        "shift_x": affine(1, 0, 150 / 331 * width * magnitude, 0, 1, 0),
        "shift_y": affine(1, 0, 0, 0, 1, 150 / 331 * height * magnitude),
        "rotate": lambda image: image.rotate(-30 * magnitude),
        "brightness": enhanced(ImageEnhance.Brightness, magnitude),
        "colour": enhanced(ImageEnhance.Color, magnitude),
        "contrast": enhanced(ImageEnhance.Contrast, magnitude),
        "sharpness": enhanced(ImageEnhance.Sharpness, magnitude),
        "posterize": lambda image: ImageOps.posterize(image, 8 - round(4 * abs(magnitude))),
        "solarize": lambda image: ImageOps.solarize(image, 255 * (1 - abs(magnitude))),
        "auto_contrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
    }[name]


MOVES = ("shear_x", "shear_y", "shift_x", "shift_y", "rotate")


@pytest.mark.parametrize("colours", ["RGB", "L"])
@pytest.mark.parametrize("operation", rand_augment.OPERATIONS, ids=lambda operation: operation.__name__)
def test_operations_of_rand_augment_equal_pillows(operation, colours, cifar10_sample):
    pictures = [Image.fromarray(image).convert(colours).resize((40, 30)) for image in cifar10_sample[0][::8]]
    pictures[0] = Image.new(colours, (40, 30), 0)
    images = np.stack([np.asarray(picture, np.float32).reshape(30, 40, -1) for picture in pictures])
    for magnitude in (-1.0, -0.37, 0.1, 0.5, 1.0):
        found = operation(tf.constant(images), tf.fill([len(images), 1, 1], magnitude)).numpy()
        expected = pillow(operation.__name__, magnitude, 30, 40)
        expected = np.stack([np.asarray(expected(picture), np.float32).reshape(30, 40, -1) for picture in pictures])
        if operation.__name__ in MOVES:
            # A place between two pixels may be rounded either way.
            assert (found != expected).any(axis=-1).mean() < 0.01
        elif operation.__name__ in ("none", "posterize", "solarize", "equalize"):
            np.testing.assert_array_equal(found, expected)
        else:
            # Pillow truncates, so 99.99999 becomes 99.
            assert np.abs(found - expected).max() <= 1
            assert (found != expected).mean() < 0.02


@pytest.fixture(scope="module")
def twice(cifar10_sample):
    """An image, and {bytes of it after two operations at 0.7: number of the second operation}."""

    def results(images):
        signs = [tf.fill([len(images), 1, 1], sign) for sign in (-0.7, 0.7)]
        return [operation(tf.constant(images), sign).numpy() for operation in rand_augment.OPERATIONS for sign in signs]

    image = cifar10_sample[0][7].astype(np.float32)
    once = np.concatenate(results(image[None]))
    return image, {picture.tobytes(): number // 56 for number, picture in enumerate(np.concatenate(results(once)))}


@pytest.mark.parametrize("xla", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_rand_augment_is_two_operations_one_after_the_other(twice, xla):
    image, possible = twice
    made, images = layer("rand_augment", 7), tf.constant(np.repeat(image[None], 600, axis=0))

    @tf.function(jit_compile=xla, autograph=False)
    def loss_and_images(images):
        changed = made({"images": images, "labels": tf.zeros([600, 3])}, training=True)["images"]
        # XLA has to know that there are as many images as targets.
        return tf.nn.softmax_cross_entropy_with_logits(tf.zeros([600, 3]), changed[:, 0, 0]), changed

    changed = loss_and_images(images)[1].numpy()
    seconds = [possible[picture.tobytes()] for picture in changed]
    assert len(np.unique(changed, axis=0)) > 200
    # If two operations commute, `possible` has only the later of their two orders, so one may never be the second.
    assert len(set(seconds)) >= len(rand_augment.OPERATIONS) - 1


def built(plan_of, folder, line, **changes):
    """The model of a line under `reg:`, small and compiled."""
    changes = {
        "model.network": "small_cnn",
        "model.width": 0.25,
        "reg": {"mine": line},
        "report.baseline": None,
    } | changes
    seed = changes.get("seeds", [0])[0]
    train, _ = plan_of(f"mine-{seed}", folder, **changes)
    keras.utils.set_random_seed(0)
    made = model.build(train, (32, 32, 3), 10)
    model.compile(made, train["train"], 10)
    return made


class Seen(keras.layers.Layer):
    """Keeps the last batch."""

    def call(self, batch):
        tf.py_function(self.keep, [batch["images"], batch["labels"]], [])
        return batch

    def keep(self, images, labels):
        self.last = images.numpy(), labels.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("random_crop", "rand_augment", "random_erasing", "mixup"), ("cutmix",)], ids=str)
def test_what_a_step_sees_is_a_function_of_seed_and_step(plan_of, tmp_path, kinds):
    images, labels, found = noise(16).astype(np.uint8), np.arange(16) % 10, {}
    for seed, steps in ((0, (0, 1, 2, 1, 0)), (1, (0,))):
        trained = built(plan_of, tmp_path, {kind: USUAL[kind] for kind in kinds}, seeds=[seed])
        trained.on_batch = (*trained.on_batch, seen := Seen())
        for step in steps:
            trained.optimizer.iterations.assign(step)  # as resuming from a checkpoint does
            trained.train_on_batch(images, labels)
            for before, after in zip(found.setdefault((seed, step), seen.last), seen.last, strict=True):
                np.testing.assert_array_equal(before, after)
    for first, second in itertools.combinations(found.values(), 2):
        assert (first[0] != second[0]).any(axis=(1, 2, 3)).mean() > 0.5
        assert (first[1] != second[1]).any()


class Draws(keras.layers.Layer):
    """Draws twice in each step and keeps the numbers."""

    def __init__(self):
        super().__init__()
        self.random, self.drawn = keras.random.SeedGenerator(0), []

    def call(self, batch):
        for _ in range(2):
            tf.py_function(
                lambda draw: self.drawn.append(draw.numpy()), [keras.random.uniform([4], seed=self.random)], []
            )
        return batch


def test_no_draw_comes_again_in_the_next_step(plan_of, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("regbench.regularizers.mixup"), "on_batch", lambda strength: Draws())
    trained = built(plan_of, tmp_path, {"mixup": 0.2})
    for _ in range(4):
        trained.train_on_batch(noise(2).astype(np.uint8), np.arange(2))
    (draws,) = trained.on_batch
    assert len(np.unique(draws.drawn)) == 4 * 2 * 4


@pytest.mark.slow
def test_validation_is_of_the_images_and_labels_as_they_are(plan_of, tmp_path):
    trained = built(plan_of, tmp_path, {"random_erasing": 1, "mixup": 1, "label_smoothing": 0.5})
    images, labels = noise(20).astype(np.uint8), np.arange(20) % 10
    found = trained.test_on_batch(images, labels, return_dict=True)
    logits = trained.plain.predict_on_batch(images)
    expected = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits)
    assert found["cross_entropy"] == pytest.approx(float(expected), rel=1e-6)
    assert found["accuracy"] == pytest.approx((logits.argmax(axis=1) == labels).mean())


ON_TWO_DEVICES = """
import json, sys
from regbench import plan, runtime
tf = runtime.start()
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
import keras, numpy as np
from regbench.training import model
read, seen = plan.read(sys.argv[1]), []
class Seen(keras.layers.Layer):
    def call(self, batch):
        tf.py_function(lambda images: seen.append(images.numpy()), [batch["images"]], [])
        return batch
with runtime.strategy(["CPU:0", "CPU:1"]).scope():
    trained = model.build(read, (32, 32, 3), 10)
    model.compile(trained, read["train"], 10)
trained.on_batch = (*trained.on_batch, Seen())
same = tf.data.Dataset.from_tensors((tf.zeros([8, 32, 32, 3], tf.uint8), tf.zeros([8], tf.int64)))
trained.fit(same, validation_data=same, verbose=0)
print(json.dumps([(len(images), float(np.unique(images, axis=0).mean())) for images in seen]))
"""


@pytest.mark.slow
def test_two_devices_draw_apart(plan_of, tmp_path):
    """Two logical CPUs with the same black images: each erases rectangles of its own."""
    built(plan_of, tmp_path, {"random_erasing": 1, "mixup": 0.5})
    (tmp_path / "devices.py").write_text(ON_TWO_DEVICES)
    command = ("python", "devices.py", "plans/mine-0/train.json")
    printed = Repository(tmp_path).run(*command, PYTHONPATH=str(ROOT / "src"))
    (first, mean), (second, other_mean) = json.loads(printed.splitlines()[0])
    assert first == second == 4
    assert mean != other_mean


def test_kinds_act_in_one_order_whatever_the_order_in_params(settings):
    names = {"RandomCrop", "RandAugment", "RandomErasing", "MixUp", "LabelSmoothing"}
    line, plans = (
        {kind: strength for kind, strength in USUAL.items() if kind != "cutmix"} | {"l1": 1e-5, "l2": 1e-4},
        [],
    )
    for keys in (list(line), list(line)[::-1]):
        chosen = settings(reg={"mine": {key: line[key] for key in keys}}, **{"report.baseline": None})
        plans.append(plan.compute(chosen))
        acting = regularizers.acting(chosen.reg["mine"], "on_batch")
        found = [type(call(strength)).__name__ for call, strength in acting]
        assert set(found) == names
        assert found == ["RandomCrop", "RandAugment", "RandomErasing", "MixUp", "LabelSmoothing"]
    assert plans[0] == plans[1]
    assert "src/regbench/regularizers/_batch.py" in plans[0]["mine-0/train.json"]["code"]


def test_mixup_and_cutmix_do_not_go_together(settings):
    with pytest.raises(ParamsError, match=r"reg.both: mixup and cutmix can't go together"):
        settings(**{"reg.both": {"cutmix": 1, "mixup": 0.2}})


@pytest.mark.slow
@pytest.mark.parametrize("left_out", ["cutmix", "mixup"])
def test_xla_compiles_a_step(plan_of, tmp_path, left_out):
    """As with `train.jit`, which Keras ignores in a process with deterministic operations."""
    line = {kind: strength for kind, strength in USUAL.items() if kind not in (left_out, "rand_augment")}
    trained = built(plan_of, tmp_path, line)
    trained.train_on_batch(noise(6).astype(np.uint8), np.arange(6))
    step = tf.function(trained.train_step, jit_compile=True, autograph=False)
    logs = step((tf.constant(noise(6), tf.uint8), tf.range(6)))
    assert np.isfinite(float(logs["loss"]))


def test_the_bench_has_a_usual_strength_of_each_kind():
    for kind in catalogue.kinds().values():
        assert 0 < STRENGTHS[kind.name] <= kind.highest, kind.name
