"""A user's images are not deleted, wherever they are. `dvc exp run` has an exception, see below."""

import shutil

import pytest
import scratch

pytestmark = [pytest.mark.slow, pytest.mark.dvc]


@pytest.mark.parametrize(
    ("place", "command"),
    [
        *((place, "regbench repro") for place in ("plans", "prepared", "prepared/train", "runs")),
        *((place, "dvc repro") for place in ("plans", "prepared", "prepared/train", "runs")),
        # Not tested: plans and prepared/train. `dvc exp run` deletes files at the path of an output before it runs
        # anything, and nothing can prevent that.
        *((place, "dvc exp run") for place in ("prepared", "runs", "data")),
    ],
)
def test_images_in_a_folder_of_the_pipeline(image_folder, tmp_path, place, command):
    params = scratch.tiny_params(f"./{place}", **scratch.TINIEST)
    params["reg"] = {"none": 0}
    repository = scratch.copy_project(tmp_path / "project", params)
    folder = repository.folder / place
    shutil.copytree(image_folder, folder, dirs_exist_ok=True)
    before = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")}
    program, *arguments = command.split()
    output = getattr(repository, program)(*arguments, check=False)
    if place == "data":  # not a folder of the pipeline
        assert repository.returncode == 0, output
    else:
        assert repository.returncode != 0
        assert "DVC would delete the images" in output
    assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")} == before
