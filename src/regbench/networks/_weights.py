"""A network's weights from a file (`model.weights`): one that regbench, Keras or `keras.applications` saved.

A layer takes the weights that the file has under its name, if all shapes are the same. What is left out on either side
is printed: for example the head, if the file was trained on other classes.
"""

import hashlib
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import h5py
import keras
import numpy as np

from regbench import networks
from regbench.errors import UserError

Chain = tuple[str, ...]
"""A layer's name, preceded by the names of the layers that contain it."""


def load(network: keras.Model, file: str, md5: str | None = None) -> None:
    """Load those weights of a file that fit a network, and print what was left out.

    Args:
        network: a built network.
        file: path of a .weights.h5, .keras or .h5 file. An .h5 file may be Keras 2's, of weights or a whole model.
        md5: expected MD5 of the file; None: not checked.

    Raises:
        UserError: the file is missing or damaged, differs from the planned one, or has nothing that fits.
    """
    path = Path(file)
    _check(path, md5)
    try:
        saved = dict(_known(_saved(path)))
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"model.weights: {file} is damaged, or is not a weights file saved by Keras ({error})"
        ) from None
    layers = dict(_known(part for layer in networks.layers_of(network) for part in _parts(layer)))
    pairs = list(_pairs(layers, saved))
    fitting = [(ours, theirs) for ours, theirs in pairs if _shapes(layers[ours]) == _shapes(saved[theirs])]
    if not fitting:
        raise UserError(
            f"model.weights: no layer of {network.name} fits {file}. The network has {_listed(layers)}; the file has "
            f"{_listed(saved) or 'none'}"
        )
    for ours, theirs in fitting:
        for weight, value in zip(layers[ours], saved[theirs], strict=True):
            weight.assign(value)
    kept = layers.keys() - {ours for ours, _ in fitting}
    unused = saved.keys() - {theirs for _, theirs in fitting}
    said = f"{file}: weights of {len(fitting)} of {len(layers)} layers"
    said += f"; as initialized: {_listed(it for it in layers if it in kept)}" if kept else ""
    said += f"; not used: {_listed(it for it in saved if it in unused)}" if unused else ""
    print(said, flush=True)


def _check(path: Path, md5: str | None) -> None:
    if not path.is_file():
        raise UserError(f"model.weights: there is no file {path} here; if DVC tracks it, run `dvc pull {path}`")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 and found != md5:
        raise UserError(
            f"model.weights: {path} is not the file that the run was planned with. If DVC tracks it, `dvc checkout "
            f"{path}` brings that one back, and `dvc add {path}` takes the new one; then run `dvc repro`"
        )


# What the network has


def _parts(layer: keras.layers.Layer, within: Chain = ()) -> Iterator[tuple[Chain, list[keras.Variable]]]:
    """A layer's own weights, in the order in which Keras saves them, and those of the layers in it."""
    chain = (*within, layer.name)
    inside = networks.parts_of(layer)
    theirs = {id(weight) for part in inside for weight in part.weights}
    yield chain, [weight for weight in layer.weights if id(weight) not in theirs]
    for part in inside:
        yield from _parts(part, chain)


# What a file has


def _saved(path: Path) -> Iterator[tuple[Chain, list[np.ndarray]]]:
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as file, h5py.File(file) as opened:
            yield from _layers(opened)
        return
    with h5py.File(path) as opened:
        group = opened.get("model_weights", opened)  # in a file that also holds the model
        yield from _legacy(group) if _texts(group, "layer_names") else _layers(opened)


def _layers(group: h5py.Group, within: Chain = (), folder: str = "") -> Iterator[tuple[Chain, list[np.ndarray]]]:
    """Read Keras 3's groups: a layer's has numbered weights in `vars`, and a group for each attribute with layers."""
    if "vars" in group:
        values = group["vars"]
        within = (*within, str(values.attrs.get("name", folder)))
        yield within, [np.asarray(values[number]) for number in sorted(values, key=int)]
    for name, inside in group.items():
        if name != "vars" and isinstance(inside, h5py.Group):
            # A model's layers are in `layers`; the model's own name is not used.
            yield from _layers(inside, () if name == "layers" else within, name)


def _legacy(group: h5py.Group) -> Iterator[tuple[Chain, list[np.ndarray]]]:
    """Read Keras 2's groups, one for each layer.

    If a layer or a model contains others, its group has the weights of all of them, as PART/kernel:0.
    """
    for layer in _texts(group, "layer_names"):
        weights: dict[str, list[np.ndarray]] = {}
        for name in _texts(group[layer], "weight_names"):
            weights.setdefault(name.rpartition("/")[0], []).append(np.asarray(group[layer][name]))
        for owner, values in weights.items():
            # In old files, the names of a layer's weights may not begin with the layer's name.
            yield tuple(owner.split("/")) if len(weights) > 1 else (layer,), values


def _texts(group: h5py.Group, name: str) -> list[str]:
    """A list of texts in a group's attributes; a long list is split into NAME0, NAME1, …"""
    pieces = [key for key in group.attrs if re.fullmatch(rf"{name}\d*", key)]
    pieces.sort(key=lambda key: int(key.removeprefix(name) or 0))
    return [text.decode() if isinstance(text, bytes) else str(text) for key in pieces for text in group.attrs[key]]


# What fits what


def _known(layers: Iterable[tuple[Chain, list]]) -> Iterator[tuple[Chain, list]]:
    """Layers with weights, under names that are the same in other processes.

    Keras generates names such as conv2d_7, whose number depends on what the process built before. The k-th of n becomes
    conv2d#k/n. So such layers are matched in order, and only if both sides have the same number of them.
    """
    layers = [(chain, weights) for chain, weights in layers if weights]
    numbers: dict[str, set[int]] = {}
    for name in {name for chain, _ in layers for name in chain}:
        if found := MADE_UP.fullmatch(name):
            numbers.setdefault(found[1], set()).add(int(found[2] or 0))

    def known(name: str) -> str:
        found = MADE_UP.fullmatch(name)
        if not found:
            return name
        alike = sorted(numbers[found[1]])
        return f"{found[1]}#{alike.index(int(found[2] or 0)) + 1}/{len(alike)}"

    return ((tuple(map(known, chain)), weights) for chain, weights in layers)


def _snake_case(name: str) -> str:
    """A class name as Keras writes it in layer names: BatchNormalization → batch_normalization."""
    return re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)).lower()


MADE_UP = re.compile(
    f"({'|'.join(_snake_case(name) for name in vars(keras.layers) if name[0].isupper())})(?:_([0-9]+))?"
)
"""A layer name that Keras generates: the class and, from the second layer on, a number."""


def _pairs(layers: dict[Chain, list], saved: dict[Chain, list]) -> Iterator[tuple[Chain, Chain]]:
    """Yield (layer of the network, layer of the file) with equal chains, or with equal last names that are unique."""
    yield from ((chain, chain) for chain in layers if chain in saved)
    left = [[chain for chain in one if chain not in other] for one, other in ((layers, saved), (saved, layers))]
    once = [{chain[-1]: chain for chain in chains} for chains in left]
    counts = [Counter(chain[-1] for chain in chains) for chains in left]
    for name, ours in once[0].items():
        if counts[0][name] == counts[1][name] == 1:
            yield ours, once[1][name]


def _shapes(weights: list) -> list[tuple[int, ...]]:
    return [tuple(weight.shape) for weight in weights]


def _listed(chains: Iterable[Chain]) -> str:
    names = ["/".join(chain).replace("#1/1", "") for chain in chains]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
