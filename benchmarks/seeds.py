"""The default with nine seeds: do all three triples give the same verdicts, and how much do seeds differ?

    python benchmarks/seeds.py /tmp/seeds

Runs `regbench repro` in a clone of this repository with seeds 0 to 2, 3 to 5 and 6 to 8, then with all nine, which
trains nothing more. Runs that the cache lacks take a quarter of an hour on two cores. docs/article/README.md has the
tables. `--triples 1` trains seeds 0 to 2 only, to see whether another make of processor gives the same verdicts. The
results replace earlier ones from the same make of processor.
"""

import argparse
import json
from pathlib import Path

import project
from project import ROOT, regbench

from regbench import files
from regbench.review import blocks
from regbench.search import edit


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where to clone to and to train; kept")
    parser.add_argument("--triples", type=int, default=3, help="number of triples of seeds; 3 by default")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/seeds.json")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    records = json.loads(out.read_text()) if out.exists() else []
    triples = [[*range(3 * n, 3 * n + 3)] for n in range(arguments.triples)]
    whole = [[*range(3 * arguments.triples)]] if arguments.triples > 1 else []
    committed, found = project.enter(arguments.folder), []
    machine = blocks.made_here()
    others = [record for record in records if record["machine"]["processor"] != machine["processor"]]
    for seeds in triples + whole:
        Path("params.yaml").write_text(edit.with_sections(committed, edit.raw_lines(committed), seeds))
        regbench("repro")
        report, rows = project.rows()
        found.append({"seeds": seeds, "images": report.images.test, "rows": rows})
        files.write_json(out, [*others, {"machine": machine, "results": found}])


if __name__ == "__main__":
    main()
