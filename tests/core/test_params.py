"""params.yaml: the values that are read, and the messages about mistakes."""

import itertools
import subprocess
import sys
import time

import pytest
import yaml
from scratch import ROOT, tiny_params

from regbench import catalogue, params
from regbench.errors import UserError


def load(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return params.load(path)


def problems(tmp_path, text):
    with pytest.raises(params.ParamsError) as raised:
        load(tmp_path, text)
    return raised.value.problems


def changed(**changes):
    return yaml.safe_dump(tiny_params("images", **changes), sort_keys=False)


def test_committed_params():
    settings = params.load(ROOT / "params.yaml")
    assert list(settings.reg.values()) == [
        params.Regularizer("none"),
        params.Regularizer("l1", (params.Term("l1", 0.001, "backbone"),)),
        params.Regularizer("l2", (params.Term("l2", 0.001, "all"),)),
    ]


def test_every_key_has_a_comment_above():
    """With a comment above every key, `dvc exp run -S` moves no comment."""
    lines = (ROOT / "params.yaml").read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        of_reg = before.strip() in ("reg:", "none: 0", "l1: 0.001") or line.startswith("  near_zero:")
        if line.startswith("  ") and line.lstrip()[0] not in "#-" and not of_reg:
            assert before.startswith("  # "), line
        assert "#" not in line or line.lstrip().startswith("#"), line


def test_the_kinds_are_the_files():
    kinds = catalogue.kinds()
    assert {name: kind.scope for name, kind in kinds.items() if kind.scope} == {
        "group_lasso": "backbone",
        "l1": "backbone",
        "l2": "all",
        "max_norm": "backbone",
        "orthogonal": "backbone",
        "proximal_l1": "backbone",
        "spectral_norm": "backbone",
        "weight_decay": "all",
    }
    acts_on = {name: kind.acts_on for name, kind in kinds.items() if not kind.scope}
    assert acts_on["dropout"] == "the network" and acts_on["mixup"] == "batches" and acts_on["sam"] == "steps"
    assert acts_on["early_stopping"] == "epochs" and all(acts_on.values())
    assert all(kind.summary for kind in kinds.values())
    assert "mobilenet_v2" in catalogue.networks() and "layers" not in catalogue.networks()


def test_a_mapping_may_take_over_another():
    text = (
        (ROOT / "params.yaml")
        .read_text()
        .replace("  l2: 0.001\n", "  l2: 0.001\n  a: &a {l1: 1e-5, l2: 1e-4}\n  b: {<<: *a, l2: 1e-3, scope: head}\n")
    )
    terms = {term.kind: (term.strength, term.scope) for term in params.parse(text).reg["b"].terms}
    assert terms == {"l1": (1e-5, "head"), "l2": (1e-3, "head")}


@pytest.mark.parametrize("written", ["5e-05", "1e-5", "1E-5", "0", "0.0", "0.001", "1", ".5e-3", "1.e-3"])
def test_strengths_as_dvc_writes_them(tmp_path, written):
    text = changed().replace("l2: 0.001", f"l2: {written}")
    assert [term.strength for term in load(tmp_path, text).reg["l2"].terms] == [float(written)]


@pytest.mark.parametrize("written", ["010", "0x10", "1_000", "0b1", "1:30"])
def test_numbers_that_programs_read_differently_are_refused(tmp_path, written):
    assert any(f"{written} means different numbers" in it for it in problems(tmp_path, f"seeds: [{written}]"))


def test_a_line_means_the_same_under_any_name(tmp_path):
    text = changed().replace("  l2: 0.001", "  l2: 0.001\n  ridge: {l2: 0.001}\n  elastic: {l1: 1e-5, l2: 1e-4}")
    reg = load(tmp_path, text).reg
    assert reg["ridge"].terms == reg["l2"].terms
    assert reg["elastic"].terms == (params.Term("l1", 1e-5, "backbone"), params.Term("l2", 1e-4, "all"))


def test_a_scope_counts_for_all_kinds_of_its_line(tmp_path):
    reg = load(tmp_path, changed().replace("  l2: 0.001", "  last: {l1: 1e-3, l2: 1e-3, scope: head}")).reg
    assert [term.scope for term in reg["last"].terms] == ["head", "head"]


def test_runs_are_keys_and_seeds(tmp_path):
    settings = load(tmp_path, changed(seeds=[3, 1]))
    assert [run.key for run in settings.runs] == ["none-3", "none-1", "l1-3", "l1-1", "l2-3", "l2-1"]
    assert settings.run("l2", 1) == params.Run("l2", 1)
    for name, seed, message in (("l3", 1, "l3 is not a key under reg: .* did you mean"), ("l2", 0, "0 is not one of")):
        with pytest.raises(UserError, match=message):
            settings.run(name, seed)


@pytest.mark.parametrize(
    ("replaced", "by", "expected"),
    [
        ("  epochs: 1", "  epoch: 1", ["train.epoch: unknown key; did you mean epochs?", "train.epochs: missing"]),
        (
            "  l2: 0.001",
            "  l22: 0.001",
            ["reg.l22: unknown kind of regularizer; did you mean l2? (known: activity_l2, "],
        ),
        ("  l2: 0.001", "  l2: -1", ["reg.l2: -1 is not allowed; it should be a number from 0"]),
        ("  l2: 0.001", "  l2: true", ["reg.l2: true is not allowed"]),
        ("  l2: 0.001", "  l2: .nan", ["reg.l2: nan is not allowed"]),
        ("  l2: 0.001", "  l2: {l3: 1}", ["reg.l2.l3: unknown kind of regularizer"]),
        ("  l2: 0.001", "  l2: {l2: 1, scope: heads}", ["reg.l2.scope: 'heads' is not allowed; did you mean head?"]),
        ("  l2: 0.001", "  l2: {scope: head}", ["reg.l2: names no kind of regularizer"]),
        ("baseline: none", "baseline: l3", ["report.baseline: 'l3' is not a key under reg; did you mean l2?"]),
        ("  - 0.95", "  - 1", ["evaluate.pruning: "]),
        ("  l2: 0.001", "  a/b: {l2: 1}", ["reg.a/b: a regularizer's name is"]),
        ("  l2: 0.001", "  a-b: {l2: 1}", ["reg.a-b: a regularizer's name is"]),
        ("  l2: 0.001", "  l2: 0.001\n  l2: 0.002", ["not valid YAML: line 20, column 3: 'l2' is there twice"]),
        ("  none: 0", "  none: 0.1", ["reg.none: 0.1 is not allowed; none is no regularizer"]),
        ("image_size: 32", "image_size: 8", ["data.image_size: 8 is not allowed; it should be a whole number from 32"]),
        (
            "schedule: constant",
            "schedule: cos",
            ["train.schedule: 'cos' is not allowed; it should be constant or cosine"],
        ),
        ("seeds:\n- 0", "seeds: []", ["seeds: [] is not allowed"]),
        ("seeds:\n- 0", "seeds: [-1]", ["seeds: -1 is not allowed"]),
        ("  l2: 0.001", "  no: 0.001", ["YAML reads no, yes, off and on as false and true"]),
        ("seeds:\n- 0", "seeds: [1, 1]", ["each seed must occur only once"]),
        ("network: mobilenet_v2", "network: mobilenet", ["model.network: 'mobilenet' is not a network; did you mean"]),
        ("model:", "<<<<<<< HEAD\nmodel:", ["merge conflict in line 8: choose a side"]),
        ("model:", "modle:", ["modle: unknown key; did you mean model?", "model: missing"]),
    ],
)
def test_problems_name_key_value_and_what_is_allowed(tmp_path, replaced, by, expected):
    text = changed()
    assert replaced in text
    found = problems(tmp_path, text.replace(replaced, by))
    assert len(found) == len(expected)
    for line in expected:
        assert any(line in problem for problem in found), found


def test_all_problems_at_once(tmp_path):
    found = problems(tmp_path, changed(**{"train.epochs": 0, "train.flip": 3, "data.seed": -1, "model.width": "wide"}))
    assert [problem.split(":")[0] for problem in found] == ["data.seed", "model.width", "train.epochs", "train.flip"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "a: [",
        "!!python/object/apply:os.system [ls]",
        "{data: 1, model: 2, reg: 3, train: 4, evaluate: 5, report: 6}",
        "\x00",
        "&a [*a]",
        "reg: {1: 2}",
        "? [a]\n: 1",
    ],
)
def test_nonsense_is_an_error_in_words(tmp_path, text):
    assert problems(tmp_path, text)


@pytest.mark.slow
def test_told_quickly_without_tensorflow_or_traceback(tmp_path):
    (tmp_path / "params.yaml").write_text("train: {epoch: 1}")
    started = time.perf_counter()
    command = [sys.executable, "-X", "importtime", ROOT / "stages/plan.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "train.epoch: unknown key" in done.stderr
    assert "Traceback" not in done.stderr and "tensorflow" not in done.stderr
    assert time.perf_counter() - started < 30  # a hang, not a measurement
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
