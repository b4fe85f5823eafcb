"""The kinds of regularizer and the networks that exist: one file for each, read without TensorFlow.

Each file in `regularizers/` is a kind and each file in `networks/` is a network. Its name is the file's name. Further
networks are those of `keras.applications`, under Keras's names, and a user's own, `./file.py:function`. Params, plan,
error messages and `regbench list` get them from here. The files are parsed, since importing them would import
TensorFlow.
"""

import ast
import difflib
import importlib.util
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from regbench.errors import UserError

PACKAGE = Path(__file__).parent
SCOPES = ("all", "backbone", "head", "no_depthwise")
"""The weights that a kind covers.

`head`: kernel and bias of the last Dense layer. `backbone`: all other kernels. `all`: both. `no_depthwise`: `all`
without depthwise kernels.
"""

PLACES = {
    "in_network": "the network",
    "on_batch": "batches",
    "optimizer": "steps",
    "climb": "steps",
    "stops": "epochs",
}
"""{function in a kind's file: what the kind acts on}, for kinds that cover no weights."""


@dataclass(frozen=True)
class Entry:
    """A kind of regularizer or a network.

    Attributes:
        name: the file's name without suffix.
        path: the file.
        docstring: the file's docstring.
        scope: the weights that a kind covers by default; None if it covers no weights, and for a network.
        highest: the highest strength that a kind takes.
        whole: whether a kind takes whole numbers only.
        excludes: other kinds that a line with this kind may not have.
        functions: the names of the file's functions; those of a kind show where it acts.
    """

    name: str
    path: Path
    docstring: str
    scope: str | None = None
    highest: float = 1000
    whole: bool = False
    excludes: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()

    @property
    def acts_on(self) -> str:
        """What a kind acts on: weights, named by its scope, or else a part of training."""
        places = dict.fromkeys(place for name, place in PLACES.items() if name in self.functions)
        return self.scope or ", ".join(places)

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return self.docstring.partition("\n")[0]


@cache
def kinds() -> dict[str, Entry]:
    """The kinds of regularizer, by name."""
    return _entries("regularizers")


@cache
def networks() -> dict[str, Entry]:
    """The networks, by name, without `layers.py` and `copies.py`, which the networks use."""
    return {name: entry for name, entry in _entries("networks").items() if name not in ("layers", "copies")}


@cache
def applications() -> dict[str, Path]:
    """{name: Keras's file that builds it} for the networks of `keras.applications`; Keras is not imported."""
    found = importlib.util.find_spec("keras")
    listed = Path(found.origin).parent / "applications/__init__.py" if found and found.origin else None
    if listed is None or not listed.is_file():
        return {}
    return {
        alias.name: listed.parents[2] / f"{node.module.replace('.', '/')}.py"
        for node in syntax(listed).body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if alias.name[0].isupper()
    }


@dataclass(frozen=True)
class Network:
    """What `model.network` names.

    Attributes:
        name: as in params.
        sources: the project's Python files that build it, without the files that these import.
        options: the names of the arguments that it takes, among them keys of `model:`.
        smallest: the smallest allowed side of its input, in pixels.
        own: whether it is a user's own, `./file.py:function`.
    """

    name: str
    sources: tuple[Path, ...]
    options: frozenset[str]
    smallest: int = 1
    own: bool = False


def network(name: str) -> Network:
    """Find a network by the value of `model.network`.

    Raises:
        UserError: there is no such network; the message suggests a similar name.
    """
    if name in networks():
        path = networks()[name].path
        return Network(name, (path,), _arguments(_function(syntax(path), "build")))
    if name in applications():
        return _application(name)
    if ".py" in name or "/" in name:
        path, function = own(name)
        return Network(name, (PACKAGE / "networks/_own.py", path), _arguments(function), own=True)
    known = [*networks(), *applications()]
    hint = f"did you mean {found}? " if (found := nearest(name, known)) else ""
    raise UserError(
        f"{name[:60]!r} is not a network; {hint}(known: {', '.join(networks())}; those of keras.applications, such as "
        "ResNet50; your own, ./file.py:function; `regbench list` shows all)"
    )


def _application(name: str) -> Network:
    """A network of `keras.applications`; its options and smallest size are read from Keras's own file."""
    tree = syntax(applications()[name])
    options = {"batch_norm_momentum"} | ({"width"} if "alpha" in _arguments(_function(tree, name)) else set())
    sizes = [
        node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "min_size" and isinstance(node.value, ast.Constant)
    ]
    return Network(name, (PACKAGE / "networks/_applications.py",), frozenset(options), max(sizes, default=1))


def own(name: str) -> tuple[Path, ast.AST]:
    """The file of a user's own network, `./file.py:function`, and the syntax node that defines the function.

    Raises:
        UserError: the file is missing, outside of the project or not Python, or has no such function at its top level.
    """
    shown, (file, _, function) = repr(name if len(name) <= 60 else f"{name[:57]}..."), name.partition(":")
    if not file.endswith(".py") or not function.isidentifier():
        raise UserError(f"{shown} is not a network; your own is written as ./file.py:function")
    if not is_file(file):
        found = nearest(Path(file).name, (path.name for path in Path().glob("*.py")))
        raise UserError(f"{shown}: there is no such file{f'; did you mean ./{found}?' if found else ''}")
    path = Path(os.path.relpath(file))
    if Path(file).is_absolute() or ".." in path.parts:
        raise UserError(
            f"{shown} should be in the project's folder, and its path relative to it: clones of the project and copies "
            "that DVC trains in have no other"
        )
    defined = _function(syntax(path), function)
    if defined is None:
        functions = [node.name for node in syntax(path).body if isinstance(node, ast.FunctionDef)]
        found = nearest(function, functions) or ", ".join(functions[:5])
        raise UserError(
            f"{shown}: the file has no function {function} at its top level{f'; it has {found}' if found else ''}"
        )
    return path, defined


def _function(tree: ast.Module, name: str) -> ast.AST | None:
    """The node that defines a function at the top level of a file: a `def`, an assignment or an import."""
    for node in tree.body:
        names = []
        if isinstance(node, ast.FunctionDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.asname or alias.name for alias in node.names]
        if name in names:
            return node
    return None


def _arguments(function: ast.AST | None) -> frozenset[str]:
    if not isinstance(function, ast.FunctionDef):
        return frozenset()
    return frozenset(argument.arg for argument in (*function.args.args, *function.args.kwonlyargs))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most similar to this one, ignoring case; None if none is similar."""
    names = {it.lower(): it for it in known}
    found = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    return names[found[0]] if found else None


def is_file(path: str) -> bool:
    """Whether there is such a file; False also if the text can't be a path."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def syntax(path: Path) -> ast.Module:
    """The syntax tree of a Python file. Raises a `UserError` if it is not valid Python."""
    try:
        return ast.parse(path.read_bytes())
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid Python: {error.msg}") from None
    except ValueError as error:  # null bytes
        raise UserError(f"{path}: not valid Python: {error}") from None


def _entries(folder: str) -> dict[str, Entry]:
    entries = {}
    for path in sorted((PACKAGE / folder).glob("*.py")):
        if path.stem.startswith("_"):
            continue
        tree = syntax(path)
        said = {}
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in (
                "SCOPE",
                "HIGHEST",
                "WHOLE",
                "EXCLUDES",
            ):
                said[ast.unparse(node.targets[0]).lower()] = ast.literal_eval(node.value)
        if folder == "regularizers" and said.get("scope", "") not in (None, *SCOPES):
            raise UserError(f"{path} should set SCOPE to None or one of {', '.join(SCOPES)}")
        functions = tuple(node.name for node in tree.body if isinstance(node, ast.FunctionDef))
        entries[path.stem] = Entry(path.stem, path, ast.get_docstring(tree) or "", functions=functions, **said)
    return entries
