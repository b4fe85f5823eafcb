"""settings + code → plans/: everything that a stage's results depend on, except images and models.

A DVC stage depends only on its plan and on the outputs of earlier stages. `dvc repro` writes the plans after every
edit, which takes a second. A plan that does not change makes no stage run again.

    plans/prepare.json          which images; the code that reads and writes them
    plans/l2-0/train.json       one run: settings, regularizer, MD5 of the weights it starts from, the code it uses
                                including a user's own network, versions of TensorFlow, Keras and NumPy
    plans/l2-0/evaluate.json    what is measured of it, the code that does it, and the same versions and SciPy's
    plans/report.json           which runs are compared, the step time of each kind, and the code of the report

A plan is also a record for people: it says what the run `l2-0` was. `train` takes its settings from its plan and reads
only `live` from params.yaml, so its results can't depend on a setting that the plan does not hold.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from regbench import catalogue, files
from regbench.errors import UserError
from regbench.params import Data, Evaluate, Model, Params, Regularizer, Report, Run, Term, Train

FOLDER = Path("plans")
PACKAGE = Path(__file__).parent
STAGES = PACKAGE.parents[1] / "stages"

WITHOUT_RESULT = (
    "regbench",
    "regbench.errors",
    "regbench.cores",
    "regbench.catalogue",
    "regbench.params",
    "regbench.live",
    "regbench.plan",
)
"""Modules that stages import but no result depends on: messages, threads, and the code that makes the plans."""

COSTS = Path("benchmarks/results.json")
"""Measurements by `make bench`. `kinds` has the time of a step with each kind, relative to a step without one."""

OUTPUTS = (FOLDER, Path("prepared"), Path("runs"), Path("plots"), Path("metrics"))
"""Folders that the pipeline writes. DVC deletes a stage's outputs in them before the stage runs."""


def notes(settings: Params) -> Iterator[str]:
    """Notes on settings that are allowed, but probably not intended."""
    train = settings.train
    if train.warmup_epochs + train.cooldown_epochs > train.epochs:
        yield (
            "note: warm-up and cool-down are longer than train.epochs, so the learning rate stays below "
            f"train.learning_rate, {train.learning_rate:g}"
        )


def write(settings: Params, folder: Path = FOLDER) -> list[Path]:
    """Write every plan that `settings` ask for, and remove the others. Returns the paths of the plans.

    Raises:
        UserError: DVC would delete the dataset or a file of the model, or would not see it change, or `folder` has a
            file that is not a plan.
    """
    refuse_outputs(settings.data.dataset)
    check_files(settings.model)
    plans = compute(settings)
    for name, plan in plans.items():
        files.write_json(folder / name, plan)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        elif path.is_file() and path.relative_to(folder).as_posix() not in plans:
            if path.name not in ("train.json", "evaluate.json"):
                raise UserError(f"{path} is not a plan; move it out of {folder}/, which the pipeline writes")
            path.unlink()
    return [folder / name for name in plans]


def refuse_outputs(dataset: str) -> None:
    """Raise a `UserError` if a dataset lies in a folder that the pipeline writes, or contains one."""
    path = Path(dataset).expanduser()
    if not path.is_dir():
        return
    for output in OUTPUTS:
        if path.resolve().is_relative_to(output.resolve()) or output.resolve().is_relative_to(path.resolve()):
            raise UserError(
                f"data.dataset: {dataset} and the pipeline's folder {output}/ overlap; DVC would delete the "
                "images. Move them to a folder of their own, such as ./images"
            )


def check_files(model: Model, pipeline: Path = Path("dvc.yaml")) -> None:
    """Raise a `UserError` if DVC would delete a file of the model, or would not see it change.

    These files are a user's own network, what it imports from its folder, and a weights file. The stage `plan` reads
    them, so dvc.yaml should have them in the deps of this stage.
    """
    files_of_model = [*_own_code(model)]
    if model.weights:
        files_of_model.append(model.weights)
    for file in files_of_model:
        for output in OUTPUTS:
            if Path(file).resolve().is_relative_to(output.resolve()):
                raise UserError(
                    f"{file} is in {output}/, where DVC deletes files before it runs a stage; move or copy it"
                )
    if not files_of_model or not pipeline.is_file():
        return
    deps = yaml.safe_load(pipeline.read_text(encoding="utf-8"))["stages"]["plan"]["deps"]
    missing = [file for file in map(Path, files_of_model) if not any(file.is_relative_to(dep) for dep in deps)]
    if missing:
        listed = ", ".join(map(str, missing))
        raise UserError(
            f"DVC does not see when {listed} changes. Add this to the deps of the stage plan in dvc.yaml: "
            f"`deps: [{', '.join([*deps, *map(str, missing)])}]`"
        )


def compute(settings: Params) -> dict[str, dict]:
    """{file name below plans/: content} for params."""
    plans = {
        "prepare.json": {"data": settings.data.model_dump(mode="json"), "code": fingerprints("stages/prepare.py")},
        "report.json": _report(settings),
    }
    # Shared, because otherwise the same files would be parsed for each run.
    network = catalogue.network(settings.model.network)
    own = _own_code(settings.model)
    builders = [*network.sources[:1], *([PACKAGE / "networks/_weights.py"] if settings.model.weights else [])]
    shared = {
        "train": fingerprints("stages/train.py", *builders) | own,
        # Loading a model needs the layer classes that a user's own network defines.
        "evaluate": fingerprints("stages/evaluate.py", *(builders[:1] if network.own else [])) | own,
    }
    weights_md5 = _weights_md5(settings.model.weights)
    for run in settings.runs:
        line = settings.reg[run.name]
        plans[f"{run.key}/train.json"] = _train(settings, run, line, shared["train"], weights_md5)
        plans[f"{run.key}/evaluate.json"] = _evaluate(settings, run, line, shared["evaluate"], network)
    return plans


def _train(settings: Params, run: Run, line: Regularizer, code: dict[str, str], weights_md5: str | None) -> dict:
    return {
        "run": run.key,
        "name": run.name,
        "seed": run.seed,
        "regularizer": _terms(line),
        "image_size": settings.data.image_size,
        "model": settings.model.model_dump(mode="json"),
        "weights_md5": weights_md5,
        "train": settings.train.model_dump(mode="json"),
        "code": code | fingerprints(*_kinds(line)),
        "versions": _versions("keras", "numpy", "tensorflow"),
    }


def _evaluate(settings: Params, run: Run, line: Regularizer, code: dict[str, str], network: catalogue.Network) -> dict:
    return {
        "run": run.key,
        "name": run.name,
        "seed": run.seed,
        "regularizer": _terms(line),
        "learning_rate": settings.train.learning_rate,
        "own_network": network.name if network.own else None,
        "evaluate": settings.evaluate.model_dump(mode="json"),
        "code": code | fingerprints(*_kinds(line)),
        "versions": _versions("keras", "numpy", "scipy", "tensorflow"),
    }


def _report(settings: Params) -> dict:
    return {
        "dataset": settings.data.dataset,
        "image_size": settings.data.image_size,
        "epochs": settings.train.epochs,
        "reg": {name: _terms(line) for name, line in settings.reg.items()},
        "seeds": list(settings.seeds),
        "validates_on_test": settings.data.validation_images == "test",
        "freeze": settings.model.freeze,
        "report": settings.report.model_dump(mode="json"),
        "costs": _costs({term.kind for line in settings.reg.values() for term in line.terms}),
        "code": fingerprints("stages/report.py"),
    }


def _costs(kinds: set[str]) -> dict[str, float]:
    """{kind: time of a step, relative to a step without a kind}, for the kinds that were measured."""
    try:
        measured = json.loads(COSTS.read_text(encoding="utf-8")).get("kinds", {})
        return {kind: float(measured[kind]["step"]["median"]) for kind in sorted(kinds & {*measured})}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{COSTS} can't be read ({error}); run `make bench`, or take it from Git") from None


def _terms(line: Regularizer) -> list[dict]:
    return [{"kind": term.kind, "strength": term.strength, "scope": term.scope} for term in line.terms]


def _versions(*packages: str) -> dict[str, str | None]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a build under another name, such as tf-nightly
            found[package] = None
    return found


def _kinds(line: Regularizer) -> list[Path]:
    return [catalogue.kinds()[term.kind].path for term in line.terms]


def _weights_md5(path: str | None) -> str | None:
    """The MD5 of a weights file. If DVC tracks the file, it is read from FILE.dvc: Git alone is enough."""
    if path is None:
        return None
    tracked = Path(f"{path}.dvc")
    if not tracked.is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    try:
        return yaml.safe_load(tracked.read_text(encoding="utf-8"))["outs"][0]["md5"]
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{tracked} is damaged ({error}); run `dvc add {path}`") from None


# What a stage reads back

SECTIONS = {"data": Data, "model": Model, "train": Train, "evaluate": Evaluate, "report": Report}


def read(path: str | Path) -> dict[str, Any]:
    """Read a plan, with its settings as the frozen objects of `params`.

    Raises:
        UserError: there is no such plan, or it is damaged.
    """
    try:
        return parse(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} can't be read ({error}); run `dvc repro plan`") from None


def parse(content: dict[str, Any]) -> dict[str, Any]:
    """Like `read`, for the content of a plan as `compute` returns it."""
    plan = dict(content)
    for key, section in SECTIONS.items():
        if key in plan:
            plan[key] = section.model_validate(plan[key])
    if "regularizer" in plan:
        plan["regularizer"] = Regularizer(plan["name"], _read_terms(plan["regularizer"]))
    if "reg" in plan:
        plan["reg"] = {name: Regularizer(name, _read_terms(terms)) for name, terms in plan["reg"].items()}
    return plan


def _read_terms(terms: list[dict]) -> tuple[Term, ...]:
    return tuple(Term(**term) for term in terms)


# Fingerprints of code


def fingerprints(*sources: str | Path) -> dict[str, str]:
    """{path: hash} of these Python files and of all regbench files that they import, directly or indirectly.

    Regularizers and networks are found by name when a run starts, so a stage does not import them: a plan adds those
    that its run uses. `_own_code` covers a user's own network.

    Args:
        sources: paths; relative ones start at the project's root.
    """
    pending, covered = [STAGES.parent / source for source in sources], {}
    while pending:
        path = pending.pop()
        name = path.relative_to(STAGES.parent).as_posix()
        if name not in covered:
            tree = catalogue.syntax(path)
            covered[name] = fingerprint(tree)
            pending += imported(tree)
    return dict(sorted(covered.items()))


def _own_code(model: Model) -> dict[str, str]:
    """{path: hash} of a user's own network and of everything it imports from its own folder or from regbench."""
    network = catalogue.network(model.network)
    if not network.own:
        return {}
    pending, covered, ours = [network.sources[-1]], {}, []
    folder = pending[0].parent
    while pending:
        path = pending.pop()
        if path.as_posix() not in covered:
            tree = catalogue.syntax(path)
            covered[path.as_posix()] = fingerprint(tree)
            ours += imported(tree)
            pending += _files(_names(tree), folder)
    return dict(sorted(covered.items())) | fingerprints(*ours)


def imported(tree: ast.AST) -> Iterator[Path]:
    """The files of regbench that a syntax tree imports, and their packages, except those in `WITHOUT_RESULT`."""
    names = (name for name in _names(tree) if name.split(".")[0] == "regbench")
    left_out = {_file(PACKAGE.parent, module.split(".")) for module in WITHOUT_RESULT}
    return (path for path in _files(names, PACKAGE.parent) if path not in left_out)


def _names(tree: ast.AST) -> Iterator[str]:
    """The names that a syntax tree imports: modules and names inside modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            # `from regbench.data import arrays` imports a module; `from regbench.data.arrays import load`, a function.
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files(names: Iterable[str], folder: Path) -> Iterator[Path]:
    """The files below a folder that these names import, and the packages that contain them."""
    for name in names:
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            if (path := _file(folder, parts[:depth])).is_file():
                yield path


def _file(folder: Path, parts: Sequence[str]) -> Path:
    path = folder.joinpath(*parts)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def fingerprint(tree: ast.AST) -> str:
    """A hash of what a Python file does: of its syntax tree without comments, docstrings, messages and layout.

    Messages are the arguments of `print` and of the exception in `raise`. They change no result.
    """
    return hashlib.sha256(_canonical(tree).encode()).hexdigest()[:16]


def _canonical(node: Any) -> str:
    # Not `ast.dump`: its output for empty fields differs between Python versions.
    if isinstance(node, list):
        return f"[{','.join(_canonical(item) for item in node)}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        return f"Raise({_canonical(node.exc.func)})"
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "print":
        return "print"
    fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, [])}
    fields.pop("kind", None)  # u"" or ""
    if isinstance(node, ast.JoinedStr):  # Python 3.12 adds empty pieces of text
        fields["values"] = [piece for piece in node.values if getattr(piece, "value", None) != ""]
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        fields["body"] = list(_without_docstrings(node.body))
    return f"{type(node).__name__}({','.join(f'{name}={_canonical(value)}' for name, value in fields.items())})"


def _without_docstrings(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """All statements except those that are only a constant: docstrings, also those after attributes."""
    for statement in body:
        if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
            yield statement
