"""params.yaml → validated, frozen objects.

`load` is the one way to read it. Nothing here imports TensorFlow, so a mistake is told within a second.
"""

import difflib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from regbench import errors
from regbench.errors import UserError

KINDS = {
    "l1": "strength × Σ|w|, in the loss",
    "l2": "strength × Σw², in the loss",
    "orthogonal": "strength × ‖WᵀW − I‖², in the loss",
    "weight_decay": "w shrinks by learning rate × strength × w before each step",
    "proximal_l1": "w moves to 0 by learning rate × strength after each step, and stays there",
}
"""What a line under `reg:` can do, by kind; `regbench.regularizers` has a function of the same name for each."""

SCOPES = ("all", "backbone", "head", "no_depthwise")
"""Which weights: all; the convolution kernels; kernel and bias of the Dense head; all but depthwise kernels."""

NAME = re.compile(r"[a-z][a-z0-9_]*")
NAME_RULE = "a small letter, then small letters, digits or underscores"


class ParamsError(UserError):
    """params.yaml can't be used. `problems` holds a line for each thing that is wrong."""

    def __init__(self, path, problems):
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n  ".join([f"{count} in {path}:", *self.problems]))


class Section(BaseModel):
    """A section of params.yaml: keys are known, values have the type they say, nothing changes afterwards."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def _whole(low, high):
    return Field(ge=low, le=high, description=f"a whole number from {low:,} to {high:,}")


def _list(value):
    """Frozen objects hold tuples; YAML gives lists."""
    return tuple(value) if isinstance(value, list) else value


Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Data(Section):
    """Which images, how many, how large."""

    dataset: str = Field(min_length=1, description="a TFDS name, or the path of a folder of class folders")
    image_size: int = _whole(32, 1024)
    train_images: Annotated[int, Field(ge=1, le=10**9)] | None = Field(
        description="a whole number from 1, or null for all"
    )
    validation_images: Annotated[int, Field(ge=1, le=10**9)] | Literal["test"] = Field(
        description="a whole number from 1, or test"
    )
    test_images: Annotated[int, Field(ge=1, le=10**9)] | None = Field(
        description="a whole number from 1, or null for all"
    )
    seed: Seed = Field(description="a whole number from 0 to 2,147,483,647")


class Model(Section):
    """The network's shape, and where penalties apply."""

    width: float = Field(ge=0.1, le=4, description="a number from 0.1 to 4")
    batch_norm: bool = Field(description="true or false")
    batch_norm_momentum: float = Field(ge=0, lt=1, description="a number from 0, below 1")
    regularize_head: Annotated[tuple[str, ...], BeforeValidator(_list)] = Field(
        description="a list of keys under reg, such as [l2]"
    )


class Train(Section):
    """How one model is trained."""

    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_list)] = Field(
        min_length=1, description="a list of one or more whole numbers from 0 to 2,147,483,647, each once"
    )
    epochs: int = _whole(1, 100_000)
    batch_size: int = _whole(1, 65_536)
    learning_rate: float = Field(gt=0, le=1000, description="a number above 0, at most 1000")
    schedule: Literal["constant", "cosine"] = Field(description="constant or cosine")
    warmup_epochs: int = _whole(0, 1000)
    cooldown_epochs: int = _whole(0, 1000)
    momentum: float = Field(ge=0, lt=1, description="a number from 0, below 1")
    flip: bool = Field(description="true or false")
    batch_norm_images: int = _whole(0, 10**9)
    synchronize_batch_norm: bool = Field(description="true or false")
    precision: Literal["float32", "bfloat16", "float16"] = Field(description="float32, bfloat16 or float16")
    jit: bool = Field(description="true or false")


class Evaluate(Section):
    """What is measured of a trained model."""

    near_zero: float = Field(ge=0, le=1, description="a number from 0 to 1")
    pruning: Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], BeforeValidator(_list)] = Field(
        description="a list of numbers from 0, below 1"
    )


class Report(Section):
    """How the runs are compared."""

    baseline: str | None = Field(description="a key under reg that the others are compared with, or null")


class Cluster(Section):
    """What a run asks Ray for. Nothing of a result depends on it."""

    cpus: float = Field(default=1, gt=0, le=1024, description="a number above 0, at most 1024")
    gpus: Annotated[float, Field(ge=0, le=64)] | None = Field(
        default=None, description="a number from 0 to 64, or null for one where the cluster has any"
    )


@dataclass(frozen=True)
class Regularizer:
    """One line under `reg:`: strengths by kind, none for no regularizer, and which weights it covers."""

    name: str
    strengths: tuple[tuple[str, float], ...]
    scope: str | None = None


STRENGTH_RULE = "a number from 0 to 1000"


class Params(Section):
    """All of params.yaml. `regularizer(name)` is the way to read a line of `reg`."""

    data: Data
    model: Model
    reg: dict[str, Regularizer] = Field(
        min_length=1, description="a mapping with a line for each regularizer, such as l2: 0.001"
    )
    train: Train
    evaluate: Evaluate
    report: Report
    cluster: Cluster = Cluster()

    @property
    def runs(self):
        """The names of all runs, such as l2-0: one for each key under `reg` and each seed."""
        return [f"{name}-{seed}" for name in self.reg for seed in self.train.seeds]

    def require(self, name):
        """Raise a `UserError` unless `name` is a key under `reg`."""
        if name not in self.reg:
            raise UserError(f"{name} is no key under reg: in params.yaml; {_nearest(name, self.reg)}")

    def regularizer(self, name):
        """The `Regularizer` of one key under `reg`, its scope settled."""
        line = self.reg[name]
        scope = line.scope or ("all" if name in self.model.regularize_head else "backbone")
        return Regularizer(name, line.strengths, scope)


def load(path="params.yaml"):
    """Read and check a params file.

    Raises:
        ParamsError: with every problem that was found.
    """
    path = Path(path)
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ParamsError(path, [f"can't be read: {error}"]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ParamsError(path, [f"not valid YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(raw, dict):
        raise ParamsError(path, [f"should hold the sections {', '.join(Params.model_fields)}"])

    problems = []
    if isinstance(raw.get("reg"), dict):
        raw["reg"] = {name: _regularizer(name, value, problems) for name, value in raw["reg"].items()}
    params = None
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        # The lines of `reg` have been read by then, with what is wrong there.
        problems.extend(_describe(it) for it in error.errors() if it["loc"][0] != "reg" or len(it["loc"]) == 1)
    if not problems:
        problems.extend(_cross_checks(params))
    if problems:
        raise ParamsError(path, dict.fromkeys(problems))
    return params


def _regularizer(name, value, problems):
    """A line under `reg:` as a `Regularizer`, or None where it can't be one, with the reasons put to `problems`."""
    key, before = f"reg.{name}", len(problems)
    if not isinstance(name, str) or not NAME.fullmatch(name) or len(name) > 40:
        problems.append(f"{key}: a regularizer's name is {NAME_RULE}, 40 at most")
        return None
    if name == "none":
        if isinstance(value, bool) or value != 0:
            problems.append(f"{key}: {_show(value)} is not allowed; none is no regularizer, so it should be 0")
        return Regularizer(name, ())
    spelled_out = isinstance(value, dict)
    strengths = dict(value) if spelled_out else {name: value}
    scope = strengths.pop("scope", None) if spelled_out else None
    if scope not in (None, *SCOPES):
        problems.append(f"{key}.scope: {_show(scope)} is not allowed; {_nearest(scope, SCOPES)}")
    if not strengths:
        problems.append(f"{key}: names no kind of regularizer; write for example {{l1: 1e-5, l2: 1e-4}}")
    for kind, strength in strengths.items():
        within = f"{key}.{kind}" if spelled_out else key
        if kind not in KINDS:
            hint = _nearest(kind, KINDS if spelled_out else (*KINDS, "none"))
            own = "" if spelled_out else ". Under a name of your own, write a mapping: {l2: 0.001}"
            problems.append(f"{within}: unknown kind of regularizer; {hint}{own}")
        elif not _is_strength(strength):
            problems.append(f"{within}: {_show(strength)} is not allowed; it should be {STRENGTH_RULE}")
    if len(problems) > before:
        return None
    return Regularizer(name, tuple((kind, float(strength)) for kind, strength in strengths.items()), scope)


def _is_strength(value):
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value <= 1000
    )


def _cross_checks(params):
    """What no single key can know."""
    seeds = params.train.seeds
    if len(set(seeds)) < len(seeds):
        yield f"train.seeds: {_show(list(seeds))} is not allowed; each seed should stand there once"
    for name in params.model.regularize_head:
        if name not in params.reg and name not in KINDS:
            hint = _nearest(name, (*params.reg, *KINDS))
            yield f"model.regularize_head: {_show(name)} is no key under reg; {hint}"
        elif name in params.reg and params.reg[name].scope:
            yield f"model.regularize_head: {_show(name)} has a scope of its own under reg; leave it out here"
    baseline = params.report.baseline
    if baseline is not None and baseline not in params.reg:
        yield f"report.baseline: {_show(baseline)} is no key under reg; {_nearest(baseline, params.reg)}"


def _describe(details):
    """One pydantic error, in our words: key, value, what is allowed, nearest key."""
    known, allowed, field, path = Params.model_fields, "", None, []
    for part in details["loc"]:
        if not path or known:
            path.append(str(part))
        field = known.get(part) if known else field
        section = field.annotation if field and isinstance(field.annotation, type) else None
        if details["type"] == "extra_forbidden" and part == details["loc"][-1]:
            return f"{'.'.join(path)}: unknown key; {_nearest(part, known)}"
        known = section.model_fields if section and issubclass(section, Section) else None
        if known:
            allowed = f"a section with the keys {', '.join(known)}"
        elif field:
            allowed = field.description
    key = ".".join(path)
    if details["type"] == "missing":
        return f"{key}: missing; it should be {allowed}"
    return f"{key}: {_show(details['input'])} is not allowed; it should be {allowed}"


def _nearest(key, known):
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    listed = f"known: {', '.join(dict.fromkeys(known))}"
    return f"did you mean {near[0]}? ({listed})" if near else listed


def _show(value):
    """A value as it would stand in YAML, cut where it is long."""
    value = list(value) if isinstance(value, tuple) else value
    text = str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
    text = repr(value) if isinstance(value, str) else text
    return text if len(text) <= 60 else f"{text[:57]}..."


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, with two repairs: `5e-05` is a number, and no key may stand twice.

    DVC writes `-S reg.l2=0.00005` as 5e-05, a number in YAML 1.2 and a string to PyYAML (dvc#5971).
    """

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise yaml.constructor.ConstructorError(None, None, "a key should be a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


if __name__ == "__main__":
    errors.run(load)
