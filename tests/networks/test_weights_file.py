"""Weights from a file (`model.weights`), and layers that keep them in training (`model.freeze`)."""

import hashlib

import h5py
import keras
import numpy as np
import pytest
import yaml
from scratch import TINIEST, tiny_params

from regbench import networks, params, plan
from regbench.data import prepare
from regbench.errors import UserError
from regbench.evaluation import evaluate
from regbench.networks import _weights
from regbench.networks.layers import ExpandConv2D
from regbench.report import verdicts
from regbench.report.runs import read
from regbench.training import fit

SMALL = {"network": "small_cnn", "width": 0.25}


def model_of(**changes):
    return params.Model(**tiny_params("images")["model"] | SMALL | changes)


def random(network):
    """Give a network random weights that no initializer gives; returns it."""
    generator = np.random.default_rng(3)
    network.set_weights([generator.uniform(0.1, 1, weight.shape) for weight in network.weights])
    return network


def weights_of(network, *names):
    return {weight.path: weight.numpy() for weight in network.weights if not weight.path.startswith(names)}


def assert_taken(network, source, *but):
    for path, value in weights_of(source, *but).items():
        np.testing.assert_array_equal(weights_of(network)[path], value, path)


def legacy(path, network, whole=False):
    """Write weights as Keras 2 did; the list of names is in two pieces, as very long lists were."""
    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights") if whole else file
        names = [layer.name.encode() for layer in network.layers]
        group.attrs["layer_names0"], group.attrs["layer_names1"] = names[:3], names[3:]
        for layer in network.layers:
            inside = group.create_group(layer.name)
            inside.attrs["weight_names"] = [f"{layer.name}_W_{index}:0".encode() for index in range(len(layer.weights))]
            for index, weight in enumerate(layer.weights):
                inside[f"{layer.name}_W_{index}:0"] = weight.numpy()


SAVE = {
    "all.weights.h5": lambda network, path: network.save_weights(path),
    "model.keras": lambda network, path: network.save(path),
    "notop.h5": lambda network, path: legacy(path, network),
    "model.h5": lambda network, path: legacy(path, network, whole=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("file", SAVE)
def test_every_kind_of_file(file, tmp_path, capsys):
    source = random(networks.build(model_of(), (32, 32, 3), 10))
    SAVE[file](source, tmp_path / file)
    network = networks.build(model_of(weights=str(tmp_path / file)), (32, 32, 3), 10)
    assert_taken(network, source)
    assert capsys.readouterr().out == f"{tmp_path / file}: weights of 9 of 9 layers\n"
    # With another number of classes, all weights but the head's are taken.
    network = networks.build(model_of(weights=str(tmp_path / file)), (32, 32, 3), 4)
    assert_taken(network, source, "head")
    assert "weights of 8 of 9 layers; as initialized: head; not used: head" in capsys.readouterr().out


def expanding(expand):
    x = inputs = keras.Input((8, 8, 3))
    for layer in expand:
        x = layer(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(4, name="head")(x), name="network")


def test_a_saved_run_of_regbench(tmp_path, capsys):
    """Its network is a model in a model. A layer that contains layers may be saved as several, with the same names."""
    plain = [
        keras.layers.Conv2D(12, 1, use_bias=False, name="expand"),
        keras.layers.BatchNormalization(name="expand_bn"),
    ]
    for layers in ([ExpandConv2D(12, name="expand")], plain):
        source, network = random(expanding(layers)), expanding([ExpandConv2D(12, name="expand")])
        images = keras.Input((8, 8, 3), dtype="uint8")
        scaled = keras.layers.Rescaling(1 / 127.5, offset=-1)(images)
        keras.Model(images, source(scaled)).save(tmp_path / "model.keras")
        _weights.load(network, str(tmp_path / "model.keras"))
        assert "weights of 3 of 3 layers\n" in capsys.readouterr().out
        for taken, saved in zip(network.get_weights(), source.get_weights(), strict=True):
            np.testing.assert_array_equal(taken, saved)


def unnamed(blocks=12):
    """Blocks of layers whose names Keras generates; their order is not alphabetical."""
    x = inputs = keras.Input((8, 8, 3))
    for _ in range(blocks):
        x = keras.layers.Conv2D(3, 3, padding="same")(x)
        x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Reshape((-1, 3))(x)
    for _ in range(2):
        x = keras.layers.MultiHeadAttention(1, 3)(x, x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(4)(x))


@pytest.mark.slow
@pytest.mark.parametrize("file", ["all.weights.h5", "model.keras"])
def test_names_that_keras_made_up_do_not_count(tmp_path, file, capsys):
    source, network = random(unnamed()), unnamed()
    SAVE[file](source, tmp_path / file)
    _weights.load(network, str(tmp_path / file))
    assert "weights of 33 of 33 layers\n" in capsys.readouterr().out
    for taken, saved in zip(network.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(taken, saved)
    # With one more convolution, the convolutions can't be matched.
    other = unnamed(blocks=13)
    before = other.layers[1].kernel.numpy()
    _weights.load(other, str(tmp_path / file))
    np.testing.assert_array_equal(other.layers[1].kernel, before)
    assert "weights of 9 of 35 layers" in capsys.readouterr().out


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "some.weights.h5"
    random(networks.build(model_of(), (32, 32, 3), 10)).save_weights(path)
    return path


@pytest.mark.slow
def test_what_does_not_fit_is_said(file, tmp_path):
    with pytest.raises(UserError, match=r"no layer of resnet20 fits .* The network has stem, stem_bn, .* has conv1"):
        networks.build(model_of(network="resnet20", weights=str(file)), (32, 32, 3), 7)
    with pytest.raises(UserError, match=r"is not the file that the run was planned with.* `dvc add"):
        networks.build(model_of(weights=str(file)), (32, 32, 3), 10, weights_md5="0" * 32)
    with pytest.raises(UserError, match=r"there is no file .* run `dvc pull gone.h5`"):
        networks.build(model_of(weights="gone.h5"), (32, 32, 3), 10)
    for content in (b"", b"no weights", file.read_bytes()[:3000]):
        file.write_bytes(content)
        with pytest.raises(UserError, match="is damaged, or is not a weights file saved by Keras"):
            networks.build(model_of(weights=str(file)), (32, 32, 3), 10)
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with pytest.raises(UserError, match="the file has none"):
        networks.build(model_of(weights=str(tmp_path / "empty.h5")), (32, 32, 3), 10)


@pytest.mark.slow
def test_the_plan_has_the_files_md5(file, tmp_path, image_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def md5s(path):
        changed = tiny_params(image_folder, **TINIEST, **{"model.weights": path})
        plans = plan.compute(params.parse(yaml.safe_dump(changed)))
        assert "src/regbench/networks/_weights.py" in plans["l2-0/train.json"]["code"]
        return {content["weights_md5"] for name, content in plans.items() if name.endswith("train.json")}

    md5 = hashlib.md5(file.read_bytes()).hexdigest()
    assert md5s(file.name) == {md5}
    # The MD5 is DVC's, even if the file itself is not there.
    (tmp_path / "some.weights.h5.dvc").write_text(f"outs:\n- md5: {'a' * 32}\n  path: some.weights.h5\n")
    assert md5s(file.name) == {"a" * 32}
    file.unlink()
    assert md5s(file.name) == {"a" * 32}
    (tmp_path / "some.weights.h5.dvc").write_text("outs: []")
    with pytest.raises(UserError, match=r"some.weights.h5.dvc is damaged"):
        md5s(file.name)
    (tmp_path / "some.weights.h5.dvc").unlink()
    for path, message in (("some.weights.h5", "there is no file"), ("weights.pt", "is not a .weights.h5, .keras or")):
        with pytest.raises(params.ParamsError, match=f"model.weights: .*{message}"):
            md5s(path)


def test_what_is_frozen():
    network = networks.build(model_of(freeze="conv2_bn"), (32, 32, 3), 10)
    assert [layer.name for layer in networks.layers_of(network) if not layer.trainable] == [
        "image", "conv1", "conv1_bn", "conv1_relu", "conv1_pool", "conv2", "conv2_bn",
    ]  # fmt: skip
    # They are still frozen in a model made from the configuration.
    again = keras.Model.from_config(network.get_config())
    trained = [[weight.path for weight in it.trainable_weights] for it in (network, again)]
    assert trained[0] == trained[1] and trained[0][0] == "conv3/kernel"
    with pytest.raises(
        UserError, match=r"has no layer 'conv2bn'; did you mean conv2_bn\? .* conv2, conv3, conv4, head"
    ):
        networks.build(model_of(freeze="conv2bn"), (32, 32, 3), 10)
    with pytest.raises(UserError, match="head leaves nothing to train"):
        networks.build(model_of(freeze="head"), (32, 32, 3), 10)


def test_a_model_within_is_frozen_by_its_name():
    inner = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="first")], name="inner")
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(inner(inputs))
    network = keras.Model(inputs, keras.layers.Dense(4, name="head")(x))
    networks.freeze(network, "inner")
    assert [weight.path.split("/")[0] for weight in network.trainable_weights] == ["head", "head"]


@pytest.mark.slow
def test_frozen_weights_stay_and_have_no_penalty(file, tmp_path, image_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changed = tiny_params(
        image_folder,
        **TINIEST,
        **{"model.weights": file.name, "model.freeze": "conv2_pool", "train.batch_norm_images": 20},
    )
    changed["reg"] = {"l2": 0.01}
    changed["report"]["baseline"] = None
    settings = params.parse(yaml.safe_dump(changed))
    prepare.prepare(settings.data, tmp_path / "prepared")
    plans = plan.compute(settings)
    fit.train(plan.parse(plans["l2-0/train.json"]))
    saved = keras.saving.load_model("runs/l2-0/model.keras").get_layer("small_cnn")
    source = random(networks.build(model_of(), (32, 32, 3), 10))
    frozen = ("conv1", "conv2")
    assert_taken(saved, source, "conv3", "conv4", "head")
    assert not any(
        np.array_equal(value, weights_of(source)[path]) for path, value in weights_of(saved, *frozen).items()
    )
    evaluate.evaluate(plan.parse(plans["l2-0/evaluate.json"]))
    measured = yaml.safe_load((tmp_path / "runs/l2-0/evaluation/evaluation.json").read_text())
    shapes = {path: value.size for path, value in weights_of(saved).items() if path.endswith("kernel")}
    assert measured["frozen_kernel_weights"] == shapes["conv1/kernel"] + shapes["conv2/kernel"]
    assert measured["regularized_weights"] == 4  # two convolutions, kernel and bias of the head
    penalty = sum((value**2).sum() for path, value in weights_of(saved, *frozen).items() if path.endswith("kernel"))
    assert measured["reg_loss"] == pytest.approx(0.01 * (penalty + (saved.get_layer("head").bias.numpy() ** 2).sum()))
    report = plan.parse(plans["report.json"])
    (said,) = verdicts.frozen(report["freeze"], read(report))
    share = measured["frozen_kernel_weights"] / measured["kernel_weights"]
    assert said == f"Frozen up to conv2_pool: {share:.0%} of the kernel weights, without penalty."
    assert list(verdicts.frozen(None, read(report))) == []
