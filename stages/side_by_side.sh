#!/usr/bin/env bash
# `dvc repro`, with the runs of the matrix side by side: DVC has no --jobs, but single stages may run at once.
# Plain `dvc repro` gives the same bits, one run after another.
set -uo pipefail

python -m regbench.params || exit 1
jobs=${JOBS:-$(python -m regbench.runtime)}
python -m dvc repro --quiet prepare || exit 1

if [ "$jobs" -gt 1 ]; then
    # One line an epoch instead of progress bars, which would overwrite each other: output goes through a pipe.
    python -m dvc status | sed -nE 's/^(train|evaluate)@(.*):$/\2/p' | awk '!seen[$0]++' |
        xargs -P "$jobs" -I{} sh -c 'for stage in train evaluate; do python -m dvc repro --quiet --single-item "$stage@{}" || exit 1; done' 2>&1 | cat ||
        { echo "error: some runs failed, as said above; the others are done"; exit 1; }
fi
python -m dvc repro --quiet
