"""`regbench export`: each format gives the logits of the model."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from scratch import CLASSES, ROOT

import regbench
from regbench.errors import UserError
from regbench.evaluation import export
from regbench.networks import layers
from regbench.training import save

pytestmark = pytest.mark.slow
TOLERANCE = 1e-4
"""Allowed difference, as a share of the largest logit; docs/models.md states it."""


@pytest.fixture(autouse=True)
def whole_precision():
    """Reset the dtype policy, which would outlive its test."""
    yield
    keras.config.set_dtype_policy("float32")


def saved(folder, precision="float32"):
    """The file of a model with all kinds of layers in MobileNetV2, and images of another size than its network's."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(precision)
    inputs = keras.Input((20, 28, 3), dtype="uint8", name="uint8_image")
    x = keras.layers.Rescaling(1 / 127.5, -1, name="scale")(inputs)
    x = keras.layers.Resizing(32, 32, name="resize")(x)  # like some other layers, it has training=True by default
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="stem")(x)
    x = shortcut = keras.layers.ReLU(6, name="relu6")(layers.BatchNormalization(momentum=0.0, name="bn")(x))
    x = layers.ExpandConv2D(24, momentum=0.0, name="expand")(x)
    x = layers.DepthwiseConv2D(padding="same", name="depthwise")(x)
    x = keras.layers.Add(name="add")([shortcut, layers.PointwiseConv2D(8, name="project")(x)])
    x = layers.DepthwiseConv2D(strides=2, name="padded")(keras.layers.ZeroPadding2D(((0, 1), (0, 1)), name="pad")(x))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, keras.layers.Dense(3, dtype="float32", name="head")(x))
    model(images(64), training=True)
    about = {"seed": 0, "classes": ["a", "b", "c"], "input": "uint8 [N, 20, 28, 3]", "output": "logits [N, 3]"}
    (folder / "l2-0").mkdir()
    save.save(model, folder / "l2-0/model.keras", about)
    return folder / "l2-0/model.keras"


def images(count):
    """Noise at several strengths."""
    rng = np.random.default_rng(0)
    return (rng.integers(0, 256, (count, 20, 28, 3)) * rng.random((count, 1, 1, 3))).astype(np.uint8)


def logits_of_a_saved_model(path, pixels):
    loaded = tf.saved_model.load(str(path))
    logits = loaded.serve(pixels)
    # By its signature, as TensorFlow Serving calls it.
    (served,) = loaded.signatures["serving_default"](uint8_image=tf.constant(pixels)).values()
    np.testing.assert_array_equal(logits, served)
    return logits.numpy()


def logits_of_tflite(path, pixels):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning that the interpreter will move to another package
        interpreter = tf.lite.Interpreter(str(path))
    (inputs,), (outputs,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert inputs["dtype"] == np.uint8 and inputs["shape_signature"].tolist() == [-1, 20, 28, 3]
    interpreter.resize_tensor_input(inputs["index"], pixels.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(inputs["index"], pixels)
    interpreter.invoke()
    return interpreter.get_tensor(outputs["index"])


def logits_of_onnx(path, pixels):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"uint8_image": pixels})[0]


READ = {"saved_model": logits_of_a_saved_model, "tflite": logits_of_tflite, "onnx": logits_of_onnx}


@pytest.mark.parametrize("form", READ)
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_the_same_logits(form, precision, tmp_path):
    if form == "onnx":
        pytest.importorskip("tf2onnx", reason="needs `pip install -e '.[export]'`")
        pytest.importorskip("onnxruntime", reason="needs `pip install -e '.[export]'`")
    model = saved(tmp_path, precision)
    path = export.place(model, form, str(tmp_path / f"out/model{export.SUFFIXES[form]}"))
    export.export(model, form, path)
    loaded = regbench.load(model)
    if precision != "float32":
        half, loaded = loaded, export.in_float32(loaded)
        rounding = np.abs(half(images(16), training=False) - loaded(images(16), training=False)).max()
        assert 0 < rounding < 0.05 * np.abs(loaded(images(16), training=False)).max()
    for count in (1, 16):
        expected = loaded(images(count), training=False).numpy()
        logits = READ[form](path, images(count))
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())
    if count > 1:
        assert expected.std(axis=0).mean() > 0.05 * np.abs(expected).max()
    if form == "tflite":
        assert b"Flex" not in path.read_bytes()  # nothing but TFLite's own operations
    assert json.loads(path.with_name(f"{path.name}.json").read_text()) == regbench.metadata(model)
    assert sorted(found.name for found in path.parent.iterdir()) == [path.name, f"{path.name}.json"]


def test_exported_again(tmp_path):
    model = saved(tmp_path)
    for _ in range(2):
        path = export.place(model, "saved_model", str(tmp_path / "out"))
        export.export(model, "saved_model", path)
        assert logits_of_a_saved_model(path, images(1)).shape == (1, 3)
        (path / "left behind").touch()
    assert export.place(model, "saved_model", str(path)) == path


def test_a_place_that_can_not_be_written(tmp_path, monkeypatch):
    model = saved(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert export.place(model, "tflite") == Path("exports/l2-0.tflite")
    assert export.place(model, "saved_model") == Path("exports/l2-0")
    for folder in ("mine", "mine.tflite"):
        Path(folder).mkdir()
    Path("file").touch()
    for form, out, says in [
        ("tflite", "model.lite", r"model\.lite: the name should end in \.tflite"),
        ("tflite", "runs/l2-0/model.tflite", r"runs/l2-0/model\.tflite is in a folder that the pipeline writes"),
        ("tflite", "mine.tflite", r"mine\.tflite already exists and is not an earlier export"),
        ("saved_model", "mine", "mine already exists and is not an earlier export"),
        ("saved_model", "file", "file already exists and is not an earlier export"),
    ]:
        with pytest.raises(UserError, match=says):
            export.place(model, form, out)
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(UserError, match=r"not installed: `\.venv/bin/pip install -e '\.\[export\]'`"):
        export.place(model, "onnx")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_examples_of_the_page(trained, monkeypatch, capsys):
    page = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(examples) == 5
    monkeypatch.chdir(trained)
    model = Path("runs/l2-0/model.keras")
    for form in export.FORMATS:
        if form == "onnx" and not importlib.util.find_spec("tf2onnx"):
            continue
        path = export.place(model, form)
        export.export(model, form, path)
        (example,) = [example for example in examples if f'"{path}"' in example]
        ran = {}
        exec(example, ran)
        expected = regbench.load(model)(np.zeros((2, 32, 32, 3), np.uint8), training=False)
        np.testing.assert_allclose(ran["logits"], expected, atol=1e-4)
    for example in examples[:2]:
        ran = {}
        exec(example, ran)
        assert ran["classes"] == list(CLASSES) and isinstance(ran["model"], keras.Model)
    assert re.search(r"^\['(\w+)', '\1'\]$", capsys.readouterr().out, re.MULTILINE)


def test_a_model_behind_a_link_is_named_after_its_run(trained, tmp_path, monkeypatch):
    """As in a project whose DVC cache is of type symlink."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/l2-0").mkdir(parents=True)
    link = Path("runs/l2-0/model.keras")
    link.symlink_to(trained / link)
    assert export.place(link, "tflite") == Path("exports/l2-0.tflite")


def test_a_model_that_diverged_is_not_exported(trained, tmp_path):
    model = keras.saving.load_model(trained / "runs/l2-0/model.keras", compile=False)
    model.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
    model.save(tmp_path / "model.keras")
    with pytest.raises(UserError, match="is from a run that diverged; it can't predict anything"):
        export.export(tmp_path / "model.keras", "tflite", tmp_path / "model.tflite")


def test_the_command(trained):
    command = [sys.executable, "-m", "regbench", "export", "l2-0", "--to", "tflite"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=trained, env=environment, text=True, capture_output=True)
    says = (
        "exports/l2-0.tflite: uint8 [N, 32, 32, 3], 0 to 255 → logits [N, 10]; exports/l2-0.tflite.json has the "
        "classes\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, says, "")
