"""dvc.lock: what each stage ran on and wrote. dvc.yaml: the command, deps and outs that each stage should have."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

from regbench.params import Params
from regbench.report import tracked

LOCK = Path("dvc.lock")
PIPELINE = Path("dvc.yaml")


@dataclass(frozen=True)
class Stage:
    """The entry of one stage in dvc.lock.

    Attributes:
        cmd: its command.
        deps: {path: MD5} of what it ran on; None if dvc.lock has no MD5.
        outs: {path: MD5} of what it wrote, likewise; the MD5 of a folder ends with `.dir`.
    """

    cmd: str
    deps: dict[str, str | None]
    outs: dict[str, str | None]


@dataclass(frozen=True)
class Declared:
    """The entry of one stage in dvc.yaml."""

    cmd: str
    deps: frozenset[str]
    outs: frozenset[str]


def read(path: Path = LOCK) -> dict[str, Stage]:
    """dvc.lock of the workspace: {stage: what it ran on and wrote}.

    It also has entries of stages that no longer exist: DVC keeps them.

    Raises:
        UserError: it is missing, has conflict markers or is damaged.
    """
    return parse(tracked.read(path), path)


def parse(data: bytes, where: str | Path) -> dict[str, Stage]:
    """dvc.lock from its bytes; `where` is what to call it in messages."""
    raw = _yaml(data, where)
    try:
        stages = raw["stages"]
        found = {
            name: Stage(it["cmd"], _md5s(it.get("deps", [])), _md5s(it.get("outs", []))) for name, it in stages.items()
        }
        if not all(isinstance(name, str) and isinstance(stage.cmd, str) for name, stage in found.items()):
            raise TypeError("a name or a command is not text")
    except (KeyError, TypeError, AttributeError) as error:
        raise tracked.damaged(where, f"not as DVC writes it: {error}") from None
    return found


def _md5s(entries: list[dict]) -> dict[str, str | None]:
    found = {entry["path"]: entry.get("md5") for entry in entries}
    if not all(isinstance(path, str) and isinstance(md5, (str, type(None))) for path, md5 in found.items()):
        raise TypeError("a path or an MD5 is not text")
    return found


def declared(settings: Params, path: Path = PIPELINE) -> dict[str, Declared]:
    """{stage: its entry in dvc.yaml}; a `matrix` stage has one entry for each run of params, such as `train@l2-0`."""
    raw = _yaml(tracked.read(path), path)
    found = {}
    try:
        for name, stage in raw["stages"].items():
            if "matrix" not in stage:
                found[name] = _declared(stage, {})
                continue
            for run in settings.runs:
                values = {"key": run.key, "item.reg": run.name, "item.seed": str(run.seed)}
                found[f"{name}@{run.key}"] = _declared(stage, values)
    except (LookupError, TypeError, AttributeError) as error:
        raise tracked.damaged(path, f"not as DVC reads it: {error}") from None
    return found


def _declared(stage: dict, values: dict[str, str]) -> Declared:
    def filled(text: str) -> str:
        return re.sub(r"\$\{([^}]*)\}", lambda found: values.get(found[1].strip(), found[0]), text)

    def paths(*sections: str) -> frozenset[str]:
        found = set()
        for entry in (entry for section in sections for entry in stage.get(section, ())):
            found |= {entry} if isinstance(entry, str) else {*entry}  # a path, or {path: options}
        return frozenset(filled(path) for path in found)

    return Declared(filled(stage["cmd"]), paths("deps"), paths("outs", "metrics", "plots"))


# PyYAML's C parser if it is available: for a large dvc.lock the Python parser takes seconds.
class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """A loader for YAML's safe subset that rejects duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [key for key, count in keys.items() if count > 1 and key != "<<"]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _yaml(data: bytes, where: str | Path) -> object:
    text = tracked.text(data, where)
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise tracked.damaged(where, f"not valid YAML: {error}") from None
