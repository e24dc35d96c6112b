"""Run folders on the disk: their names, new ones, and those that are there; files written whole or not at all, never
through a link, with failures in one line; and the lock, since one process writes a folder at a time.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from specbench.errors import StoreError
from specbench.store.record import RUN_FILE
from specbench.text import count, gigabytes

if TYPE_CHECKING:
    from filelock import BaseFileLock


def write_all(file: FileIO, data: bytes) -> None:
    """All of it on the disk, or OSError."""
    left = memoryview(data)
    while left:
        left = left[os.write(file.fileno(), left) :]
    os.fsync(file.fileno())


def open_new(mode: int) -> Callable[[str, int], int]:
    """For `open`: a file that it makes has at most these permissions."""
    return partial(os.open, mode=mode)


def replace_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write `path` whole, or raise OSError and leave it as it was. Where it is a link, the link is replaced and what it
    leads to stays. It has at most the permissions of `mode`."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # of a killed session, or a link that somebody put there
        with open(temporary, "xb", buffering=0, opener=open_new(mode)) as file:
            write_all(file, data)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()  # it may hold the space that is missing
        raise


def cut_torn_line(path: Path) -> int:
    """Bytes of the whole lines of a file; what follows the last is cut off. Raises StoreError."""
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


def refuse_links(folder: Path) -> None:
    """Raise StoreError where a link lies in a run folder that is about to be written to: logs, lines and locks would go
    into whatever it leads to."""
    links = sorted(path for path in folder.rglob("*") if path.is_symlink())
    if links:
        raise StoreError(
            "The run folder holds a link, and would be written through it",
            where=str(links[0]),
            hint="Put the file itself there, or start a new run with --fresh.",
        )


def unwritable(error: OSError, path: Path) -> StoreError:
    """What is said where a run folder takes nothing any more. All that was finished is in it."""
    again = "run the same command again: it continues where it stopped."
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        hint = f"Free some space and {again}"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        hint = f"Make the folder writable and {again}"
    elif error.errno == errno.ENOENT:
        hint = f"Put the folder back and {again}"
    else:
        hint = f"Look at the disk and {again}"
    # Libraries put their own words into strerror.
    why = os.strerror(error.errno) if error.errno else type(error).__name__
    return StoreError(f"Cannot write to the run folder: {why}", where=str(path), hint=hint)


LOCK_FILE = ".lock"


def hold(folder: Path, timeout_s: float = 1.0) -> BaseFileLock:
    """The folder's lock, held; for `release`. It waits a little, for those that only look whether it is held. Raises
    StoreError where another process holds it, and where it cannot be made."""
    from filelock import FileLock, Timeout

    path = folder / LOCK_FILE
    if path.is_symlink():
        raise StoreError("The lock is a link", where=str(path), hint="Remove it.")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=timeout_s)
    except Timeout:
        raise busy(folder) from None
    except OSError as error:
        raise unwritable(error, path) from None
    return lock


def release(lock: BaseFileLock) -> None:
    # Still held: who waits for a file that is gone by then tries again, and two cannot hold two of them.
    with suppress(OSError):
        Path(lock.lock_file).unlink()
    lock.release()


@contextmanager
def one_at_a_time(out: Path) -> Iterator[None]:
    """Held by the one process that begins a run below `out` just now; waits for others."""
    lock = hold(out, 60.0)
    try:
        yield
    finally:
        release(lock)


def in_use(folder: Path) -> bool:
    """Whether a process, this one included, is writing to the folder now. The lock of a killed one does not count."""
    from filelock import FileLock, Timeout

    path = folder / LOCK_FILE
    if path.is_symlink() or not path.exists():
        return False
    try:
        with FileLock(path).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False  # who wants to write there will be told why not


def busy(folder: Path) -> StoreError:
    return StoreError(
        "Another specbench is writing to this run folder",
        where=str(folder),
        hint="Wait for it, or choose another --out.",
    )


STAMP = "%Y%m%dT%H%M%SZ"
STAMPED = re.compile(r"\d{8}T\d{6}Z-")
NUMBERED = re.compile(r"@([1-9]\d{0,5})")

# A trial's line in trials.jsonl without its rounds and texts.
_TRIAL_BYTES = 600


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
            raise StoreError("The output path is not a folder", where=str(out), hint="Choose another --out.") from None
        except OSError as error:
            raise StoreError(
                f"Cannot make a run folder: {error.strerror}", where=str(folder), hint="Choose another --out."
            ) from None
        return folder


def require_disk(out: Path, trials: int, text_bytes: float | None) -> None:
    """Raise StoreError where the disk of `out` has less free than `trials` trials surely write; `text_bytes` is what
    each asks, None where texts are not kept. Rounds and output come on top: how many there will be is not known."""
    needed = trials * (_TRIAL_BYTES + (text_bytes or 0.0))
    try:
        folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
        free = shutil.disk_usage(folder).free
    except OSError:
        return  # who makes the folder says why not
    if needed > free:
        kept = text_bytes is not None
        raise StoreError(
            f"The run folder needs at least {gigabytes(needed)}, {gigabytes(free)} are free",
            where=f"{out}: {trials:,} trials{' with their texts' if kept else ''}",
            hint=f"Free some space, choose another --out, or use --limit{', without --keep-text' * kept}.",
        )


def _stamps(out: Path) -> Iterator[datetime]:
    """When the runs directly below `out` began, by their names."""
    for path in out.glob("*Z-*"):
        if STAMPED.match(path.name):
            with suppress(ValueError):  # digits that are no date
                yield datetime.strptime(path.name[:16], STAMP)


def find_runs(out: Path) -> list[Path]:
    """Run folders directly below `out`, newest first. Their names start with the UTC time; a folder renamed to anything
    else, such as a kept example, is found only when it is named. Raises StoreError where `out` cannot be looked at."""
    try:
        found = [path.parent for path in out.glob(f"*/{RUN_FILE}")] if out.is_dir() else []
    except OSError as error:
        raise StoreError(
            f"Cannot look for run folders: {error.strerror}", where=str(out), hint="Choose another --out."
        ) from None
    return sorted((f for f in found if STAMPED.match(f.name)), key=lambda folder: folder.name, reverse=True)


def find_run(named: Path, out: Path) -> Path:
    """The folder that a user names: its path, or `@1` for the newest below `out`, `@2` for the one before. Raises
    StoreError where there are not so many."""
    counted = NUMBERED.fullmatch(str(named))
    if counted is None or named.exists():
        return named
    runs, number = find_runs(out), int(counted[1])
    if number > len(runs):
        raise StoreError(f"No {named} among {count(len(runs), 'run')}", where=str(out), hint="See specbench runs.")
    return runs[number - 1]
