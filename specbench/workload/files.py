"""A file -> its rows, each with the place to name in errors. The extension decides the format."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import TypeAlias

from specbench.checks.fields import kind_of
from specbench.errors import WorkloadError
from specbench.workload.naming import list_names
from specbench.workload.text import LONGEST_LINE, text_lines

Row: TypeAlias = tuple[str, object]  # "line 12" or "row 12", and the parsed value

LARGEST_DOCUMENT = 256 << 20  # bytes of a .json file, which is held in memory whole


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a prompt file: dicts, or strings for plain text. JSONL, CSV, text and Parquet are streamed.

    Raises WorkloadError for a path that is not a readable, non-empty file of a known format.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise WorkloadError(
            "No such workload file", where=str(path), cure="Check the path; data sets of the hub are hub:ID."
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or "not a path"
        raise WorkloadError(
            f"cannot read the file: {reason}", where=str(path), cure="Check the path and its permissions."
        ) from None
    if S_ISDIR(status.st_mode):
        raise WorkloadError("the workload is a directory", where=str(path), cure="Name a file in it.")
    read = _reader(path)
    if not S_ISREG(status.st_mode):  # reading one may wait or go on for ever
        raise WorkloadError("the workload is a pipe or a device", where=str(path), cure="Write it to a file first.")
    if status.st_size == 0:
        raise WorkloadError("the workload file is empty", where=str(path), cure="Put at least one prompt in it.")
    return read(path)


def _reader(path: Path) -> Callable[[Path], Iterator[Row]]:
    packed = path.suffix.lower() == ".gz"
    suffix = Path(path.stem if packed else path.name).suffix.lower()
    read = _READERS.get(suffix)
    if read is None or (packed and suffix == ".parquet"):
        raise WorkloadError(
            f"unknown workload format {''.join(path.suffixes[-2:]) or '(no extension)'}",
            where=str(path),
            cure=f"Known extensions: {', '.join(_READERS)}; all but .parquet also with .gz.",
        )
    return read


def _parse_json(text: str, where: str, cure: str, *, name_line: bool = False) -> object:
    """json.loads whose every failure is a WorkloadError without the text. `name_line` adds the line number,
    for a text of many lines."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}" if name_line else f"column {error.colno}"
        what = f"not JSON: {error.msg.removesuffix(' at')} at {place}"
    except RecursionError:
        what = "the JSON is nested too deeply"
    except _TwiceError:
        what = "a key is there twice in one object"
    except ValueError:  # Python refuses integers of more than 4,300 digits
        what = "the JSON holds a number of too many digits"
    raise WorkloadError(what, where=where, cure=cure)


class _TwiceError(ValueError):
    """Python keeps the last of several equal keys; which one was meant is not ours to guess."""


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _TwiceError
    return found


def _jsonl_rows(path: Path) -> Iterator[Row]:
    cure = "One JSON object a line; a JSON document over several lines belongs in a .json file."
    for number, line in text_lines(path):
        if line.strip():
            yield f"line {number}", _parse_json(line, f"{path}, line {number}", cure)


def _json_rows(path: Path) -> Iterator[Row]:
    cure = "Mend the JSON, or use .jsonl for one object a line."
    lines = text_lines(path, longest=LARGEST_DOCUMENT, largest=LARGEST_DOCUMENT)
    text = "".join(line for _, line in lines)
    document = _parse_json(text, str(path), cure, name_line=True)
    name, rows = "", document
    if isinstance(document, dict):
        lists = [key for key, value in document.items() if isinstance(value, list)]
        if len(lists) != 1:
            raise WorkloadError(
                f"the JSON object holds {len(lists) or 'no'} lists, so which one is the rows? Its keys: "
                f"{list_names(document)}",
                where=str(path),
                cure='Give an array of rows, or an object with one list such as {"data": [...]}.',
            )
        name, rows = f" of {list_names(lists)}", document[lists[0]]
    if not isinstance(rows, list):
        raise WorkloadError(
            f"the JSON document is {kind_of(rows)}, not rows", where=str(path), cure="Give an array of rows."
        )
    for number, row in enumerate(rows, start=1):
        yield f"row {number}{name}", row


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
        _check_columns(header, f"{path}, line {reader.line_num}")
        while True:
            line = reader.line_num + 1  # where the row starts: a quoted cell may span lines
            cells = next(reader, None)
            if cells is None:
                return
            if cells:
                yield f"line {line}", _csv_row(header, cells, f"{path}, line {line}")
    except csv.Error as error:
        raise WorkloadError(
            f"not readable as CSV: {error}", where=f"{path}, line {line}", cure="Double the quotes inside quoted cells."
        ) from None
    finally:
        csv.field_size_limit(usual_limit)


def _check_columns(names: list[str], where: str) -> None:
    if len(set(names)) < len(names):
        raise WorkloadError(
            "two columns of the header share a name",
            where=where,
            cure="Name each column once; the first line of a CSV file is its header.",
        )


def _csv_row(header: list[str], cells: list[str], where: str) -> dict[str, str | None]:
    if len(cells) != len(header):
        raise WorkloadError(
            f"the row has {len(cells)} cells, the header {len(header)}",
            where=where,
            cure="Quote cells that hold commas or line breaks.",
        )
    # CSV cannot tell empty from absent; absent is None, as in the other formats.
    return {name: cell or None for name, cell in zip(header, cells, strict=True)}


def _tsv_rows(path: Path) -> Iterator[Row]:
    return _csv_rows(path, delimiter="\t")


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(file.schema_arrow.names, str(path))
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (arrow.ArrowException, OSError, ValueError, OverflowError):  # dates beyond Python's, not UTF-8
        raise WorkloadError(
            "not a Parquet file, or damaged or cut short",
            where=f"{path}, after row {number}" if number else str(path),
            cure="Copy or write it again.",
        ) from None


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
    ".txt": _text_rows,
    ".parquet": _parquet_rows,
}
