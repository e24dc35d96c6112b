"""Files of a run folder on the disk: written whole or not at all, never through a link, failures in one line."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from io import FileIO
from pathlib import Path

from specbench.errors import StoreError


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
