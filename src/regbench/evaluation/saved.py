"""Saved models: find one, read the metadata in its file, load it.

Only `load` imports TensorFlow, so that errors in a name or a file are reported at once.
"""

import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regbench.data.source import LINES, listed
from regbench.errors import UserError

if TYPE_CHECKING:
    import keras


def find(model: str, runs: Path = Path("runs")) -> Path:
    """The file of a model that a user names: by its run, such as l2-0, by the run's folder, or by its path.

    Raises:
        UserError: there is no such run.
    """
    path = Path(model)
    if path.is_file() or path.suffix == ".keras":
        return path
    for folder in (runs / model, path):
        if (folder / "model.keras").is_file():
            return folder / "model.keras"
    found = listed(sorted(file.parent.name for file in runs.glob("*/model.keras")), LINES) or "no models"
    raise UserError(
        f"there is no model of a run {model} here; {runs}/ has {found}. `dvc pull` fetches models from the remote "
        "store, `make repro` trains what is missing"
    )


def metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The metadata in a model's file; docs/models.md lists the keys.

    Raises:
        UserError: there is no such file, it is damaged, or regbench did not save it.
    """
    _check(path)
    with zipfile.ZipFile(path) as archive:
        found = json.loads(archive.read("metadata.json")).get("regbench")
    if found is None:
        raise UserError(f"{path} does not say what its classes are; Keras or an older regbench saved it. Train again")
    return found


def load(path: str | os.PathLike) -> "keras.Model":
    """Load a model, uint8 images [N, H, W, C] from 0 to 255 → logits [N, K].

    Raises:
        UserError: there is no such file, it is damaged, or it is not a model.
    """
    _check(path)
    import keras

    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras has no single error class for unknown layers and for layers that hold code
        raise _unusable(path, f"{type(error).__name__}: {error}") from None


def _check(path: str | os.PathLike) -> None:
    """Raise a `UserError` unless a .keras archive has its JSON files and all checksums in it are right."""
    if not Path(path).is_file():
        raise _unusable(path, "there is no such file")
    if Path(path).suffix != ".keras":
        raise _unusable(path, "its name should end in .keras")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            missing = {"config.json", "metadata.json"} - set(archive.namelist())
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise _unusable(path, f"it is damaged, or not a .keras file: {error}") from None
    if damaged or missing:
        raise _unusable(path, f"it is damaged: {damaged}" if damaged else "it is not a .keras file")


def _unusable(path: str | os.PathLike, reason: str) -> UserError:
    return UserError(f"{path} can't be loaded ({reason})")
