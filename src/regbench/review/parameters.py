"""Two versions of params.yaml → which keys changed."""

from pathlib import Path
from typing import Any

import yaml

from regbench import params
from regbench.report import tracked

PATH = Path("params.yaml")


def flat(data: bytes, where: str | Path = PATH) -> dict[str, Any]:
    """A params file as {dotted key: value}, in file order; a list is one value. Empty if the file holds no keys.

    The keys are not checked: the params of another commit may have had other keys.

    Raises:
        UserError: the file has conflict markers or is not valid YAML.
    """
    try:
        raw = yaml.load(tracked.text(data, where), Loader=params.Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise tracked.damaged(where, f"not valid YAML: {error}") from None
    found = {}

    def visit(key: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                visit(f"{key}.{name}" if key else str(name), inner)
        else:
            found[key] = value

    if raw and isinstance(raw, dict):
        visit("", raw)
    return found


def changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{key: (value before, value now)} of keys that are new, removed or changed, in the order of the current file.

    A removed key keeps its former place. Its value now is None; so is the value before of a new key.
    """
    order, place = list(now), 0
    for key in before:
        if key in now:
            place = order.index(key) + 1
        else:
            order.insert(place, key)
            place += 1
    return {key: (before.get(key), now.get(key)) for key in order if _differs(before, now, key)}


def _differs(before: dict[str, Any], now: dict[str, Any], key: str) -> bool:
    absent = object()
    first, second = before.get(key, absent), now.get(key, absent)
    return first != second or isinstance(first, bool) != isinstance(second, bool)  # in Python, True == 1
