"""Files of one JSON object a line, as they are read from the disk."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from specbench.errors import StoreError
from specbench.validation import why_not

# Beyond anything that was ever written, and below what would take forever.
LONGEST_LINE = 64 << 20

Row = TypeVar("Row")


def read_lines(path: Path, parse: Callable[[bytes], Row]) -> tuple[list[Row], bool]:
    """Every line parsed, and whether the last one was torn and dropped: it has no line end, since a line is written
    with its end at once. Raises StoreError naming the line that cannot be read."""
    if not path.is_file():
        return [], False
    rows: list[Row] = []
    number = 0
    try:
        with path.open("rb") as file, uncollected():
            while line := file.readline(LONGEST_LINE):
                number += 1
                if not line.endswith(b"\n"):
                    if len(line) == LONGEST_LINE:
                        raise ValueError(f"longer than {LONGEST_LINE >> 20} MiB")
                    return rows, True
                if line.strip():
                    rows.append(parse(line))
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"Not a line that specbench wrote: {why_not(error)}",
            where=f"{path}, line {number}",
            cure="Remove that line: the same command then measures it again.",
        ) from None
    except OSError as error:
        raise StoreError(
            f"Cannot read the run folder: {error.strerror}", where=str(path), cure="Check the disk and its permissions."
        ) from None
    return rows, False


@contextmanager
def uncollected(*, last: bool = False) -> Iterator[None]:
    """Rows have no cycles, and a collector that looks at ten thousands of them again and again takes a third of the
    time. `last`: the process ends with this, so it need not look once more afterwards and at exit."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if last:
            gc.freeze()
        if was:
            gc.enable()
