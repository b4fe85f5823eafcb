"""Which strength of L1 and L2? `regbench search` over both, with five seeds.

    python benchmarks/study.py /tmp/study

Runs in a clone of this repository, with its params.yaml. Writes params.yaml, results.json and a picture of each kind to
docs/study, whose README shows results.json as tables. Takes half an hour on two cores.
"""

import argparse
import json
import shutil
from pathlib import Path

import project
from project import ROOT, regbench

from regbench import files
from regbench.review import blocks, tables

KINDS = ("l1", "l2")
FOUND = Path(".regbench/search")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where to clone to and to train; kept")
    project.enter(parser.parse_args().folder)
    regbench("search", *KINDS, "--from", "1e-6", "--to", "1e-2", "--seeds", "5")
    searches = {kind: json.loads((FOUND / f"{kind}.json").read_text()) for kind in KINDS}
    files.write_json(ROOT / tables.STUDY, {"machine": blocks.made_here(), "searches": searches})
    for source in ("params.yaml", *(FOUND / f"{kind}.png" for kind in KINDS)):
        shutil.copy(source, (ROOT / tables.STUDY).parent)


if __name__ == "__main__":
    main()
