"""What the user is told while a model is fetched and converted: a bar on a terminal, plain lines elsewhere.

All of it goes to stderr: stdout is the product.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_LINE_EVERY_S = 10.0


class Notice(Protocol):
    """Where progress is told."""

    def step(self, text: str, total_bytes: int | None = None) -> None:
        """Begin a step. Without a total the bar only shows that something goes on."""

    def at(self, done_bytes: int) -> None:
        """How far the present step is."""

    def say(self, text: str) -> None:
        """A line that stays on the screen."""


class LineNotice:
    """Plain lines, for logs and pipes: one for each step, and one now and then while bytes arrive."""

    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title = console, title
        self._total: int | None = None
        self._told_at = time.monotonic()

    def step(self, text: str, total_bytes: int | None = None) -> None:
        self._total = total_bytes
        self.say(text)

    def at(self, done_bytes: int) -> None:
        if time.monotonic() - self._told_at >= _LINE_EVERY_S:
            self.say(_amount(done_bytes, self._total))

    def say(self, text: str) -> None:
        self._told_at = time.monotonic()
        _print(self._console, f"{self._title}: {text}")


class BarNotice:
    """One moving bar, which leaves nothing behind but the lines of `say`."""

    def __init__(self, progress: Progress, title: str) -> None:
        self._progress, self._title = progress, title
        self._task = progress.add_task(title, total=None, amount="")
        self._total: int | None = None

    def step(self, text: str, total_bytes: int | None = None) -> None:
        self._total = total_bytes
        self._progress.reset(self._task, total=total_bytes, description=f"{self._title}: {text}", amount="")

    def at(self, done_bytes: int) -> None:
        self._progress.update(self._task, completed=done_bytes, amount=_amount(done_bytes, self._total))

    def say(self, text: str) -> None:
        _print(self._progress.console, f"{self._title}: {text}")


@contextmanager
def notices(title: str) -> Iterator[Notice]:
    """A `Notice` on the stderr of this moment, cleared from the screen at the end, however the block ends."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield LineNotice(console, title)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
    )
    # Rich's own redirection would turn whatever a library prints on stderr into lines above the bar.
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as progress:
        yield BarNotice(progress, title)


def _amount(done_bytes: int, total_bytes: int | None) -> str:
    total = "" if total_bytes is None else f" of {total_bytes / 1e6:.0f}"
    return f"{done_bytes / 1e6:.0f}{total} MB"


def _print(console: Console, text: str) -> None:
    # Paths hold brackets and digits, which rich would take for markup or colour; a wrapped path cannot be copied.
    console.print(text, markup=False, highlight=False, soft_wrap=True)
