"""params.yaml → validated, frozen settings.

`load` is the one way to read it. Nothing here imports TensorFlow, so a mistake is reported within a second.
"""

import difflib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from regbench import catalogue
from regbench.catalogue import SCOPES
from regbench.errors import UserError

NAME = re.compile(r"[a-z][a-z0-9_]*")
LONGEST_NAME = 40


class ParamsError(UserError):
    """params.yaml can't be used. `problems` holds one line for each mistake."""

    def __init__(self, path: Path, problems: Iterable[str]):
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n  ".join([f"{count} in {path}:", *self.problems]))


class Section(BaseModel):
    """A section of params.yaml: only known keys, values of their declared types, frozen."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def _whole(low: int, high: int) -> Any:
    return Field(ge=low, le=high, description=f"a whole number from {low:,} to {high:,}")


def _list(value: Any) -> Any:
    """YAML gives lists; frozen settings hold tuples."""
    return tuple(value) if isinstance(value, list) else value


ImagesOrAll = Annotated[int, Field(ge=1, le=10**9)] | None
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Data(Section):
    """Which images, how many, how large."""

    dataset: str = Field(min_length=1, description="a TFDS name, or the path of a folder of class folders")
    image_size: int = _whole(32, 1024)
    train_images: ImagesOrAll = Field(description="a whole number from 1, or null for all")
    validation_images: Annotated[int, Field(ge=1, le=10**9)] | Literal["test"] = Field(
        description="a whole number from 1, or test"
    )
    test_images: ImagesOrAll = Field(description="a whole number from 1, or null for all")
    seed: Seed = Field(description="a whole number from 0 to 2,147,483,647")


class Model(Section):
    """The network and its shape."""

    network: str = Field(
        description="the name of a file in src/regbench/networks/ or of keras.applications, or ./file.py:function"
    )
    weights: Annotated[str, Field(min_length=1)] | None = Field(
        description="the path of a .weights.h5, .keras or .h5 file, or null for none"
    )
    freeze: Annotated[str, Field(min_length=1)] | None = Field(description="the name of a layer, or null for none")
    width: float = Field(ge=0.1, le=4, description="a number from 0.1 to 4")
    batch_norm: bool = Field(description="true or false")
    batch_norm_momentum: float = Field(ge=0, lt=1, description="a number from 0, below 1")
    zero_init_residual: bool = Field(description="true or false")


class Train(Section):
    """How one model is trained."""

    epochs: int = _whole(1, 100_000)
    batch_size: int = _whole(1, 65_536)
    learning_rate: float = Field(gt=0, le=1000, description="a number above 0, at most 1000")
    schedule: Literal["constant", "cosine"] = Field(description="constant or cosine")
    warmup_epochs: int = _whole(0, 1000)
    cooldown_epochs: int = _whole(0, 1000)
    momentum: float = Field(ge=0, lt=1, description="a number from 0, below 1")
    flip: bool = Field(description="true or false")
    batch_norm_images: int = _whole(0, 10**9)
    moving_averages: bool = Field(description="true or false")
    synchronize_batch_norm: bool = Field(description="true or false")
    precision: Literal["float32", "bfloat16", "float16"] = Field(description="float32, bfloat16 or float16")
    jit: bool = Field(description="true or false")
    deterministic: bool = Field(description="true or false")


class Evaluate(Section):
    """What is measured of a trained model."""

    train_images: ImagesOrAll = Field(description="a whole number from 1, or null for all")
    corrupted_images: int = _whole(0, 10**9)
    near_zero: float = Field(ge=0, le=1, description="a number from 0 to 1")
    pruning: Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], BeforeValidator(_list)] = Field(
        description="a list of numbers from 0, below 1"
    )


class Report(Section):
    """How the runs are compared."""

    baseline: str | None = Field(description="a key under reg that the others are compared with, or null")


class Cluster(Section):
    """What a run asks Ray for. No result depends on it."""

    cpus: float = Field(default=1, gt=0, le=1024, description="a number above 0, at most 1024")
    gpus: Annotated[float, Field(ge=0, le=64)] | None = Field(
        default=None, description="a number from 0 to 64, or null for one where the cluster has any"
    )


class Live(Section):
    """What other programs see of a training while it runs. No result depends on it."""

    tensorboard: bool = Field(default=False, description="true or false")
    dvclive: bool = Field(default=False, description="true or false")


@dataclass(frozen=True)
class Term:
    """One kind of regularizer, its strength, and the weights it covers; scope None: it does not act on weights."""

    kind: str
    strength: float
    scope: str | None


@dataclass(frozen=True)
class Regularizer:
    """One line under `reg:`; `none` has no terms."""

    name: str
    terms: tuple[Term, ...] = ()

    @property
    def active(self) -> dict[str, Term]:
        """{kind: term} for the terms that do something: a strength of 0 means no regularizer."""
        return {term.kind: term for term in self.terms if term.strength}


@dataclass(frozen=True)
class Run:
    """One model to train: a key under `reg` and a seed."""

    name: str
    seed: int

    @property
    def key(self) -> str:
        """The run's name in DVC: `l2-0`, as in `train@l2-0` and `runs/l2-0`."""
        return f"{self.name}-{self.seed}"


class Params(Section):
    """All of params.yaml."""

    data: Data
    model: Model
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_list)] = Field(
        min_length=1, description="a list of one or more whole numbers from 0 to 2,147,483,647, each once"
    )
    train: Train
    reg: dict[str, Regularizer] = Field(
        min_length=1, description="a mapping with a line for each regularizer, such as l2: 0.001"
    )
    evaluate: Evaluate
    report: Report
    cluster: Cluster = Cluster()
    live: Live = Live()

    @property
    def runs(self) -> list[Run]:
        """One run for each key under `reg` and each seed, in the order of params."""
        return [Run(name, seed) for name in self.reg for seed in self.seeds]

    def run(self, name: str, seed: int) -> Run:
        """The run of a key under `reg` and a seed. Raises a `UserError` if params has no such run."""
        if name not in self.reg:
            raise UserError(f"{name} is not a key under reg: in params.yaml; {_nearest(name, self.reg)}")
        if seed not in self.seeds:
            raise UserError(f"{seed} is not one of the seeds in params.yaml: {', '.join(map(str, self.seeds))}")
        return Run(name, seed)


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check a params file.

    Raises:
        ParamsError: with every problem that was found.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ParamsError(path, [f"can't be read: {error}"]) from None
    return parse(text, path)


def parse(text: str, path: Path = Path("params.yaml")) -> Params:
    """Check the text of a params file; `path` is for messages."""
    if conflict := re.search(r"^(<<<<<<<|>>>>>>>) .*", text, re.MULTILINE):
        line = text[: conflict.start()].count("\n") + 1
        raise ParamsError(
            path, [f"merge conflict in line {line}: choose a side, remove the markers, then `make repro`"]
        )
    try:
        raw = yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ParamsError(path, [f"not valid YAML: {_of_yaml(error)}"]) from None
    if not isinstance(raw, dict):
        raise ParamsError(path, [f"should hold the sections {', '.join(Params.model_fields)}"])

    problems = []
    if isinstance(raw.get("reg"), dict):
        raw["reg"] = {name: regularizer(name, value, problems) for name, value in raw["reg"].items()}
    params = None
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        # The lines of `reg` have been checked above, and their problems noted. For a list with a wrong item, only the
        # item's error is kept.
        places = {it["loc"][:-1] for it in error.errors()}
        errors = [it for it in error.errors() if it["loc"] not in places]
        problems.extend(_describe(it) for it in errors if it["loc"][0] != "reg" or len(it["loc"]) == 1)
    if not problems:
        problems.extend(_cross_checks(params))
    if problems:
        raise ParamsError(path, dict.fromkeys(problems))
    return params


def _of_yaml(error: Exception) -> str:
    """The message of a YAML parser, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())


def regularizer(name: Any, value: Any, problems: list[str]) -> Regularizer | None:
    """Read one line under `reg:`. Returns None if it is wrong, except for a wrong strength of `none`.

    Args:
        name: the key.
        value: a strength, or {kind: strength}, which may also have the key `scope`.
        problems: one message for each mistake is appended to it.
    """
    key, before, kinds = f"reg.{name}", len(problems), catalogue.kinds()
    if not isinstance(name, str) or not NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        boolean = " YAML reads no, yes, off and on as false and true." * isinstance(name, bool)
        rule = f"a lower-case letter, then lower-case letters, digits or underscores, {LONGEST_NAME} at most"
        problems.append(f"{key}: a regularizer's name is {rule}.{boolean}".removesuffix("."))
        return None
    if name == "none":
        if isinstance(value, bool) or value != 0:
            problems.append(f"{key}: {_show(value)} is not allowed; none is no regularizer, so it should be 0")
        return Regularizer(name)
    spelled_out = isinstance(value, dict)
    strengths = dict(value) if spelled_out else {name: value}
    scope = strengths.pop("scope", None) if spelled_out else None
    if scope not in (None, *SCOPES):
        problems.append(f"{key}.scope: {_show(scope)} is not allowed; {_nearest(scope, SCOPES)}")
    if not strengths:
        problems.append(f"{key}: names no kind of regularizer; write for example {{l1: 1e-5, l2: 1e-4}}")
    for kind, strength in strengths.items():
        within = f"{key}.{kind}" if spelled_out else key
        if kind not in kinds:
            hint = _nearest(kind, kinds if spelled_out else (*kinds, "none"))
            own = "" if spelled_out else ". Under a name of your own, write a mapping: {l2: 0.001}"
            problems.append(f"{within}: unknown kind of regularizer; {hint}{own}")
            continue
        highest, number = kinds[kind].highest, "a whole number" if kinds[kind].whole else "a number"
        is_number = isinstance(strength, (int, float)) and not isinstance(strength, bool) and math.isfinite(strength)
        if not is_number or not 0 <= strength <= highest or (kinds[kind].whole and strength % 1):
            problems.append(f"{within}: {_show(strength)} is not allowed; it should be {number} from 0 to {highest}")
        for other in set(kinds[kind].excludes) & set(strengths):
            problems.append(f"{key}: {kind} and {other} can't go together; `regbench list` says what each does")
    if len(problems) > before:
        return None
    if scope and not any(kinds[kind].scope for kind in strengths):
        act = "act" if len(strengths) > 1 else "acts"
        problems.append(f"{key}.scope: {' and '.join(strengths)} {act} on no weights, so there is nothing to choose")
        return None
    terms = (
        Term(kind, float(strength), kinds[kind].scope and (scope or kinds[kind].scope))
        for kind, strength in sorted(strengths.items())  # the order of a mapping's keys has no meaning
    )
    return Regularizer(name, tuple(terms))


def _cross_checks(params: Params) -> Iterator[str]:
    """Problems that concern more than one key, or files."""
    if len(set(params.seeds)) < len(params.seeds):
        yield f"seeds: {_show(list(params.seeds))} is not allowed; each seed must occur only once"
    yield from _model_checks(params)
    baseline = params.report.baseline
    if baseline is not None and baseline not in params.reg:
        yield f"report.baseline: {_show(baseline)} is not a key under reg; {_nearest(baseline, params.reg)}"


NEUTRAL = {"width": 1.0, "batch_norm": True, "batch_norm_momentum": 0.99}
"""{option of `model:`: the only value that is allowed if the network does not have this option}."""


def _model_checks(params: Params) -> Iterator[str]:
    """Problems with `model:`: an unknown network, options that it does not have, too small images, no weights file."""
    model = params.model
    try:
        network = catalogue.network(model.network)
    except UserError as error:
        yield f"model.network: {error}"
    else:
        for option, neutral in NEUTRAL.items():
            value = getattr(model, option)
            if option not in network.options and value != neutral:
                yield (
                    f"model.{option}: {_show(value)} is not allowed; {_show(model.network)} does not have this option, "
                    f"so it should be {_show(neutral)}"
                )
        if params.data.image_size < network.smallest:
            yield (
                f"data.image_size: {params.data.image_size} is not allowed; {model.network} takes images of "
                f"{network.smallest} pixels or more"
            )
    if model.weights is not None:
        if not model.weights.endswith((".h5", ".keras")):
            yield f"model.weights: {_show(model.weights)} is not a .weights.h5, .keras or .h5 file"
        elif not catalogue.is_file(model.weights) and not catalogue.is_file(f"{model.weights}.dvc"):
            yield f"model.weights: there is no file {_show(model.weights)}, nor a .dvc file beside it"


def _describe(details: dict) -> str:
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


def _nearest(key: Any, known: Iterable[str]) -> str:
    known = tuple(known)
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    listed = f"known: {', '.join(dict.fromkeys(known))}"
    return f"did you mean {near[0]}? ({listed})" if near else listed


def _show(value: Any) -> str:
    """A value roughly as in YAML, cut to 60 characters."""
    value = list(value) if isinstance(value, tuple) else value
    text = str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
    text = repr(value) if isinstance(value, str) else text
    return text if len(text) <= 60 else f"{text[:57]}..."


class Loader(yaml.SafeLoader):
    """YAML's safe subset, with three changes: `5e-05` is a number, `010` is an error, and so is a repeated key.

    DVC writes `-S reg.l2=0.00005` as 5e-05, which is a number in YAML 1.2 but a string in PyYAML (dvc#5971). DVC reads
    010 as ten, as YAML 1.2 does; PyYAML reads it as eight.
    """

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if not re.fullmatch(r"[-+]?(0|[1-9]\d*)", node.value):
            words = f"{node.value} means different numbers to different programs; write it in decimals"
            raise yaml.constructor.ConstructorError(None, None, words, node.start_mark)
        return super().construct_yaml_int(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # <<: *another
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool, type(None))):
                words = "a key must be a single value, not a list or a mapping"
                raise yaml.constructor.ConstructorError(None, None, words, key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is there twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)
