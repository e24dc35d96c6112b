"""The one writer of a run folder."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

from specbench.errors import EngineError, StoreError
from specbench.records import Divergence, Trial, Window
from specbench.run_record import RunRecord
from specbench.store.files import cut_torn_line, open_new, refuse_links, replace_file, unwritable, write_all
from specbench.store.lines import divergence_of, line_of, stretch_of, trial_of
from specbench.store.locks import hold, release
from specbench.store.record import RUN_FILE, read_record, record_json
from specbench.store.stored import DIVERGENCES_FILE, STRETCHES_FILE, TRIALS_FILE, TrialKey
from specbench.validation import why_not


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
