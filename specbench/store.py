"""A run folder: run.json (what was run, written atomically), trials.jsonl (append-only, one line a trial),
divergences.jsonl (one line for each trial whose greedy text left the target's own) and, of a run on a server,
stretches.jsonl (one line for each sequence of requests, with what the server counted meanwhile).

Everything specbench shows is recomputed from these. A trial is on disk before the next one starts, so a
killed run loses at most the trial in flight; a torn last line is dropped and said.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from specbench.checks.fields import strict_json
from specbench.checks.rows import divergence_from_json, stretch_from_json, trial_from_json
from specbench.checks.stored import check_run
from specbench.errors import StoreError
from specbench.records import Arm, Caution, Divergence, Policy, Stretch, Trial

if TYPE_CHECKING:
    from filelock import BaseFileLock

SCHEMA = 1
RUN_FILE = "run.json"
TRIALS_FILE = "trials.jsonl"
DIVERGENCES_FILE = "divergences.jsonl"
STRETCHES_FILE = "stretches.jsonl"
LOCK_FILE = ".lock"

# Beyond anything that was ever written, and below what would not fit into memory or take forever.
LARGEST_RECORD = 64 << 20
LONGEST_LINE = 64 << 20

# How the reason begins of a prompt that was left out because memory ran out on it.
OUT_OF_MEMORY = "out of memory"

STAMP = "%Y%m%dT%H%M%SZ"
STAMPED = re.compile(r"\d{8}T\d{6}Z-")

TrialKey = tuple[str, Arm, int]
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run as it lies on disk. `run` is run.json; `torn` says that the last line of trials.jsonl was unusable.
    `stretches` are those of a run on a server."""

    folder: Path
    run: dict[str, Any]
    trials: tuple[Trial, ...]
    torn: bool
    stretches: tuple[Stretch, ...] = ()

    @property
    def status(self) -> str:
        return str(self.run["status"])


def new_folder(out: Path, name: str) -> Path:
    """Make `out/<utc>-<name>` and return it. The newest run sorts last whatever the clock does: where it was set back,
    and within one second, the name counts on from the newest folder's. Raises StoreError where no folder can be made.
    """
    while True:
        now = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
        stamp = max([now, *(then + timedelta(seconds=1) for then in _stamps(out))])
        folder = out / f"{stamp:{STAMP}}-{name}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if folder.is_dir():
                continue  # another process was faster
            raise StoreError("The output path is not a folder", where=str(out), cure="Choose another --out.") from None
        except OSError as error:
            raise StoreError(
                f"Cannot make a run folder: {error.strerror}", where=str(folder), cure="Choose another --out."
            ) from None
        return folder


def _stamps(out: Path) -> Iterator[datetime]:
    """When the runs directly below `out` began, by their names."""
    for path in out.glob("*Z-*"):
        if STAMPED.match(path.name):
            with suppress(ValueError):  # digits that are no date
                yield datetime.strptime(path.name[:16], STAMP)


def read_run(folder: Path) -> StoredRun:
    """Read a run folder. Raises StoreError naming the file and line that cannot be read."""
    run = _read_record(folder)
    rows, torn = _read_lines(folder / TRIALS_FILE, trial_from_json)
    # What was measured of a prompt before memory ran out on it stays on disk, and counts in no arm.
    out = left_out(run)
    rows = [row for row in rows if row.warmup or row.prompt_id not in out]
    divergences = dict(_read_lines(folder / DIVERGENCES_FILE, divergence_from_json)[0])
    greedy = run["config"].get("temperature") == 0.0
    stretches, _ = _read_lines(folder / STRETCHES_FILE, stretch_from_json)
    return StoredRun(folder, run, tuple(_compared(rows, divergences) if greedy else rows), torn, tuple(stretches))


def left_out(run: Mapping[str, Any]) -> set[str]:
    """Ids of the prompts on which memory ran out, by run.json."""
    skipped = (run.get("workload") or {}).get("skipped", ())
    return {one["id"] for one in skipped if one["reason"].startswith(OUT_OF_MEMORY)}


def _read_record(folder: Path) -> dict[str, Any]:
    """run.json, of a schema that this version knows and with what every command reads; keys that an older policy lacks
    have their defaults."""
    try:
        if not (folder / RUN_FILE).is_file():
            raise StoreError(
                "Not a run folder: it has no run.json", where=str(folder), cure="Name a folder that specbench made."
            )
        if (folder / RUN_FILE).stat().st_size > LARGEST_RECORD:
            raise ValueError(f"larger than {LARGEST_RECORD >> 20} MiB")
        run = strict_json((folder / RUN_FILE).read_bytes())
    except (ValueError, RecursionError) as error:
        raise StoreError(f"run.json is not JSON: {_why(error)}", where=str(folder), cure="Run again.") from None
    except OSError as error:
        raise StoreError(
            f"Cannot read run.json: {error.strerror}", where=str(folder), cure="Check the path and its permissions."
        ) from None
    found = run.get("schema") if isinstance(run, dict) else None
    if isinstance(found, bool) or found != SCHEMA:
        raise StoreError(
            f"run.json has {f'schema {found}' if isinstance(found, int) else 'no schema'}, this version reads {SCHEMA}",
            where=str(folder),
            cure="Use the specbench that wrote it, or run again.",
        )
    try:
        check_run(run)
    except ValueError as error:
        raise StoreError(
            f"run.json is not one that specbench wrote: {error}",
            where=str(folder),
            cure="Undo the change, use the specbench that wrote it, or run again.",
        ) from None
    run["config"]["policy"] = asdict(Policy()) | run["config"]["policy"]
    return cast(dict[str, Any], run)


def _why(error: Exception) -> str:
    """What is wrong with a text that should be JSON, without quoting it: it may be private."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at line {error.lineno} column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def trial_key(trial: Trial) -> TrialKey:
    """What a trial measured: two trials with one key are attempts at the same thing."""
    return trial.prompt_id, trial.arm, trial.repeat


def find_runs(out: Path) -> list[Path]:
    """Run folders directly below `out`, newest first. Their names start with the UTC time; a folder renamed to anything
    else, such as a kept example, is found only when it is named."""
    if not out.is_dir():
        return []
    found = (path.parent for path in out.glob(f"*/{RUN_FILE}"))
    return sorted((f for f in found if STAMPED.match(f.name)), key=lambda folder: folder.name, reverse=True)


class RunWriter:
    """The one writer of a run folder: holds its lock, appends trials, replaces run.json. `run` is run.json as it shall
    begin, or as it was read from the folder; `revision` counts how often it was written.

    Raises StoreError where another process holds the lock or went on with the run since, and where nothing can be
    written."""

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        self.folder = folder
        self.run = run
        self._ends: dict[str, int] = {}
        self._appending = threading.Lock()  # answers of servers come from several threads
        self._lock = _lock(folder)
        try:
            self._refuse_stale()
            # A torn last line would otherwise swallow the first trial that is appended after it.
            for name in (TRIALS_FILE, DIVERGENCES_FILE, STRETCHES_FILE):
                self._ends[name] = _cut_torn_line(folder / name)
        except BaseException:
            self._unlock()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._unlock()

    def append(self, trial: Trial) -> None:
        """Put one trial on disk, whole, before returning."""
        self._append(TRIALS_FILE, asdict(trial))

    def append_divergence(self, key: TrialKey, divergence: Divergence) -> None:
        """Note where a trial's greedy text left that of the target alone."""
        prompt_id, arm, repeat = key
        row = {"prompt_id": prompt_id, "arm": asdict(arm), "repeat": repeat}
        self._append(DIVERGENCES_FILE, row | asdict(divergence))

    def append_stretch(self, stretch: Stretch) -> None:
        """Note what a server counted over a sequence of requests."""
        self._append(STRETCHES_FILE, asdict(stretch))

    def _append(self, name: str, row: dict[str, Any]) -> None:
        path = self.folder / name
        # What no reader takes for a number must not get into the file.
        line = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        try:
            with self._appending, path.open("ab", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                if end != self._ends[name]:
                    raise StoreError(
                        "The file was changed or removed while the run went on",
                        where=str(path),
                        cure="Leave the folder alone and run the same command again: it measures what is missing.",
                    )
                try:
                    _write(file, line)
                except OSError:
                    with suppress(OSError):
                        file.truncate(end)  # half a line would swallow the next
                    raise
                self._ends[name] = end + len(line)
        except OSError as error:
            raise unwritable(error, path) from None

    def update(self, **changes: Any) -> None:
        """Change keys of run.json, atomically."""
        self.run.update(changes, revision=self.run.get("revision", 0) + 1)
        temporary = self.folder / f"{RUN_FILE}.tmp"
        try:
            with temporary.open("wb", buffering=0) as file:
                _write(file, json.dumps(self.run, ensure_ascii=False, allow_nan=False, indent=1).encode())
            temporary.replace(self.folder / RUN_FILE)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()  # it may hold the space that is missing
            raise unwritable(error, self.folder / RUN_FILE) from None

    def _refuse_stale(self) -> None:
        """Between reading the run and locking it, another process may have gone on with it."""
        if not (self.folder / RUN_FILE).is_file():
            return
        there = read_run(self.folder).run
        if there.get("revision", 0) != self.run.get("revision", 0):
            raise StoreError(
                f"Another specbench went on with this run meanwhile; it is {there['status']} now",
                where=str(self.folder),
                cure="Read it with specbench brief, or run the same command again.",
            )

    def _unlock(self) -> None:
        # Still held: who waits for a file that is gone by then tries again, and two cannot hold two of them.
        with suppress(OSError):
            (self.folder / LOCK_FILE).unlink()
        self._lock.release()
        if not (self.folder / RUN_FILE).exists():
            with suppress(OSError):
                self.folder.rmdir()  # nothing was begun


def in_use(folder: Path) -> bool:
    """Whether a process, this one included, is writing to the folder now. The lock of a killed one does not count."""
    from filelock import FileLock, Timeout

    if not (folder / LOCK_FILE).exists():
        return False
    try:
        with FileLock(folder / LOCK_FILE).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False  # who wants to write there will be told why not


def busy(folder: Path) -> StoreError:
    """What is said of a folder to which another process writes."""
    return StoreError(
        "Another specbench is writing to this run folder",
        where=str(folder),
        cure="Wait for it, or choose another --out.",
    )


@contextmanager
def one_at_a_time(out: Path) -> Iterator[None]:
    """Held by the one process that begins a run below `out` just now; waits for others."""
    lock = _lock(out, 60.0)
    try:
        yield
    finally:
        with suppress(OSError):
            (out / LOCK_FILE).unlink()
        lock.release()


def _lock(folder: Path, timeout_s: float = 1.0) -> BaseFileLock:
    """The folder's lock, held. It waits a little, for those that only look whether it is held."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=timeout_s)
    except Timeout:
        raise busy(folder) from None
    except OSError as error:
        raise unwritable(error, folder / LOCK_FILE) from None
    return lock


def unwritable(error: OSError, path: Path) -> StoreError:
    """What is said where a run folder takes nothing any more. All that was finished is in it."""
    again = "run the same command again: it continues where it stopped."
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        cure = f"Free some space and {again}"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        cure = f"Make the folder writable and {again}"
    elif error.errno == errno.ENOENT:
        cure = f"Put the folder back and {again}"
    else:
        cure = f"Look at the disk and {again}"
    # Libraries put their own words into strerror.
    why = os.strerror(error.errno) if error.errno else type(error).__name__
    return StoreError(f"Cannot write to the run folder: {why}", where=str(path), cure=cure)


def _write(file: FileIO, data: bytes) -> None:
    """All of it on the disk, or OSError."""
    left = memoryview(data)
    while left:
        left = left[os.write(file.fileno(), left) :]
    os.fsync(file.fileno())


def cautions_of(run: dict[str, Any]) -> list[Caution]:
    """The warnings that the run itself noticed, as stored."""
    return [Caution(**caution) for caution in run.get("warnings", [])]


def _compared(trials: list[Trial], divergences: dict[TrialKey, Divergence]) -> list[Trial]:
    """Fill in `identical` and `diverged` of every trial whose prompt the target also did alone, at the same load."""
    alone = {(t.prompt_id, t.arm.load): t.output_sha256 for t in trials if t.arm.kind == "baseline" and not t.warmup}
    compared = []
    for trial in trials:
        key = (trial.prompt_id, trial.arm.load)
        if not trial.warmup and trial.arm.kind != "baseline" and key in alone:
            identical = trial.output_sha256 == alone[key]
            diverged = None if identical else divergences.get(trial_key(trial))
            trial = replace(trial, identical=identical, diverged=diverged)
        compared.append(trial)
    return compared


def _read_lines(path: Path, parse: Callable[[object], Row]) -> tuple[list[Row], bool]:
    """Every line parsed, and whether the last one was torn and dropped: it has no line end, since a line is written
    with its end at once."""
    if not path.is_file():
        return [], False
    rows: list[Row] = []
    number = 0
    try:
        with path.open("rb") as file, _uncollected():
            while line := file.readline(LONGEST_LINE):
                number += 1
                if not line.endswith(b"\n"):
                    if len(line) == LONGEST_LINE:
                        raise ValueError(f"longer than {LONGEST_LINE >> 20} MiB")
                    return rows, True
                if line.strip():
                    rows.append(parse(strict_json(line)))
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"Not a line that specbench wrote: {_why(error)}",
            where=f"{path}, line {number}",
            cure="Remove that line: the same command then measures it again.",
        ) from None
    except OSError as error:
        raise StoreError(
            f"Cannot read the run folder: {error.strerror}", where=str(path), cure="Check the disk and its permissions."
        ) from None
    return rows, False


@contextmanager
def _uncollected() -> Iterator[None]:
    """Rows have no cycles, and a collector that looks at ten thousands of them again and again takes a third of the
    time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _cut_torn_line(path: Path) -> int:
    """Bytes of the whole lines of a file; what follows the last is cut off."""
    if not path.is_file():
        return 0
    try:
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            with path.open("r+b") as file:
                file.truncate(whole)
    except OSError as error:
        raise unwritable(error, path) from None
    return whole
