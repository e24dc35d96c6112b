"""Progress on stderr: a live table of the arms on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from specbench import text
from specbench.backends.base import Answer, Unit
from specbench.decision.interval import Paired, speedup_bar
from specbench.records import Arm, Trial

PLAIN_EVERY_S = 20.0
# More arms than fit a screen are counted, not listed.
ARMS_SHOWN = 12


def forecast_s(
    warmed: Mapping[Arm, Answer], left: Mapping[Arm, int], units: Sequence[Unit], max_new_tokens: int
) -> float | None:
    """How long the trials that are `left` take, seconds, at each arm's pace while it warmed up: answers that
    use all of `max_new_tokens`, prompts as long as those of `units`. None where an arm was not warmed, or too shortly
    to tell."""
    lengths = [len(item.ids) for unit in units for item in unit.items if item.ids is not None]
    total_s = 0.0
    for arm, trials in left.items():
        answer = warmed.get(arm)
        sequences = 1 if answer is None else len(answer.job.unit.items)
        decoded = 0 if answer is None else answer.output_tokens - sequences
        if answer is None or decoded < 1:
            return None
        # A server counts the prompts' tokens for itself: they are then taken to be like the warm-up's.
        longer = sum(lengths) / len(units) / answer.prompt_tokens if lengths else 1.0
        prefill_s = (answer.times.total_s - answer.times.decode_s) * longer
        total_s += trials * (prefill_s + answer.times.decode_s / decoded * (max_new_tokens - 1) * sequences)
    return total_s


class TimeLeft:
    """How long a run will take: what remains of each arm, at the arm's own pace in this session, and the scoring after
    each prompt at its. Arms differ, and some stop, so the pace of all trials together would mislead."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._mark_s = clock()
        self._trials: Counter[Arm] = Counter()
        self._units = 0
        self._spent: defaultdict[Arm | None, list[float]] = defaultdict(
            lambda: [0.0, 0]
        )  # seconds, times; None: scoring
        self._scored = True

    def plan(self, trials: Mapping[Arm, int], units: int) -> None:
        """What remains, told between two prompts."""
        if not self._scored:
            self._add(None)
        self._scored, self._mark_s = True, self._clock()
        self._trials, self._units = Counter(trials), units

    def trial(self, arm: Arm, *, again: bool) -> None:
        """A trial came to its end; `again` repeats the arm's last, whose time it adds to."""
        self._add(arm, times=0 if again else 1)
        self._trials[arm] -= not again
        self._scored = False

    def _add(self, what: Arm | None, times: int = 1) -> None:
        now = self._clock()
        self._spent[what][0] += now - self._mark_s
        self._spent[what][1] += times
        self._mark_s = now

    def seconds(self) -> float | None:
        """None until everything that remains has been done once, an arm under any load."""
        todo: dict[Arm | None, int] = {arm: n for arm, n in self._trials.items() if n > 0} | {None: self._units}
        paces = [(n, self._pace_s(what)) for what, n in todo.items() if n]
        return None if any(pace is None for _, pace in paces) else sum(n * (pace or 0.0) for n, pace in paces)

    def _pace_s(self, what: Arm | None) -> float | None:
        """Seconds a time; those of the same arm under other loads where it has not run under this one."""
        seconds, times = self._spent[what]
        if not times and what is not None:
            alike = [spent for arm, spent in self._spent.items() if arm is not None and _alike(arm, what)]
            seconds, times = sum(s for s, _ in alike), sum(n for _, n in alike)
        return seconds / times if times else None


def _alike(one: Arm, other: Arm) -> bool:
    """But for the load."""
    return replace(one, load=other.load) == other


class RunProgress:
    """An `Observer` of a run: trials done, time left, and the speedup so far."""

    def __init__(self, *, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self._so_far = SoFar()
        self._line = ""
        self._total = self._done = self._begun_with = 0
        self._clock = clock
        self._opened_s = self._started_s = self._said_s = clock()
        self._seen: set[tuple[str, Arm, int]] = set()
        self._plan: TimeLeft | None = None
        self._live = (
            Live(get_renderable=self._view, console=self.console, refresh_per_second=1, transient=True)
            if self.console.is_terminal and not quiet  # drawing more often costs CPU time that the models need
            else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        self._line = ""
        self.console.print(line, highlight=False, markup=False)

    def begin(self, total: int, done: int) -> None:
        self._total, self._done, self._begun_with = total, done, done
        self._started_s = self._said_s = self._clock()
        if self._live is None:
            self.say(f"{total - done} to do" + (f", {done} done before" if done else ""))

    def left(self, trials: Mapping[Arm, int], units: int) -> None:
        self._plan = self._plan or TimeLeft(self._clock)
        self._plan.plan(trials, units)
        self._total = self._done + sum(trials.values())

    def advance(self, texts: int) -> None:
        self._done += texts
        self._show(self._time_left())

    def trial(self, trial: Trial) -> None:
        key = (trial.prompt_id, trial.arm, trial.repeat)
        again = key in self._seen
        self._seen.add(key)
        self._done += not again
        if self._plan is not None:
            self._plan.trial(trial.arm, again=again)
        self._so_far.add(trial)
        repeating = ", repeating a disturbed trial" if trial.disturbed else ""
        speedups = "" if self._live is not None else self._so_far.line()
        self._show(f"{self._time_left()}{speedups}{repeating}".removeprefix(", "))

    def _show(self, line: str) -> None:
        self._line = line
        if self._live is None and (self._clock() - self._said_s > PLAIN_EVERY_S or self._done == self._total):
            self._said_s = self._clock()
            self.say(f"{self._done}/{self._total}" + (f", {line}" if line else ""))

    def _view(self) -> RenderableType:
        """What a terminal shows at its foot: while nothing is measured yet, that time passes."""
        elapsed = text.duration(self._clock() - self._opened_s)
        done = f"{self._done}/{self._total}, " if self._total else ""
        line = Text(f"{done}{elapsed} so far" + (f", {self._line}" if self._line else ""), "dim")
        return Group(*self._so_far.table(), line)

    def _time_left(self) -> str:
        here = self._done - self._begun_with
        if self._plan is not None:
            left_s = self._plan.seconds()
        elif here < 1:
            left_s = None
        else:
            left_s = (self._clock() - self._started_s) / here * max(0, self._total - self._done)
        return "" if left_s is None else f"{text.duration(left_s)} left"


class SoFar:
    """Speedups of this session's trials, each arm against the target alone under its own load, over the prompts that
    both have: a hint, not a result."""

    def __init__(self) -> None:
        # Decoding seconds and tokens by prompt and repeat, of the last attempt.
        self._spent: defaultdict[Arm, dict[tuple[str, int], tuple[float, int]]] = defaultdict(dict)

    def add(self, trial: Trial) -> None:
        self._spent[trial.arm][trial.prompt_id, trial.repeat] = (trial.times.decode_s, trial.decode_tokens)

    def pairs(self) -> dict[Arm, Paired]:
        """Every arm but the target alone that shares a prompt with it, in the order of drafts and gammas."""
        arms = sorted((a for a in self._spent if a.gamma is not None), key=lambda a: (a.draft or "", a.gamma or 0))
        found = {}
        for arm in (*(a for a in self._spent if a.kind == "baseline-again"), *arms):
            alone = self._spent.get(Arm("baseline", load=arm.load), {})
            shared = [key for key in alone if key in self._spent[arm]]
            columns = np.array([(*alone[key], *self._spent[arm][key]) for key in shared], dtype=float).reshape(-1, 4).T
            if columns[1].sum() and columns[3].sum():
                found[arm] = Paired(*columns)
        return found

    def line(self) -> str:
        """`, so far 1.20x at 1, 1.10x at 2`, of a few arms."""
        pairs = {arm: pair for arm, pair in self.pairs().items() if arm.gamma is not None}
        several = len({arm.draft for arm in pairs}) > 1 or len({arm.load for arm in pairs}) > 1
        shown = [f"{pair.speedup:.2f}x at {a.label if several else a.gamma}" for a, pair in list(pairs.items())[:4]]
        return (", so far " + ", ".join(shown)) if shown else ""

    def table(self) -> list[Table]:
        """One row an arm, with an interval as soon as there can be one. None are listed beyond a screen."""
        pairs = self.pairs()
        if not pairs:
            return []
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("so far", "prompts", "speedup [95%]"):
            table.add_column(name, justify="left" if name == "so far" else "right", no_wrap=True)
        for arm, pair in list(pairs.items())[:ARMS_SHOWN]:
            bar = speedup_bar(pair, 0.95)
            name = "target alone, again" if arm.gamma is None else arm.label
            table.add_row(Text(text.clean(name)), str(bar.n), text.estimate(bar.value, bar.low, bar.high))
        if len(pairs) > ARMS_SHOWN:
            table.add_row(Text(f"and {len(pairs) - ARMS_SHOWN} more arms", "dim"))
        return [table]
