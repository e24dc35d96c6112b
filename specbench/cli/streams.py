"""Standard streams that somebody closed, or whose disk is full: no measurement ends of it, and it is no bug of ours."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class StdoutError(Exception):
    """Nothing more can be written to stdout."""

    def __init__(self, number: int | None) -> None:
        self.number = number
        super().__init__(number)


class _Stream:
    """A stream that fails in its own way."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

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

    def _failed(self, error: OSError) -> None:
        raise NotImplementedError


class Quiet(_Stream):
    """stderr: whoever does not read progress and warnings does not want them."""

    def _failed(self, error: OSError) -> None:
        return


class Product(_Stream):
    """stdout: what cannot be written is the end of the command."""

    def _failed(self, error: OSError) -> None:
        raise StdoutError(error.errno) from None


@contextmanager
def standard_streams() -> Iterator[None]:
    """Both, for a command. It ends with one line and exit code 1 where stdout takes nothing, and without a line where
    only its reader left."""
    out, err = sys.stdout, sys.stderr  # None where they were closed
    if out is not None:
        sys.stdout = Product(out)
    if err is not None:
        sys.stderr = Quiet(err)
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
