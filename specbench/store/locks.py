"""One process writes a run folder at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from specbench.errors import StoreError
from specbench.store.files import unwritable

if TYPE_CHECKING:
    from filelock import BaseFileLock

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
    """Remove the lock's file and let it go."""
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
    """What is said of a folder to which another process writes."""
    return StoreError(
        "Another specbench is writing to this run folder",
        where=str(folder),
        hint="Wait for it, or choose another --out.",
    )
