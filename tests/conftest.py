"""Fixtures for all rooms; what they are made of is in scratch.py."""

import pytest
import scratch
import yaml


@pytest.fixture(scope="session")
def cifar10_sample():
    """What `scratch.read_sample` gives."""
    return scratch.read_sample()


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """The sample as a folder of class folders of PNGs."""
    return scratch.write_image_folder(tmp_path_factory.mktemp("images") / "cifar10 sample")


@pytest.fixture
def settings(image_folder, tmp_path):
    """A function from changes to the tiny `params.Params`."""
    from regbench import params

    def load(**changes):
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(scratch.tiny_params(image_folder, **changes), sort_keys=False))
        return params.load(path)

    return load


@pytest.fixture
def plan_of(settings):
    """A function from a run such as "l2-0" and changes to its plans, (train, evaluate), as the stages read them."""
    from regbench import files, plan

    def read(run, folder, **changes):
        plans = plan.compute(settings(**changes))
        read_back = []
        for stage in ("train", "evaluate"):
            files.write_json(folder / f"plans/{run}/{stage}.json", plans[f"{run}/{stage}.json"])
            read_back.append(plan.read(folder / f"plans/{run}/{stage}.json"))
        return read_back

    return read
