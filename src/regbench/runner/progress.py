"""What the user sees while runs train: a live table on a terminal, otherwise one line per epoch with the time left.

The numbers come from the lines that the stages print (`regbench.live`), so they are the same on this machine and on a
cluster. All other lines are printed above the table.
"""

import contextlib
import heapq
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Protocol

from regbench import live
from regbench.live import Epoch, clock

if TYPE_CHECKING:
    from rich.table import Table

WIDE = 100
"""From this terminal width on, in characters, the table shows the nodes of a cluster."""

ONCE = re.compile(r"TensorFlow(:| can't use)")
"""Lines that each process prints about its machine. Each is shown once."""

ENDED = ("done", "diverged", "failed")


@dataclass
class Run:
    """How far one run is. Times are in seconds, by the clock `Progress.now`.

    Attributes:
        key: such as `l2-0`.
        epochs: how many it trains; 0 if it is only evaluated.
        state: waiting, starts, trains, evaluates, or one of `ENDED`; on a cluster also clones or pushes.
        node: where it is, on a cluster.
        last: its last epoch so far.
        diverged: whether its training stopped early because its loss was not finite.
        began: when it began.
        first: when its first epoch since then was reported.
        heard: when its last epoch or its divergence was reported; when it began to be evaluated if neither was.
        ended: when it ended.
        seconds: the duration of one epoch, including validation; None until it is known.
    """

    key: str
    epochs: int
    state: str = "waiting"
    node: str = ""
    last: Epoch | None = None
    diverged: bool = False
    began: float | None = None
    first: float | None = None
    heard: float | None = None
    ended: float = 0
    seconds: float | None = None

    @property
    def running(self) -> bool:
        """Whether it has begun and not ended."""
        return self.state not in ("waiting", *ENDED)


class Progress:
    """How far all runs are, and how long they will take.

    Args:
        missing: {run: its next stage, train or evaluate}.
        epochs: how many epochs each run trains.
        at_a_time: how many runs go at once.
        now: a clock, in seconds.
    """

    def __init__(
        self, missing: Mapping[str, str], epochs: int, at_a_time: int = 1, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.runs = {key: Run(key, epochs if stage == "train" else 0) for key, stage in missing.items()}
        self.at_a_time, self.now = at_a_time, now
        self.begun, self.lock = 0, threading.RLock()

    def begin(self, key: str, node: str = "") -> int:
        """Record that a run begins, or begins again. Returns how many runs have begun so far."""
        run = self.runs[key]
        with self.lock:
            self.begun += run.began is None
            run.state, run.node, run.began, run.first, run.heard = "starts", node, self.now(), None, None
            run.diverged = False
            return self.begun

    def hear(self, key: str, line: str) -> Epoch | None:
        """Record what a line of a run says. Returns the epoch if the line reports one, else None."""
        run, epoch, now = self.runs[key], live.parse(line), self.now()
        with self.lock:
            if run.state in ENDED:  # on a cluster a line may come late
                return epoch
            if run.began is None:  # its begin was not reported: the cluster's board was lost
                self.begin(key)
            if epoch:
                if epoch.epoch < epoch.epochs:
                    run.seconds = epoch.left / (epoch.epochs - epoch.epoch)
                elif run.seconds is None:
                    run.seconds = now - run.began
                run.first = now if run.first is None else run.first
                run.last, run.heard, run.state = epoch, now, "trains"
            elif live.says_diverged(line):
                run.diverged, run.heard = True, now
            elif f"Running stage 'evaluate@{key}'" in line:
                run.state, run.heard = "evaluates", now if run.heard is None else run.heard
        return epoch

    def end(self, key: str, failed: bool) -> None:
        """Record that a run has ended."""
        run = self.runs[key]
        with self.lock:
            run.state = "failed" if failed else "diverged" if run.diverged else "done"
            run.ended = self.now()

    def note(self, key: str, state: str) -> None:
        """Set the state of a run, if it is running."""
        if self.runs[key].running:
            self.runs[key].state = state

    def lose(self, keys: Iterable[str]) -> None:
        """Record that runs have lost their node and wait for another one."""
        for key in keys:
            self.runs[key].state = "waiting"

    # How long it takes

    def left(self, run: Run) -> float | None:
        """Estimated seconds until a run ends. None while the duration of an epoch is not known yet."""
        if run.state in ENDED:
            return 0
        tail, since = self._tail(), run.began if run.heard is None else run.heard
        silent = 0 if since is None else self.now() - since
        if not run.epochs:
            return max(0, tail - silent) if run.running else tail
        measured = [it.seconds for it in self.runs.values() if it.seconds is not None]
        if run.seconds is None and not measured:
            return None
        seconds = fmean(measured) if run.seconds is None else run.seconds
        if run.state == "waiting":
            return self._start() + run.epochs * seconds + tail
        if run.diverged or run.state == "evaluates":
            return max(0, tail - silent)
        if run.first is not None:
            return max(0, (run.epochs - run.last.epoch) * seconds - silent) + tail
        return max(0, self._start() + run.epochs * seconds - silent) + tail

    def left_of_all(self) -> float | None:
        """Estimated seconds until all runs have ended. None while that is not known yet."""
        with self.lock:
            running = [self.left(run) for run in self.runs.values() if run.running]
            waiting = [self.left(run) for run in self.runs.values() if run.state == "waiting"]
        if None in running + waiting:
            return None
        free_after = sorted(running) or [0]
        free_after += [0] * (self.at_a_time - len(free_after))
        heapq.heapify(free_after)
        for seconds in waiting:
            heapq.heapreplace(free_after, free_after[0] + seconds)
        return max(free_after)

    def _start(self) -> float:
        """Mean seconds from the begin of a run to the begin of its first epoch, as measured so far."""
        return self._mean(lambda run: None if run.first is None else run.first - run.began - (run.seconds or 0))

    def _tail(self) -> float:
        """Mean seconds from the last epoch of a run to the end of the run, as measured so far."""
        return self._mean(lambda run: run.ended - run.heard if run.state == "done" and run.heard is not None else None)

    def _mean(self, measure: Callable[[Run], float | None]) -> float:
        found = [seconds for run in self.runs.values() if (seconds := measure(run)) is not None]
        return max(0, fmean(found)) if found else 0

    # In words

    def counts(self) -> str:
        """The numbers of runs that are done, failed, running and waiting, and the time left, as text."""
        states = Counter(
            "running" if run.running else "done" if run.state == "diverged" else run.state for run in self.runs.values()
        )
        words = [f"{states['done']} of {len(self.runs)} runs done"]
        words += [f"{states[state]} {state}" for state in ("failed", "running", "waiting") if states[state]]
        left = self.left_of_all()
        return ", ".join(words) + (f"; about {clock(left)} left" if left else "")

    def table(self, width: int = 80, height: int = 24) -> "Table":
        """A table of the runs, in their given order.

        If not all fit into the terminal, running ones are kept first, then the last that ended, then waiting ones.
        """
        from rich import box
        from rich.table import Table

        nodes = width >= WIDE and any(run.node for run in self.runs.values())
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
        table.add_column("run", no_wrap=True, width=min(40, max(14, width - 65 - 20 * nodes)))
        table.add_column("state", no_wrap=True, width=10)
        if nodes:
            table.add_column("node", no_wrap=True, width=19)
        for heading, columns in COLUMNS.items():
            table.add_column(heading, justify="right", no_wrap=True, width=columns)
        shown = self._fitting(height - 6)
        with self.lock:
            for run in shown:
                state = f"[red]{run.state}[/]" if run.state in ("failed", "diverged") else run.state
                style = None if run.running else "dim"
                table.add_row(run.key, state, *([run.node] if nodes else []), *self._cells(run), style=style)
        hidden = len(self.runs) - len(shown)
        table.caption = self.counts() + (f" ({hidden} runs are not shown)" if hidden else "")
        table.caption_justify, table.caption_style = "left", ""
        return table

    def _fitting(self, rows: int) -> list[Run]:
        def last_to_show(run: Run) -> tuple:
            return (run.state == "waiting", not run.running, -run.ended)

        kept = sorted(self.runs.values(), key=last_to_show)[: max(1, rows)]
        return [run for run in self.runs.values() if run in kept]

    def _cells(self, run: Run) -> tuple[str, ...]:
        left = self.left(run) if run.running else None
        time_left = "" if left is None else clock(left)
        it = run.last
        if it is None:
            epoch = f"0/{run.epochs}" if run.running and run.epochs else ""
            return (epoch, "", "", "", "", time_left)
        return (
            f"{it.epoch}/{it.epochs}",
            _short(it.cross_entropy),
            _short(it.reg_loss),
            f"{100 * it.val_accuracy:.1f}",
            f"{it.images_per_second:,.0f}",
            time_left,
        )


COLUMNS = {"epoch": 9, "cross-\nentropy": 8, "reg\nloss": 8, "val.\nacc. %": 6, "images/s": 8, "left": 8}
"""{heading: width} of the table's columns about an epoch."""


def _short(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.3g}"


# On the screen


class Screen(Protocol):
    """Where the runs are shown."""

    def begin(self, key: str, node: str = "", attempt: int = 1) -> None:
        """Show that a run begins; on a cluster, on which node."""

    def line(self, key: str, text: str) -> None:
        """Show a line that a run, or its DVC, has printed."""

    def end(self, key: str, failed: bool, words: str = "") -> None:
        """Show that a run has ended; `words`, if any, are shown instead of its state."""


class Lines:
    """Prints one line for each event: for logs and pipes."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.said = progress, set()
        self.several = progress.at_a_time > 1

    def begin(self, key: str, node: str = "", attempt: int = 1) -> None:
        """Print which run begins, and how many have begun."""
        number = f"run {self.progress.begin(key, node)} of {len(self.progress.runs)}"
        if node:
            self.say(f"{key} running on {node}, attempt {attempt}: {number} ({self.progress.counts()})")
        else:
            self.say(f"{key}: {number}")

    def line(self, key: str, text: str) -> None:
        """Print a line after the name of its run. The line of an epoch also gets the time left of all runs."""
        if self.progress.hear(key, text) and (left := self.progress.left_of_all()) is not None:
            text += f", {clock(left)} of all"
        if ONCE.match(text):
            if text in self.said:
                return
            self.said.add(text)
        named = not self.several or re.match(rf"{re.escape(key)}\b", text)
        self.say(text if named else f"{key}: {text}")

    def end(self, key: str, failed: bool, words: str = "") -> None:
        """Print that a run has ended, and how many have."""
        self.progress.end(key, failed)
        self.say(f"{words or f'{key}: {self.progress.runs[key].state}'} ({self.progress.counts()})")

    def say(self, text: str) -> None:
        """Print a line."""
        sys.stdout.write(f"{text}\n")  # in one call, or lines of several threads would mix
        sys.stdout.flush()


class LiveTable(Lines):
    """A table that is redrawn, with all other lines above it."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(progress)
        from rich.console import Console
        from rich.live import Live

        self.console = Console(highlight=False)
        self.live = Live(console=self.console, get_renderable=self._table, refresh_per_second=2)

    def _table(self) -> "Table":
        return self.progress.table(self.console.width, self.console.height)

    def begin(self, key: str, node: str = "", attempt: int = 1) -> None:
        """Record that a run begins, for the table. In a narrow terminal, also print a line with its node."""
        if node and self.console.width < WIDE:
            super().begin(key, node, attempt)
        else:
            self.progress.begin(key, node)

    def line(self, key: str, text: str) -> None:
        """Print a line above the table, unless it reports an epoch."""
        if live.parse(text):
            self.progress.hear(key, text)
        else:
            super().line(key, text)

    def end(self, key: str, failed: bool, words: str = "") -> None:
        """Record that a run has ended, for the table."""
        self.progress.end(key, failed)

    def say(self, text: str) -> None:
        """Print a line above the table."""
        from rich.text import Text

        self.console.print(Text.from_ansi(text), soft_wrap=True)


@contextlib.contextmanager
def shown(progress: Progress) -> Iterator[Screen]:
    """Show runs until the end of the `with` block: a live table on a terminal, else lines. The output stays."""
    from rich.console import Console

    if sys.stdout.isatty() and not Console().is_dumb_terminal:
        table = LiveTable(progress)
        with table.live:
            yield table
    else:
        yield Lines(progress)
