"""A saved model in formats that other programs read: `regbench export`."""

import importlib.util
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from regbench import files, plan, runtime
from regbench.errors import UserError
from regbench.evaluation import saved

if TYPE_CHECKING:
    import keras

FORMATS = {"saved_model": "tf_saved_model", "tflite": "litert", "onnx": "onnx"}
"""{name: what `keras.Model.export` calls it}"""

SUFFIXES = {"saved_model": "", "tflite": ".tflite", "onnx": ".onnx"}

FOLDER = Path("exports")


def place(model: Path, form: str, out: str | None = None) -> Path:
    """Where a model is exported to, by default exports/RUN.SUFFIX.

    Raises:
        UserError: the format needs a package that is not installed, or the path can't be used.
    """
    if form == "onnx" and importlib.util.find_spec("tf2onnx") is None:
        raise UserError("ONNX needs packages that are not installed: `.venv/bin/pip install -e '.[export]'`")
    run = model.absolute().parent.name if model.name == "model.keras" else model.stem
    path = Path(out) if out else FOLDER / f"{run}{SUFFIXES[form]}"
    if not path.name.endswith(SUFFIXES[form]):
        raise UserError(f"--out {path}: the name should end in {SUFFIXES[form]}")
    if any(path.resolve().is_relative_to(output.resolve()) for output in plan.OUTPUTS):
        raise UserError(f"--out {path} is in a folder that the pipeline writes; choose a place outside")
    ours = (path / "saved_model.pb").exists() if form == "saved_model" else not path.is_dir()
    if path.exists() and not ours:
        raise UserError(f"{path} already exists and is not an earlier export; choose another place with --out")
    return path


def export(model: Path, form: str, path: Path) -> None:
    """Write a model in another format, uint8 images in, logits out, and the metadata of its file beside it.

    The exported model computes in float32, because TFLite and ONNX Runtime lack operations in half precision. So the
    logits of a model that was trained in half precision differ by rounding.

    Args:
        model: the file of a saved model.
        form: one of `FORMATS`.
        path: of the file, or of SavedModel's folder; replaced if it exists. It appears whole or not at all.

    Raises:
        UserError: the model can't be used.
    """
    import keras

    loaded = in_float32(saved.load(model))
    if not all(np.isfinite(weight).all() for weight in loaded.get_weights()):
        raise UserError(f"{model} is from a run that diverged; it can't predict anything")
    images = keras.Input(loaded.input_shape[1:], dtype="uint8", name=loaded.inputs[0].name)
    # Some layers act as in training unless they are called with training=False.
    inference = keras.Model(images, loaded(images, training=False), name=loaded.name)
    beside = path.with_name(f"partial.{path.name}")
    _remove(beside)
    path.parent.mkdir(parents=True, exist_ok=True)
    signature = [keras.InputSpec(dtype="uint8", shape=inference.input_shape, name=images.name)]
    with runtime.stderr_held():  # a hundred lines on a converter's progress
        inference.export(beside, format=FORMATS[form], verbose=False, input_signature=signature)
    _remove(path)
    beside.rename(path)
    files.write_json(path.with_name(f"{path.name}.json"), saved.metadata(model))


def in_float32(model: "keras.Model") -> "keras.Model":
    """A copy of a model that computes in float32; the model itself if it already does."""
    import keras

    from regbench import networks

    if all(layer.compute_dtype == "float32" for layer in networks.layers_of(model)):
        return model

    def copied(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        return type(layer).from_config(config | {"dtype": "float32"} if "dtype" in config else config)

    copy = keras.models.clone_model(model, clone_function=copied, recursive=True)
    copy.set_weights(model.get_weights())
    return copy


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
