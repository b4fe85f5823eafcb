"""What is searched: a line under `reg` with one or more open strengths, and the strengths to choose from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from regbench import catalogue, params
from regbench.errors import UserError
from regbench.params import LONGEST_NAME, Params
from regbench.search.planner import Point

MANTISSAS = {1: (1,), 2: (1, 3), 3: (1, 2, 5)}
"""{strengths per decade: their leading digits}"""


@dataclass(frozen=True)
class Axis:
    """An open strength: one that the search chooses.

    Attributes:
        kind: the kind of regularizer.
        strengths: to choose from, weakest first.
    """

    kind: str
    strengths: tuple[float, ...]


@dataclass(frozen=True)
class Line:
    """A line under `reg` with open strengths.

    Attributes:
        key: its name.
        axes: its open strengths.
        others: (kind, strength) of each kind that stays as it is, and (`scope`, its value) if there is one.
    """

    key: str
    axes: tuple[Axis, ...]
    others: tuple[tuple[str, Any], ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """How many strengths each axis has."""
        return tuple(len(axis.strengths) for axis in self.axes)

    def strengths(self, point: Point) -> dict[str, float]:
        """{kind: strength} of the axes at a point."""
        return {axis.kind: axis.strengths[place] for axis, place in zip(self.axes, point, strict=True)}

    def value(self, point: Point) -> float | dict[str, Any]:
        """The key's value in params.yaml: a number if the only kind has the key's name, otherwise a mapping."""
        if [axis.kind for axis in self.axes] == [self.key] and not self.others:
            return self.strengths(point)[self.key]
        return self.strengths(point) | dict(self.others)

    def spelled_out(self, point: Point) -> dict[str, Any]:
        """The same as a mapping, for a line under another name."""
        return self.strengths(point) | dict(self.others)

    def text(self, point: Point) -> str:
        """The whole line, to paste."""
        return f"{self.key}: {yaml_text(self.value(point))}"

    def name(self, point: Point) -> str:
        """The key under `reg` with which a point is trained: `l2_1e_4`."""
        return "_".join([self.key, *(number(it).replace("-", "_").replace(".", "_") for it in self._places(point))])

    def label(self, point: Point) -> str:
        """What a point is called in sentences: `1e-4`; with several axes `l1 1e-5, l2 1e-4`."""
        if len(self.axes) == 1:
            return number(*self._places(point))
        return ", ".join(f"{kind} {number(strength)}" for kind, strength in self.strengths(point).items())

    def _places(self, point: Point) -> list[float]:
        return [*self.strengths(point).values()]


def number(strength: float) -> str:
    """A strength as people write it: `1e-4`, `3e-3`, `0.1`, `2`. YAML reads it as the same number."""
    exact = Decimal(repr(strength)).normalize()
    return f"{exact:f}" if 0.1 <= strength <= 1000 else f"{exact:e}"


def yaml_text(value: Any) -> str:
    """A line's value in YAML's flow style."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {yaml_text(inner)}' for key, inner in value.items())}}}"
    if value is None:
        return "null"
    return number(value) if isinstance(value, float) and value else str(value)


def strengths(low: float, high: float, per_decade: int) -> tuple[float, ...]:
    """Strengths from `low` to `high`, both included: 1e-5, 3e-5, 1e-4, … with two per decade.

    Raises:
        UserError: not 0 < `low` < `high` ≤ 1000.
    """
    if not 0 < low < high <= 1000:
        raise UserError(
            f"--from {low:g} --to {high:g} is not allowed; both must be above 0 and at most 1000, and --from must be "
            "less than --to"
        )
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    nice = (float(f"{digit}e{exponent}") for exponent in exponents for digit in MANTISSAS[per_decade])
    # A strength within a factor of 1.2 of an end is left out: it would hardly differ from the end.
    return (low, *(it for it in nice if 1.2 * low < it < high / 1.2), high)


def lines(
    settings: Params, targets: Sequence[str], over: Sequence[str], ends: Sequence[tuple[float, float]], per_decade: int
) -> tuple[Line, ...]:
    """The lines that a command names, each with its strengths.

    Args:
        settings: of params.yaml.
        targets, over: as for `parse`; if `over` is not empty, there must be one target only.
        ends: (weakest, strongest) strength: one pair for all, or one pair for each of `targets` and then of `over`.
        per_decade: strengths per decade.

    Raises:
        UserError: an argument is not valid.
    """
    axes = len(targets) + len(over)
    if len(ends) not in (1, axes):
        raise UserError(f"give --from and --to once, or once for each of the {axes} strengths, in the same order")
    if over and len(targets) > 1:
        raise UserError("--over works with one line only; search the other lines with separate commands")
    ranges = [strengths(*it, per_decade) for it in ends] * (axes if len(ends) == 1 else 1)
    if over:
        return (parse(settings, targets[0], over, ranges),)
    found = tuple(parse(settings, target, (), [range_]) for target, range_ in zip(targets, ranges, strict=True))
    if len({it.key for it in found}) < len(found):
        raise UserError("each line can be searched once in a command")
    return found


def parse(settings: Params, target: str, over: Sequence[str], ranges: Sequence[tuple[float, ...]]) -> Line:
    """The line that a command names.

    Args:
        settings: of params.yaml.
        target: a key under `reg`, KEY.KIND of a line with several kinds, or a kind; `reg.` may stand before it.
        over: further kinds to search on the same line, each as KEY.KIND or as a kind to add to the line.
        ranges: the strengths of each axis.

    Raises:
        UserError: there is no such line or kind, or the line can't be searched.
    """
    key, kind = _split(settings, target)
    given = _given(settings, key)
    line_key, kinds = key, [kind]
    for it in over:
        other_key, other = _split(settings, it)
        joins = "." not in it.removeprefix("reg.") and other_key == other
        if other_key != line_key and not joins:
            raise UserError(f"--over {it}: {other_key} is another line than {line_key}; both should be of one line")
        if other in kinds:
            raise UserError(f"--over {it}: {other} is searched already; name another kind")
        if other not in given:
            key = f"{key}_{other}"
        kinds.append(other)
    others = tuple((name, value) for name, value in given.items() if name not in kinds)
    axes = tuple(Axis(kind, strengths) for kind, strengths in zip(kinds, ranges, strict=True))
    line = Line(key, axes, others)
    if len(line.name(tuple(size - 1 for size in line.shape))) > LONGEST_NAME - 4:
        raise UserError(f"{key}: the names of its strengths would be too long; give the line a shorter name under reg")
    problems: list[str] = []
    for place in range(max(line.shape)):  # each strength of each axis once; not each combination
        params.regularizer(key, line.value(tuple(min(place, size - 1) for size in line.shape)), problems)
    if problems:
        raise UserError(f"can't be searched: {problems[0]}")
    return line


def _given(settings: Params, key: str) -> dict[str, Any]:
    """{kind: strength} of the line as it is; with `scope` if that is not the default of its kinds."""
    if key not in settings.reg:
        return {}
    terms = settings.reg[key].terms
    found: dict[str, Any] = {term.kind: term.strength for term in terms}
    if any(term.scope != catalogue.kinds()[term.kind].scope for term in terms):
        found["scope"] = next(term.scope for term in terms if term.scope)
    return found


def _split(settings: Params, target: str) -> tuple[str, str]:
    """(key, kind) of what a command names."""
    key, _, kind = target.removeprefix("reg.").partition(".")
    if key not in settings.reg and not kind:
        if key not in catalogue.kinds():
            raise UserError(
                f"{target} is neither a key under reg: in params.yaml ({', '.join(settings.reg)}) nor a kind of "
                f"regularizer ({', '.join(catalogue.kinds())})"
            )
        return key, key
    if key not in settings.reg:
        raise UserError(f"{key} is not a key under reg: in params.yaml ({', '.join(settings.reg)})")
    found = [term.kind for term in settings.reg[key].terms]
    if not found:
        raise UserError(f"{key} is no regularizer, so it has no strength to search")
    if not kind and len(found) > 1:
        options = " or ".join(f"{key}.{it}" for it in found)
        raise UserError(f"{key} has {len(found)} kinds; name one, {options}, and the other with --over")
    if kind and kind not in found:
        raise UserError(f"{key} has no kind {kind}; it has {', '.join(found)}")
    return key, kind or found[0]
