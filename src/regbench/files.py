"""Files that are there whole or not at all."""

import contextlib
import csv
import json
from pathlib import Path


@contextlib.contextmanager
def whole(path):
    """Open a text file to write: beside its place, and renamed into it once all is written."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.partial")
    with open(beside, "w", newline="", encoding="utf-8") as file:
        yield file
    beside.replace(path)


def write_json(path, value):
    """Write a value as JSON; NaN and infinity are errors."""
    with whole(path) as file:
        file.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_csv(path, header, rows):
    """Write rows, sequences in the order of the header, as CSV."""
    with whole(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
