"""Networks of `keras.applications`: all are known, and with the same weights they give the outputs of Keras's own."""

import inspect

import h5py
import keras
import numpy as np
import pytest
import yaml
from scratch import TINIEST, tiny_params

from regbench import catalogue, networks, params, plan, regularizers
from regbench.data import prepare
from regbench.errors import UserError
from regbench.evaluation import evaluate
from regbench.training import fit

CLASSES = 7
IMAGES = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)


def model_of(**changes):
    return params.Model(**tiny_params("images")["model"] | changes)


def parse(**changes):
    return params.parse(yaml.safe_dump(tiny_params("images", **changes)))


def test_every_one_is_found_without_importing_keras():
    builders = {name for name, it in vars(keras.applications).items() if inspect.isfunction(it) and name[0].isupper()}
    assert {*catalogue.applications()} == builders and len(builders) > 35


@pytest.mark.parametrize("name", catalogue.applications())
def test_every_one_is_allowed(name):
    parsed = parse(**{"model.network": name, "data.image_size": 331})
    assert parsed.model.network == name
    found = catalogue.network(name)
    builder = getattr(keras.applications, name)
    assert ("width" in found.options) == ("alpha" in inspect.signature(builder).parameters)
    source = inspect.getsource(inspect.getmodule(builder))
    assert f"min_size={found.smallest}," in source or "min_size" not in source


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.network": "ResNet5"}, "model.network: 'ResNet5' is not a network; did you mean ResNet50?"),
        ({"model.network": "resnet50"}, "did you mean ResNet50?"),
        ({"model.network": "InceptionV3"}, "data.image_size: 32 is not allowed; InceptionV3 takes images of 75 pixels"),
        (
            {"model.network": "ResNet50", "model.width": 0.5},
            "model.width: 0.5 is not allowed; 'ResNet50' does not have",
        ),
        ({"model.network": "VGG16", "model.batch_norm": False}, "model.batch_norm: false is not allowed"),
    ],
)
def test_what_they_do_not_have_is_refused(changes, message):
    with pytest.raises(params.ParamsError) as raised:
        parse(**changes)
    assert len(raised.value.problems) == 1 and message in raised.value.problems[0]


def published(name):
    """Keras's network with random weights, and its outputs, computed as with the published weights."""
    builder = getattr(keras.applications, name)
    module = getattr(keras.applications, builder.__module__.rpartition(".")[2])
    base = builder(include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg")
    generator = np.random.default_rng(1)
    for weight in base.weights:
        if weight.dtype != "float32":
            continue
        factor, added = generator.normal(1, 0.1, weight.shape), generator.uniform(0, 0.02, weight.shape)
        weight.assign(weight.numpy() * factor + (added if weight.shape.rank == 1 else 0))
    whole = base
    if name.startswith("EfficientNetB"):
        # The published file has these values (tensorflow#49930). Keras adds the rescaling only for "imagenet".
        normalization = base.get_layer(index=2)
        normalization.adapt_mean.assign([0.485, 0.456, 0.406])
        normalization.adapt_variance.assign([0.229, 0.224, 0.225])
        normalization.finalize_state()
        rescaling = keras.layers.Rescaling([0.229**-0.5, 0.224**-0.5, 0.225**-0.5])
        whole = networks.inserted(base, lambda layer, x: rescaling(x) if layer.name == "stem_conv_pad" else x)
    return base, whole(module.preprocess_input(IMAGES * 127.5 + 127.5), training=False).numpy()


def save(base, path):
    """Write weights as Keras 3 does (.weights.h5) or as Keras 2 does; the published files are Keras 2's."""
    if path.name.endswith(".weights.h5"):
        base.save_weights(path)
        return
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in base.layers]
        for layer in base.layers:
            group = file.create_group(layer.name)
            weights = layer.trainable_weights + layer.non_trainable_weights
            group.attrs["weight_names"] = [f"{layer.name}/{weight.name}:0".encode() for weight in weights]
            for weight in weights:
                group[f"{layer.name}/{weight.name}:0"] = weight.numpy()


# These networks take images from -1 to 1, as BGR, and from 0 to 255 with a layer that normalizes them.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file"),
    [("MobileNet", "base.weights.h5"), ("VGG16", "base_notop.h5"), ("EfficientNetB0", "base_notop.h5")],
)
def test_equals_keras_with_published_weights(name, file, tmp_path, capsys):
    base, expected = published(name)
    save(base, tmp_path / file)
    network = networks.build(model_of(network=name, weights=str(tmp_path / file)), (32, 32, 3), CLASSES)
    assert "as initialized: head" in capsys.readouterr().out
    pooled = keras.Model(network.input, networks.head(network).input)(IMAGES, training=False).numpy()
    np.testing.assert_allclose(pooled, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert network.output_shape == (None, CLASSES)
    # Only params decide how it is regularized.
    assert network.losses == [] and not [it for it in networks.layers_of(network) if isinstance(it, networks.NOISE)]
    assert {layer.momentum for layer in networks.batch_norms(network)} <= {0.99}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "channels", "depthwise"), [("MobileNetV3Small", 1, 11), ("ConvNeXtTiny", 3, 18)])
def test_penalties_and_scopes(name, channels, depthwise):
    """ConvNeXt contains models and custom layers."""
    network = networks.build(model_of(network=name, batch_norm_momentum=0.5), (32, 32, channels), CLASSES)
    kernels = [weight for weight in network.trainable_weights if weight.path.endswith("kernel")]
    assert [kernel for _, kernel in networks.kernels(network)] == kernels
    counts = {}
    for scope in catalogue.SCOPES:
        regularizers.attach(network, params.Regularizer("mine", (params.Term("l2", 1.0, scope),)))
        counts[scope] = sum(weight.regularizer is not None for weight in network.weights)
    everything = len(kernels) + 1
    assert counts == {
        "all": everything,
        "backbone": everything - 2,
        "head": 2,
        "no_depthwise": everything - depthwise,
    }
    assert {layer.momentum for layer in networks.batch_norms(network)} <= {0.5}
    added = keras.layers.Dropout(0.5, name="added")
    last = networks.kernels(network)[-2][0]
    inserted = networks.inserted(network, lambda layer, x: added(x) if layer is last else x)
    assert added in [*networks.layers_of(inserted)]
    images = IMAGES[..., :channels]
    np.testing.assert_array_equal(inserted(images), network(images))
    assert {id(weight) for weight in inserted.weights} == {id(weight) for weight in network.weights}


@pytest.mark.parametrize(("shape", "message"), [((32, 32, 4), "3 channels, or 1"), ((16, 16, 3), "at least 32x32")])
def test_images_that_it_does_not_take(shape, message):
    with pytest.raises(UserError, match=message):
        networks.build(model_of(network="MobileNetV3Small" if shape[2] == 4 else "VGG16"), shape, CLASSES)


@pytest.mark.slow
def test_it_trains_and_is_evaluated(image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changed = tiny_params(image_folder, **TINIEST | {"model.network": "MobileNet", "train.batch_norm_images": 20})
    changed["reg"] = {"mine": {"l2": 0.001, "dropout": 0.2}}
    changed["report"]["baseline"] = None
    settings = params.parse(yaml.safe_dump(changed))
    prepare.prepare(settings.data, tmp_path / "prepared")
    plans = plan.compute(settings)
    code = {*plans["mine-0/train.json"]["code"]}
    assert "src/regbench/networks/_applications.py" in code and "src/regbench/networks/_own.py" not in code
    fit.train(plan.parse(plans["mine-0/train.json"]))
    evaluate.evaluate(plan.parse(plans["mine-0/evaluate.json"]))
    measured = yaml.safe_load((tmp_path / "runs/mine-0/evaluation/evaluation.json").read_text())
    assert (
        measured["regularized_weights"] == 1 + 13 + 13 + 2
    )  # the stem, depthwise, pointwise, kernel and bias of the head
