"""A search compared with the full grid: is the pick the same, and how many trainings does it take?

    python benchmarks/search.py /tmp/search

Each repetition has its own seeds and runs `regbench search`, then all strengths with all seeds, in a clone of this
repository. The grid does not repeat trainings of the search. On the images of the default, with the network that trains
fastest, a repetition takes ten minutes on two cores. If called again, it continues. docs/search.md has the table.
"""

import argparse
import json
import re
from pathlib import Path

import project
from project import ROOT, regbench

from regbench import files
from regbench.review import blocks


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where to clone to and to train; kept")
    parser.add_argument("--line", default="l2")
    parser.add_argument("--network", default="small_cnn")
    parser.add_argument("--from", dest="low", default="1e-6")
    parser.add_argument("--to", dest="high", default="1e-2")
    parser.add_argument("--seeds", type=int, default=3, help="in each repetition")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--jobs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/search.json")
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()
    committed, found = project.enter(arguments.folder), []
    committed = re.sub(r"^  network: .*", f"  network: {arguments.network}", committed, flags=re.MULTILINE)
    for repetition in range(arguments.repetitions):
        first = repetition * arguments.seeds
        found.append(repeat(arguments, committed, [*range(first, first + arguments.seeds)]))
        record = {"machine": blocks.made_here(), "network": arguments.network, "repetitions": found}
        files.write_json(arguments.out, record)
        print(json.dumps(found[-1], indent=2), flush=True)


def repeat(arguments, committed, seeds):
    """One repetition: what the search picks, what the grid picks, and what each took."""
    from regbench import params
    from regbench.search import edit, line, planner, search, verdict

    jobs = ["--jobs", arguments.jobs] if arguments.jobs else []
    path, reg = Path("params.yaml"), edit.raw_lines(committed)
    path.write_text(edit.with_sections(committed, reg, seeds))
    regbench("search", arguments.line, "--from", arguments.low, "--to", arguments.high, "--seeds", len(seeds), *jobs)
    searched = json.loads(Path(f".regbench/search/{arguments.line}.json").read_text())

    strengths = line.strengths(float(arguments.low), float(arguments.high), 2)
    whole = line.parse(params.load(), arguments.line, (), [strengths])
    points = [(place,) for place in range(len(strengths))]
    names = {point: whole.name(point) for point in points}
    baseline = params.load().report.baseline
    lines = {baseline: reg[baseline]} | {names[point]: whole.spelled_out(point) for point in points}
    path.write_text(edit.with_sections(committed, lines, seeds))
    regbench("repro", *jobs)
    known = search.Known()
    for name in names.values():
        for seed in seeds:
            known.read(name, seed)
    flags, grid = known.of(whole, seeds), planner.Grid(whole.shape, tuple(seeds), known.images)
    standings = verdict.standings(grid, [planner.Round(tuple(points), tuple(seeds))], flags)
    of_grid = next(it for it in standings if it.word == "best")
    picked = next(it for it in searched["points"] if it["word"] == "best")["label"]
    same = {whole.label(it.point) for it in standings if it.word in ("best", "can't tell")}
    return {
        "seeds": seeds,
        "validation_images": grid.images,
        "searched": picked,
        "grid": whole.label(of_grid.point),
        "not_told_from_the_grids": sorted(same, key=float),
        "within": picked in same,
        "trainings": searched["trainings"],
        "of": grid.trainings,
        "share": round(searched["trainings"] / grid.trainings, 3),
        "accuracies": {
            whole.label(point): [round(float(flags[point, seed].mean()), 4) for seed in seeds] for point in points
        },
        "sentences": searched["sentences"],
    }


if __name__ == "__main__":
    main()
