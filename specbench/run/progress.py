"""Progress on stderr: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from specbench.records import Arm, Trial

PLAIN_EVERY_S = 20.0


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
        """None until everything that remains has been done once."""
        todo: dict[Arm | None, int] = {arm: n for arm, n in self._trials.items() if n > 0} | {None: self._units}
        spent = [(n, *self._spent[what]) for what, n in todo.items() if n]
        if any(not times for _, _, times in spent):
            return None
        return sum(n * seconds / times for n, seconds, times in spent)


class RunProgress:
    """An `Observer` of a run: trials done, time left, and the speedup so far."""

    def __init__(self, *, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self._live = self.console.is_terminal and not quiet
        self._bar: Progress | None = None
        self._spent: defaultdict[Arm, list[float]] = defaultdict(lambda: [0.0, 0.0])  # seconds, tokens
        self._total = self._done = self._begun_with = 0
        self._clock = clock
        self._started_s = self._said_s = clock()
        self._seen: set[tuple[str, Arm, int]] = set()
        self._plan: TimeLeft | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False)

    def begin(self, total: int, done: int) -> None:
        self._total, self._done, self._begun_with = total, done, done
        self._started_s = self._said_s = self._clock()
        if self._live:
            self._bar = Progress(
                SpinnerColumn(),
                MofNCompleteColumn(),
                BarColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.description}", markup=False),
                console=self.console,
                refresh_per_second=1,  # drawing costs CPU time that the models need
            )
            self._bar.add_task("warm", total=total, completed=done)
            self._bar.start()
        else:
            self.say(f"{total - done} to do" + (f", {done} done before" if done else ""))

    def left(self, trials: Mapping[Arm, int], units: int) -> None:
        self._plan = self._plan or TimeLeft(self._clock)
        self._plan.plan(trials, units)
        self._total = self._done + sum(trials.values())
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=self._total)

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
        spent = self._spent[trial.arm]
        spent[0] += trial.times.decode_s
        spent[1] += trial.decode_tokens
        repeating = ", repeating a disturbed trial" if trial.disturbed else ""
        self._show(f"{self._time_left()}{self._speedups()}{repeating}".removeprefix(", "))

    def _show(self, line: str) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, description=line)
        elif self._clock() - self._said_s > PLAIN_EVERY_S or self._done == self._total:
            self._said_s = self._clock()
            self.say(f"{self._done}/{self._total}, {line}")

    def _time_left(self) -> str:
        here = self._done - self._begun_with
        if self._plan is not None:
            left_s = self._plan.seconds()
        elif here < 1:
            left_s = None
        else:
            left_s = (self._clock() - self._started_s) / here * max(0, self._total - self._done)
        if left_s is None:
            return ""
        return f"{left_s / 60:.0f} min left" if left_s >= 90 else f"{left_s:.0f} s left"

    def _speedups(self) -> str:
        """The speedup so far of a few arms, each against the target alone under its own load: a hint, not a result."""
        alone = {arm.load: spent for arm, spent in self._spent.items() if arm.kind == "baseline" and spent[1]}
        arms = sorted(
            (arm for arm, spent in self._spent.items() if arm.gamma is not None and arm.load in alone and spent[1]),
            key=lambda arm: (arm.draft or "", arm.gamma or 0),
        )
        several = len({arm.draft for arm in arms}) > 1 or len(alone) > 1
        shown = []
        for arm in arms[:4]:
            base, spent = alone[arm.load], self._spent[arm]
            speedup = base[0] / base[1] / (spent[0] / spent[1])
            shown.append(f"{speedup:.2f}x at {arm.label if several else arm.gamma}")
        return (", so far " + ", ".join(shown)) if shown else ""
