"""Progress on stderr: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections import defaultdict
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from specbench.records import Arm, Trial

PLAIN_EVERY_S = 20.0


class RunProgress:
    """An `Observer` of a run: trials done, time left, and the speedup so far."""

    def __init__(self, *, quiet: bool) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self._live = self.console.is_terminal and not quiet
        self._bar: Progress | None = None
        self._spent: defaultdict[Arm, list[float]] = defaultdict(lambda: [0.0, 0.0])  # seconds, tokens
        self._total = self._done = self._begun_with = 0
        self._started_s = self._said_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False)

    def begin(self, total: int, done: int) -> None:
        self._total, self._done, self._begun_with = total, done, done
        self._started_s = self._said_s = time.monotonic()
        if self._live:
            self._bar = Progress(
                SpinnerColumn(),
                MofNCompleteColumn(),
                BarColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.description}"),
                console=self.console,
                refresh_per_second=1,  # drawing costs CPU time that the models need
            )
            self._bar.add_task("warm", total=total, completed=done)
            self._bar.start()
        else:
            self.say(f"{total - done} to do" + (f", {done} done before" if done else ""))

    def advance(self, texts: int) -> None:
        self._done += texts
        self._show(self._time_left())

    def trial(self, trial: Trial) -> None:
        if trial.attempt == 0:
            self._done += 1
        spent = self._spent[trial.arm]
        spent[0] += trial.times.decode_s
        spent[1] += trial.decode_tokens
        again = ", repeating a disturbed trial" if trial.disturbed else ""
        self._show(f"{self._time_left()}{self._speedups()}{again}")

    def _show(self, line: str) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, description=line)
        elif time.monotonic() - self._said_s > PLAIN_EVERY_S or self._done == self._total:
            self._said_s = time.monotonic()
            self.say(f"{self._done}/{self._total}, {line}")

    def _time_left(self) -> str:
        here = self._done - self._begun_with
        if here < 1:
            return ""
        left_s = (time.monotonic() - self._started_s) / here * max(0, self._total - self._done)
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
