"""A whole run, as it is read from the disk, and the one writer of its folder."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

from specbench.errors import EngineError, StoreError
from specbench.records import Arm, Divergence, Load, Trial, Window
from specbench.run_record import RunRecord
from specbench.store.folders import (
    cut_torn_line,
    hold,
    open_new,
    refuse_links,
    release,
    replace_file,
    unwritable,
    write_all,
)
from specbench.store.record import (
    RUN_FILE,
    divergence_of,
    left_out,
    line_of,
    read_lines,
    read_record,
    record_json,
    stretch_of,
    trial_of,
)
from specbench.validation import why_not

TRIALS_FILE = "trials.jsonl"
DIVERGENCES_FILE = "divergences.jsonl"
STRETCHES_FILE = "stretches.jsonl"

TrialKey = tuple[str, Arm, int]

_NAMES = [field.name for field in fields(Trial)]
_BEFORE = attrgetter(*_NAMES[: _NAMES.index("identical")])
_AFTER = attrgetter(*_NAMES[_NAMES.index("diverged") + 1 :])


@dataclass(frozen=True)
class StoredRun:
    """A run as it lies on disk. `run` is run.json; `torn` says that the last line of trials.jsonl was unusable.
    `stretches` are those of a run on a server."""

    folder: Path
    run: RunRecord
    trials: tuple[Trial, ...]
    torn: bool
    stretches: tuple[Window, ...] = ()

    @property
    def status(self) -> str:
        return self.run.status

    @cached_property
    def counted(self) -> tuple[Trial, ...]:
        """The trials that count: no warm-ups, and of several attempts at one thing the last undisturbed one, or the
        last if all were disturbed."""
        best: dict[TrialKey, Trial] = {}
        for trial in self.trials:
            if trial.warmup:
                continue
            key = trial_key(trial)
            before = best.setdefault(key, trial)
            if before is not trial and (before.disturbed or not trial.disturbed):
                best[key] = trial
        return tuple(best.values())

    @cached_property
    def loads(self) -> tuple[Load, ...]:
        """The loads that trials were measured at, in the order in which they were asked for: the first is the one that
        the verdict is about. Every run in process has the one load."""
        config = self.run.config
        asked: list[tuple[float | None, int | None]] = [(None, many) for many in config.concurrency]
        asked += [(rate, None) for rate in config.rate]

        def place(load: Load) -> int:
            key = (load.rate, None if load.rate is not None else load.concurrency)
            return asked.index(key) if key in asked else len(asked)

        return tuple(sorted(dict.fromkeys(trial.arm.load for trial in self.counted), key=place)) or (Load(),)

    def at_load(self, load: Load) -> list[Trial]:
        """The counted trials of one load."""
        return [trial for trial in self.counted if trial.arm.load == load]

    @property
    def main(self) -> list[Trial]:
        """The counted trials at the run's first load, which the verdict and every table but that of loads are about."""
        return self.at_load(self.loads[0])


def read_run(folder: Path) -> StoredRun:
    """Read a run folder. Raises StoreError naming the file and line that cannot be read."""
    run = read_record(folder)
    rows, torn = read_lines(folder / TRIALS_FILE, partial(trial_of, max_new_tokens=run.config.max_new_tokens))
    # What was measured of a prompt before memory ran out on it stays on disk, and counts in no arm.
    out = left_out(run)
    rows = [row for row in rows if row.warmup or row.prompt_id not in out]
    divergences = dict(read_lines(folder / DIVERGENCES_FILE, divergence_of)[0])
    greedy = run.config.sampling.greedy
    stretches, _ = read_lines(folder / STRETCHES_FILE, stretch_of)
    return StoredRun(folder, run, tuple(_compared(rows, divergences) if greedy else rows), torn, tuple(stretches))


def trial_key(trial: Trial) -> TrialKey:
    """What a trial measured: two trials with one key are attempts at the same thing."""
    return trial.prompt_id, trial.arm, trial.repeat


def _compared(trials: list[Trial], divergences: dict[TrialKey, Divergence]) -> list[Trial]:
    """Fill in `identical` and `diverged` of every trial whose prompt the target also did alone, at the same load."""
    alone = {(t.prompt_id, t.arm.load): t.output_sha256 for t in trials if t.arm.kind == "baseline" and not t.warmup}
    compared = []
    for trial in trials:
        key = (trial.prompt_id, trial.arm.load)
        if not trial.warmup and trial.arm.kind != "baseline" and key in alone:
            identical = trial.output_sha256 == alone[key]
            diverged = None if identical else divergences.get(trial_key(trial))
            # dataclasses.replace takes twice as long, and this is done to nearly every trial.
            values: list[Any] = [*_BEFORE(trial), identical, diverged, *_AFTER(trial)]
            trial = Trial(*values)
        compared.append(trial)
    return compared


class RunWriter:
    """The one writer of a run folder: holds its lock, appends trials, replaces run.json. `run` is run.json as it shall
    begin, or as it was read from the folder; `revision` counts how often it was written.

    Raises StoreError where another process holds the lock or went on with the run since, where a link lies in the
    folder, and where nothing can be written; EngineError for what could not be read again, which is not written."""

    def __init__(self, folder: Path, run: RunRecord) -> None:
        self.folder = folder
        self.run = run
        self._ends: dict[str, int] = {}
        self._appending = threading.Lock()  # answers of servers come from several threads
        # Prompts and answers are for whoever asked for them.
        self._mode = 0o600 if run.config.keep_text else 0o666
        refuse_links(folder)
        self._lock = hold(folder)
        try:
            if run.config.keep_text:
                folder.chmod(0o700)
            self._refuse_stale()
            # A torn last line would otherwise swallow the first trial that is appended after it.
            for name in (TRIALS_FILE, DIVERGENCES_FILE, STRETCHES_FILE):
                self._ends[name] = cut_torn_line(folder / name)
        except BaseException:
            self._unlock()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._unlock()

    def append(self, trial: Trial) -> None:
        """Put one trial on disk, whole, before returning."""
        self._append(TRIALS_FILE, asdict(trial), trial_of)

    def append_divergence(self, key: TrialKey, divergence: Divergence) -> None:
        """Note where a trial's greedy text left that of the target alone."""
        prompt_id, arm, repeat = key
        row = {"prompt_id": prompt_id, "arm": asdict(arm), "repeat": repeat}
        self._append(DIVERGENCES_FILE, row | asdict(divergence), divergence_of)

    def append_stretch(self, stretch: Window) -> None:
        """Note what a server counted over a sequence of requests."""
        self._append(STRETCHES_FILE, asdict(stretch), stretch_of)

    def _append(self, name: str, row: dict[str, Any], read: Callable[[bytes], object]) -> None:
        path = self.folder / name
        try:
            line = line_of(row)
            read(line)  # what could not be read again must not get into the file
        except ValueError as error:
            raise EngineError(
                f"What was measured is no line of a run: {why_not(error)}",
                where=str(path),
                hint="It is not stored; what was measured before is.",
            ) from None
        try:
            opener = open_new(self._mode)
            with self._appending, open(path, "ab", buffering=0, opener=opener) as file:
                end = file.seek(0, os.SEEK_END)
                if end != self._ends[name]:
                    raise StoreError(
                        "The file was changed or removed while the run went on",
                        where=str(path),
                        hint="Leave the folder alone and run the same command again: it measures what is missing.",
                    )
                try:
                    write_all(file, line)
                except OSError:
                    with suppress(OSError):
                        file.truncate(end)  # half a line would swallow the next
                    raise
                self._ends[name] = end + len(line)
        except OSError as error:
            raise unwritable(error, path) from None

    def update(self, **changes: Any) -> None:
        """Change fields of run.json, atomically. Raises EngineError for what could not be read again."""
        run = replace(self.run, revision=self.run.revision + 1, **changes)
        path = self.folder / RUN_FILE
        try:
            data = record_json(run)
        except ValueError as error:
            raise EngineError(
                f"What is known of the run is no run.json: {why_not(error)}",
                where=str(path),
                hint="It is as it was before.",
            ) from None
        try:
            replace_file(path, data, self._mode)
        except OSError as error:
            raise unwritable(error, path) from None
        self.run = run

    def _refuse_stale(self) -> None:
        """Between reading the run and locking it, another process may have gone on with it."""
        if not (self.folder / RUN_FILE).is_file():
            return
        there = read_record(self.folder)
        if there.revision != self.run.revision:
            raise StoreError(
                f"Another specbench went on with this run meanwhile; it is {there.status} now",
                where=str(self.folder),
                hint="Read it with specbench brief, or run the same command again.",
            )

    def _unlock(self) -> None:
        release(self._lock)
        if not (self.folder / RUN_FILE).exists():
            with suppress(OSError):
                self.folder.rmdir()  # nothing was begun
