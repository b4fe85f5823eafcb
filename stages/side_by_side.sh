#!/usr/bin/env bash
# `dvc repro`, with the runs of the matrix side by side: DVC has no --jobs, but single stages may run at once.
# Plain `dvc repro` gives the same bits, one run after another.
set -uo pipefail

python -m regbench.params || exit 1
case ${JOBS:-1} in
    0 | *[!0-9]*) echo "error: JOBS=$JOBS is not allowed; it should be a whole number from 1"; exit 1 ;;
esac
python -m regbench.lock || exit 1
python -m dvc repro --quiet prepare || exit 1

runs=$(python -m dvc status | sed -nE 's/^(train|evaluate)@(.*):$/\2/p' | awk '!seen[$0]++')
count=$(grep -c . <<<"$runs")
jobs=${JOBS:-$(python -m regbench.cores "$count")}
if [ "$jobs" -gt 1 ] && [ "$count" -gt 1 ]; then
    echo "$count runs, $jobs at a time"
    export REGBENCH_RUNS=$((jobs < count ? jobs : count)) # how they share the cores: src/regbench/cores.py
    # Each line of output begins with the run it is from. Through the pipe come lines instead of progress bars.
    # Without --wait-for-lock, dvc gives up after 3 seconds that another run keeps the lock.
    xargs -P "$jobs" -I{} bash -o pipefail -c '
        python -m dvc --wait-for-lock repro --quiet --single-item train@{} evaluate@{} 2>&1 | while IFS= read -r line; do
            case $line in {}*) ;; *) line="{}: $line" ;; esac
            printf "%s\n" "$line"
        done || exit 1' <<<"$runs" || # dvc ends with 255, at which xargs would start no more
        { echo "error: some runs failed, as said above; the others are done"; exit 1; }
fi
python -m dvc repro --quiet
