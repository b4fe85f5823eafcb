"""Files that are written completely or not at all."""

import contextlib
import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[TextIO]:
    """Open a text file for writing, under a temporary name; it is renamed to `path` once everything is written."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.partial")
    with open(beside, "w", newline="", encoding="utf-8") as file:
        yield file
    beside.replace(path)


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as JSON; NaN and infinity are errors."""
    with whole(path) as file:
        file.write(json_text(value))


def json_text(value: Any) -> str:
    """A value as the text that `write_json` writes."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write rows, sequences in the order of the header, as CSV."""
    with whole(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
