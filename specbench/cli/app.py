"""The program itself: how it fails, its own flags, and standard streams that somebody closed, or whose disk is full:
no measurement ends of that, and it is no bug of ours.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from specbench import __version__
from specbench.errors import SpecbenchError


class StdoutError(Exception):
    """Nothing more can be written to stdout."""

    def __init__(self, number: int | None) -> None:
        self.number = number
        super().__init__(number)


class Stream:
    def __init__(self, stream: TextIO, failed: Callable[[OSError], None]) -> None:
        self._stream = stream
        self._failed = failed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)


def _ends(error: OSError) -> None:
    """What cannot be written to stdout is the end of the command."""
    raise StdoutError(error.errno) from None


@contextmanager
def standard_streams() -> Iterator[None]:
    """Both, for a command. It ends with one line and exit code 1 where stdout takes nothing, and without a line where
    only its reader left."""
    out, err = sys.stdout, sys.stderr  # None where they were closed
    if out is not None:
        sys.stdout = Stream(out, _ends)
    if err is not None:
        # Whoever does not read progress and warnings does not want them.
        sys.stderr = Stream(err, lambda _: None)
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except StdoutError as error:
        if error.number != errno.EPIPE and sys.stderr is not None:
            print(f"specbench: cannot write to stdout: {os.strerror(error.number or errno.EIO)}", file=sys.stderr)
        _forget(1)
        sys.exit(1)
    finally:
        if err is not None:
            try:
                err.flush()
            except OSError:
                _forget(2)


def _forget(number: int) -> None:
    """The interpreter flushes a stream once more on its way out, and would say that it cannot."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)


class Group(TyperGroup):
    """Prints specbench's own errors as one line on stderr; a traceback is a bug of ours."""

    def invoke(self, ctx: Any) -> Any:
        try:
            if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # specbench/__main__.py; from here on it is caught
                signal.signal(signal.SIGINT, signal.default_int_handler)
            return super().invoke(ctx)
        except SpecbenchError as error:
            typer.echo(f"specbench: {error.line()}", err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            typer.echo(
                "specbench: interrupted. Run the same command again: a run continues where it stopped.", err=True
            )
            raise typer.Exit(130) from None
        except StdoutError:
            raise
        except Exception as error:
            # click's own errors know their exit code; anything else is a bug of ours
            if hasattr(error, "exit_code") or isinstance(error, typer.Abort) or os.environ.get("SPECBENCH_DEBUG"):
                raise
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}"
            hint = "What was finished is kept. SPECBENCH_DEBUG=1 shows the traceback; please report it."
            typer.echo(f"specbench: a bug of specbench or of a library: {place}. {hint}", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Should we turn speculative decoding on, on our traffic, with this draft? Measures, with intervals.",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"specbench {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass
