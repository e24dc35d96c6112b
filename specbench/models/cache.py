"""The user's cache: whole folders or nothing, and what the user is told while one is made.

A folder is made in a temporary sibling and renamed into place, under a lock that other processes wait for. It counts
only while its `complete.json` agrees with what lies beside it, so an interrupted or damaged copy is made again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from specbench.errors import ConfigError, ModelError
from specbench.validation import expanded

if TYPE_CHECKING:
    from rich.progress import Progress

MARKER = "complete.json"
_FORMAT = 1  # raise it when conversion changes, and older copies are made again
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def cache_root() -> Path:
    """`SPECBENCH_CACHE` where it is set, else the platform's user cache folder. It need not exist yet."""
    chosen = os.environ.get("SPECBENCH_CACHE")
    if chosen:
        return expanded(chosen, ConfigError).absolute()
    import platformdirs

    return platformdirs.user_cache_path("specbench")


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, in hex; 100 MB take about 0.1 s."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_complete(folder: Path, source_sha256: str) -> bool:
    """Whether `folder` was sealed as made from that source, and every file has the size it was sealed with."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in marker["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    expected = {"format": _FORMAT, "source_sha256": source_sha256, "files": sizes}
    return bool(sizes) and marker == expected


def seal(folder: Path, source_sha256: str) -> None:
    """Write the marker: the source's sha256, and the name and size of every file in `folder`.

    Everything is synced first, or a power cut could leave files of the right size and the wrong content.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        _sync(path)
    marker = {
        "format": _FORMAT,
        "source_sha256": source_sha256,
        "files": {path.name: path.stat().st_size for path in files},
    }
    (folder / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
    _sync(folder / MARKER)


@contextmanager
def scratch(beside: Path) -> Iterator[Path]:
    """An empty temporary folder next to `beside`, on the same disk, removed when the block ends, however it ends.

    The caller holds the lock: what a killed process left behind for the same `beside` is swept away first.
    """
    beside.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{beside.name}.tmp-"
    _sweep(beside.parent, prefix)
    try:
        yield Path(tempfile.mkdtemp(prefix=prefix, dir=beside.parent))
    finally:
        _sweep(beside.parent, prefix)


@contextmanager
def staging(final: Path) -> Iterator[Path]:
    """An empty folder in which `final` is made; it takes `final`'s place only if the block ends well."""
    with scratch(final) as temporary:
        made = temporary / "made"
        made.mkdir()
        yield made
        if final.exists():
            # A folder cannot be renamed over one that has files: the old one goes into the scratch folder first.
            final.rename(temporary / "old")
        made.rename(final)


@contextmanager
def exclusive(notice: Notice) -> Iterator[None]:
    """Hold the cache's lock. A process that finds it taken says so and waits; the system frees it if a holder dies."""
    from filelock import FileLock, Timeout

    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / "prepare.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        notice.step("waiting for another specbench that is preparing a model")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def require_space(needed_bytes: int, purpose: str) -> None:
    """Raise ModelError, with numbers, when the cache's disk has less than `needed_bytes` free."""
    if shutil.disk_usage(cache_root()).free < needed_bytes:
        raise _no_space(needed_bytes, purpose)


@contextmanager
def storage_errors(needed_bytes: int, purpose: str) -> Iterator[None]:
    """Turn a full disk or an unwritable cache inside the block into ModelError; other errors pass."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        # safetensors and tokenizers write from Rust, and raise their own errors with the number in the text only.
        if number in _NO_SPACE or f"os error {errno.ENOSPC}" in str(error):
            raise _no_space(needed_bytes, purpose) from error
        if number is None:
            raise
        raise ModelError(
            f"{purpose} needs the cache, which cannot be used: {os.strerror(number)}",
            where=str(cache_root()),
            hint="Make it writable, or set SPECBENCH_CACHE to a folder that is.",
        ) from error


def _no_space(needed_bytes: int, purpose: str) -> ModelError:
    what, root = f"no space left: {purpose} needs {needed_bytes / 1e6:.0f} MB", cache_root()
    with suppress(OSError):
        what += f", and {shutil.disk_usage(root).free / 1e6:.0f} MB are free"
    hint = "Free some space, or set SPECBENCH_CACHE to a folder on another disk."
    return ModelError(what, where=str(root), hint=hint)


def _sweep(parent: Path, prefix: str) -> None:
    for leftover in parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _sync(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


_LINE_EVERY_S = 10.0


class Notice:
    """Where progress is told: a moving `bar` on a terminal, which leaves nothing behind but the lines of `say`; for
    logs and pipes, where the bar is disabled, a line for each step, and one now and then while bytes arrive."""

    def __init__(self, title: str, bar: Progress) -> None:
        self._title, self._bar = title, bar
        self._task = bar.add_task(title, total=None, amount="")
        self._total: int | None = None
        self._told_at = time.monotonic()

    def step(self, text: str, total_bytes: int | None = None) -> None:
        self._total = total_bytes
        self._bar.reset(self._task, total=total_bytes, description=f"{self._title}: {text}", amount="")
        if self._bar.disable:
            self.say(text)

    def at(self, done_bytes: int) -> None:
        total = "" if self._total is None else f" of {self._total / 1e6:.0f}"
        amount = f"{done_bytes / 1e6:.0f}{total} MB"
        self._bar.update(self._task, completed=done_bytes, amount=amount)
        if self._bar.disable and time.monotonic() - self._told_at >= _LINE_EVERY_S:
            self.say(amount)

    def say(self, text: str) -> None:
        self._told_at = time.monotonic()
        # Paths hold brackets and digits, which rich would take for markup; a wrapped path cannot be copied.
        self._bar.console.print(f"{self._title}: {text}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def notices(title: str) -> Iterator[Notice]:
    """A `Notice` on the stderr of this moment, cleared from the screen at the end, however the block ends."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(file=sys.stderr)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        # Rich's own redirection would turn whatever a library prints on stderr into lines above the bar.
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not console.is_terminal,
    )
    # Where there is no terminal, leaving it prints an empty line in rich before 14.3.
    with bar if console.is_terminal else nullcontext():
        yield Notice(title, bar)
