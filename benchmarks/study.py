"""Which strength of L1 and L2? `regbench search` over both with the default's params, five seeds.

    python benchmarks/study.py /tmp/study

In a clone of this repository. Writes docs/study/results.json, which docs/study has tables of, and a picture of each
kind beside it. Half an hour on two cores beyond what the cache has.
"""

import argparse
import json
import shutil
import time
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
    begun = time.perf_counter()
    regbench("search", *KINDS, "--from", "1e-6", "--to", "1e-2", "--seeds", "5")
    kinds = {kind: json.loads((FOUND / f"{kind}.json").read_text()) for kind in KINDS}
    minutes = round((time.perf_counter() - begun) / 60)
    files.write_json(ROOT / tables.STUDY, {"machine": blocks.made_here(), "minutes": minutes, "kinds": kinds})
    for kind in KINDS:
        shutil.copy(FOUND / f"{kind}.png", (ROOT / tables.STUDY).parent)


if __name__ == "__main__":
    main()
