"""A run that is really trained; the tests use its model."""

import json

import pytest
import scratch
import yaml
from PIL import Image


@pytest.fixture(scope="session")
def photos(cifar10_sample, tmp_path_factory):
    """A folder of class folders with 12 images each. The images are larger than the network's input."""
    folder, count = tmp_path_factory.mktemp("photos"), dict.fromkeys(scratch.CLASSES, 0)
    for image, label in zip(*cifar10_sample, strict=True):
        name = scratch.CLASSES[label]
        count[name] += 1
        if count[name] <= 12:
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(image).resize((48, 40)).save(folder / name / f"{count[name]}.png")
    return folder


@pytest.fixture(scope="session")
def trained(photos, tmp_path_factory):
    """The folder of a project with prepared/ and runs/l2-0/model.keras, made from `photos`."""
    from regbench import params, plan
    from regbench.data import prepare
    from regbench.training import fit

    folder = tmp_path_factory.mktemp("trained")
    (folder / "params.yaml").write_text(yaml.safe_dump(scratch.tiny_params(photos, **scratch.TINIEST)))
    settings = params.load(folder / "params.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare.prepare(settings.data)
        fit.train(plan.parse(json.loads(json.dumps(plan.compute(settings)["l2-0/train.json"]))))
    return folder
