"""A user's own network, ./file.py:function: the messages about a wrong one, and the training of a correct one."""

import hashlib
import itertools
import json
import re

import keras
import numpy as np
import own
import pytest
import yaml
from scratch import ROOT, TINIEST, copy_project, stages_run, tiny_params

from regbench import catalogue, networks, params, plan, regularizers
from regbench.data import prepare
from regbench.errors import UserError
from regbench.evaluation import evaluate
from regbench.training import fit

NUMBERS = itertools.count()
SHAPE, CLASSES = (32, 32, 3), 10


def model_of(**changes):
    return params.Model(**tiny_params("images")["model"] | changes)


@pytest.fixture
def build(tmp_path, monkeypatch):
    """A function that writes a file with this text and builds its network."""
    monkeypatch.chdir(tmp_path)

    def build(text, seed=0, **changes):
        name = f"./network_{next(NUMBERS)}.py"
        (tmp_path / name).write_text(text)
        keras.utils.set_random_seed(seed)
        return networks.build(model_of(network=f"{name}:build", **changes), SHAPE, CLASSES)

    return build


SUBCLASS = """
class Mine(keras.Model):
    def __init__(self, classes):
        super().__init__()
        self.head = L.Dense(classes)

    def call(self, x):
        return self.head(x)
"""
NOISE = """
@keras.saving.register_keras_serializable()
class Noise(L.Layer):
    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x))
"""
CONV, DENSE = "L.Conv2D(8, 3, strides=4)", 'L.Dense(num_classes, dtype="float32", name="logits")'
WRONG = {
    "nothing": (own.text("pass"), "should return a keras.Model; it returned NoneType"),
    "no model": (own.text("return [1]"), r"should return a keras.Model; it returned list: \[1\]"),
    "a subclass": (own.text("return Mine(num_classes)", SUBCLASS), "a subclass of keras.Model, Mine; .* the graph"),
    "no input": (own.text("return keras.Sequential([L.Dense(num_classes)])"), r"begin with keras.Input\(input_shape\)"),
    "two outputs": (own.text(own.BODY.replace(f"{DENSE}(x)", f"[{DENSE}(x), x]")), "1 inputs and 2 outputs, not 1"),
    "another size": (
        own.text(own.BODY.replace("keras.Input(input_shape)", "keras.Input((64, 64, 3))")),
        r"its input is float32 \[None, 64, 64, 3\]; it should be float \[N, 32, 32, 3\]",
    ),
    "whole numbers": (
        own.text(own.BODY.replace("keras.Input(input_shape)", 'keras.Input(input_shape, dtype="uint8")')),
        "its input is uint8",
    ),
    "other classes": (own.text(own.BODY.replace("num_classes", "7")), r"\[None, 7\]; it should be logits \[N, 10\]"),
    "half precision": (own.text(own.BODY.replace("float32", "bfloat16")), "logits are bfloat16; .* dtype='float32'"),
    "no head": (
        own.text(own.BODY.replace("8, 3", "10, 3").replace(f"{DENSE}(x)", "x")),
        r"should end in a head, keras.layers.Dense\(10\), .*; it has no Dense layer",
    ),
    "softmax": (
        own.text(own.BODY.replace('"float32"', '"float32", activation="softmax"')),
        "has the activation softmax; leave it out",
    ),
    "a softmax of its own": (
        own.text(own.BODY.replace(f"{DENSE}(x)", f"L.Softmax()({DENSE}(x))")),
        "leave the softmax out",
    ),
    "sigmoid": (
        own.text(own.BODY.replace('"float32"', '"float32", activation="sigmoid"')),
        "has the activation sigmoid",
    ),
    "a penalty": (own.text(own.BODY.replace("strides=4", 'strides=4, kernel_regularizer="l2"')), "name it under reg:"),
    "a constraint": (
        own.text(own.BODY.replace("strides=4", 'strides=4, kernel_constraint="non_neg"')),
        "kernel has a constraint of its own",
    ),
    "a penalty on outputs": (
        own.text(own.BODY.replace("strides=4", 'strides=4, activity_regularizer="l2"')),
        "has an activity_regularizer of its own",
    ),
    "other weights each time": (
        own.text(
            own.BODY.replace(
                "strides=4", "strides=4, bias_initializer=keras.initializers.Constant(np.random.default_rng().normal())"
            )
        ),
        "built twice with the same seed, .*bias differs",
    ),
    "noise": (
        own.text(own.with_layer('x = Noise(name="noisy")(x)'), NOISE),
        "different logits each time, starting at layer noisy",
    ),
    "not finite": (own.text(own.with_layer("x = x / 0.0")), "not finite"),
    "a lambda": (
        own.text(own.with_layer("x = L.Lambda(lambda x: 2 * x)(x)")),
        r"can't be loaded after saving \(.*Lambda",
    ),
    "an unknown layer": (
        own.text(own.with_layer("x = Scale(2.0)(x)"), own.LAYER.replace("@keras.saving.register", "# ")),
        r"put @keras.saving.register_keras_serializable\(\) above Scale",
    ),
    "half a configuration": (
        own.text(own.with_layer("x = Scale(2.0)(x)"), own.LAYER.replace(' | {"by": self.by}', "")),
        "after saving and loading, it gives different logits",
    ),
    "one batch normalization twice": (
        own.text(own.with_layer("shared = L.BatchNormalization(name='shared')\nx = shared(shared(x))")),
        "shared is called 2 times",
    ),
    "a mistake": (own.text("x = 1\nreturn missing(x)"), r"network_\d+.py, line 8: return missing\(x\)\n  NameError"),
    "Keras's error": (
        own.text(own.BODY.replace("8, 3", "8, 99")),
        r"line 8: x = L.Conv2D\(8, 99, strides=4\)\(inputs\)\n  ValueError: Computed output size",
    ),
    "an import": (
        "import no_such_thing\n\ndef build(a, b): ...\n",
        "can't be imported: .*line 1: import no_such_thing",
    ),
    "nothing to train": (
        own.text(own.BODY.replace("return keras.Model(", "m = keras.Model(") + "\nm.trainable = False\nreturn m"),
        "none of its weights is trainable",
    ),
    "arguments": (own.text("pass", arguments=""), "should take input_shape and num_classes"),
    "no function": ("build = 3\n", "should be a function; it is 3"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_words(build, name):
    text, message = WRONG[name]
    with pytest.raises(UserError, match=message) as raised:
        build(text)
    assert raised.value.__suppress_context__ or not raised.value.__context__


NESTED = """
inner = keras.Sequential([keras.Input(input_shape), L.Conv2D(4, 3, strides=2), L.BatchNormalization()], name="inner")
inputs = keras.Input(input_shape)
x = inner(inputs)
x = x + L.SeparableConv2D(4, 3, padding="same")(x)
x = L.Reshape((-1, 4))(x)
x = L.MultiHeadAttention(2, 4)(x, x)
x = L.GlobalAveragePooling1D()(x)
return keras.Model(inputs, L.Dense(num_classes)(x))
"""
PAGE = (ROOT / "docs/networks.md").read_text(encoding="utf-8")
RIGHT = {
    "functional": (own.BODY, 1),
    "sequential": ("return keras.Sequential([keras.Input(input_shape), L.Flatten(), L.Dense(num_classes)])", 0),
    "any size": (own.BODY.replace("keras.Input(input_shape)", "keras.Input((None, None, 3))"), 1),
    "own layer": (own.with_layer("x = Scale(2.0)(x)"), 1),
    "nested": (NESTED, 7),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RIGHT)
def test_a_network_that_is_right(build, name):
    body, backbone = RIGHT[name]
    network = build(own.text(body, own.LAYER))
    regularizers.attach(network, params.Regularizer("mine", (params.Term("l2", 1.0, "backbone"),)))
    assert len(network.losses) == backbone
    names = [networks.name_of(layer, kernel) for layer, kernel in networks.kernels(network)]
    assert len({*names}) == len(names) == backbone + 1
    images = np.random.default_rng(0).uniform(-1, 1, (2, *SHAPE)).astype(np.float32)
    noise = keras.layers.Dropout(0.5)
    last = networks.kernels(network)[0][0]
    noisy = networks.inserted(network, lambda layer, x: noise(x) if layer is last else x)
    np.testing.assert_array_equal(noisy(images), network(images))
    assert np.any(noisy(images, training=True) != network(images, training=True))
    quiet = networks.without_noise(noisy)
    np.testing.assert_array_equal(quiet(images, training=True), network(images, training=True))


def test_the_example_of_the_docs(build):
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    network = build(example)
    assert len(networks.kernels(network)) == 3 * 3 + 1 and len(networks.normalized(network)) == 6


def test_depthwise_kernels_of_any_layer(build):
    body = own.with_layer("x = L.SeparableConv2D(8, 3, padding='same')(x)\nx = L.Conv2D(8, 3, groups=8)(x)")
    network = build(own.text(body))
    found = [networks.name_of(*it) for it in networks.kernels(network) if networks.is_depthwise(*it)]
    assert len(found) == 2 and found[0].endswith("/depthwise_kernel")
    assert len(networks.kernels(network)) == 5


def test_options_that_the_function_has_are_given_to_it(build, tmp_path):
    body = own.BODY.replace("8, 3", "int(8 * width), 3").replace(
        "BatchNormalization()", "BatchNormalization(momentum=m)"
    )
    text = own.text(
        body.replace("momentum=m", "momentum=batch_norm_momentum"),
        arguments="shape, num_classes, *, width, batch_norm_momentum=0.9",
    )
    text = text.replace("input_shape)", "shape)")
    network = build(text, width=0.5, batch_norm_momentum=0.7)
    assert networks.kernels(network)[0][1].shape[-1] == 4
    assert [layer.momentum for layer in networks.batch_norms(network)] == [0.7]
    (file,) = tmp_path.glob("*.py")
    assert catalogue.network(f"./{file.name}:build").options == {"shape", "num_classes", "width", "batch_norm_momentum"}


def test_the_runs_seed_decides_the_weights(build):
    first, again, other = build(own.text()), build(own.text()), build(own.text(), seed=1)
    for one, same in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, same)
    assert np.any(first.get_weights()[0] != other.get_weights()[0])


@pytest.fixture
def project(image_folder, tmp_path, monkeypatch):
    """A function of changes that returns params with a network in two files; the working directory holds these."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts_of_it.py").write_text(own.HEAD + own.LAYER)
    body = own.with_layer("x = parts_of_it.Scale(2.0)(x)\nx = L.Dropout(0.3)(x)")
    (tmp_path / "my_network.py").write_text(own.text(body, "import parts_of_it\n"))

    def plans(**changes):
        chosen = tiny_params(
            image_folder, **{"model.network": "./my_network.py:build", "data.train_images": 80} | changes
        )
        chosen["reg"] = {"none": 0, "l2": 0.01}
        return params.parse(yaml.safe_dump(chosen))

    return plans


@pytest.mark.slow
def test_it_trains_and_is_evaluated(project, tmp_path):
    settings = project()
    prepare.prepare(settings.data, tmp_path / "prepared")
    run = plan.parse(plan.compute(settings)["l2-0/train.json"])
    keras.utils.set_random_seed(3)
    for out in ("runs/l2-0", "again"):
        fit.train(run, out=tmp_path / out)
    assert (tmp_path / "runs/l2-0/history.csv").read_text() == (tmp_path / "again/history.csv").read_text()
    for _ in range(2):
        evaluate.evaluate(plan.parse(plan.compute(settings)["l2-0/evaluate.json"]))
    measured = yaml.safe_load((tmp_path / "runs/l2-0/evaluation/evaluation.json").read_text())
    assert measured["regularized_weights"] == 3 and measured["frozen_kernel_weights"] == 0
    assert measured["kernel_weights"] == 3 * 3 * 3 * 8 + 8 * 10
    rows = (tmp_path / "runs/l2-0/evaluation/layers.csv").read_text().splitlines()
    # Batch normalization follows the convolution, so it has an effective learning rate; the head has none.
    assert rows[1].split(",")[-1] != "" and rows[2].split(",")[0] == "logits" and rows[2].split(",")[-1] == ""


@pytest.mark.slow
def test_its_files_are_part_of_the_plans_of_its_runs(project, tmp_path):
    def compute():
        return plan.compute(project())

    before = compute()
    runs = {f"{run}-0/{stage}.json" for run in ("none", "l2") for stage in ("train", "evaluate")}
    for name in runs:
        assert {"my_network.py", "parts_of_it.py", "src/regbench/networks/_own.py"} <= {*before[name]["code"]}
        assert "src/regbench/networks/_applications.py" not in before[name]["code"]
    for file in ("my_network.py", "parts_of_it.py"):
        text = (tmp_path / file).read_text()
        (tmp_path / file).write_text("# a comment\n" + text)
        assert compute() == before
        (tmp_path / file).write_text(text + "\nSPARE = 1\n")
        after = compute()
        assert {name for name in after if after[name] != before[name]} == runs
        (tmp_path / file).write_text(text)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./my_netwrk.py:build", "there is no such file; did you mean ./my_network.py?"),
        ("./my_network.py:bild", "has no function bild at its top level; it has build"),
        ("./my_network.py", "your own is written as ./file.py:function"),
        ("./my_network.py:", "your own is written as ./file.py:function"),
        ("my_network:build", "is not a network"),
        ("../my_network.py:build", "there is no such file"),
        ("./broken.py:build", "broken.py, line 1: not valid Python"),
        ("./a\0b.py:build", "there is no such file"),
    ],
)
def test_a_wrong_name_is_told_at_once(project, tmp_path, name, message):
    (tmp_path / "broken.py").write_text("def\n")
    with pytest.raises(params.ParamsError) as raised:
        project(**{"model.network": name})
    (problem,) = raised.value.problems
    assert problem.startswith("model.network: ") and message in problem


def test_a_file_outside_of_the_project_is_refused(project, tmp_path, monkeypatch):
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    for name in ("../my_network.py:build", f"{tmp_path}/my_network.py:build"):
        with pytest.raises(params.ParamsError, match="should be in the project's folder"):
            project(**{"model.network": name})


@pytest.mark.parametrize("key", ["width", "batch_norm", "batch_norm_momentum"])
def test_options_that_the_function_does_not_have_are_refused(project, key):
    with pytest.raises(
        params.ParamsError, match=f"model.{key}: .* is not allowed; './my_network.py:build' does not have"
    ):
        project(**{f"model.{key}": {"width": 0.5, "batch_norm": False, "batch_norm_momentum": 0.9}[key]})


def test_files_that_dvc_would_delete_or_not_see_are_refused(project, tmp_path):
    settings = project()
    (tmp_path / "dvc.yaml").write_text("stages: {plan: {deps: [params.yaml, src/regbench, my_network.py]}}")
    with pytest.raises(
        UserError, match=r"does not see when parts_of_it.py changes. .* `deps: \[params.yaml, .*parts_of"
    ):
        plan.write(settings)
    (tmp_path / "dvc.yaml").write_text("stages: {plan: {deps: [params.yaml, my_network.py, parts_of_it.py]}}")
    plan.write(settings)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/my_network.py").write_text(own.text())
    with pytest.raises(UserError, match=r"runs/my_network.py is in runs/, where DVC deletes files"):
        plan.write(project(**{"model.network": "./runs/my_network.py:build"}))


@pytest.mark.slow
@pytest.mark.dvc
def test_dvc_plans_anew_when_its_file_changes(image_folder, tmp_path):
    params_of_it = tiny_params(
        image_folder, **TINIEST | {"model.network": "./nets/my_network.py:build", "model.width": 1.0}
    )
    repository = copy_project(tmp_path / "project", params_of_it)
    (repository.folder / "nets").mkdir()
    repository.write("nets/my_network.py", own.text())
    said = repository.dvc("repro", "plan", check=False)
    assert repository.returncode != 0 and "Traceback" not in said
    (deps,) = re.findall(r"`deps: (\[.*\])`", said)
    assert deps == "[params.yaml, src/regbench, stages, benchmarks/results.json, nets/my_network.py]"
    # Do what the message says, but with the folder instead of the file.
    repository.replace(
        "dvc.yaml", "[params.yaml, src/regbench, stages, benchmarks/results.json]", deps.replace("/my_network.py", "")
    )
    assert stages_run(repository.dvc("repro", "plan")) == ["plan"]
    before = repository.read("plans/l2-0/train.json")
    repository.write("nets/my_network.py", own.text().replace("8, 3", "9, 3"))
    assert stages_run(repository.dvc("repro", "plan")) == ["plan"]
    assert repository.read("plans/l2-0/train.json") != before
    repository.commit("a network of my own")
    repository.dvc("exp", "run", "--temp", "-S", "reg.l2=0.5", "plan")
    # If DVC tracks a weights file, the plan has the MD5 that DVC gives.
    (repository.folder / "resnet50_notop.h5").write_bytes(b"weights")
    repository.dvc("add", "resnet50_notop.h5")
    repository.replace("dvc.yaml", "results.json, nets]", "results.json, nets, resnet50_notop.h5]")
    repository.dvc("exp", "run", "-S", "model.weights=resnet50_notop.h5", "plan")
    md5 = hashlib.md5(b"weights").hexdigest()
    assert json.loads(repository.read("plans/l2-0/train.json"))["weights_md5"] == md5
