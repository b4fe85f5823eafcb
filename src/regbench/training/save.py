"""The file of a trained model, runs/KEY/model.keras: plain Keras layers, weights, and metadata on its use."""

import dataclasses
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import keras

from regbench.networks import copies


def metadata(model: keras.Model, plan: dict[str, Any], classes: list[str]) -> dict[str, Any]:
    """The metadata in a model's file: how to use the model and how it was trained, but not the run's name.

    Args:
        model: as `training.model.build` makes it.
        plan: of the run, as `regbench.plan.read` gives it.
        classes: the names of the classes, in the order of the logits.
    """
    shape = model.input_shape[1:]
    return {
        "version": 1,
        "input": f"uint8 [N, {', '.join(map(str, shape))}], 0 to 255",
        "output": f"logits [N, {len(classes)}]",
        "image_shape": list(shape),
        "classes": list(classes),
        "seed": plan["seed"],
        "regularizer": [dataclasses.asdict(term) for term in plan["regularizer"].terms],
        "image_size": plan["image_size"],
    }


def save(model: keras.Model, path: Path, metadata: dict[str, Any]) -> None:
    """Write a model as .keras, without what only training needs; equal models give equal bytes.

    Its layers are Keras's own, so `keras.saving.load_model` does not need regbench. Keras writes the date, and memory
    addresses as ids of shared objects. The date is left out, and the ids are replaced by 0, 1, 2, …

    Args:
        model: functional or sequential.
        path: of the file; it appears whole or not at all.
        metadata: goes into the file's metadata.json, under "regbench".
    """
    beside, first = path.with_name(f"partial.{path.name}"), path.with_name("partial.keras")
    keras.saving.save_model(copies.plain(model), first)
    with zipfile.ZipFile(first) as saved, zipfile.ZipFile(beside, "w") as written:
        for name in sorted(saved.namelist()):
            content = saved.read(name)
            if name == "metadata.json":
                content = json.dumps({"keras_version": keras.__version__, "regbench": metadata}).encode()
            elif name == "config.json":
                places: dict[bytes, int] = {}
                content = re.sub(
                    rb'(?<="shared_object_id": )\d+',
                    lambda found, places=places: b"%d" % places.setdefault(found[0], len(places)),
                    content,
                )
            written.writestr(zipfile.ZipInfo(name), content)
    first.unlink()
    beside.replace(path)
