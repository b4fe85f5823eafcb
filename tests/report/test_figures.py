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
    return [path.stem for path, _ in figures.draw(plan, runs.read(plan))]


ALL = ["effects", "accuracy", "corruptions", "learning_curves", "reg_loss", "norms", "weights", "layers", "pruning"]
"""The figures that the report shows if no kind has two strengths."""


@pytest.mark.slow
def test_figures_are_drawn_the_same_again():
    plan = fake_runs.report_plan(seeds=[0, 1], costs={"l1": 1.25})
    written = []
    for _ in range(2):
        paths = [Path("plots", f"{name}.png") for name in draw(plan)]
        written.append([path.read_bytes() for path in paths])
    assert written[0] == written[1]
    for path in paths:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert pixels.shape[1] > 500
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "written", "left_out"),
    [
        ({"reg": {"none": None}}, {}, {"effects", "reg_loss"}),
        ({"baseline": None}, {}, {"effects"}),
        ({}, {"diverged": ["none-0"]}, {"effects"}),
        ({}, {"diverged": ["none-0", "l1-0", "l2-0"]}, {*ALL}),
        ({}, {"test": lambda place, seed: 400 * (place > 0), "largest": 300}, set()),
        ({"reg": fake_runs.TWELVE, "costs": {"mixup": 1.1, "l2": 0.98}, "seeds": [0, 1]}, {}, set()),
        ({}, {"corrupted": 0}, {"corruptions"}),
    ],
    ids=["one", "no baseline", "baseline diverged", "all diverged", "none and all right, unequal", "many", "clean"],
)
def test_figures_that_show_nothing_are_written_and_left_out_of_the_report(options, written, left_out):
    assert draw(fake_runs.report_plan(**options), **written) == [name for name in ALL if name not in left_out]
    assert {path.stem for path in Path("plots").glob("*.png")} == {*ALL, "strength"}


@pytest.mark.slow
def test_several_strengths_of_a_kind_are_drawn_over_strength():
    reg = {f"l2_{index}": ("l2", 10.0**-index) for index in range(11)} | {"dropout": ("dropout", 0.2)}
    assert "strength" in draw(fake_runs.report_plan(reg, baseline="l2_3"))


@pytest.mark.parametrize(("costs", "panels"), [({}, ["Test accuracy − none's"]), ({"l1": 1.3}, [..., "Cost"])])
def test_effects_are_sorted_best_first(costs, panels):
    plan = fake_runs.report_plan(seeds=[0, 1, 2], costs=costs)
    fake_runs.write(plan, test=lambda place, seed: (200, 150, 260)[place] + seed * (1 + place))
    figure = figures.effects(plan, runs.read(plan), dict.fromkeys(plan["reg"], (0, 0, 0)))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["l2", "l1"]
    assert len(figure.axes) == len(panels) and figure.axes[-1].get_title() == panels[-1]
    if costs:
        assert [text.get_text() for text in figure.axes[1].texts] == ["not measured", "+30 %"]


@pytest.mark.slow
def test_dvc_yaml_lists_every_figure():
    draw(fake_runs.report_plan())
    drawn = {path.as_posix() for path in Path("plots").glob("*.png")}
    pipeline = yaml.safe_load((scratch.ROOT / "dvc.yaml").read_text())
    kept = {next(iter(output)) for output in pipeline["stages"]["report"]["outs"]}
    assert {path for path in kept if path.endswith(".png")} == drawn
    assert {plot for plot in pipeline["plots"] if isinstance(plot, str)} == drawn
