"""A params.yaml full of nonsense gives a message that names the key. There is no traceback, and no file is written."""

import math
import subprocess
import sys

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scratch import ROOT, tiny_params

from regbench import catalogue, params

WHOLE = (None, "3", 1.5, -1, True, [], {}, math.nan, math.inf, 10**30, "abc")
BAD = {
    "data.dataset": (None, "", 3, [], {}, True),
    "data.image_size": (*WHOLE, 0, 31, 1025),
    "data.train_images": ("3", 1.5, -1, 0, True, [], {}, math.nan, 10**30),
    "data.validation_images": (None, "3", "Test", 1.5, -1, 0, True, []),
    "data.test_images": ("all", 1.5, -1, 0, True, {}),
    "data.seed": (*WHOLE, 2**31),
    "model.width": (None, "1", 0, 0.05, 5, -1, math.nan, math.inf, [], True),
    "model.batch_norm": (None, "yes", 1, 0, []),
    "model.batch_norm_momentum": (None, 1, 1.5, -0.1, math.nan, "0.9"),
    "model.network": (
        None,
        3,
        "",
        "layers",
        "_own",
        "mobilenet",
        [],
        True,
        "VGG",
        "a.py",
        "./a.py:b",
        "/",
        ".py:x",
        "a.py:b c",
        "x" * 999,
        "\0.py:a",
        "\n/.py:a",
        "runs/a.py:build",
        "..:build",
        "./.py:build",
    ),
    "model.weights": (
        "",
        3,
        [],
        True,
        "weights",
        "weights.pt",
        "gone.h5",
        "gone.keras",
        "\0.h5",
        "x" * 999 + ".h5",
        "tests/",
    ),
    "model.freeze": ("", 3, [], True, {}),
    "model.zero_init_residual": (None, 1, "yes", []),
    "seeds": (None, [], 0, "0", [0, 0], [-1], [1.5], ["0"], [True], [2**31], {"0": 1}),
    "train.epochs": (*WHOLE, 0),
    "train.batch_size": (*WHOLE, 0, 65_537),
    "train.learning_rate": (None, 0, -0.1, "0.1", math.nan, math.inf, 1001, True, []),
    "train.schedule": (None, "Cosine", "linear", 1, []),
    "train.warmup_epochs": (*WHOLE, 1001),
    "train.cooldown_epochs": (*WHOLE, 1001),
    "train.momentum": (None, 1, -0.1, 1.5, math.nan, "0.9", True),
    "train.flip": (None, "true", 1, "no"),
    "train.batch_norm_images": (None, -1, 1.5, "2048", math.inf),
    "train.precision": (None, "float64", 16, "half"),
    "train.jit": (None, "auto", 0),
    "evaluate.train_images": (0, -1, 1.5, "4000", True, []),
    "evaluate.corrupted_images": (*WHOLE,),
    "evaluate.near_zero": (None, -1, 2, "0.1", math.nan, [], True),
    "evaluate.pruning": (None, 0.5, "0.5", [1], [-0.1], [math.nan], [True], ["0.5"]),
    "report.baseline": (3, "l9", [], {}, True, ""),
}
REG = (
    "a/b: {l2: 1}", "a-b: {l2: 1}", "..: {l2: 1}", "a b: {l2: 1}", "ä: {l2: 1}", "L2: {l2: 1}", "1l: {l2: 1}",
    "'': {l2: 1}", "_a: {l2: 1}", "a.b: {l2: 1}", "'a;b': {l2: 1}", "'$(x)': {l2: 1}", "1: {l2: 1}", "true: {l2: 1}",
    "null: {l2: 1}", f"{'a' * 41}: {{l2: 1}}", "ridge: 0.1", "l3: 0.1", "l2: x", "l2: -1", "l2: .nan", "l2: .inf",
    "l2: 1e9", "l2: true", "l2: null", "l2: []", "l2: {}", "l2: [0.1]", "mine: {}", "mine: {l3: 1}", "mine: {l2: x}",
    "mine: {l2: -1}", "mine: {l2: {l2: 1}}", "mine: {scope: head}", "mine: {l2: 1, scope: heads}",
    "mine: {l2: 1, scope: []}", "mine: {l2: 1, where: head}", "none: 1", "none: false", "none: {l2: 1}", "none: null",
)  # fmt: skip
TEXTS = (
    "", "3", "[]", "null", "a: [", "\x00", "\ufeff", "\t", "a: b: c", "&a [*a]", "? [a]\n: 1", "--- 1\n--- 2",
    "!!python/object/apply:os.system [touch gone]", "!!python/name:os.system", "!!python/object/new:os.system [x]",
    "data: !!python/tuple [1]", "data: !!binary gIGC", "data: !!set {a}", "data: !mine 3",
    "data: {}\nmodel: {}\nreg: {}\ntrain: {}\nevaluate: {}\nreport: {}",
    "data: 1\nmodel: 2\nreg: 3\ntrain: 4\nevaluate: 5\nreport: 6", "reg: [l1, l2]", "reg: null", "[" * 5000,
)  # fmt: skip


def problems(tmp_path, text):
    """The problems found in a params file that should be refused. Nothing else may be written into its folder."""
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(params.ParamsError) as raised:
        params.load(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["params.yaml"]
    assert all(0 < len(problem) < 600 and "\n" not in problem for problem in raised.value.problems)
    return raised.value.problems


def test_there_are_enough():
    assert sum(map(len, BAD.values())) + len(REG) + len(TEXTS) > 200


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD.items() for value in values], ids=str)
def test_a_bad_value_is_named_with_its_key(tmp_path, key, value):
    found = problems(tmp_path, yaml.safe_dump(tiny_params("images", **{key: value}), sort_keys=False))
    assert any(problem.startswith(key) for problem in found), found


@pytest.mark.parametrize("key", [key for key in BAD if key not in ("report.baseline", "seeds")])
def test_missing_and_misspelt_keys(tmp_path, key):
    section, name = key.split(".")
    changed = tiny_params("images")
    changed[section][f"{name}x"] = changed[section].pop(name)
    found = problems(tmp_path, yaml.safe_dump(changed))
    assert any(problem.startswith(f"{section}.{name}x: unknown key; did you mean {name}?") for problem in found), found
    assert any(problem.startswith(f"{key}: missing") for problem in found), found


@pytest.mark.parametrize("line", REG)
def test_a_bad_line_under_reg_is_named(tmp_path, line):
    text = yaml.safe_dump(tiny_params("images"), sort_keys=False)
    for name in ("none: 0", "l2: 0.001"):
        if line.split(":")[0] == name.split(":")[0]:
            text = text.replace(f"  {name}\n", "")
    found = problems(tmp_path, text.replace("  l1: 0.001\n", f"  l1: 0.001\n  {line}\n"))
    key = next(iter(yaml.safe_load(line)))
    assert any(problem.startswith(f"reg.{key}") for problem in found), found


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_no_params_file(tmp_path, text):
    assert problems(tmp_path, text)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=8), inside, max_size=3),
    max_leaves=8,
)


def loads_or_explains(path):
    """Check that loading gives valid params or a `ParamsError`, and no other error."""
    try:
        loaded = params.load(path)
    except params.ParamsError as error:
        assert error.problems
    else:
        assert all(term.scope in (None, *params.SCOPES) for line in loaded.reg.values() for term in line.terms)


@given(changes=st.dictionaries(st.sampled_from(list(BAD)), anything, min_size=1, max_size=4))
def test_any_value_anywhere(tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "generated.yaml"
    path.write_text(yaml.safe_dump(tiny_params("images", **changes)), encoding="utf-8")
    loads_or_explains(path)


@given(
    reg=st.dictionaries(
        st.text(max_size=8) | st.sampled_from([*catalogue.kinds(), "none", "mine"]), anything, max_size=4
    )
)
def test_any_mapping_under_reg(tmp_path_factory, reg):
    path = tmp_path_factory.getbasetemp() / "generated.yaml"
    changed = tiny_params("images") | {"reg": reg}
    path.write_text(yaml.safe_dump(changed), encoding="utf-8")
    loads_or_explains(path)


@given(text=st.text(max_size=200) | st.text(alphabet=" \n:-[]{}#&*!|>'\"%@`,?l2regdatrnone0.1e", max_size=200))
def test_any_text(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "generated.yaml"
    path.write_text(text, encoding="utf-8")
    loads_or_explains(path)


@given(data=st.binary(max_size=200))
def test_any_bytes(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "generated.yaml"
    path.write_bytes(data)
    loads_or_explains(path)


def test_a_script_ends_with_one_and_without_a_traceback(tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tiny_params("images", **{"train.epochs": "ten"})))
    command = [sys.executable, ROOT / "stages/plan.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: 1 problem in params.yaml:\n"
        "  train.epochs: 'ten' is not allowed; it should be a whole number from 1 to 100,000\n"
    )
