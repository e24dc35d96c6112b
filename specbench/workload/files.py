"""A file -> its rows, each with the place to name in errors. The extension decides the format."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from specbench.errors import WorkloadError
from specbench.workload.arrow import arrow_rows, is_saved, parquet_rows, saved_rows
from specbench.workload.faults import MalformedRowError
from specbench.workload.naming import two_alike
from specbench.workload.parsing import Row, json_rows, jsonl_rows
from specbench.workload.text import LONGEST_LINE, PACKED, text_lines


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a prompt file, or of a folder that `datasets` saved (PATH or PATH@SPLIT): dicts, strings for plain text,
    and a MalformedRowError for a row that cannot be read. All formats are streamed.

    Raises WorkloadError for a path that is not a readable, non-empty file of a known format.
    """
    folder, _, split = str(path).rpartition("@")
    if folder and split and not path.exists() and is_saved(Path(folder)):
        return saved_rows(Path(folder), split)
    try:
        status = path.stat()
    except FileNotFoundError:
        raise WorkloadError(
            "No such workload file", where=str(path), hint="Check the path; data sets of the hub are hub:ID."
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or "not a path"
        raise WorkloadError(
            f"cannot read the file: {reason}", where=str(path), hint="Check the path and its permissions."
        ) from None
    if S_ISDIR(status.st_mode):
        if is_saved(path):
            return saved_rows(path, None)
        raise WorkloadError("the workload is a directory", where=str(path), hint="Name a file in it.")
    read = _reader(path)
    if not S_ISREG(status.st_mode):  # reading one may wait or go on for ever
        raise WorkloadError("the workload is a pipe or a device", where=str(path), hint="Write it to a file first.")
    if status.st_size == 0:
        raise WorkloadError("the workload file is empty", where=str(path), hint="Put at least one prompt in it.")
    return read(path)


def _reader(path: Path) -> Callable[[Path], Iterator[Row]]:
    packed = path.suffix.lower() in PACKED
    suffix = Path(path.stem if packed else path.name).suffix.lower()
    read = _READERS.get(suffix)
    if read is None or (packed and suffix in _BINARY):
        raise WorkloadError(
            f"unknown workload format {''.join(path.suffixes[-2:]) or '(no extension)'}",
            where=str(path),
            hint=f"Known extensions: {', '.join(_READERS)}; all but {' and '.join(_BINARY)} also with "
            f"{' or '.join(PACKED)}.",
        )
    return read


def _text_rows(path: Path) -> Iterator[Row]:
    for number, line in text_lines(path):
        if line.strip():
            yield f"line {number}", line.rstrip("\r\n")


def _csv_rows(path: Path, delimiter: str = ",") -> Iterator[Row]:
    # Not pandas: it would read "NA" as missing and "007" as 7, and hold the whole file.
    reader = csv.reader((line for _, line in text_lines(path)), delimiter=delimiter, strict=True)
    # The csv module's own limit of 128 KiB a cell is below a long-context prompt.
    usual_limit = csv.field_size_limit(LONGEST_LINE)
    line = 1
    try:
        header = next((cells for cells in reader if cells), [])
        two_alike(header, f"{path}, line {reader.line_num}")
        while True:
            line = reader.line_num + 1  # where the row starts: a quoted cell may span lines
            cells = next(reader, None)
            if cells is None:
                return
            if cells:
                yield f"line {line}", _csv_row(header, cells)
    except csv.Error as error:
        raise WorkloadError(
            f"not readable as CSV: {error}", where=f"{path}, line {line}", hint="Double the quotes inside quoted cells."
        ) from None
    finally:
        csv.field_size_limit(usual_limit)


def _csv_row(header: list[str], cells: list[str]) -> dict[str, str | None] | MalformedRowError:
    if len(cells) != len(header):
        return MalformedRowError(
            f"the row has {len(cells)} cells, the header {len(header)}",
            "Quote cells that hold commas or line breaks.",
        )
    # CSV cannot tell empty from absent; absent is None, as in the other formats.
    return {name: cell or None for name, cell in zip(header, cells, strict=True)}


def _tsv_rows(path: Path) -> Iterator[Row]:
    return _csv_rows(path, delimiter="\t")


_BINARY = (".parquet", ".arrow")
_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": jsonl_rows,
    ".ndjson": jsonl_rows,
    ".json": json_rows,
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
    ".txt": _text_rows,
    ".parquet": parquet_rows,
    ".arrow": arrow_rows,
}
