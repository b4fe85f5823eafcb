"""Plans: what they cover, and what changes them."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import scratch
from scratch import ROOT

from regbench import files, params, plan
from regbench.errors import UserError

CODE = '''
"""A module."""

def add(one, other):
    """Add."""
    if one is None:
        raise ValueError(f"one is {one}")
    print("adding", one)
    return one + other
'''
SAME = {
    "a comment": CODE.replace("    print", "    # say it\n    print"),
    "docstrings": CODE.replace("Add.", "Add two numbers.").replace('"""A module."""', ""),
    "layout": CODE.replace("add(one, other)", "add(\n    one,\n    other,\n)").replace("one + other", "(one + other)"),
    "a message": CODE.replace("one is {one}", "one is missing").replace('"adding"', '"now adding"'),
}
OTHER = {
    "an operation": CODE.replace("one + other", "one - other"),
    "a name": CODE.replace("def add", "def plus"),
    "a default": CODE.replace("other)", "other=0)"),
    "the kind of an error": CODE.replace("ValueError", "TypeError"),
    "no message": CODE.replace('    print("adding", one)\n', ""),
}


@pytest.mark.parametrize("name", [*SAME, *OTHER])
def test_a_fingerprint_is_of_what_code_does(name):
    def fingerprint(text):
        return plan.fingerprint(ast.parse(text))

    assert (fingerprint(CODE) == fingerprint((SAME | OTHER)[name])) == (name in SAME)


@pytest.fixture(scope="module")
def project(image_folder, tmp_path_factory):
    """The project after all stages of l2-0. Each stage ran in a process that noted which of our modules it imported."""
    settings = scratch.tiny_params(image_folder, **scratch.TINIEST, **{"report.baseline": None})
    settings["reg"] = {"l2": 0.001}
    repository = scratch.copy_project(tmp_path_factory.mktemp("plan") / "project", settings)
    repository.write(
        "note.py",
        "import json, runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: json.dump({n: m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'regbench'}, "
        "open(f'modules-{sys.argv[0].split(chr(47))[-1]}.json', 'w'))",
    )
    for stage, *arguments in (["plan"], ["prepare"], ["train", "l2-0"], ["evaluate", "l2-0"], ["report"]):
        repository.run("python", "note.py", f"stages/{stage}.py", *arguments)
    return repository


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("prepare", "prepare.json"),
        ("train", "l2-0/train.json"),
        ("evaluate", "l2-0/evaluate.json"),
        ("report", "report.json"),
    ],
)
def test_a_plan_covers_what_its_stage_imports(project, stage, name):
    """If a plan missed an imported module, results would stay as they are when that module changes."""
    modules = json.loads(project.read(f"modules-{stage}.py.json"))
    imported = {
        str(Path(path).relative_to(project.folder)) for name, path in modules.items() if name not in plan.WITHOUT_RESULT
    }
    covered = set(json.loads(project.read(f"plans/{name}"))["code"])
    assert imported <= covered
    # Covered but not imported: modules that are imported only if needed, such as a source of images.
    assert covered - imported - {f"stages/{stage}.py"} <= {
        "src/regbench/data/cifar10.py",
        "src/regbench/data/tfds.py",
        "src/regbench/data/folder.py",
        "src/regbench/runtime.py",
    }


def test_a_plan_is_read_back_as_settings(settings, tmp_path):
    chosen = settings(**{"train.epochs": 3})
    files.write_json(tmp_path / "train.json", plan.compute(chosen)["l2-0/train.json"])
    read = plan.read(tmp_path / "train.json")
    assert (read["train"], read["model"], read["regularizer"]) == (chosen.train, chosen.model, chosen.reg["l2"])
    assert {"src/regbench/regularizers/l2.py", "src/regbench/networks/mobilenet_v2.py"} < set(read["code"])
    assert "src/regbench/regularizers/l1.py" not in read["code"]
    (tmp_path / "train.json").write_text("{")
    with pytest.raises(UserError, match=r"can't be read .* run `dvc repro plan`"):
        plan.read(tmp_path / "train.json")


def test_what_a_run_does_not_use_is_not_in_its_plan(settings):
    before = plan.compute(settings())
    after = plan.compute(settings(**{"data.test_images": 40, "evaluate.near_zero": 0.1, "report.baseline": "l2"}))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"prepare.json", "report.json", *(f"{run}-0/evaluate.json" for run in ("none", "l1", "l2"))}


@pytest.mark.parametrize(
    ("epochs", "warmup", "cooldown", "noted"), [(1, 2, 0, 1), (4, 2, 2, 0), (4, 2, 3, 1), (2, 2, 0, 0)]
)
def test_a_learning_rate_that_is_never_reached_is_noted(settings, epochs, warmup, cooldown, noted):
    chosen = {"train.epochs": epochs, "train.warmup_epochs": warmup, "train.cooldown_epochs": cooldown}
    assert len([*plan.notes(settings(**chosen))]) == noted


@pytest.mark.slow
def test_costs_of_the_kinds_in_use_are_in_the_reports_plan(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "COSTS", tmp_path / "results.json")
    assert plan.compute(settings())["report.json"]["costs"] == {}
    plan.COSTS.write_text('{"kinds": {"l2": {"step": {"median": 1.05}}, "orthogonal": {"step": {"median": 1.5}}}}')
    assert plan.compute(settings())["report.json"]["costs"] == {"l2": 1.05}
    plan.COSTS.write_text('{"kinds": {"l2": {}}}')
    with pytest.raises(UserError, match=r"results\.json can't be read .* run `make bench`, or take it from Git"):
        plan.compute(settings())


@pytest.mark.slow
def test_old_plans_are_removed_and_nothing_else(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = settings()
    plan.write(chosen)
    fewer = chosen.model_copy(update={"reg": {"none": chosen.reg["none"]}})
    plan.write(fewer)
    found = sorted(path.relative_to(tmp_path / "plans").as_posix() for path in (tmp_path / "plans").rglob("*.json"))
    assert found == ["none-0/evaluate.json", "none-0/train.json", "prepare.json", "report.json"]
    (tmp_path / "plans/photo.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"photo\.jpg is not a plan; move it"):
        plan.write(fewer)
    assert (tmp_path / "plans/photo.jpg").exists()


@pytest.mark.parametrize(
    "dataset", [".", "prepared", "./prepared/train", "runs/images", "plans", "..", "./plots", "link"]
)
def test_a_dataset_among_the_outputs_is_refused(tmp_path, monkeypatch, dataset):
    project = tmp_path / "project"
    for folder in ("prepared/train", "runs/images", "plans", "plots"):
        (project / folder).mkdir(parents=True)
    (project / "link").symlink_to(project / "runs")
    monkeypatch.chdir(project)
    with pytest.raises(UserError, match="DVC would delete the images"):
        plan.refuse_outputs(dataset)
    plan.refuse_outputs("./images")
    plan.refuse_outputs("cifar10")


def test_planning_takes_no_tensorflow():
    code = (
        "import sys; from regbench import params, plan; plan.compute(params.load()); "
        "sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": "src"}, cwd=ROOT)
    assert done.returncode == 0


@pytest.mark.parametrize("python", ["python3.12", "python3.13"])
def test_other_versions_of_python_make_the_same_plans(python):
    """So results that were made with one version are up to date with another."""
    if not shutil.which(python) or subprocess.run([python, "--version"], capture_output=True).returncode:
        pytest.skip(f"{python} is not installed")
    # That Python may lack the packages that plan.py imports. So take only the functions that make fingerprints.
    tree = ast.parse((ROOT / "src/regbench/plan.py").read_text())
    names = ("fingerprint", "_canonical", "_without_docstrings")
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    lines = ["from __future__ import annotations", "import ast, hashlib, sys", *map(ast.unparse, functions)]
    lines.append("for path in sys.argv[1:]: print(fingerprint(ast.parse(open(path, 'rb').read())))")
    code = "\n".join(lines)
    paths = sorted((ROOT / "src/regbench").rglob("*.py"))
    done = subprocess.run([python, "-c", code, *paths], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [plan.fingerprint(ast.parse(path.read_bytes())) for path in paths]


def test_committed_params_have_plans():
    chosen = params.load(ROOT / "params.yaml")
    assert len(plan.compute(chosen)) == 2 + 2 * len(chosen.runs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("training/fit.py", "<<<<<<< HEAD\n", "training/fit.py, line 1: not valid Python"),
        (
            "regularizers/l4.py",
            '"""A kind."""\n',
            "regularizers/l4.py should set SCOPE to None or one of all, backbone",
        ),
        ("regularizers/l4.py", "def\n", "regularizers/l4.py, line 1: not valid Python"),
    ],
)
def test_a_file_that_is_not_right_is_named(image_folder, tmp_path, name, text, message):
    repository = scratch.copy_project(tmp_path / "project", scratch.tiny_params(image_folder))
    repository.write(f"src/regbench/{name}", text)
    output = repository.run("python", "stages/plan.py", check=False)
    assert repository.returncode == 1 and "Traceback" not in output
    assert message in output
