"""The figures."""

from pathlib import Path

import fake_runs
import numpy as np
import pytest
import scratch
import yaml
from PIL import Image

from regbench.report import figures, runs


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def draw(plan, diverged=(), **options):
    fake_runs.write(plan, **options)
    for run in diverged:
        fake_runs.diverge(Path("runs") / run)
    return [path for path, _ in figures.draw(plan, runs.read(plan))]


@pytest.mark.slow
def test_figures_are_drawn_the_same_again():
    plan = fake_runs.report_plan(seeds=[0, 1])
    first = [path.read_bytes() for path in draw(plan)]
    paths = draw(plan)
    assert first == [path.read_bytes() for path in paths]
    for path in paths:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert pixels.shape[1] > 500
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "written"),
    [
        ({"reg": {"none": None}}, {}),
        ({"baseline": None}, {}),
        ({}, {"diverged": ["none-0"]}),
        ({}, {"diverged": ["none-0", "l1-0", "l2-0"]}),
        ({}, {"test": lambda place, seed: 400 * (place > 0), "largest": 300}),
        ({"reg": {f"l2_{index}": ("l2", 10.0**-index) for index in range(11)}, "baseline": "l2_3"}, {}),
    ],
    ids=["one", "no baseline", "baseline diverged", "all diverged", "none and all right, unequal", "many"],
)
def test_every_figure_is_drawn_whatever_the_runs_are(options, written):
    assert len(draw(fake_runs.report_plan(**options), **written)) == 8


@pytest.mark.slow
def test_dvc_yaml_lists_every_figure():
    drawn = {path.as_posix() for path in draw(fake_runs.report_plan())}
    pipeline = yaml.safe_load((scratch.ROOT / "dvc.yaml").read_text())
    kept = {next(iter(output)) for output in pipeline["stages"]["report"]["outs"]}
    assert {path for path in kept if path.endswith(".png")} == drawn
    assert {plot for plot in pipeline["plots"] if isinstance(plot, str)} == drawn
