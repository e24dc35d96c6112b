"""A source -> its rows, each with the place to name in errors: files, whose extension decides the format, folders that
`datasets` saved, and `hub:ID[:CONFIG][@SPLIT]`. Data sets that need code of their own are refused: `datasets` 4 dropped
that feature, and specbench does not bring it back.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

from specbench.errors import WorkloadError
from specbench.workload.faults import MalformedRowError, list_names
from specbench.workload.text import LONGEST_LINE, PACKED, Row, json_rows, jsonl_rows, text_lines

_BATCH = 1024  # rows in memory
_SPLITS = "dataset_dict.json"


def table_rows(batches: Iterable[Any]) -> Iterator[Row]:
    """Rows of Arrow tables or record batches, numbered from 1."""
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield f"row {number}", {key: _without_nulls(value) for key, value in row.items()}


def _without_nulls(value: object) -> object:
    """A column has one type, so an object has the keys of all others, as nulls: what was never there."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _require_unlike(columns: Sequence[str], where: str) -> None:
    """Raises WorkloadError where a table has two columns of one name."""
    if len(set(columns)) < len(columns):
        raise WorkloadError(
            "two columns of the header share a name",
            where=where,
            hint="Name each column once; the first line of a CSV file is its header.",
        )


def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        _require_unlike(file.schema_arrow.names, str(path))
        yield from file.iter_batches(batch_size=_BATCH)


def _arrow(path: Path) -> Iterator[Any]:
    """Both forms of a .arrow file: with an index at its end, and as a stream."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        whole = file.read(6) == b"ARROW1"
        file.seek(0)
        with pa.ipc.open_file(file) if whole else pa.ipc.open_stream(file) as reader:
            _require_unlike(reader.schema.names, str(path))
            for batch in (reader.get_batch(n) for n in range(reader.num_record_batches)) if whole else reader:
                yield from (batch.slice(at, _BATCH) for at in range(0, batch.num_rows, _BATCH))


def _saved(folder: Path) -> Iterator[Any]:
    import datasets

    # The Arrow form leaves images and audio undecoded: only text is wanted.
    yield from datasets.load_from_disk(str(folder)).with_format("arrow").iter(batch_size=_BATCH)


def is_saved(folder: Path) -> bool:
    names = ("state.json", "dataset_info.json")
    return all((folder / name).is_file() for name in names) or (folder / _SPLITS).is_file()


def saved_rows(folder: Path, split: str | None) -> Iterator[Row]:
    """Rows of a folder that `save_to_disk` wrote. Of several splits one is named: PATH@SPLIT."""
    if (folder / _SPLITS).is_file():
        folder = folder / _split_of(folder, split)
    elif split is not None:
        raise WorkloadError("the saved data set has no splits", where=str(folder), hint="Leave out what follows the @.")
    return _sound(_saved(folder), folder, "a folder of datasets.save_to_disk")


def _split_of(folder: Path, split: str | None) -> str:
    try:
        names = json.loads((folder / _SPLITS).read_bytes())["splits"]
        named: list[str] = [name for name in names if list_names([name]) == name]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        named = []
    if not named:
        raise WorkloadError(f"{_SPLITS} names no splits", where=str(folder), hint="Save the data set again.")
    if split is None and len(named) == 1:
        return named[0]
    if split is None or split not in named:
        what = "the saved data set has several splits" if split is None else "no such split; it has"
        raise WorkloadError(f"{what}: {', '.join(named)}", where=str(folder), hint=f"Name one: {folder}@{named[0]}.")
    return split


def _sound(batches: Iterator[Any], path: Path, kind: str) -> Iterator[Row]:
    """The rows; what a library says of a damaged file may quote it, and is not passed on."""
    import pyarrow as pa

    place = str(path)
    try:
        for where, row in table_rows(batches):
            yield where, row
            place = f"{path}, after {where}"
    except (pa.ArrowException, OSError, ValueError, OverflowError, TypeError, KeyError, AttributeError):
        # Among them dates beyond Python's, text that is not UTF-8, and metadata that is not the library's.
        raise WorkloadError(
            f"not {kind}, or damaged or cut short", where=place, hint="Copy or write it again."
        ) from None


PREFIX = "hub:"

# The id is held to the hub's alphabet so that it cannot be a path.
_SOURCE = re.compile(r"hub:(?P<id>\w[\w.\-]*(/\w[\w.\-]*)?)(:(?P<config>[^:@]+))?(@(?P<split>.+))?", re.ASCII)

# What `datasets` says when the name of a configuration or a split is wrong; these list the names to choose from.
_CHOICE = re.compile(r"Config name is missing|BuilderConfig .* not found|Unknown split|Bad split", re.DOTALL)


def read_hub(source: str) -> Iterator[tuple[str, object]]:
    """Rows of a hub data set as ("row 12", dict). Without a split, a data set of one split is read.

    Raises WorkloadError for a malformed source, no network, and unknown names.
    """
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise WorkloadError(
            "not a hub source", where=source, hint="Write hub:ID, hub:ID:CONFIG or hub:ID:CONFIG@SPLIT."
        )
    import datasets

    name, config, split = match["id"], match["config"], match["split"]
    try:
        splits = [split] if split else datasets.get_dataset_split_names(name, config)
        table = datasets.load_dataset(name, config, split=splits[0]) if len(splits) == 1 else None
    except Exception as error:
        raise _explained(error, source) from None
    if table is None:
        raise WorkloadError(
            f"the data set has several splits: {', '.join(splits)}",
            where=source,
            hint=f"Name one: {source}@{splits[0] if splits else 'SPLIT'}.",
        )
    yield from table_rows(table.with_format("arrow").iter(batch_size=_BATCH))


def _explained(error: Exception, source: str) -> WorkloadError:
    """The library's error in one line. Only messages known to hold names alone are passed on: others may quote
    the data."""
    what = f"the data set could not be loaded ({type(error).__name__})"
    hint = "Try datasets.load_dataset in Python for the details, or download it and give the file."
    if isinstance(error, FileNotFoundError):
        what = "no such data set on the hub, or it is private or gated"
        hint = "Check the id; log in with `hf auth login` if it is gated."
    elif isinstance(error, ConnectionError) or "offline" in type(error).__name__.lower():
        what = "the hub cannot be reached"
        hint = "Check the network and HF_HUB_OFFLINE, or download the data set and give the file."
    elif isinstance(error, ValueError) and _CHOICE.match(str(error)):
        what, hint = str(error), "Write hub:ID:CONFIG@SPLIT with names that exist."
    return WorkloadError(what, where=source, hint=hint)


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


def format_of(path: Path) -> str:
    """The extension, without that of packing."""
    packed = path.suffix.lower() in PACKED
    return Path(path.stem if packed else path.name).suffix.lower()


def _reader(path: Path) -> Callable[[Path], Iterator[Row]]:
    suffix = format_of(path)
    read = READERS.get(suffix)
    if read is None or (suffix in _BINARY and path.suffix.lower() in PACKED):
        raise WorkloadError(
            f"unknown workload format {''.join(path.suffixes[-2:]) or '(no extension)'}",
            where=str(path),
            hint=f"Known extensions: {', '.join(READERS)}; all but {' and '.join(_BINARY)} also with "
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
        where = f"{path}, line {reader.line_num}"
        if len(header) == 1 and (
            other := next((one for one in _DELIMITERS if one != delimiter and one in header[0]), None)
        ):
            raise WorkloadError(
                f"the header has one column and holds {_DELIMITERS[other]}",
                where=where,
                hint="Save it as .csv with commas, or as .tsv with tabs.",
            )
        _require_unlike([name for name in header if name], where)
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
    named = list(map(bool, header))
    # In front is a data frame's index; elsewhere a cell may be what follows a comma of a prompt.
    first = named.index(True) if any(named) else len(named)
    if any(cell and not name for name, cell in zip(header[first:], cells[first:], strict=True)):
        return MalformedRowError("a cell stands under a column without a name", "Name the column, or quote the cells.")
    # CSV cannot tell empty from absent; absent is None, as in the other formats.
    return {name: cell or None for name, cell in zip(header, cells, strict=True) if name}


_DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
_BINARY = (".parquet", ".arrow")
READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": jsonl_rows,
    ".ndjson": jsonl_rows,
    ".json": json_rows,
    ".csv": _csv_rows,
    ".tsv": partial(_csv_rows, delimiter="\t"),
    ".txt": _text_rows,
    ".parquet": lambda path: _sound(_parquet(path), path, "a Parquet file"),
    ".arrow": lambda path: _sound(_arrow(path), path, "an Arrow file"),
}
