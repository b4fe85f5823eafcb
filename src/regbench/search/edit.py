"""Change some lines of params.yaml and leave the others, with their comments, as they are."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from regbench import params
from regbench.errors import UserError
from regbench.search.line import yaml_text


def with_line(text: str, key: str, value: Any) -> str:
    """The text of params.yaml with a line under `reg` replaced, or added as the last one.

    Raises:
        UserError: the layout of the file can't be edited by a program.
    """
    lines = text.splitlines(keepends=True)
    start, end = _section(lines, "reg")
    wanted = _raw(text)
    wanted["reg"] = wanted["reg"] | {key: value}
    inside = [index for index in range(start + 1, end) if re.match(r" +[^ #\n]", lines[index])]
    indent = re.match(" +", lines[inside[0]])[0] if inside else "  "
    place = next((index for index in inside if re.match(rf"{indent}{re.escape(key)} *:", lines[index])), None)
    if place is None:
        after = inside[-1] + 1 if inside else start + 1
        lines[after:after] = [f"{indent}{key}: {yaml_text(value)}\n"]
    else:
        after = place + 1
        while after < end and lines[after].startswith(f"{indent} "):  # the rest of a mapping
            after += 1
        comment = re.search(r" +#.*", lines[place])
        lines[place:after] = [f"{indent}{key}: {yaml_text(value)}{comment[0] if comment else ''}\n"]
    return _checked("".join(lines), wanted, f"{key}: {yaml_text(value)}")


def with_sections(text: str, reg: Mapping[str, Any], seeds: Sequence[int]) -> str:
    """The text of params.yaml with other regularizers and seeds.

    Raises:
        UserError: the layout of the file can't be edited by a program.
    """
    wanted = _raw(text) | {"reg": dict(reg), "seeds": list(seeds)}
    for name, inside in (
        ("reg", [f"  {key}: {yaml_text(value)}\n" for key, value in reg.items()]),
        ("seeds", [f"- {seed}\n" for seed in seeds]),
    ):
        lines = text.splitlines(keepends=True)
        start, end = _section(lines, name)
        text = "".join([*lines[:start], f"{name}:\n", *inside, *lines[end:]])
    return _checked(text, wanted, "other lines under reg and other seeds")


def raw_lines(text: str) -> dict[str, Any]:
    """{key: value} of the lines under `reg`, as written there."""
    return _raw(text)["reg"]


def _section(lines: Sequence[str], name: str) -> tuple[int, int]:
    """Indexes of a section's first line and of the line after its last; it ends before comments on the next section."""
    start = next((index for index, line in enumerate(lines) if re.match(rf"{name} *:", line)), None)
    if start is None:
        raise UserError(f"the layout of params.yaml is not one that a program can change: no line begins with {name}:")
    end = start + 1
    while end < len(lines) and re.match(r"[ \-\n]", lines[end]):
        end += 1
    while end > start + 1 and not lines[end - 1].strip():
        end -= 1
    return start, end


def _raw(text: str) -> dict[str, Any]:
    return yaml.load(text, Loader=params.Loader)


def _checked(text: str, wanted: dict[str, Any], change: str) -> str:
    """The text. Raises a `UserError` if it does not parse to `wanted` or its params are not valid."""
    try:
        is_wanted = _raw(text) == wanted
    except yaml.YAMLError:
        is_wanted = False
    if not is_wanted:
        raise UserError(f"the layout of params.yaml is not one that a program can change; write by hand: {change}")
    params.parse(text, Path("params.yaml"))
    return text
