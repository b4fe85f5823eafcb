"""The default with nine seeds: does each triple of them have the same verdicts, and how much do seeds differ?

    python benchmarks/seeds.py /tmp/seeds

In a clone of this repository: `regbench repro` with seeds 0 to 2, 3 to 5, 6 to 8, then with all nine, for which nothing
is trained again. A quarter of an hour on two cores beyond what the cache has; docs/article/README.md has the table.
"""

import argparse
from pathlib import Path

import project
from project import ROOT, regbench

from regbench import files
from regbench.review import blocks
from regbench.search import edit


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where to clone to and to train; kept")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/seeds.json")
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()
    committed, found = project.enter(arguments.folder), []
    for seeds in ([0, 1, 2], [3, 4, 5], [6, 7, 8], [*range(9)]):
        Path("params.yaml").write_text(edit.with_sections(committed, edit.raw_lines(committed), seeds))
        regbench("repro")
        report, rows = project.rows()
        found.append({"seeds": seeds, "images": report.images.test, "rows": rows})
        record = {"machine": blocks.made_here(), "results": found}
        files.write_json(arguments.out, record)


if __name__ == "__main__":
    main()
