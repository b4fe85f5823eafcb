"""The file of a trained model, runs/KEY/model.keras: plain Keras layers, weights, what goes in and what comes out."""

import dataclasses
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import keras

from regbench.networks import copies


def metadata(model: keras.Model, plan: dict[str, Any], classes: list[str]) -> dict[str, Any]:
    """What a file says of its model: how it is used, and how it was trained; not under which name.

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

    Its layers are Keras's own, so that `keras.saving.load_model` needs nothing of regbench. Keras notes the date, and
    numbers objects that are used more than once by their place in memory; neither is kept.

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
