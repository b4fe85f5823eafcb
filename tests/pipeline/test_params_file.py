"""`dvc exp run -S` changes one line of params.yaml and moves no comment."""

import difflib

import pytest
import scratch
from scratch import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.dvc]


@pytest.mark.parametrize(
    ("setting", "removed", "added"),
    [
        ("data.image_size=64", ["  image_size: 32"], ["  image_size: 64"]),
        ("data.train_images=null", ["  train_images: 21500"], ["  train_images:"]),
        ("data.test_images=500", ["  test_images:"], ["  test_images: 500"]),
        ("data.validation_images=test", ["  validation_images: 2000"], ["  validation_images: test"]),
        ("model.freeze=stem", ["  freeze:"], ["  freeze: stem"]),
        ("model.batch_norm=false", ["  batch_norm: true"], ["  batch_norm: false"]),
        ("reg.l2=0.00005", ["  l2: 0.001"], ["  l2: 5e-05"]),
        ("+reg.elastic={l1: 1e-5, l2: 1e-4}", [], ["  elastic:", "    l1: 1e-05", "    l2: 0.0001"]),
        ("~reg.l1", ["  l1: 0.001"], []),
        ("seeds=[0,1,2,7]", None, ["- 7"]),
        ("evaluate.pruning=[0.25]", None, ["  - 0.25"]),
        ("evaluate.corrupted_images=0", ["  corrupted_images: 200"], ["  corrupted_images: 0"]),
        ("report.baseline=null", ["  baseline: none"], ["  baseline:"]),
        ("live.tensorboard=true", ["  tensorboard: false"], ["  tensorboard: true"]),
        ("train.schedule=constant", ["  schedule: cosine"], ["  schedule: constant"]),
    ],
)
def test_one_line_changes(tmp_path, setting, removed, added):
    repository = scratch.copy_project(tmp_path / "project", {})
    committed = (ROOT / "params.yaml").read_text()
    repository.write("params.yaml", committed)
    repository.commit("the committed params")
    repository.dvc("exp", "run", "-S", setting, "plan")
    changed = repository.read("params.yaml")
    diff = list(difflib.ndiff(committed.splitlines(), changed.splitlines()))
    lost, new = ([line[2:] for line in diff if line.startswith(sign)] for sign in "-+")
    assert not [line for line in lost + new if "#" in line]
    if removed is not None:
        assert lost == removed
    if added is not None:
        assert new == added
