"""Which kinds of regularizer and which networks there are: a file each, read without TensorFlow.

A file in `regularizers/` is a kind and a file in `networks/` is a network, under the file's name. Params, plan, error
messages and `regbench list` learn of them here, from the files' syntax: importing them would import TensorFlow.
"""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from regbench.errors import UserError

PACKAGE = Path(__file__).parent
SCOPES = ("all", "backbone", "head", "no_depthwise")
"""Which weights: all; the convolution kernels; kernel and bias of the last Dense layer; all but depthwise kernels."""


@dataclass(frozen=True)
class Entry:
    """A kind of regularizer or a network.

    Attributes:
        name: the file's name without suffix.
        path: the file.
        docstring: the file's.
        scope: of a kind, which weights it covers where `reg` does not say; None for a network.
    """

    name: str
    path: Path
    docstring: str
    scope: str | None = None

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
    """The networks, by name. `layers.py` beside them is what they are made of."""
    return {name: entry for name, entry in _entries("networks").items() if name != "layers"}


def syntax(path: Path) -> ast.Module:
    """The syntax tree of a Python file; a `UserError` where it is not valid."""
    try:
        return ast.parse(path.read_bytes())
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid Python: {error.msg}") from None


def _entries(folder: str) -> dict[str, Entry]:
    entries = {}
    for path in sorted((PACKAGE / folder).glob("*.py")):
        if path.stem.startswith("_"):
            continue
        tree = syntax(path)
        scope = None
        for node in tree.body:
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["SCOPE"]:
                scope = ast.literal_eval(node.value)
        if folder == "regularizers" and scope not in SCOPES:
            raise UserError(f"{path} should set SCOPE to one of {', '.join(SCOPES)}; it is {scope!r}")
        entries[path.stem] = Entry(path.stem, path, ast.get_docstring(tree) or "", scope)
    return entries
