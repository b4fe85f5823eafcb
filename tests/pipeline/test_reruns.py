"""Which stages run again after which change: most lines of the table in CONTRIBUTING.md, under real dvc."""

import json

import pytest
import yaml
from scratch import stages_run

pytestmark = [pytest.mark.slow, pytest.mark.dvc]
BOTH = ("none-0", "l2-0")
SOURCE = "src/regbench"


def set_param(key, value):
    """A function that sets a key of params.yaml."""

    def change(repository):
        params = yaml.safe_load(repository.read("params.yaml"))
        section, _, name = key.partition(".")
        if name:
            params[section][name] = value
        else:
            params[section] = value
        repository.write("params.yaml", yaml.safe_dump(params, sort_keys=False))

    return change


def set_cost(kind, median):
    """A function that sets the cost of a kind as measured by `make bench`."""

    def change(repository):
        measured = json.loads(repository.read("benchmarks/results.json"))
        measured.setdefault("kinds", {})[kind] = {"step": {"median": median}}
        repository.write("benchmarks/results.json", json.dumps(measured))

    return change


def replace(path, old, new):
    """A function that changes a piece of code."""
    return lambda repository: repository.replace(f"{SOURCE}/{path}", old, new)


def append(path, text):
    """A function that adds text to a file, or creates the file."""

    def change(repository):
        file = repository.folder / SOURCE / path
        file.write_text((file.read_text() if file.exists() else "") + text)

    return change


def together(*changes):
    """A function that makes several changes."""

    def change(repository):
        for one in changes:
            one(repository)

    return change


def stages(*names):
    """A set of stages; a name that ends with @ stands for this stage of both runs."""
    return {f"{name}{run}" for name in names for run in (BOTH if name.endswith("@") else ("",))}


KIND = '"""strength · Σw⁴, in the loss."""\n\nSCOPE = "all"\n\n\ndef penalty(w):\n    return (w**4).sum()\n'
CHANGES = {
    "reg.l2": (set_param("reg.l2", 0.02), {"plan", "train@l2-0", "evaluate@l2-0", "report"}),
    "a key more": (
        set_param("reg", {"none": 0, "l2": 0.01, "l1": 0.001}),
        {"plan", "train@l1-0", "evaluate@l1-0", "report"},
    ),
    "a seed more": (
        set_param("seeds", [0, 1]),
        {"plan", "report", *(f"{stage}@{name}-1" for stage in ("train", "evaluate") for name in ("none", "l2"))},
    ),
    "a key less": (set_param("reg", {"none": 0}), {"plan", "report"}),
    "the order of keys": (set_param("reg", {"l2": 0.01, "none": 0}), {"plan", "report"}),
    "report.baseline": (set_param("report.baseline", "l2"), {"plan", "report"}),
    "data.test_images": (set_param("data.test_images", 30), stages("plan", "prepare", "evaluate@", "report")),
    "evaluate.near_zero": (set_param("evaluate.near_zero", 0.01), stages("plan", "evaluate@", "report")),
    "the cost of a kind": (set_cost("l2", 1.5), {"plan", "report"}),
    "cluster.cpus": (set_param("cluster.cpus", 2), {"plan"}),
    "live.tensorboard": (set_param("live.tensorboard", True), {"plan"}),
    "code of evaluation": (
        replace("evaluation/accuracy.py", "CALIBRATION_BINS = 15", "CALIBRATION_BINS = 10"),
        stages("plan", "evaluate@", "report"),
    ),
    "code of the report": (append("report/summary.py", "\nSPARE = 1\n"), {"plan", "report"}),
    "code of a figure": (append("report/figures.py", "\nSPARE = 1\n"), {"plan", "report"}),
    "comments, docstrings, messages": (
        together(
            append("training/fit.py", "# a comment\n"),
            replace("training/fit.py", '"""Train one model: build, fit, resume, save."""', '"""Train."""'),
            replace("training/checkpoint.py", "resuming after epoch", "going on after epoch"),
            lambda repository: repository.write("params.yaml", "# a comment\n" + repository.read("params.yaml")),
        ),
        {"plan"},
    ),
    "runner, review, command line": (
        together(
            *(append(path, "\nSPARE = 1\n") for path in ("runner/local.py", "review/check.py", "cli.py", "live.py"))
        ),
        {"plan"},
    ),
    "a new kind, network and source": (
        together(
            append("regularizers/l4.py", KIND),
            append("networks/own.py", '"""A network."""\n'),
            append("data/own.py", '"""A source."""\n'),
        ),
        {"plan"},
    ),
    # The models come out the same, so no later stage runs.
    "code of training": (append("training/fit.py", "\nSPARE = 1\n"), stages("plan", "train@")),
    "code of a kind": (append("regularizers/l2.py", "\nSPARE = 1\n"), {"plan", "train@l2-0", "evaluate@l2-0"}),
    "code of the network": (append("networks/small_cnn.py", "\nSPARE = 1\n"), stages("plan", "train@")),
    "code of preparing": (append("data/prepare.py", "\nSPARE = 1\n"), {"plan", "prepare"}),
}


@pytest.fixture
def repository(figureless):
    return figureless


@pytest.mark.parametrize("name", CHANGES)
def test_only_what_has_to_runs_again(repository, name):
    change, expected = CHANGES[name]
    change(repository)
    assert set(stages_run(repository.dvc("repro"))) == expected
    assert "up to date" in repository.dvc("repro")


def test_going_back_trains_nothing(repository):
    before = {path: repository.read(path) for path in ("report.json", "report.md", "metrics/summary.json")}
    assert "train@l2-0" in stages_run(repository.dvc("exp", "run", "-S", "reg.l2=0.02"))
    output = repository.dvc("exp", "run", "-S", "reg.l2=0.01")
    assert set(stages_run(output)) <= {"plan", "report"}
    assert {path: repository.read(path) for path in before} == before


def test_nothing_is_trained_where_only_the_place_is_another(repository):
    """As in the copies that `dvc exp run --temp` makes."""
    assert stages_run(repository.dvc("repro")) == []
    output = repository.dvc("exp", "run", "--temp", "-S", "report.baseline=l2")
    assert not [stage for stage in stages_run(output) if stage.startswith(("train@", "evaluate@", "prepare"))]
