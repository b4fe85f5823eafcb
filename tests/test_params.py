"""params.yaml: what is read, and what is said of mistakes."""

import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT, tiny_params

from regbench import params, regularizers


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
    assert [settings.regularizer(name) for name in settings.reg] == [
        params.Regularizer("none", (), "backbone"),
        params.Regularizer("l1", (("l1", 0.001),), "backbone"),
        params.Regularizer("l2", (("l2", 0.001),), "all"),
    ]


def test_every_key_has_a_comment():
    for line in (ROOT / "params.yaml").read_text().splitlines():
        if line.startswith("  ") and ":" in line.split("#")[0]:
            assert "#" in line, line


def test_the_kinds_are_those_that_can_be_built():
    built = (*regularizers.PENALTIES, *regularizers.BEFORE_STEP, *regularizers.AFTER_STEP)
    assert sorted(built) == sorted(params.KINDS)


@pytest.mark.parametrize("written", ["5e-05", "1e-5", "1E-5", "0", "0.0", "0.001", "1", ".5e-3", "1.e-3"])
def test_strengths_as_dvc_writes_them(tmp_path, written):
    text = changed().replace("l2: 0.001", f"l2: {written}")
    assert load(tmp_path, text).regularizer("l2").strengths == (("l2", float(written)),)


def test_mapping_spells_a_combination_out(tmp_path):
    text = changed().replace("  l2: 0.001", "  elastic: {l1: 1e-5, l2: 1e-4}")
    settings = load(tmp_path, text)
    assert settings.regularizer("elastic") == params.Regularizer("elastic", (("l1", 1e-5), ("l2", 1e-4)), "backbone")


def test_scope_is_the_lines_own_or_follows_regularize_head(tmp_path):
    text = changed().replace("  l1: 0.001", "  l1: 0.001\n  last: {l2: 1e-3, scope: head}\n  weight_decay: 5e-4")
    settings = load(tmp_path, text)
    scopes = {name: settings.regularizer(name).scope for name in settings.reg}
    assert scopes == {"none": "backbone", "l1": "backbone", "last": "head", "weight_decay": "backbone", "l2": "all"}


@pytest.mark.parametrize(
    ("replaced", "by", "expected"),
    [
        ("  epochs: 1", "  epoch: 1", ["train.epoch: unknown key; did you mean epochs?", "train.epochs: missing"]),
        (
            "  l2: 0.001",
            "  l22: 0.001",
            ["reg.l22: unknown kind of regularizer; did you mean l2? (known: l1, l2, orthogonal, weight_decay"],
        ),
        ("  l2: 0.001", "  l2: -1", ["reg.l2: -1 is not allowed; it should be a number from 0"]),
        ("  l2: 0.001", "  l2: true", ["reg.l2: true is not allowed"]),
        ("  l2: 0.001", "  l2: .nan", ["reg.l2: nan is not allowed"]),
        ("  l2: 0.001", "  l2: {l3: 1}", ["reg.l2.l3: unknown kind of regularizer"]),
        ("  l2: 0.001", "  l2: {l2: 1, scope: heads}", ["reg.l2.scope: 'heads' is not allowed; did you mean head?"]),
        ("  l2: 0.001", "  l2: {scope: head}", ["reg.l2: names no kind of regularizer"]),
        ("  l2: 0.001", "  l2: {l2: 1, scope: head}", ["model.regularize_head: 'l2' has a scope of its own"]),
        ("baseline: none", "baseline: l3", ["report.baseline: 'l3' is no key under reg; did you mean l2?"]),
        ("  - 0.95", "  - 1", ["evaluate.pruning: "]),
        ("  l2: 0.001", "  a/b: {l2: 1}", ["reg.a/b: a regularizer's name is"]),
        ("  l2: 0.001", "  a-b: {l2: 1}", ["reg.a-b: a regularizer's name is"]),
        ("  l2: 0.001", "  l2: 0.001\n  l2: 0.002", ["not valid YAML: 'l2' stands twice"]),
        ("  none: 0", "  none: 0.1", ["reg.none: 0.1 is not allowed; none is no regularizer"]),
        ("image_size: 32", "image_size: 8", ["data.image_size: 8 is not allowed; it should be a whole number from 32"]),
        (
            "schedule: constant",
            "schedule: cos",
            ["train.schedule: 'cos' is not allowed; it should be constant or cosine"],
        ),
        ("seeds:\n  - 0", "seeds: []", ["train.seeds: [] is not allowed"]),
        ("seeds:\n  - 0", "seeds: [1, 1]", ["each seed should stand there once"]),
        ("regularize_head:\n  - l2", "regularize_head: [l7]", ["model.regularize_head: 'l7' is no key under reg"]),
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


def test_told_quickly_without_tensorflow_or_traceback(tmp_path):
    (tmp_path / "params.yaml").write_text("train: {epoch: 1}")
    for script, arguments in (("prepare", []), ("train", ["l2", "0"]), ("evaluate", ["l2", "0"]), ("report", [])):
        started = time.perf_counter()
        command = [sys.executable, "-X", "importtime", ROOT / "stages" / f"{script}.py", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 1
        assert "train.epoch: unknown key" in done.stderr
        assert "Traceback" not in done.stderr
        assert "tensorflow" not in done.stderr
        assert time.perf_counter() - started < 30  # a hang, not a measurement
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_report_does_not_import_tensorflow():
    code = "import sys; from regbench import figures, summary; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT / "src")}).returncode == 0
